# Pending rows come from another server, which has sent them and whose record of that is missing: by a dump, by logical
# replication, by a failover. A refusal of such a row is checked, although this server began before the request.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

# OneSignal refuses to cancel a message twice.
my $api = StandIn->new(accept_any => 1);
$api->repeat_status(400);
my $app = $api->app_id;

sub sent_before
{
    my ($node) = @_;
    my $id = $api->schedule;
    $node->safe_psql('postgres', "SELECT status FROM onesignal_cancel('$app', '$id')");
    return $id;
}

# ---- logical replication: the subscriber is switched on when the publisher is gone ----

my $node = Workers::start('subscriber', preload => 1);
Workers::add_app($node, 'postgres', $api);
my $replicated = sent_before($node);
Workers::set($node, 'onesignal_cancel.enabled', 'off');
$node->safe_psql('postgres', "SET session_replication_role = replica; INSERT INTO onesignal_message
    (message_id, app_id, cancel, state, requested_by, requested_at, next_attempt_at)
    VALUES ('$replicated', '$app', true, 'pending', current_user, now(), now())");
Workers::wait_for_no_worker($node);
Workers::set($node, 'onesignal_cancel.enabled', 'on');
ok($node->poll_query_until('postgres', "SELECT state <> 'pending' FROM onesignal_message WHERE message_id = '$replicated'"), 'a replicated row is delivered');
is(Workers::state($node, 'postgres', $replicated), 'canceled', 'and canceled, as it was');

# ---- a dump ----

my $dumped = sent_before($node);
Workers::wait_for_no_worker($node);
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel, state, requested_by, requested_at)
    VALUES ('$dumped', '$app', true, 'pending', current_user, clock_timestamp())");
ok($node->poll_query_until('postgres', "SELECT state <> 'pending' FROM onesignal_message WHERE message_id = '$dumped'"), 'a restored row is delivered');
is(Workers::state($node, 'postgres', $dumped), 'canceled', 'and canceled, as it was');

# ---- a dump of the data alone, with --disable-triggers ----

my $alone = sent_before($node);
Workers::wait_for_no_worker($node);
$node->safe_psql('postgres', "BEGIN; ALTER TABLE onesignal_message DISABLE TRIGGER ALL;
    INSERT INTO onesignal_message (message_id, app_id, cancel, state, requested_by, requested_at, next_attempt_at)
    VALUES ('$alone', '$app', true, 'pending', current_user, clock_timestamp(), now());
    ALTER TABLE onesignal_message ENABLE TRIGGER ALL; COMMIT");
ok($node->poll_query_until('postgres', "SELECT state <> 'pending' FROM onesignal_message WHERE message_id = '$alone'"), 'a row restored without triggers is delivered');
is(Workers::state($node, 'postgres', $alone), 'canceled', 'and canceled, as it was');
$node->stop;

# ---- failover without preload, to a standby whose status somebody watches ----

my $primary = Workers::start('primary', init => { allows_streaming => 1 }, conf => "onesignal_cancel.background_delivery = off\n");
Workers::add_app($primary, 'postgres', $api);
$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby);
$standby->safe_psql('postgres', 'SELECT * FROM onesignal_cancel_status');
my $failed_over = sent_before($primary);
Workers::request($primary, 'postgres', $api, $failed_over);
$primary->wait_for_catchup($standby);
$primary->stop('immediate');
$standby->promote;
$standby->safe_psql('postgres', 'CALL onesignal_cancel_deliver()');
is(Workers::state($standby, 'postgres', $failed_over), 'canceled', 'after a failover it is canceled, as it was');
$standby->stop;
done_testing();
