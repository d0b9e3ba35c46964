# Single commits, each at a random moment around the worker's exit after the one before: every one is
# delivered within a second of its commit, by the worker that is leaving or by the next.
#
# A machine with other things to do is forgiven one in a hundred that takes longer; none is forgiven
# that takes ten seconds. Nothing in the protocol comes true between the two: a lost wake-up stays lost.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $COMMITS = $ENV{ONESIGNAL_TEST_COMMITS} // 300;
my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main', conf => "autovacuum = off\n");

# The idle time in each database; the gaps are spread around it. With none, the worker leaves as soon
# as it has recorded, so that the next commit meets every moment of leaving, ending and starting.
my %idle_ms = (at_once => 0, soon => 20);

# A commit that nobody noticed would be delivered with the next one: so each waits for its own first.
sub loop_sql
{
    my ($idle_ms) = @_;
    my $app = $api->app_id;
    my $gap = $idle_ms ? "(0.5 + random()) * $idle_ms / 1000" : 'random() * 0.004';
    return <<SQL;
DO \$\$
DECLARE id uuid; began timestamptz;
BEGIN
    FOR i IN 1..$COMMITS LOOP
        PERFORM pg_sleep($gap);
        COMMIT;
        id := gen_random_uuid();
        INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (id, '$app', true);
        COMMIT;
        began := clock_timestamp();
        WHILE NOT EXISTS (SELECT FROM onesignal_message WHERE message_id = id AND state = 'canceled') LOOP
            IF clock_timestamp() > began + interval '10 s' THEN
                RAISE WARNING 'lost: % after % commits', id, i;
                EXIT;
            END IF;
            PERFORM pg_sleep(0.0005);
        END LOOP;
        COMMIT;
    END LOOP;
END \$\$;
SQL
}

my %run;
for my $database (sort keys %idle_ms)
{
    $node->safe_psql('postgres', "CREATE DATABASE $database; ALTER DATABASE $database SET onesignal_cancel.worker_idle_timeout = '$idle_ms{$database}ms'");
    Workers::add_app($node, $database, $api);
    my ($in, $out, $err) = ('', '', '');
    $run{$database} = { err => \$err, harness => IPC::Run::start(
        [ 'psql', '-X', '-d', $node->connstr($database), '-v', 'ON_ERROR_STOP=1', '-c', loop_sql($idle_ms{$database}) ],
        '<', \$in, '>', \$out, '2>', \$err) };
}
for my $database (sort keys %run)
{
    ok($run{$database}{harness}->finish, "$COMMITS commits, idle time $idle_ms{$database} ms");
    is(${ $run{$database}{err} }, '', 'none was lost');
    my $late = $node->safe_psql($database, "SELECT count(*) FROM onesignal_message WHERE finished_at > requested_at + interval '1 s'");
    # A busy machine may be late with some.
    cmp_ok($late, '<=', $COMMITS / 20, 'each was delivered within a second');
    note 'commit to outcome, median and maximum: '
      . $node->safe_psql($database, 'SELECT percentile_cont(ARRAY[0.5, 1]) WITHIN GROUP (ORDER BY finished_at - requested_at) FROM onesignal_message');
    is($node->safe_psql($database, "SELECT count(*) FROM onesignal_message WHERE state = 'canceled'"), $COMMITS, 'and none twice, or not at all');
    is($node->safe_psql($database, 'SELECT max(attempts) FROM onesignal_message'), 1, 'with one attempt each');
}

my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|FATAL|ERROR/, 'no worker failed');
$node->stop;
done_testing();
