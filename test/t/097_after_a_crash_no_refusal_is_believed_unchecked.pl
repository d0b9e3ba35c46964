# kill -9 of the worker and of the postmaster in the middle of a drain, against an OneSignal that refuses to cancel a
# message twice: what it has canceled is recorded as canceled, since each refusal of what may have been sent before the
# crash is checked.

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

my $ROWS = 600;
my $api = StandIn->new(accept_any => 1);
# Few are answered and not yet recorded at a crash: each of these takes a second to check.
my $node = Workers::start('main', preload => 1, conf => "log_statement = none\nrestart_after_crash = on\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
$api->repeat_status(400);
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '100')");

my $PENDING = "SELECT count(*) FROM onesignal_message WHERE state = 'pending'";

for my $crash ('worker', 'postmaster')
{
    $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, send_after, cancel)
        SELECT gen_random_uuid(), '$app', now() + interval '1 h', true FROM generate_series(1, $ROWS)");
    $node->poll_query_until('postgres', "SELECT count(*) BETWEEN 1 AND $ROWS - 50 FROM onesignal_message WHERE state = 'pending'");
    my $pid = $crash eq 'worker' ? Workers::worker($node, 'postgres') : slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/ && $1;
    if ($crash eq 'worker') { kill 'KILL', $pid if $pid }
    else
    {
        $node->kill9;
        # Its children have to notice before the next one may have the data directory.
        for (1 .. 600)
        {
            last if run_log([ 'pg_ctl', '--wait', '--pgdata', $node->data_dir, '--log', $node->logfile, 'start' ]);
            sleep 0.1;
        }
        $node->_update_pid(1);
    }
    # After a crash of the server psql fails for a while, and poll_query_until() takes that for "not yet".
    ok($node->poll_query_until('postgres', $PENDING, '0'), "all is delivered after the crash of the $crash");
    is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled'"), '0', 'and all is canceled, as it was');
}

my %refused = map { ($_->{message_id} => 1) } grep { $_->{status} == 400 } $api->requests(method => 'DELETE');
my %checked = map { ($_->{message_id} => 1) } $api->requests(method => 'GET');
is(scalar(grep { !$checked{$_} } keys %refused), 0, scalar(keys %refused) . ' refusals were checked');
$node->stop;
done_testing();
