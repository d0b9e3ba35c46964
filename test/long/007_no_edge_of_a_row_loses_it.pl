# The kill matrix: at each edge of a row's life, each way in which a worker, a CALL or the server can end. What was
# committed is canceled in the end, what was not is never sent, and nothing that OneSignal has confirmed is recorded as
# refused, though it refuses to cancel a message twice.
#
# Each pair is tried once, then more that a seed chooses: ROUNDS=500 SEED=7. No edge is met by sleeping: a lock, an
# advisory lock in a trigger, or a fault of the stand-in holds the row there.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(sleep time);
use Workers;

my $seed = $ENV{SEED} // 1;
my $rounds = $ENV{ROUNDS} // 60;
srand $seed;
diag("seed $seed, $rounds rounds");

my $api = StandIn->new;
$api->repeat_status(400);
$api->view_limit(0);
my $node = Workers::start('main', preload => 1, conf => "log_statement = none\nrestart_after_crash = on\nmax_prepared_transactions = 10\n"
      . "onesignal_cancel.timeout = '20s'\nonesignal_cancel.connect_timeout = '20s'\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
$node->safe_psql('postgres', <<'SQL');
ALTER SERVER clinic OPTIONS (ADD rate_limit '0');
CREATE TABLE gate (shut bool);
INSERT INTO gate VALUES (false);
-- Whoever records an outcome waits here while the test has the lock.
CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT shut FROM public.gate) AND NEW.state <> OLD.state THEN
        PERFORM pg_advisory_xact_lock_shared(77);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER wait_at_gate AFTER UPDATE ON onesignal_message FOR EACH ROW EXECUTE FUNCTION wait_at_gate();
ALTER TABLE onesignal_message ENABLE ALWAYS TRIGGER wait_at_gate;
SQL

my (@kept, @dropped);
my @held;    # sessions that hold something

sub sql { return $node->safe_psql('postgres', $_[0]) }

sub session
{
    my ($sql) = @_;
    my $session = $node->background_psql('postgres');
    $session->query_safe($sql) if $sql;
    push @held, $session;
    return $session;
}

sub let_go
{
    for (splice @held) { eval { $_->{run}->kill_kill } }
    $api->clear_faults;
}

sub request_sql { my (@ids) = @_; return Workers::insert_sql($api, @ids) }

# A deliverer that is stuck with the row: the worker, or a CALL.
sub deliver
{
    my ($round) = @_;
    return if !$round->{call};
    my $session = session();
    $session->{stdin} .= "CALL onesignal_cancel_deliver('1 min');\n";
    $session->{run}->pump_nb;
}

sub arrived { my (@ids) = @_; $api->wait_for_requests(1, message => $_) for @ids; return 1 }

sub somebody_waits_for_table
{
    return $node->poll_query_until('postgres', "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'public.onesignal_message'::regclass");
}

# Each brings the ids to an edge and returns true when they are there.
my %edge = (
    'requested, not committed' => sub {
        my ($round, @ids) = @_;
        session('BEGIN; ' . request_sql(@ids));
        return $round->{dropped} = 1;
    },
    'committed, not fetched' => sub {
        my ($round, @ids) = @_;
        my $request = session('BEGIN; ' . request_sql(@ids));
        # Waits for the request's lock, and so gets its own before anybody who comes after the commit.
        my $lock = session('BEGIN');
        $lock->{stdin} .= "LOCK TABLE onesignal_message;\n";
        $lock->{run}->pump_nb;
        somebody_waits_for_table() or return 0;
        $request->query_safe('COMMIT');
        deliver($round);
        return somebody_waits_for_table();
    },
    'begun, not sent' => sub {
        my ($round, @ids) = @_;
        $round->{raw} = $api->raw_server(mode => 'no_accept');
        sql("ALTER SERVER clinic OPTIONS (SET base_url '" . $round->{raw}->url . "')");
        sql(request_sql(@ids));
        deliver($round);
        return $node->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_stat_activity WHERE ' . $round->{who} . " AND state = 'active' AND (wait_event LIKE 'OnesignalCancel%' OR wait_event = 'Extension')");
    },
    'sent, not arrived' => sub {
        my ($round, @ids) = @_;
        $api->fault(message => \@ids, method => 'DELETE', kind => 'hang');
        sql(request_sql(@ids));
        deliver($round);
        return arrived(@ids);
    },
    'sent, done, not answered' => sub {
        my ($round, @ids) = @_;
        $api->fault(message => \@ids, method => 'DELETE', kind => 'hang', effect => 1);
        sql(request_sql(@ids));
        deliver($round);
        return arrived(@ids);
    },
    'answered, not recorded' => sub {
        my ($round, @ids) = @_;
        $api->fault(message => \@ids, method => 'DELETE', hold => 1);
        sql(request_sql(@ids));
        deliver($round);
        arrived(@ids);
        session("BEGIN; SELECT FROM onesignal_message WHERE state = 'pending' FOR UPDATE");
        $api->clear_faults;
        my $until = time + $PostgreSQL::Test::Utils::timeout_default;
        for my $id (@ids) { until ($api->state($id) eq 'canceled') { return 0 if time > $until; sleep 0.01 } }
        return 1;
    },
    'recorded, not committed' => sub {
        my ($round, @ids) = @_;
        session('SELECT pg_advisory_lock(77)');
        sql('UPDATE gate SET shut = true');
        sql(request_sql(@ids));
        deliver($round);
        return $node->poll_query_until('postgres', "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'");
    },
    'prepared' => sub {
        my ($round, @ids) = @_;
        sql('BEGIN; ' . request_sql(@ids) . " PREPARE TRANSACTION 'edge'");
        return $round->{prepared} = 1;
    });

