# A pending row never stays for ever: when retry_window has passed and it can still not be attempted, it is failed,
# with the reason; no worker stays for it.

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
$node->safe_psql('postgres', <<SQL);
CREATE ROLE gone;
CREATE ROLE nurse;
GRANT USAGE ON FOREIGN SERVER clinic TO gone, nurse;
GRANT SELECT, INSERT, UPDATE ON onesignal_message TO gone, nurse;
SQL

sub request_as
{
    my ($role, $send_after) = @_;
    my $id = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
    $node->safe_psql('postgres', "SET ROLE $role; INSERT INTO onesignal_message (message_id, app_id, send_after, cancel) VALUES ('$id', '$app', $send_after, true)");
    return $id;
}

# Nothing is delivered until there is no way to deliver it.
Workers::set($node, 'onesignal_cancel.background_delivery', 'off');
my $row = request_as('gone', 'NULL');
my $ahead = request_as('gone', "now() + interval '1 hour'");
$node->safe_psql('postgres', 'REVOKE ALL ON onesignal_message FROM gone; REVOKE USAGE ON FOREIGN SERVER clinic FROM gone; DROP ROLE gone');
Workers::set($node, 'onesignal_cancel.background_delivery', 'on');

my $id = request_as('nurse', 'NULL');
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'others are delivered');
ok($node->poll_query_until('postgres', "SELECT paused_role = 'gone' AND paused_reason ~ 'does not exist' FROM onesignal_cancel_status"), 'the status says what is missing');
ok(Workers::wait_for_no_worker($node), 'no worker stays for what nobody can deliver');
is(Workers::state($node, 'postgres', $row), 'pending', 'it is pending');

Workers::set($node, 'onesignal_cancel.retry_window', "'1s'");
$node->poll_query_until('postgres', "SELECT clock_timestamp() > requested_at + interval '2 s' FROM onesignal_message WHERE message_id = '$row'");
$id = request_as('nurse', 'NULL');
ok(Workers::wait_for($node, 'postgres', $row, 'failed'), 'when its time is over, it is failed');
like($node->safe_psql('postgres', "SELECT errors FROM onesignal_message WHERE message_id = '$row'"), qr/role \\"gone\\" does not exist/, 'the row says why');
is($node->safe_psql('postgres', "SELECT finished_at IS NOT NULL, attempts FROM onesignal_message WHERE message_id = '$row'"), 't|0', 'and that it never was attempted');
is(Workers::state($node, 'postgres', $ahead), 'pending', 'one that is sent later has time');
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'others are delivered beside it');
is($node->safe_psql('postgres', 'SELECT failed_total FROM onesignal_app'), '1', 'it is counted');
is($api->received(message => $row), 0, 'and was never sent');

# It might have been: what is given up may be on the wire, and its answer is dropped.
$node->safe_psql('postgres', "UPDATE onesignal_message SET cancel = true WHERE message_id = '$row'");
ok(Workers::wait_for($node, 'postgres', $row, 'canceled'), 'requested again by somebody who may, it is delivered');
is($node->safe_psql('postgres', "SELECT unanswered FROM onesignal_message WHERE message_id = '$row'"), 't', 'and a refusal would have been checked');

# What comes back after days of a pause, or of a server that was down, is not given up because the first requests are
# rejected: that has not lasted an hour. One was tried before; it alone has had its time.
Workers::set($node, 'onesignal_cancel.retry_window', "'1d'");
$node->safe_psql('postgres', <<SQL);
SELECT onesignal_cancel_pause('$app');
INSERT INTO onesignal_message (message_id, app_id, cancel, state, requested_by, requested_at, next_attempt_at, first_attempt_at)
    SELECT gen_random_uuid(), '$app', true, 'pending', current_user, now() - interval '2 d', now(), CASE WHEN i = 1 THEN now() - interval '2 d' END
    FROM generate_series(1, 10) i;
SQL
$api->set_key('os_v2_app_another');
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
my $these = "FROM onesignal_message WHERE requested_by = current_user AND requested_at < now() - interval '1 d'";
ok($node->poll_query_until('postgres', "SELECT clock_timestamp() > max(last_attempt_at) + interval '5 s' $these"), 'the key is rejected, and looked for again');
is($node->safe_psql('postgres', "SELECT count(*) $these AND state = 'pending' AND first_attempt_at IS DISTINCT FROM requested_at"), '9', 'what was paused is not given up');
$node->stop;
done_testing();
