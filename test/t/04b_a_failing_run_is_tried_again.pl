# A worker whose run fails logs it once and tries again, ever less often: it neither fills the log nor
# dies and comes back. Once the reason is gone, everything is delivered, without another commit.

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
my $node = Workers::start('main', conf => "log_statement = none\n");
Workers::add_app($node, 'postgres', $api);
ok(Workers::wait_for_no_worker($node), 'no worker yet');
my $in_log = sub { my ($what) = @_; my $n = () = slurp_file($node->logfile) =~ /$what/g; return $n };
my $STARTED = qr/starting background worker process "onesignal_cancel worker/;
my $FAILED = qr/ERROR:  column [^\n]* does not exist/;
my $started = $in_log->($STARTED);

# The owner breaks what only delivery reads.
$node->safe_psql('postgres', 'ALTER TABLE onesignal_app RENAME COLUMN pace TO broken');
my @ids = map { $api->schedule } 1 .. 5;
$node->safe_psql('postgres', Workers::insert_sql($api, $ids[0]));
ok($node->wait_for_log($FAILED), 'the run fails');
my $CHANGE = "FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker'";
for my $try (1 .. 2)
{
    $node->poll_query_until('postgres', "SELECT state = 'idle' $CHANGE") or die 'it is still at it';
    my $since = $node->safe_psql('postgres', "SELECT state_change $CHANGE");
    $node->safe_psql('postgres', Workers::insert_sql($api, $_)) for @ids[ 2 * $try - 1, 2 * $try ];
    ok($node->poll_query_until('postgres', "SELECT state = 'idle' AND state_change > '$since' $CHANGE"), "it has tried again, $try");
}
is($in_log->($FAILED), 1, 'which is logged once, for all tries and commits');
is($in_log->($STARTED) - $started, 1, 'by one worker');
like(Workers::worker($node, 'postgres'), qr/^\d+$/, 'which is still there');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker' AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL)"),
    '0', 'with nothing left open');

$node->safe_psql('postgres', 'ALTER TABLE onesignal_app RENAME COLUMN broken TO pace');
ok(Workers::wait_for($node, 'postgres', \@ids, 'canceled'), 'repaired, everything is delivered');
is($in_log->($STARTED) - $started, 1, 'by the same worker');
ok(Workers::wait_for_no_worker($node), 'which then leaves');
$node->stop;
done_testing();
