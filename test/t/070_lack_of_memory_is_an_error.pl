# When memory runs out while an answer is judged or recorded, the statement fails and nothing else does:
# the session, its transactions, CALL and the worker go on.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

plan skip_all => 'no prlimit here' if $ENV{SANITIZE} || !-r '/proc/self/status' || system('prlimit --version >/dev/null 2>&1') != 0;

my $api = StandIn->new;
my $app = $api->app_id;
my $node = Workers::start('main', conf => "log_statement = none\nlog_min_messages = warning\nonesignal_cancel.worker_idle_timeout = '1h'\n");
Workers::add_app($node, 'postgres', $api);
$node->safe_psql('postgres', 'CREATE TABLE seen (n integer, what text)');

# What a process may have in addition to what it has. The numbers of bytes depend on the machine: so many are tried.
my @headrooms = ((map { $_ * 96 } 0 .. 11), 32_768);

sub limit
{
    my ($pid, $headroom) = @_;
    my ($size) = slurp_file("/proc/$pid/status") =~ /^VmSize:\s+(\d+) kB/m;
    system('prlimit', '--pid', $pid, '--as=' . 1024 * ($size + $headroom) . ':') == 0 or die "prlimit: $?";
}

sub unlimit { my ($pid) = @_; return system('prlimit', '--pid', $pid, '--as=unlimited:') == 0 }

# A message whose answer takes memory to judge.
sub big
{
    my ($status) = @_;
    my $id = $api->schedule;
    $api->fault(message => $id, status => $status, body => '{"errors":["' . 'x' x 20_000 . '",' . '[1,"\\u20ac"],' x 2500 . '2]}');
    return $id;
}

# A session that has all but the memory for the answer.
sub session
{
    my $session = $node->background_psql('postgres', on_error_stop => 0);
    $session->query_safe('\\set VERBOSITY sqlstate');
    my $pid = $session->query_safe('SELECT pg_backend_pid()');
    $session->query_safe("SELECT onesignal_cancel('$app', '" . $api->schedule . "'); INSERT INTO seen VALUES (NULL, NULL); DO 'BEGIN NULL; END';");
    return ($session, $pid);
}

sub seen
{
    my ($n) = @_;
    return $node->safe_psql('postgres', "SELECT string_agg(what, ' ' ORDER BY what) FROM seen WHERE n = $n");
}

my %outcomes;
for my $n (@headrooms)
{
    my ($session, $pid) = session();
    my $id = big(400);
    limit($pid, $n);
    my $row = $session->query("SELECT status FROM onesignal_cancel('$app', '$id')");
    my ($error) = $session->{stderr} =~ /ERROR:  (\w+)/;
    unlimit($pid);
    $session->{stderr} = '';
    $outcomes{ $error // 'row' }++;
    note("$n kB: ", $error // "status $row");

    # Whatever came of it.
    $session->query("INSERT INTO seen VALUES ($n, 'later')");
    is($session->{stderr} . seen($n), 'later', "what the session does later, others see ($n kB)");
    $session->quit;
}
is_deeply([ grep { !/^(?:row|53200)$/ } keys %outcomes ], [], 'out of memory is the only error');
cmp_ok($outcomes{53200} // 0, '>', 0, 'which there was');
cmp_ok($outcomes{row} // 0, '>', 0, 'as there was a row, with memory enough');

my $caught = 0;
for my $n (@headrooms)
{
    my ($session, $pid) = session();
    my $id = big(400);
    limit($pid, $n);
    $session->query(
        "DO \$\$ BEGIN INSERT INTO seen VALUES ($n + 10000, 'before'); BEGIN INSERT INTO seen VALUES ($n + 10000, 'within');"
          . " PERFORM onesignal_cancel('$app', '$id'); EXCEPTION WHEN out_of_memory THEN"
          . " INSERT INTO seen VALUES ($n + 10000, 'caught'); END; INSERT INTO seen VALUES ($n + 10000, 'after'); END \$\$");
    unlimit($pid);
    my $failed = $session->{stderr} =~ /ERROR:  53200/;
    $session->{stderr} = '';
    $session->query("INSERT INTO seen VALUES ($n + 10000, 'later')");
    my $is = $session->{stderr} . seen($n + 10000);
    $caught++ if $is =~ /caught/;
    like($is, $failed ? qr/^later$/ : qr/^after before (?:caught later|later within)$/, "a block that caught it commits what it should ($n kB): $is");
    $session->quit;
}
cmp_ok($caught, '>', 0, 'blocks have caught it');

# So that there is a worker.
Workers::request($node, 'postgres', $api, my $first = $api->schedule);
ok(Workers::wait_for($node, 'postgres', $first, 'canceled'), 'the worker is there');
my $worker = Workers::worker($node, 'postgres');
my @bigs;
my $failures = sub { my $n = () = slurp_file($node->logfile) =~ /\[$worker\] ERROR:  out of memory/g; return $n };
for my $n (@headrooms)
{
    push @bigs, my $id = big(400);
    limit($worker, $n);
    Workers::request($node, 'postgres', $api, $id);
    ok($node->poll_query_until('postgres', "SELECT state = 'refused' OR pg_read_file('" . $node->logfile . "') ~ '\\[$worker\\] ERROR:  out of memory' FROM onesignal_message WHERE message_id = '$id'"), "the worker did what it could ($n kB)");
    unlimit($worker);
    # It says so once, whatever it tries.
    last if $failures->() > 0;
}
cmp_ok($failures->(), '>', 0, 'the worker lacked memory');
ok(Workers::wait_for($node, 'postgres', \@bigs, 'refused'), 'with memory, it delivers everything');
is(Workers::worker($node, 'postgres'), $worker, 'and is the same');

$node->append_conf('postgresql.conf', 'onesignal_cancel.background_delivery = off');
$node->reload;
ok(Workers::wait_for_no_worker($node), 'the worker leaves');
my $calls = 0;
for my $n (@headrooms)
{
    my ($session, $pid) = session();
    $session->query_safe('CALL onesignal_cancel_deliver()');
    my $id = big(400);
    Workers::request($node, 'postgres', $api, $id);
    limit($pid, $n);
    $session->query('CALL onesignal_cancel_deliver()');
    unlimit($pid);
    my ($error) = $session->{stderr} =~ /ERROR:  (\w+)/;
    $calls++ if ($error // '') eq '53200';
    $session->{stderr} = '';
    # A request that it left without an answer is due again in a moment.
    $session->query("CALL onesignal_cancel_deliver('10 s')") if Workers::state($node, 'postgres', $id) ne 'refused';
    is($session->{stderr} . Workers::state($node, 'postgres', $id), 'refused', "CALL goes on ($n kB: " . ($error // 'delivered') . ')');
    $session->quit;
    last if $calls > 2;
}
cmp_ok($calls, '>', 0, 'CALL lacked memory');

$node->stop;
done_testing();
