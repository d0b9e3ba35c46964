# A pending request whose requester can no longer cancel is adopted by the next role that asks for it: it is
# delivered at once, with that role's key, and with a retry_window of its own.

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
my $node = Workers::start('main', conf => "log_statement = none\nonesignal_cancel.retry_window = '1h'\nonesignal_cancel.worker_idle_timeout = 0\n");
my $app = $api->app_id;
my $can = 'GRANT USAGE ON FOREIGN SERVER clinic TO %1$s; GRANT SELECT, INSERT, UPDATE ON onesignal_message TO %1$s;';
$node->safe_psql('postgres', 'CREATE EXTENSION onesignal_cancel; CREATE ROLE nurse; '
      . $api->setup_sql('clinic', user => 'nurse', server_options => { rate_limit => 0 }) . sprintf($can, 'nurse'));

sub ids { return map { $node->safe_psql('postgres', 'SELECT gen_random_uuid()') } 1 .. $_[0] }
sub as { my ($role, $sql) = @_; return $node->safe_psql('postgres', "SET ROLE $role; $sql") }
sub requester { return $node->safe_psql('postgres', "SELECT requested_by FROM onesignal_message WHERE message_id = '$_[0]'") }

my %lost = (
    'dropped' => 'DROP OWNED BY leaver; DROP ROLE leaver',
    'renamed' => 'ALTER ROLE leaver RENAME TO left_1',
    'without USAGE' => 'REVOKE USAGE ON FOREIGN SERVER clinic FROM leaver',
    'without a mapping' => 'DROP USER MAPPING FOR leaver SERVER clinic');
for my $how (sort keys %lost)
{
    my ($updated, $enqueued, $left) = ids(3);
    $node->safe_psql('postgres', 'CREATE ROLE leaver; CREATE USER MAPPING FOR leaver SERVER clinic OPTIONS (api_key \'wrong\');' . sprintf($can, 'leaver'));
    # Requested and never delivered, long ago.  A worker that is still there would deliver it.
    Workers::wait_for_no_worker($node);
    $node->safe_psql('postgres', "SET onesignal_cancel.background_delivery = off; SET ROLE leaver; " . Workers::insert_sql($api, $updated, $enqueued, $left));
    $node->safe_psql('postgres', "SET session_replication_role = replica; UPDATE onesignal_message SET requested_at = now() - interval '10 days', next_attempt_at = 'infinity' WHERE requested_by = 'leaver'");
    $node->safe_psql('postgres', $lost{$how});

    as('nurse', "UPDATE onesignal_message SET reason = 'looked at' WHERE message_id = '$left'");
    as('nurse', "UPDATE onesignal_message SET cancel = true WHERE message_id = '$updated'");
    as('nurse', "SELECT onesignal_cancel_enqueue('$app', '$enqueued')");
    ok(Workers::wait_for($node, 'postgres', [ $updated, $enqueued ], 'canceled'), "$how: what another role asks for is delivered");
    is(requester($updated) . ' ' . requester($enqueued), 'nurse nurse', "$how: as that role's request");
    is($api->received(message => $updated) . $api->received(message => $enqueued), '11', "$how: once");
    is(requester($left), 'leaver', "$how: what is not asked for stays as it is");
    $node->safe_psql('postgres', "DELETE FROM onesignal_message WHERE message_id = '$left'");
    $node->safe_psql('postgres', "DO \$\$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'leaver') THEN DROP OWNED BY leaver; DROP ROLE leaver; END IF; END \$\$");
}

Workers::wait_for_no_worker($node);
# A million rows in one statement would ask for each: what is shared is found out once.
$node->safe_psql('postgres', 'CREATE ROLE leaver; GRANT SELECT, INSERT, UPDATE ON onesignal_message TO leaver; GRANT USAGE ON FOREIGN SERVER clinic TO leaver;'
      . "CREATE USER MAPPING FOR leaver SERVER clinic OPTIONS (api_key 'wrong')");
$node->safe_psql('postgres', "SET onesignal_cancel.background_delivery = off; SET ROLE leaver;
    INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$app', true FROM generate_series(1, 20000)");
$node->safe_psql('postgres', 'DROP OWNED BY leaver; DROP ROLE leaver');
as('nurse', "UPDATE onesignal_message SET cancel = true WHERE state = 'pending'");
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM onesignal_message WHERE state <> 'canceled' OR requested_by <> 'nurse'"),
    'twenty thousand in one statement');
$node->stop;
done_testing();
