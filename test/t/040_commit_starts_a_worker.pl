# A commit that requested a cancel starts the database's worker, without any preload; what was rolled
# back starts none; a worker with nothing to do leaves.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $api = StandIn->new;
my $node = Workers::start('main', conf => "max_prepared_transactions = 5\nonesignal_cancel.worker_idle_timeout = '1h'\n");
Workers::add_app($node, 'postgres', $api);
Workers::wait_for_no_worker($node);

sub insert { return Workers::insert_sql($api, @_) }

# How many workers were started since the last call.
my $seen = 0;

sub started
{
    my $count = Workers::starts($node);
    my $new = $count - $seen;
    $seen = $count;
    return $new;
}

started();

# ---- rollback ----

my @ids = map { $api->schedule } 1 .. 9;

$node->safe_psql('postgres', 'BEGIN; ' . insert($ids[0]) . ' ROLLBACK;');
$node->safe_psql('postgres', 'BEGIN; SAVEPOINT a; ' . insert($ids[0]) . ' ROLLBACK TO a; COMMIT;');
$node->safe_psql('postgres', 'BEGIN; SAVEPOINT a; SAVEPOINT b; ' . insert($ids[0]) . ' RELEASE b; ROLLBACK TO a; COMMIT;');
$node->safe_psql('postgres', 'DO $$ BEGIN BEGIN ' . insert($ids[0]) . ' RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END; END $$;');
$node->psql('postgres', 'BEGIN; ' . insert($ids[0]) . ' SELECT 1/0; COMMIT;');
is(started(), 0, 'a rolled back request, transaction or savepoint, starts no worker');
is($api->received, scalar(@ids), 'and sends nothing');

# ---- commit ----

Workers::request($node, 'postgres', $api, $ids[1]);
ok(Workers::wait_for($node, 'postgres', $ids[1], 'canceled'), 'a commit gets its cancel delivered');
is($api->state($ids[1]), 'canceled', 'at OneSignal, too');
is(started(), 1, 'by one worker');

my $worker = Workers::worker($node, 'postgres');
like($worker, qr/^\d+$/, 'which is still there');
ok($node->poll_query_until('postgres', "SELECT application_name LIKE 'onesignal_cancel worker%', state, xact_start IS NULL, backend_xmin IS NULL, wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $worker",
    't|idle|t|t|t'), 'and reports itself: idle, with no transaction and no snapshot');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_locks WHERE pid = ' . $worker . " AND NOT (locktype = 'object' AND objsubid = 1)"),
    '0', 'holding no lock but the deliverer\'s');

# A request before and after a savepoint that is rolled back.
$node->safe_psql('postgres', 'BEGIN; ' . insert($ids[2]) . ' SAVEPOINT a; ' . insert($ids[3]) . ' ROLLBACK TO a; COMMIT;');
ok(Workers::wait_for($node, 'postgres', $ids[2], 'canceled'), 'a request outlives a later savepoint that is rolled back');
$node->safe_psql('postgres', 'BEGIN; SAVEPOINT a; SAVEPOINT b; ' . insert($ids[4]) . ' RELEASE b; RELEASE a; SAVEPOINT c; ROLLBACK TO c; COMMIT;');
ok(Workers::wait_for($node, 'postgres', $ids[4], 'canceled'), 'and its own savepoints when they are released');
is(Workers::worker($node, 'postgres'), $worker, 'the worker that is there serves them');
is(started(), 0, 'and no other is started');
is($api->state($ids[3]), 'scheduled', 'what was rolled back is not sent');

# ---- idle ----

Workers::set($node, 'onesignal_cancel.worker_idle_timeout', "'200ms'");
Workers::request($node, 'postgres', $api, $ids[8]);    # wakes it, to wait for no longer than that
ok(Workers::wait_for($node, 'postgres', $ids[8], 'canceled'), 'it delivers once more');
ok(Workers::wait_for_no_worker($node), 'an idle worker leaves');
is(started(), 0, 'without another one');
Workers::request($node, 'postgres', $api, $ids[5]);
ok(Workers::wait_for($node, 'postgres', $ids[5], 'canceled'), 'and the next commit starts another one');
is(started(), 1, 'only one');

# With synchronous_commit off, a crash could undo a commit whose cancel was sent. No worker may flush
# the commit meanwhile, nor the WAL writer.
ok(Workers::wait_for_no_worker($node), 'it leaves as well');
Workers::set($node, 'wal_writer_delay', "'10s'");
my $flushed = $node->safe_psql('postgres', "SET synchronous_commit = off; SET onesignal_cancel.background_delivery = off;\nBEGIN;\n"
      . insert($ids[6]) . "\nSELECT pg_current_wal_insert_lsn() AS lsn \\gset\nCOMMIT;\nSELECT pg_current_wal_flush_lsn() > :'lsn';");
is($flushed, 't', 'a request makes its commit a synchronous one');
is(started(), 0, 'a session with background_delivery off starts no worker');
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '100')");
ok(Workers::wait_for($node, 'postgres', $ids[6], 'canceled'), 'changing the server gets delivered what waits');

ok(Workers::wait_for_no_worker($node), 'nothing stays');
unlike(slurp_file($node->logfile), qr/PANIC|FATAL/, 'nothing but what was expected is in the log');
$node->stop;
done_testing();
