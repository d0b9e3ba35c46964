# A prepared transaction may have requested cancels: COMMIT PREPARED delivers them, from wherever it
# comes and whatever happened in between; ROLLBACK PREPARED delivers nothing; nothing polls for others.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(sleep);
use Workers;

my $api = StandIn->new;
my $node;

sub prepare_sql { my ($gid, @ids) = @_; return 'BEGIN; ' . Workers::insert_sql($api, @ids) . " PREPARE TRANSACTION '$gid';" }
sub prepared { return $node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts') }

for my $preload (1, 0)
{
    my $how = $preload ? 'preloaded' : 'not preloaded';
    $node = Workers::start($preload ? 'preloaded' : 'plain', preload => $preload,
        conf => "max_prepared_transactions = 50\nonesignal_cancel.worker_idle_timeout = '1s'\n");
    Workers::add_app($node, 'postgres', $api);

    # ---- COMMIT PREPARED and ROLLBACK PREPARED ----

    my ($id, $undone, $nested, $inner) = map { $api->schedule } 1 .. 4;
    $node->safe_psql('postgres', prepare_sql('a', $id));
    is(prepared(), '1', "$how: a transaction with requests can be prepared");
    ok(Workers::wait_for_worker($node, 'postgres'), "$how: a worker watches it");
    $node->safe_psql('postgres', "COMMIT PREPARED 'a'");
    ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), "$how: COMMIT PREPARED delivers") or die;

    $node->safe_psql('postgres', prepare_sql('b', $undone));
    $node->safe_psql('postgres', "ROLLBACK PREPARED 'b'");
    ok(Workers::wait_for_no_worker($node), "$how: after ROLLBACK PREPARED the worker leaves");
    is($api->received(message => $undone), 0, "$how: and has delivered nothing");

    # ---- savepoints ----

    $node->safe_psql('postgres', 'BEGIN; SAVEPOINT s; ' . Workers::insert_sql($api, $inner) . ' ROLLBACK TO s; SAVEPOINT t; '
          . Workers::insert_sql($api, $nested) . " RELEASE t; PREPARE TRANSACTION 'c'");
    $node->safe_psql('postgres', "COMMIT PREPARED 'c'");
    ok(Workers::wait_for($node, 'postgres', $nested, 'canceled'), "$how: a request in a released savepoint is delivered");
    is($api->received(message => $inner), 0, "$how: one in a savepoint that was rolled back is not");
    ok(Workers::wait_for_no_worker($node), "$how: the worker leaves");

    # ---- who changes a server or a pause waits for nobody who has the table, unless it is prepared ----

    my $indexer = $node->background_psql('postgres');
    $indexer->query_safe('BEGIN; LOCK TABLE onesignal_message IN SHARE MODE');
    is($node->psql('postgres', "SET lock_timeout = '5s'; SELECT onesignal_cancel_pause('" . $api->app_id . "'); "
          . "ALTER SERVER clinic OPTIONS (ADD rate_limit '0'); ALTER SERVER clinic OPTIONS (DROP rate_limit); SELECT onesignal_cancel_resume('" . $api->app_id . "')"),
        '0', "$how: CREATE INDEX keeps nobody from changing a server or a pause");
    $indexer->query_safe('COMMIT');
    $indexer->quit;
    ok(Workers::wait_for_no_worker($node), "$how: the worker that was told leaves");

    # ---- nothing polls for others ----

    $node->safe_psql('postgres', "BEGIN; CREATE TABLE other_$preload (); PREPARE TRANSACTION 'other'");
    $node->safe_psql('postgres', 'BEGIN; SAVEPOINT s; ' . Workers::insert_sql($api, $inner) . " ROLLBACK TO s; CREATE TABLE another_$preload (); PREPARE TRANSACTION 'another'");
    is(Workers::workers($node), '0', "$how: what requested nothing starts no worker");
    Workers::request($node, 'postgres', $api, my $usual = $api->schedule);
    ok(Workers::wait_for($node, 'postgres', $usual, 'canceled'), "$how: beside it others are delivered");
    ok(Workers::wait_for_no_worker($node), "$how: and no worker stays for it");
    $node->safe_psql('postgres', "COMMIT PREPARED '$_'") for qw(other another);

    # ---- many at one time, while others go on ----

    my @ids = map { $api->schedule } 1 .. 20;
    $node->safe_psql('postgres', prepare_sql("many $_", $ids[$_])) for 0 .. 19;
    is(prepared(), '20', "$how: many are prepared");
    $node->safe_psql('postgres', ($_ % 4 ? 'COMMIT' : 'ROLLBACK') . " PREPARED 'many $_'") for reverse 0 .. 19;
    ok(Workers::wait_for($node, 'postgres', [ @ids[ grep { $_ % 4 } 0 .. 19 ] ], 'canceled'), "$how: those that were committed are delivered");
    is($api->received(message => $ids[$_]), 0, "$how: message $_, of one that was rolled back, is not") for 0, 4, 8, 12, 16;

    # ---- a changed server ----

    Workers::wait_for_no_worker($node);
    $id = $api->schedule;
    $node->safe_psql('postgres', "SET onesignal_cancel.background_delivery = off;\n" . Workers::insert_sql($api, $id));
    $node->safe_psql('postgres', "BEGIN; ALTER SERVER clinic OPTIONS (ADD rate_limit '50'); PREPARE TRANSACTION 'poke'");
    $node->safe_psql('postgres', "COMMIT PREPARED 'poke'");
    ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), "$how: a changed server is noticed, too");

    # The key is wrong: the lane is paused for a minute, and the new key comes with COMMIT PREPARED.
    $node->safe_psql('postgres', "ALTER USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (SET api_key 'wrong')");
    Workers::request($node, 'postgres', $api, $id = $api->schedule);
    ok($node->poll_query_until('postgres', "SELECT http_status = 403 FROM onesignal_message WHERE message_id = '$id'"), "$how: a wrong key is denied");
    $node->safe_psql('postgres', "BEGIN; ALTER USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (SET api_key '@{[ $api->api_key ]}'); PREPARE TRANSACTION 'key'");
    sleep 1.5;
    is(Workers::state($node, 'postgres', $id), 'pending', "$how: the new key is only prepared");
    $node->safe_psql('postgres', "COMMIT PREPARED 'key'");
    my $began = time;
    ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), "$how: and used after COMMIT PREPARED");
    cmp_ok(time - $began, '<', 30, "$how: before the next probe");

    # ---- a crash in between ----

    my ($lost, $kept, $next) = map { $api->schedule } 1 .. 3;
    $node->safe_psql('postgres', prepare_sql('kept', $kept));
    $node->safe_psql('postgres', prepare_sql('lost', $lost));
    Workers::crash($node);
    is(prepared(), '2', "$how: prepared transactions survive a crash");
    if ($preload)
    {
        ok(Workers::wait_for_worker($node, 'postgres'), "$how: a worker watches them again");
    }
    else
    {
        Workers::request($node, 'postgres', $api, $next);
        ok(Workers::wait_for($node, 'postgres', $next, 'canceled'), "$how: the next request starts a worker, which watches them");
    }
    $node->safe_psql('postgres', "COMMIT PREPARED 'kept'");
    $node->safe_psql('postgres', "ROLLBACK PREPARED 'lost'");
    ok(Workers::wait_for($node, 'postgres', $kept, 'canceled'), "$how: after a crash COMMIT PREPARED delivers");
    ok(Workers::wait_for_no_worker($node), "$how: then the worker leaves");
    is($api->received(message => $lost), 0, "$how: after a crash ROLLBACK PREPARED delivers nothing");

    # ---- for long ----

    # The worker looks less and less often: once a second in the beginning.
    $node->safe_psql('postgres', prepare_sql('long', $id = $api->schedule));
    sleep 4;
    ok(Workers::wait_for_worker($node, 'postgres'), "$how: it is watched for a while");
    # Others that commit meanwhile do not make it look more often.
    my $count = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'";
    my $before = $node->safe_psql('postgres', $count);
    $node->safe_psql('postgres', join '', map { Workers::insert_sql($api, $api->schedule) . ' SELECT pg_sleep(0.25);' } 1 .. 12);
    my $transactions = $node->safe_psql('postgres', $count) - $before;
    cmp_ok($transactions, '<', 450, "$how: beside other requests, too");
    $node->safe_psql('postgres', "COMMIT PREPARED 'long'");
    ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), "$how: and delivered");

    unlike(slurp_file($node->logfile), qr/PANIC|server process .* was terminated|ERROR/, "$how: nothing failed");
    $node->stop;
}
done_testing();
