# Hours of everyday life in minutes: two databases cancel all the time, by rows, batches and direct calls, while OneSignal fails in
# turn in each of the ways below, keys rotate, roles come and go, workers and servers are killed, and autovacuum works. Nothing is
# lost, nothing that was canceled is recorded as refused, and at the end memory, descriptors, tables and WAL are what they were.
#
#   SOAK_MINUTES=60 SOAK_RATE=300 SEED=7 test/check test/long/008*        rows a second, both databases together

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t";
use List::Util qw(min sum0);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(sleep time);
use Workers;

my $MINUTES = $ENV{SOAK_MINUTES} // 3;
my $RATE = $ENV{SOAK_RATE} // 300;
my $SEED = $ENV{SEED} // 1;
my $SAMPLES = 12;    # in all
my $KEPT = 3000;     # canceled rows of a table, from the beginning
my $CALLS = 20;      # direct ones in a batch
srand $SEED;
diag("seed $SEED, $MINUTES minutes, $RATE rows a second");

my $api = StandIn->new(accept_any => 1, no_log => 1, memory => '1024m');
my $node = Workers::start('main', preload => 1, conf => <<'CONF');
log_min_messages = warning
log_statement = none
autovacuum_naptime = 2s
max_wal_size = 4GB
# Else each checkpoint adds to the WAL, and a slow machine has more of them for a row.
full_page_writes = off
restart_after_crash = on
onesignal_cancel.timeout = 3s
CONF

my %base = (postgres => { app => $api->app_id }, second => $api->add_app(accept_any => 1));
$base{second}{app} = $base{second}{app_id};
$node->safe_psql('postgres', 'CREATE DATABASE second; CREATE ROLE nurse0');
for my $name (sort keys %base)
{
    my $base = $base{$name};
    @$base{qw(name requested)} = ($name, 0);
    $base->{key_file} = $node->basedir . "/$name.key";
    write_key($base, $api->{keys}{ $base->{app} });
    # Whoever cancels twice is told no: a cancel that was sent again is then known by View message alone.
    $api->repeat_status(400, app => $base->{app});
    $api->view_limit(0, app => $base->{app});
    $node->safe_psql($name, "CREATE EXTENSION onesignal_cancel;\n"
          . $api->setup_sql('clinic', app => $base->{app}, key_file => $base->{key_file}, server_options => { rate_limit => 0 })
          . "GRANT SELECT, INSERT, UPDATE ON onesignal_message TO PUBLIC;\nGRANT USAGE ON FOREIGN SERVER clinic TO nurse0;\n"
          . "CREATE TABLE requested (message_id uuid); GRANT ALL ON requested TO PUBLIC;\n"
          . "INSERT INTO onesignal_message (message_id, app_id, cancel, state, requested_by, requested_at, finished_at)"
          . " SELECT gen_random_uuid(), '$base->{app}', true, 'canceled', current_user, now(), now() - i * interval '1 ms' FROM generate_series(1, $KEPT) i");
}
my $nurse = 'nurse0';

sub write_key
{
    my ($base, $key) = @_;
    open my $out, '>', "$base->{key_file}.new" or die "$base->{key_file}: $!";
    print $out "$key\n";
    close $out;
    chmod 0600, "$base->{key_file}.new";
    rename "$base->{key_file}.new", $base->{key_file};
}

# Each is one in a hundred, but for those that leave a doubt: OneSignal answers View message once a second.
my @FAULTS = (
    { status => 503, one_in => 100 },
    { status => 429, one_in => 100 },
    { status => 408, one_in => 100 },
    { status => 502, body => '<html>sorry</html>', content_type => 'text/html', one_in => 100 },
    { status => 301, headers => { Location => 'https://elsewhere.example/' }, one_in => 100 },
    { kind => 'reset', one_in => 100 },
    { kind => 'truncate', one_in => 100 },
    { kind => 'hang', one_in => 100 },
    { kind => 'flood', size => 100_000, one_in => 100 },
    { what => 'nested', one_in => 100 },
    { what => 'half', one_in => 100 },
    { delay => 500, one_in => 100 },
    { kind => 'reset', effect => 1, one_in => 1000 },
    { status => 504, effect => 1, one_in => 1000 },
    {});