sub deliverer { my ($round) = @_; return sql("SELECT pid FROM pg_stat_activity WHERE $round->{who} LIMIT 1") }

my %end = (
    'kill -9 of the deliverer' => sub {
        my ($round) = @_;
        my $pid = deliverer($round);
        Workers::kill9($node, $pid) if $pid;
    },
    'kill -9 of the postmaster' => sub { Workers::crash($node) },
    'an immediate stop' => sub { $node->stop('immediate'); $node->start },
    'a fast stop' => sub { $node->stop('fast'); $node->start },
    'pg_terminate_backend' => sub {
        my ($round) = @_;
        my $pid = deliverer($round);
        sql("SELECT pg_terminate_backend($pid, 60000)") if $pid;
    },
    'lack of memory' => sub {
        my ($round) = @_;
        my $pid = deliverer($round) or return;
        # It may leave at any moment.
        my ($size) = (eval { slurp_file("/proc/$pid/status") } // '') =~ /^VmSize:\s+(\d+) kB/m or return;
        system('prlimit', '--pid', $pid, '--as=' . 1024 * ($size + 64) . ':');
        let_go();
        sleep 0.2;
        system('prlimit', '--pid', $pid, '--as=unlimited:') if -d "/proc/$pid";
    });

my @pairs = map { my $edge = $_; map { [ $edge, $_ ] } sort keys %end } sort keys %edge;
push @pairs, [ (sort keys %edge)[ rand keys %edge ], (sort keys %end)[ rand keys %end ] ] while @pairs < $rounds;
for my $number (0 .. $#pairs)
{
    my ($edge, $end) = @{ $pairs[$number] };
    my %round = (call => rand() < 0.3);
    $round{who} = $round{call} ? "query LIKE 'CALL onesignal%' AND pid <> pg_backend_pid()" : "backend_type = 'onesignal_cancel worker'";
    sql('ALTER SYSTEM SET onesignal_cancel.background_delivery = ' . ($round{call} ? 'off' : 'on'));
    sql('SELECT pg_reload_conf()');
    # A CALL does not notice that its client has gone: another would not deliver beside it.
    sql("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE query LIKE 'CALL onesignal%' AND pid <> pg_backend_pid()");
    Workers::wait_for_no_worker($node) if $round{call};
    my @ids = map { $api->schedule } 1 .. 3;
    my $name = "$edge, $end" . ($round{call} ? ', of a CALL' : '');
    note("$number: $name");
    $edge{$edge}->(\%round, @ids) or fail("$name: the edge is met");
    $end{$end}->(\%round);
    let_go();
    $node->poll_query_until('postgres', 'SELECT true');
    sql('UPDATE gate SET shut = false');
    sql("ALTER SERVER clinic OPTIONS (SET base_url '" . $api->url . "')") if $round{raw};
    sql("COMMIT PREPARED 'edge'") if $round{prepared};
    push @{ $round{dropped} ? \@dropped : \@kept }, @ids;
    sql('ALTER SYSTEM SET onesignal_cancel.background_delivery = on');
    sql('SELECT pg_reload_conf()');
    next if $round{dropped};
    if (!Workers::wait_for($node, 'postgres', \@ids, 'canceled'))
    {
        fail($name);
        diag(sql("SELECT state, attempts, unanswered, http_status, errors FROM onesignal_message WHERE message_id IN ('" . join("', '", @ids) . "')"));
    }
    delete $round{raw};
}

# A request that comes after all of them is delivered after all of them.
push @kept, my $last = $api->schedule;
sql(request_sql($last));
ok(Workers::wait_for($node, 'postgres', $last, 'canceled'), 'the server is well');
is(sql("SELECT string_agg(DISTINCT state::text, ' ') FROM onesignal_message"), 'canceled', 'all that was committed is canceled, and nothing recorded as refused or failed');
is(sql('SELECT count(*) FROM onesignal_message'), scalar @kept, 'each of it');
is(scalar(grep { $api->state($_) ne 'canceled' } @kept), 0, 'OneSignal has canceled all of them');
is(scalar(grep { $api->received(message => $_) > 0 } @dropped), 0, 'and was never asked for what rolled back');
note(scalar(@kept) . ' kept, ' . scalar(@dropped) . ' dropped, ' . $api->received . ' requests');
$node->stop;
done_testing();
