# A 429 pauses the whole app for as long as it asks, costs no message its chance, and makes delivery slower.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main');
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;

$api->fault(status => 429, headers => { 'Retry-After' => 5 }, body => '{"errors":["API rate limit exceeded"]}', times => 1);
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$app', true FROM generate_series(1, 300)");
ok($node->poll_query_until('postgres', "SELECT circuit_reason ~ '429' FROM onesignal_app"), 'a 429 pauses the app');
like($node->safe_psql('postgres', 'SELECT circuit_reason FROM onesignal_app'), qr/Retry-After 5 s/, 'and the reason says for how long');
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled'", '0'), 'everything is delivered after it');

my @requests = $api->requests(method => 'DELETE');
my ($throttled) = grep { $_->{status} == 429 } @requests;
# What was on the wire when the answer came is not to be taken back; a round trip on loopback is far below this.
my @early = grep { $_->{arrived} > $throttled->{time} + 1 && $_->{arrived} < $throttled->{time} + 4.9 } @requests;
is(scalar(@early), 0, 'nothing was sent while the app was paused');
is($node->safe_psql('postgres', 'SELECT max(attempts) <= 2 FROM onesignal_message'), 't', 'no row was tried more often for it');
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE attempts = 2"), '1', 'but the one that it concerned');

# The same over a restart of the deliverer: the pause is in the table.
Workers::wait_for_no_worker($node);
$api->fault(status => 429, headers => { 'Retry-After' => 6 }, times => 1);
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$app', true FROM generate_series(1, 50)");
ok($node->poll_query_until('postgres', "SELECT circuit_until > now() + interval '1 s' FROM onesignal_app"), 'paused once more');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker'");
Workers::wait_for_no_worker($node);
my $until = $node->safe_psql('postgres', 'SELECT extract(epoch FROM circuit_until) FROM onesignal_app');
my $before = scalar($api->requests(method => 'DELETE'));
my $id = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
Workers::request($node, 'postgres', $api, $id);
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'the next deliverer delivers');
@requests = $api->requests(method => 'DELETE');
cmp_ok($requests[$before]{arrived}, '>', $until - 0.5, 'not before the pause is over');
Workers::wait_for_no_worker($node);

# Requests that waited for a stream when the 429 came, and are answered well, do not end the pause. There are 8
# streams, one a connection, and so most of the 40 wait.
Workers::set($node, 'onesignal_cancel.max_in_flight', 40);
my $narrow = StandIn->new(accept_any => 1, http2_max_concurrent_streams => 1);
$app = $narrow->app_id;
$node->safe_psql('postgres', $narrow->setup_sql('narrow', server_options => { rate_limit => 0 }));
my $XMIN = "SELECT xmin FROM onesignal_app WHERE app_id = '" . $api->app_id . "'";
my $xmin = $node->safe_psql('postgres', $XMIN);
$narrow->fault(status => 429, headers => { 'Retry-After' => 4 }, times => 1);
$narrow->fault(delay => 50);
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$app', true FROM generate_series(1, 150)");
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled'", '0'), 'delivered over few streams, too');
@requests = $narrow->requests(method => 'DELETE');
($throttled) = grep { $_->{status} == 429 } @requests;
@early = grep { $_->{arrived} > $throttled->{time} && $_->{arrived} < $throttled->{time} + 3.9 } @requests;
cmp_ok(scalar(@early), '<=', 40, 'what had been handed over before the pause is all that is sent in it');
is($node->safe_psql('postgres', $XMIN), $xmin, 'of an app with nothing pending nothing is written');
$node->stop;
done_testing();
