# onesignal_cancel_pause() holds until it is over or resumed, whoever delivers; pending rows stay pending,
# direct calls are not concerned.

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
my $node = Workers::start('main', preload => 1, conf => "log_statement = none\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
my $other = $api->add_app(accept_any => 1);
$node->safe_psql('postgres', $api->setup_sql('other', app => $other->{app_id}, key => $other->{api_key}));
my @ids = map { $node->safe_psql('postgres', 'SELECT gen_random_uuid()') } 1 .. 4;

$node->safe_psql('postgres', "SELECT onesignal_cancel_pause('$app', reason => 'campaign')");
Workers::request($node, 'postgres', $api, $ids[0]);
is($node->safe_psql('postgres', "SELECT paused_until, paused_reason, pending FROM onesignal_cancel_status WHERE app_id = '$app'"), 'infinity|campaign|1', 'the status says so');
ok(Workers::wait_for_no_worker($node), 'a worker has nothing to wait for');
is($node->safe_psql('postgres', "SELECT success FROM onesignal_cancel('$app', '$ids[1]')"), 't', 'a direct call is not concerned');
# What another app has pending shows that the worker has looked.
$node->safe_psql('postgres', "SET onesignal_cancel.background_delivery = off; INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES ('$ids[3]', '$other->{app_id}', true)");
$node->restart;
ok(Workers::wait_for($node, 'postgres', $ids[3], 'canceled'), 'a restart delivers what another app has');
ok(Workers::wait_for_no_worker($node), 'and the worker leaves');
$node->safe_psql('postgres', 'CALL onesignal_cancel_deliver()');
is(Workers::state($node, 'postgres', $ids[0]), 'pending', 'restart and CALL change nothing');
is($api->received(message => $ids[0]), 0, 'nothing is sent');
$node->safe_psql('postgres', "BEGIN; SELECT onesignal_cancel_resume('$app'); ROLLBACK");
is($node->safe_psql('postgres', "SELECT paused_until FROM onesignal_app WHERE app_id = '$app'"), 'infinity', 'a resume that is rolled back is none');
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
ok(Workers::wait_for($node, 'postgres', $ids[0], 'canceled'), 'resume delivers what waits');

# One that ends by itself, with nobody there who waits for it but the launcher.
$node->safe_psql('postgres', "SELECT onesignal_cancel_pause('$app', now() + interval '8 s')");
my $until = $node->safe_psql('postgres', "SELECT extract(epoch FROM paused_until) FROM onesignal_app WHERE app_id = '$app'");
Workers::request($node, 'postgres', $api, $ids[2]);
ok(Workers::wait_for($node, 'postgres', $ids[2], 'canceled'), 'a pause with an end ends');
my ($request) = $api->requests(method => 'DELETE', message_id => $ids[2]);
cmp_ok($request->{time}, '>=', $until - 0.01, 'and not before');
$node->stop;
done_testing();
