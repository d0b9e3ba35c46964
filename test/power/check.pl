# For test/power/run, which cuts the power when this asks for it.
#
# Sessions request cancels with synchronous_commit = off and a WAL writer that sleeps: only the extension's own wish
# brings their commits to the disk before they return. Some are rolled back, and some are open at the cut.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t";
use IO::Handle;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(sleep);
use Workers;

my $power = $ENV{POWER} // die 'run test/power/run';
my $rounds = $ENV{ROUNDS} // 10;
my $seed = $ENV{SEED} // 1;
srand $seed;
diag("seed $seed, $rounds rounds");

my $api = StandIn->new;
$api->repeat_status(400);
$api->view_limit(0);
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'onesignal_cancel'
fsync = on
full_page_writes = on
synchronous_commit = off
wal_writer_delay = 10s
max_wal_size = 400MB
checkpoint_timeout = 1h
bgwriter_lru_maxpages = 0
CONF
system_or_bail('cp', '-a', $node->data_dir, "$power/disk/pgdata");
system_or_bail('rm', '-rf', $node->data_dir);
symlink "$power/disk/pgdata", $node->data_dir or die "symlink: $!";
system_or_bail('sync', '-f', "$power/disk");
$node->start;
Workers::add_app($node, 'postgres', $api);
$node->safe_psql('postgres', 'ALTER SERVER clinic OPTIONS (ADD rate_limit \'0\')');
$node->safe_psql('postgres', 'CREATE TABLE diary (entry int); CHECKPOINT');

open my $asks, '>', "$power/asks" or die "asks: $!";
open my $hears, '<', "$power/hears" or die "hears: $!";
$asks->autoflush;

sub cut
{
    print $asks "cut\n";
    readline $hears;
    Workers::forget_postmaster($node);
}

# A session that prints what it has committed, each id after its COMMIT has returned.
sub writer
{
    my (@ids) = @_;
    my $sql = '';
    while (my @some = splice @ids, 0, 1 + int rand 5)
    {
        $sql .= 'BEGIN; ' . Workers::insert_sql($api, @some) . " COMMIT;\n\\echo " . join("\n\\echo ", @some) . "\n";
    }
    my ($in, $out) = ($sql, '');
    my $run = IPC::Run::start([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres') ],
        '<', \$in, '>', \$out, '2>', \my $err);
    return { run => $run, out => \$out };
}

my (@kept, @dropped);
for my $round (1 .. $rounds)
{
    # Some are recorded at the cut, some answered, some not sent.
    $api->fault(method => 'DELETE', kind => 'hang', effect => 1) if rand() < 0.3;
    my @open = map { $api->schedule } 1 .. 3;
    my $open = $node->background_psql('postgres');
    $open->query_safe('BEGIN; ' . Workers::insert_sql($api, @open));
    my @undone = map { $api->schedule } 1 .. 3;
    $node->safe_psql('postgres', 'BEGIN; ' . Workers::insert_sql($api, @undone) . ' ROLLBACK');
    my @writers = map { writer(map { $api->schedule } 1 .. 150) } 1 .. 2;
    my $wanted = 1 + int rand 150;
    for my $writer (@writers)
    {
        $writer->{run}->pump until ($writer->{out}->$* =~ tr/\n//) >= $wanted || !$writer->{run}->pumpable;
    }
    cut();
    for my $writer (@writers)
    {
        eval { $writer->{run}->finish };
        push @kept, grep { /^[-0-9a-f]{36}$/ } split /\n/, $writer->{out}->$*;
    }
    eval { $open->{run}->kill_kill };
    push @dropped, @open, @undone;
    $api->clear_faults;
    $node->start;
    my $missing = $node->safe_psql('postgres', "SELECT count(*) FROM unnest('{" . join(',', @kept) . "}'::uuid[]) AS k "
          . 'WHERE NOT EXISTS (SELECT FROM onesignal_message WHERE message_id = k)');
    is($missing, '0', "round $round: each of " . scalar(@kept) . ' acknowledged cancels is there');
}
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM onesignal_message WHERE state = 'pending'"), 'all are delivered');
is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT state::text, ' ') FROM onesignal_message"), 'canceled', 'and none is recorded as refused');
is(scalar(grep { $api->state($_) ne 'canceled' } @kept), 0, 'OneSignal has canceled all of them');
is(scalar(grep { $api->received(message => $_) > 0 } @dropped), 0, 'and was never asked for what was not committed');

# The WAL writer may happen to come by: then once more.
my $lost = 0;
for (1 .. 10)
{
    Workers::wait_for_no_worker($node);
    $node->safe_psql('postgres', 'INSERT INTO diary VALUES (1)');
    my $was = $node->safe_psql('postgres', 'SELECT count(*) FROM diary');
    cut();
    $node->start;
    last if $lost = $node->safe_psql('postgres', 'SELECT count(*) FROM diary') < $was;
}
ok($lost, 'a commit that nobody forced to the disk is lost: the cut is one');
$node->stop;
done_testing();
