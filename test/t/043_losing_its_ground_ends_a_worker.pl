# A worker whose extension, table or database goes away leaves, quietly and for good; what comes back
# under the same name is delivered.

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

# Both with a launcher, which must not start it again and again, and without.
for my $preload (0, 1)
{
    my $how = $preload ? 'preloaded' : 'not preloaded';
    my $node = Workers::start($preload ? 'preloaded' : 'plain', preload => $preload,
        conf => "onesignal_cancel.worker_idle_timeout = '2s'\n");
    my $set_up = sub {
        my ($database) = @_;
        Workers::add_app($node, $database, $api);
        my $id = $api->schedule;
        Workers::request($node, $database, $api, $id);
        ok(Workers::wait_for($node, $database, $id, 'canceled'), "$how: a worker delivers in $database") or die;
    };

    # ---- DROP EXTENSION under an idle worker ----

    $set_up->('postgres');
    $node->safe_psql('postgres', 'DROP EXTENSION onesignal_cancel CASCADE');
    ok(Workers::wait_for_no_worker($node), "$how: the worker leaves after DROP EXTENSION");
    $set_up->('postgres');
    $node->safe_psql('postgres', 'DROP EXTENSION onesignal_cancel CASCADE');
    $set_up->('postgres');
    pass("$how: and a new extension is delivered at once, under the same worker");

    # ---- DROP EXTENSION in the middle of a drain, which takes seconds at the initial pace of 100/s ----

    $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '"
          . $api->app_id . "', true FROM generate_series(1, 600)");
    $node->poll_query_until('postgres', "SELECT count(*) > 20 FROM onesignal_message WHERE state = 'canceled'");
    $node->safe_psql('postgres', 'DROP EXTENSION onesignal_cancel CASCADE');
    ok(Workers::wait_for_no_worker($node), "$how: DROP EXTENSION succeeds in the middle of a drain, and ends the worker");

    # ---- TRUNCATE ----

    Workers::add_app($node, 'postgres', $api);
    $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '"
          . $api->app_id . "', true FROM generate_series(1, 600)");
    $node->poll_query_until('postgres', "SELECT count(*) > 20 FROM onesignal_message WHERE state = 'canceled'");
    $node->safe_psql('postgres', 'TRUNCATE onesignal_message');
    Workers::wait_for_idle($node, 'postgres');
    is($node->safe_psql('postgres', 'SELECT count(*) FROM onesignal_message'), '0', "$how: TRUNCATE leaves nothing to record");

    # ---- DROP DATABASE ... WITH (FORCE) in the middle of a drain ----

    $node->safe_psql('postgres', 'CREATE DATABASE doomed');
    $set_up->('doomed');
    my $doomed = $node->safe_psql('postgres', "SELECT oid FROM pg_database WHERE datname = 'doomed'");
    my $starts = sub { return scalar(() = slurp_file($node->logfile) =~ /starting background worker process "onesignal_cancel worker for database $doomed"/g) };
    $node->safe_psql('doomed', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '"
          . $api->app_id . "', true FROM generate_series(1, 600)");
    $node->poll_query_until('doomed', "SELECT count(*) > 20 FROM onesignal_message WHERE state = 'canceled'");
    $node->safe_psql('postgres', 'DROP DATABASE doomed WITH (FORCE)');
    ok(Workers::wait_for_no_worker($node), "$how: DROP DATABASE with FORCE ends the worker");

    # A launcher starts what died first before what died later: another worker that is back shows that it would have.
    my $before = $starts->();
    $api->fault(method => 'DELETE', hold => 1);
    my ($held, $next) = map { $api->schedule } 1 .. 2;
    Workers::request($node, 'postgres', $api, $held);
    $api->wait_for_requests(1, message => $held);
    $node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . Workers::worker($node, 'postgres') . ')');
    $api->clear_faults;
    Workers::wait_for_no_worker($node) && Workers::request($node, 'postgres', $api, $next) if !$preload;
    ok(Workers::wait_for($node, 'postgres', $held, 'canceled'), "$how: another database's worker comes back");
    is($starts->(), $before, "$how: nobody starts it again");
    my $log = slurp_file($node->logfile);
    unlike($log, qr/PANIC|ERROR|database .* does not exist/, "$how: nothing of it is an error");
    $node->stop;
}
done_testing();
