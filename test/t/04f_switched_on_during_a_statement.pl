# Delivery is switched on while a long statement requests a cancel. The session learns of it only after the commit, and
# the launcher has looked before: the commit itself has to start the worker.

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
my $node = Workers::start('main', preload => 1, conf => "onesignal_cancel.enabled = off\n");
Workers::add_app($node, 'postgres', $api);
my $id = $api->schedule;
my $session = $node->background_psql('postgres');
my $lock = $node->background_psql('postgres');
$lock->query_safe('SELECT pg_advisory_lock(1)');
my $app = $api->app_id;
$session->query_until(qr/begun/, <<SQL);
\\echo begun
WITH request AS (INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES ('$id', '$app', true) RETURNING message_id)
SELECT pg_advisory_xact_lock(1) FROM request;
SQL
ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted", '1'), 'a statement goes on');
Workers::set($node, 'onesignal_cancel.enabled', 'on');
$node->poll_query_until('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel launcher'", '1');
for (1 .. 1000) { last if Workers::starts($node, 'postgres'); select undef, undef, undef, 0.05 }
ok(Workers::wait_for_no_worker($node), 'the launcher has looked, and found nothing');
$lock->query_safe('SELECT pg_advisory_unlock(1)');
$lock->quit;
$session->quit;
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'what it requested is delivered');
$node->stop;
done_testing();
