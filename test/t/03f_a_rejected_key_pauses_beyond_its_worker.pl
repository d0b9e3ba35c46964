# A key that OneSignal rejects pauses its lane for a minute, also when the worker that was told so has left: whoever
# comes after it does not probe sooner, and the status goes on saying why. A resume is tried at once.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(sleep time);
use Workers;

my $api = StandIn->new;
my $node = Workers::start('main', preload => 1, conf => "log_statement = none\nonesignal_cancel.worker_idle_timeout = 0\n");
Workers::add_app($node, 'postgres', $api);
my $healthy = $api->add_app(accept_any => 1);
$node->safe_psql('postgres', $api->setup_sql('healthy', app => $healthy->{app_id}, key => $healthy->{api_key})
      . "ALTER USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (SET api_key 'os_v2_app_wrong')");
my $app = $api->app_id;
my @ids = map { $api->schedule } 1 .. 5;
my $status = "SELECT delivery, paused_reason FROM onesignal_cancel_status WHERE app_id = '$app'";
my $paused = qr/^paused\|OneSignal rejected the API key \(HTTP 40[13]\)$/;

# As SQL cannot, but the worker can: when the rows are tried again
sub next_attempt
{
    my ($at) = @_;
    $node->safe_psql('postgres', "SET session_replication_role = replica; UPDATE onesignal_message SET next_attempt_at = $at WHERE app_id = '$app'");
}

sub rejected { return scalar $api->requests(app_id => $app, method => 'DELETE') }

Workers::request($node, 'postgres', $api, @ids);
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE http_status IN (401, 403)", '5'), 'the key is rejected');
like($node->safe_psql('postgres', $status), $paused, 'the status says so');
ok(Workers::wait_for_no_worker($node), 'and the worker leaves');
my $first = time;
my $before = rejected();
next_attempt('now()');
for my $worker (1 .. 3)
{
    my $id = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
    $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES ('$id', '$healthy->{app_id}', true)");
    ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), "worker $worker: another app is delivered");
    ok(Workers::wait_for_no_worker($node), 'and it leaves');
    # However slow the machine is: a probe a minute.
    my $probes = rejected() - $before;
    cmp_ok($probes, '<=', (time - $first) / 59, 'it has not probed sooner');
    like($node->safe_psql('postgres', $status), $paused, 'the status still says why') if !$probes;
}

next_attempt("now() + interval '1 h'");
$before = rejected();
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
my $until = time + $PostgreSQL::Test::Utils::timeout_default;
sleep 0.05 while rejected() == $before && time < $until;
cmp_ok(rejected(), '>', $before, 'a resume is tried at once');
$node->safe_psql('postgres', "ALTER USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (SET api_key '$api->{keys}{$app}'); SELECT onesignal_cancel_resume('$app')");
ok(Workers::wait_for($node, 'postgres', \@ids, 'canceled'), 'and with the right key all are canceled');
$node->stop;
done_testing();
