# Preloaded, the library delivers what is pending in any database when the server starts, also after a
# crash, and when a retry falls due; idle, there is the launcher, which sleeps.

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

my $api = StandIn->new;
my $node = Workers::start('main', preload => 1, conf => "onesignal_cancel.worker_idle_timeout = '500ms'\nrestart_after_crash = on\n");
my @databases = ('postgres', 'one', 'two');
my %id;

$node->safe_psql('postgres', "CREATE DATABASE $_") for qw(one two three locked);
$node->safe_psql('postgres', 'ALTER DATABASE locked ALLOW_CONNECTIONS off');
Workers::add_app($node, $_, $api) for @databases;
ok(Workers::wait_for_no_worker($node), 'no worker in an idle server');
like(Workers::launcher($node), qr/^\d+$/, 'but a launcher');

# Written to a table by a superuser who keeps the worker away. One that is still there, or on its way, would
# deliver it at once.
sub request_for_later
{
    my ($database) = @_;
    Workers::wait_for_no_worker($node) or die 'a worker stays';
    $id{$database} = $api->schedule;
    $node->safe_psql($database, "SET onesignal_cancel.background_delivery = off;\n" . Workers::insert_sql($api, $id{$database}));
}

# ---- start ----

for my $mode ('fast', 'immediate')
{
    request_for_later($_) for @databases;
    is($node->safe_psql('one', "SELECT count(*) FROM onesignal_message WHERE state = 'pending'"), '1', 'a request waits');
    $node->stop($mode);
    $node->start;
    ok(Workers::wait_for($node, $_, $id{$_}, 'canceled'), "after stop -m $mode and start it is delivered in $_") for @databases;
}

# kill -9 of any backend restarts everything but the postmaster.
request_for_later('two');
my $victim = IPC::Run::start([ 'psql', '-X', '-d', $node->connstr('postgres'), '-c', "SELECT pg_sleep(600), 'victim'" ],
    '<', \undef, '>', '/dev/null', '2>', '/dev/null');
my $ACTIVE = "FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%victim%' AND state = 'active'";
$node->poll_query_until('postgres', "SELECT count(*) $ACTIVE", '1');
kill 9, $node->safe_psql('postgres', "SELECT pid $ACTIVE");
$victim->finish;
ok($node->poll_query_until('postgres', 'SELECT 1', '1'), 'recovered from a crash');
ok(Workers::wait_for($node, 'two', $id{two}, 'canceled'), 'after which it is delivered as well');

# ---- a retry ----

my $retried = $api->schedule;
$api->fault(message => $retried, status => 429, headers => { 'Retry-After' => 25 }, times => 1);    # longer than a worker stays for
Workers::request($node, 'one', $api, $retried);
ok($node->poll_query_until('one', "SELECT http_status = 429 FROM onesignal_message WHERE message_id = '$retried'"), 'a first attempt is throttled');
ok(Workers::wait_for_no_worker($node), 'the worker does not wait for the retry');
is(Workers::state($node, 'one', $retried), 'pending', 'which is ahead');
ok(Workers::wait_for($node, 'one', $retried, 'canceled'), 'the launcher starts one when it falls due');

# ---- idle ----

ok(Workers::wait_for_no_worker($node), 'no worker stays');
is($node->safe_psql('postgres', "SELECT datid IS NULL, wait_event_type, backend_xmin IS NULL FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel launcher'"),
    't|Extension|t', 'the launcher is in no database and waits');

# Who wakes up is switched to: the kernel counts that.
my $launcher = Workers::launcher($node);
my $switches = sub { my ($n) = slurp_file("/proc/$launcher/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m; return $n };
SKIP:
{
    skip 'no /proc here', 1 if !-e "/proc/$launcher/status";
    my $before = $switches->();
    sleep 12;
    is($switches->(), $before, 'and does not wake up');
}

my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|database "locked" is not/, 'nothing tried to connect where nobody may');
$node->stop;
unlike(slurp_file($node->logfile), qr/FATAL:  terminating background worker/, 'and the launcher ends without noise');
done_testing();
