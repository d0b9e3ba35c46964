# DROP, RENAME and CREATE DATABASE ... TEMPLATE succeed while a worker has work for minutes, and the work
# goes on afterwards. PostgreSQL gives it five seconds to leave.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(time);
use Workers;

my $api = StandIn->new(accept_any => 1);

for my $preload (0, 1)
{
    my $how = $preload ? 'preloaded' : 'not preloaded';
    my $node = Workers::start($preload ? 'preloaded' : 'plain', preload => $preload);

    # A worker that delivers ten a second: there is work for minutes.
    my $with_busy_worker = sub {
        my ($database) = @_;
        $node->safe_psql('postgres', "CREATE DATABASE $database");
        Workers::add_app($node, $database, $api);
        $node->safe_psql($database, "ALTER SERVER clinic OPTIONS (ADD rate_limit '10')");
        Workers::request($node, $database, $api, my $id = $api->schedule);
        Workers::wait_for($node, $database, $id, 'canceled');
        $api->fault(method => 'DELETE', delay => 500);
        $node->safe_psql($database, "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '"
              . $api->app_id . "', true FROM generate_series(1, 5000)");
        ok($node->poll_query_until($database, "SELECT count(*) > 5 FROM onesignal_message WHERE state = 'canceled'"), "$how: a worker is busy in $database");
        return $database;
    };
    my $succeeds = sub {
        my ($sql, $name) = @_;
        my $began = time;
        my ($ret, $out, $err) = $node->psql('postgres', $sql);
        is($ret, 0, "$how: $name") or diag $err;
        note(sprintf '%s took %.1f s', $name, time - $began);
    };
    my $goes_on = sub {
        my ($database) = @_;
        my $before = $node->safe_psql($database, "SELECT count(*) FROM onesignal_message WHERE state = 'canceled'");
        ok($node->poll_query_until($database, "SELECT count(*) > $before FROM onesignal_message WHERE state = 'canceled'"), "$how: the work in $database goes on");
    };

    $succeeds->('ALTER DATABASE ' . $with_busy_worker->('old_name') . ' RENAME TO new_name', 'ALTER DATABASE ... RENAME');
    $goes_on->('new_name');
    $succeeds->('CREATE DATABASE copy TEMPLATE new_name', 'CREATE DATABASE ... TEMPLATE');
    $goes_on->('new_name');
    is($node->safe_psql('copy', "SELECT count(*) > 4000 FROM onesignal_message WHERE state = 'pending'"), 't', "$how: the copy has what is pending");
    $succeeds->('DROP DATABASE new_name', 'DROP DATABASE');
    ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker'", '0'),
        "$how: after DROP DATABASE no worker is left");
    $api->clear_faults;

    # A launcher waits one, two ... seconds before it tries again: were it to, it had by now.
    sleep 4;
    is(Workers::workers($node), '0', "$how: and none comes back");
    unlike(slurp_file($node->logfile), qr/PANIC|ERROR|FATAL/, "$how: nothing of it is an error");
    $node->stop;
}
done_testing();