# What people and machines do meanwhile.
my @EVENTS = (
    [ 'nothing', sub { } ],
    [ 'a key is rotated', sub { write_key($_, $api->rotate(app => $_->{app})) for values %base } ],
    [ 'a right is taken away', sub {
            # In the middle of a delivery, or after it: what is pending waits.
            round(1);
            for (keys %base) { $node->safe_psql($_, "REVOKE USAGE ON FOREIGN SERVER clinic FROM $nurse") }
            sleep 1;
            for (keys %base) { $node->safe_psql($_, "GRANT USAGE ON FOREIGN SERVER clinic TO $nurse") }
        } ],
    [ 'a role is renamed, and adopts what it had requested', sub {
            my $name = $nurse;
            $name =~ s/(\d+)/$1 + 1/e;
            $node->safe_psql('postgres', "ALTER ROLE $nurse RENAME TO $name");
            $nurse = $name;
            for (keys %base) { $node->safe_psql($_, "SET ROLE $nurse; UPDATE onesignal_message SET cancel = true WHERE state = 'pending'") }
        } ],
    [ 'a restart', sub { $node->restart } ],
    [ 'an immediate stop', sub { $node->stop('immediate'); $node->start } ],
    [ 'kill -9 of a worker', sub {
            my $pid = Workers::worker($node, 'second') or return;
            Workers::kill9($node, $pid);
        } ],
    [ 'pg_terminate_backend', sub {
            my $pid = Workers::worker($node, 'postgres') or return;
            $node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
        } ],
    [ 'a short outage', sub { $api->stop; round(1); $api->start_again } ],
    [ 'a pause', sub {
            my $app = $base{second}{app};
            $node->safe_psql('second', "SELECT onesignal_cancel_pause('$app')");
            round(1);
            $node->safe_psql('second', "SELECT onesignal_cancel_resume('$app')");
        } ]);

# One round in each database.  no_calls: OneSignal may not be there.
sub round
{
    my ($no_calls) = @_;
    for my $base (values %base)
    {
        my $rows = int($RATE / 4);
        my $calls = $no_calls ? '' : <<"SQL";
SET statement_timeout = '180s';
SELECT count(*) FROM onesignal_cancel_batch('$base->{app}', ARRAY(SELECT gen_random_uuid() FROM generate_series(1, $CALLS)));
SELECT count(*) FROM onesignal_cancel('$base->{app}', gen_random_uuid());
SQL
        # The table keeps as many as before, however quick the machine is.
        $node->safe_psql($base->{name}, <<"SQL");
DELETE FROM onesignal_message WHERE state = 'canceled'
    AND finished_at < (SELECT finished_at FROM onesignal_message WHERE state = 'canceled' ORDER BY finished_at DESC OFFSET $KEPT LIMIT 1);
SET ROLE $nurse;
WITH scheduled AS (SELECT gen_random_uuid() AS id FROM generate_series(1, $rows)),
    noted AS (INSERT INTO requested SELECT id FROM scheduled WHERE random() < 0.01)
INSERT INTO onesignal_message (message_id, app_id, send_after, cancel)
    SELECT id, '$base->{app}', now() + random() * interval '1 day', true FROM scheduled;
$calls
SQL
        $base->{requested} += $rows;
    }
}

sub median { return (sort { $a <=> $b } @_)[ @_ / 2 ] }

my %sample;

