# What onesignal_app says is true when the worker has left: totals, although somebody had the row locked; the pace,
# from which the next worker starts; a pause, which nobody's change of a key ends.

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
my $node = Workers::start('main', conf => "log_statement = none\nonesignal_cancel.worker_idle_timeout = '100ms'\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;

sub request { my ($count) = @_; $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$app', true FROM generate_series(1, $count)") }
sub all_canceled { return $node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled'", '0') }

request(5);
ok(all_canceled(), 'some are delivered');
is($node->safe_psql('postgres', 'SELECT canceled_total FROM onesignal_app'), '5', 'and counted');

my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; SELECT FROM onesignal_app FOR UPDATE');
request(7);
ok(all_canceled(), 'a locked row of onesignal_app keeps nothing from being delivered');
$locker->query_safe('COMMIT');
$locker->quit;
ok(Workers::wait_for_no_worker($node), 'the worker leaves when that is counted');
is($node->safe_psql('postgres', 'SELECT canceled_total FROM onesignal_app'), '12', 'as it is by then');

# It grows only while it holds deliveries back; the next worker starts from there.
request(600);
ok(all_canceled(), 'a pace that holds back');
Workers::wait_for_no_worker($node);
my $pace = $node->safe_psql('postgres', 'SELECT pace FROM onesignal_app');
cmp_ok($pace, '>', 100, 'has grown');
request(1);
ok(all_canceled(), 'the next worker');
Workers::wait_for_no_worker($node);
is($node->safe_psql('postgres', 'SELECT pace FROM onesignal_app'), $pace, 'starts from it');
$node->safe_psql('postgres', "UPDATE onesignal_app SET pace_at = now() - interval '11 min'");
request(1);
ok(all_canceled(), 'ten minutes later');
Workers::wait_for_no_worker($node);
is($node->safe_psql('postgres', 'SELECT pace FROM onesignal_app'), '100', 'it starts anew');

# A 429 asks for a minute. A role's own mapping concerns its own lane.
$node->safe_psql('postgres', "CREATE ROLE nurse; GRANT USAGE ON FOREIGN SERVER clinic TO nurse; CREATE USER MAPPING FOR nurse SERVER clinic OPTIONS (api_key '" . $api->api_key . "')");
$api->fault(status => 429, headers => { 'Retry-After' => 3600 }, times => 1);
request(1);
ok($node->poll_query_until('postgres', "SELECT circuit_until > now() + interval '50 min' FROM onesignal_app"), 'a 429 pauses the app');
request(10);
my $sent = $api->received;
$node->safe_psql('postgres', "ALTER USER MAPPING FOR nurse SERVER clinic OPTIONS (SET api_key 'os_v2_app_other')");
$node->safe_psql('postgres', "ALTER USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (SET api_key '" . $api->api_key . "')");
my $healthy = $api->add_app(accept_any => 1);
my $id = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
$node->safe_psql('postgres', $api->setup_sql('healthy', app => $healthy->{app_id}, key => $healthy->{api_key})
      . "INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES ('$id', '$healthy->{app_id}', true)");
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'after a key was changed, another app is delivered');
is($api->received, $sent + 1, 'and nothing of the paused one');
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled' AND http_status IS DISTINCT FROM 429", '0'), 'resume ends the pause, but for the message whose answer asked for an hour');
$node->stop;
done_testing();