# After rounds and before an event: a worker that has just been started has half the memory of one that has connections.
sub look_at_workers
{
    for my $base (values %base)
    {
        my $pid = Workers::worker($node, $base->{name}) or next;
        # It may leave at any moment.
        my ($memory) = (eval { slurp_file("/proc/$pid/status") } // '') =~ /^RssAnon:\s+(\d+)/m or next;
        push @{ $sample{'memory of a worker, kB'} }, $memory;
        # Those of files are PostgreSQL's cache.
        push @{ $sample{'sockets of a worker'} }, scalar(grep { (readlink // '') =~ /^socket:/ } glob("/proc/$pid/fd/*"));
    }
}

sub measure
{
    my ($seconds) = @_;
    push @{ $sample{'table, kB'} }, $node->safe_psql('postgres', "SELECT pg_table_size('onesignal_message') / 1024");
    push @{ $sample{'indexes, kB'} }, $node->safe_psql('postgres', "SELECT pg_indexes_size('onesignal_message') / 1024");
    my $wal = $node->safe_psql('postgres', "SELECT pg_current_wal_insert_lsn() - '0/0'");
    my $done = sum0(map { $_->{requested} } values %base);
    push @{ $sample{'WAL of a cancel, bytes'} }, int(($wal - $sample{wal}) / ($done - $sample{done})) if defined $sample{wal} && $done > $sample{done};
    @sample{qw(wal done)} = ($wal, $done);
    my ($median, $late) = split /\|/, $node->safe_psql('postgres', <<'SQL');
SELECT round(1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - requested_at))),
    round(1000 * percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - requested_at)))
    FROM onesignal_message WHERE state = 'canceled' AND attempts = 1 AND finished_at > now() - interval '20 s'
SQL
    my @now = map { "$_ " . ($sample{$_}[-1] // '-') } grep { ref $sample{$_} } sort keys %sample;
    diag(sprintf('%4d s, %d rows: ', $seconds, $done) . join('; ', @now) . "; first attempts took $median ms, p99 $late ms");
}

my $start = time;
my $end = $start + 60 * $MINUTES;
my ($fault, $measured) = (0, 0);
while (time < $end)
{
    # Each fault and each event several times in an hour, each in turn.
    $api->clear_faults;
    my $kind = $FAULTS[ $fault++ % @FAULTS ];
    $api->fault(method => 'DELETE', %$kind) if %$kind;
    for (1 .. 4)
    {
        round(0);
        my $ahead = sum0(map { $_->{requested} } values %base) / $RATE - (time - $start);
        sleep(min($ahead, 5)) if $ahead > 0;
    }
    look_at_workers();
    my $next = $EVENTS[ rand @EVENTS ];
    note($next->[0]);
    $next->[1]->();
    if (time - $start > ($measured + 1) * 60 * $MINUTES / $SAMPLES) { measure(time - $start); $measured++ }
}

$api->clear_faults;
round(0);
for my $base (values %base)
{
    ok($node->poll_query_until($base->{name}, "SELECT count(*) = 0 FROM onesignal_message WHERE state IN ('pending', 'scheduled')"),
        "$base->{name}: all that was requested is delivered");
    is($node->safe_psql($base->{name}, "SELECT coalesce(string_agg(DISTINCT state || ': ' || errors::text, ', '), 'none') FROM onesignal_message WHERE state <> 'canceled'"),
        'none', "$base->{name}: nothing was refused or given up");
    cmp_ok($node->safe_psql($base->{name}, 'SELECT sum(canceled_total) FROM onesignal_app'), '>=', $base->{requested},
        "$base->{name}: OneSignal has confirmed all of $base->{requested}");
    my @noted = split /\n/, $node->safe_psql($base->{name}, 'SELECT message_id FROM requested');
    is(scalar(grep { $api->state($_) ne 'canceled' } @noted), 0, "$base->{name}: of " . @noted . ' ids, all are canceled at OneSignal');
}

# The last third against the third before: the first warms up.
for my $what (grep { ref $sample{$_} } sort keys %sample)
{
    my @all = @{ $sample{$what} };
    my @early = @all[ @all / 3 .. 2 * @all / 3 - 1 ];
    my @late = @all[ 2 * @all / 3 .. $#all ];
    # How many sockets there are at a moment says little; it is bounded.
    my $spread = $what =~ /^sockets/ ? 20 : 0;
    cmp_ok(median(@late), '<=', 1.5 * median(@early) + $spread, "$what: " . join(' ', @all));
}
$node->stop;
done_testing();
