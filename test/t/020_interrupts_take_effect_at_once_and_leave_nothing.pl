# statement_timeout, pg_cancel_backend(), pg_terminate_backend() and the postmaster's death end a call
# at once, whatever it is waiting for, and the session goes on as if nothing had been: a thousand of
# them leave no file descriptor, thread or memory behind.
#
# The promise is 50 ms by the server's own clock. A busy machine may be slower than that for reasons
# of its own, never faster: the best of a few tries is what counts.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(sleep time);

my $PROMISED_MS = 50;
my $TRIES = 6;

# Name servers that do not answer, for one name: the resolver's thread sleeps.
sub make_slow_resolver
{
    my $base = PostgreSQL::Test::Utils::tempdir() . '/slow_resolver';
    append_to_file("$base.c", <<'C');
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
    int (*next) (const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");

    if (node != NULL && strcmp(node, "slow.test") == 0)
    {
        usleep(2500000);
        return EAI_AGAIN;
    }
    return next(node, service, hints, result);
}
C
    system_or_bail('cc', '-shared', '-fPIC', '-o', "$base.so", "$base.c", '-ldl');
    return "$base.so";
}

my $api = StandIn->new(accept_any => 1, keepalive_requests => 1_000_000);
my $no_accept = $api->raw_server(mode => 'no_accept');
my $silent = $api->raw_server(mode => 'silent', tls => 1);
my $closing = $api->raw_server(mode => 'close_idle');
my $closing_app = $api->add_app->{app_id};

# Each stage is an app, with a server that leads there.
my %stages = (
    resolving => { url => 'https://slow.test' },
    connecting => { url => $no_accept->url },
    handshake => { url => $silent->url },
    headers => { fault => { kind => 'hang' } },
    body => { fault => { kind => 'drip', pause => 100, body => ' ' x 1000 } },
    retry_after => { fault => { status => 429, headers => { 'Retry-After' => 30 } } });
my @stages = qw(resolving connecting handshake headers body retry_after);

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "log_statement = none\nclient_min_messages = warning\n");
{
    local $ENV{LD_PRELOAD} = join ':', $ENV{LD_PRELOAD} // (), make_slow_resolver();
    $node->start;
}

my $sql = 'CREATE EXTENSION onesignal_cancel;' . $api->setup_sql('clinic', server_options => { rate_limit => 0 })
  . $api->setup_sql('closing', app => $closing_app, url => $closing->url);
for my $name (@stages)
{
    my $stage = $stages{$name};
    my $app = $api->add_app->{app_id};
    $api->fault(app => $app, %{ $stage->{fault} }) if $stage->{fault};
    $sql .= $api->setup_sql($name, app => $app, url => $stage->{url} // $api->url, server_options => { rate_limit => 0 });
    $stage->{single} = "SELECT * FROM onesignal_cancel('$app', '00000000-0000-4000-a000-000000000001')";
    $stage->{batch} = "SELECT * FROM onesignal_cancel_batch('$app', array_fill('00000000-0000-4000-a000-000000000002'::uuid, '{1000}'))";
    $stage->{app} = $app;
}
$node->safe_psql('postgres', $sql . <<'SQL');
-- When a call was interrupted, in ms since 1970; NULL: it came to its end.
CREATE FUNCTION interrupted_at(call text) RETURNS float8 LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE call;
    RETURN NULL;
EXCEPTION WHEN query_canceled THEN
    RETURN extract(epoch FROM clock_timestamp()) * 1000;
END $$;

CREATE FUNCTION cancel_at(pid integer) RETURNS float8 LANGUAGE plpgsql AS $$
DECLARE
    now float8 := extract(epoch FROM clock_timestamp()) * 1000;
BEGIN
    PERFORM pg_cancel_backend(pid);
    RETURN now;
END $$;

-- How long a session takes to end, in ms; NULL: its process is still there a second later. The exit
-- of a process itself, also of an idle one, takes the kernel tens of ms on a busy machine.
CREATE FUNCTION terminate(victim integer) RETURNS float8 LANGUAGE plpgsql AS $$
DECLARE
    since timestamptz := clock_timestamp();
    ended timestamptz;
BEGIN
    PERFORM pg_terminate_backend(victim);
    WHILE EXISTS (SELECT FROM pg_stat_activity WHERE pid = victim) LOOP
        PERFORM pg_sleep(0.001), pg_stat_clear_snapshot();
    END LOOP;
    ended := clock_timestamp();
    WHILE (SELECT size FROM pg_stat_file('/proc/' || victim, true)) IS NOT NULL LOOP
        IF clock_timestamp() > ended + interval '1 second' THEN
            RETURN NULL;
        END IF;
        PERFORM pg_sleep(0.001);
    END LOOP;
    RETURN extract(epoch FROM ended - since) * 1000;
END $$;
SQL

my $controller = $node->background_psql('postgres');

# One more session, as { psql, pid }.
sub new_session
{
    my $psql = $node->background_psql('postgres', on_error_stop => 0);
    return { psql => $psql, pid => $psql->query_safe('SELECT pg_backend_pid()') };
}

# Sends a statement without waiting for its end, only until it has come to its stage.
sub begin_call
{
    my ($session, $statement, $stage) = @_;
    my $connections = $silent->connections;
    my $received = $api->received;
    my $many = $statement =~ /batch/ ? 700 : 1;    # of the 800 that may be in flight
    my %arrived = (
        resolving => sub { (() = glob "/proc/$session->{pid}/task/*") > 1 },    # newer libcurls keep the thread for a while
        connecting => sub { 1 },
        handshake => sub { $silent->connections > $connections },
        headers => sub { $api->received >= $received + $many },
        body => sub { $api->received >= $received + $many },
        retry_after => sub { $api->received > $received });

    $session->{psql}->query_until(qr/begun/, "\\echo begun\n$statement;\n");
    my $until = time + $PostgreSQL::Test::Utils::timeout_default;
    until ($arrived{$stage}->() && $controller->query_safe(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = $session->{pid} AND state = 'active' AND wait_event_type = 'Extension'"))
    {
        die "$stage was not reached" if time > $until;
        sleep 0.01;
    }
}

# The least of what up to so many tries measure, in ms; the try is told which it is.
sub best_of
{
    my ($try) = @_;
    my $best;
    for my $n (1 .. $TRIES)
    {
        my $ms = $try->($n) // '';
        $best = $ms if $ms ne '' && (!defined $best || $ms < $best);
        last if defined $best && $best < $PROMISED_MS;
    }
    return $best;
}

sub is_prompt
{
    my ($ms, $name) = @_;
    return if $ENV{SANITIZE};    # LeakSanitizer's search at exit alone takes longer
    cmp_ok($ms // 1e9, '<', $PROMISED_MS, $name);
    note(sprintf '%s: %.1f ms', $name, $ms) if defined $ms;
}

# The session that was interrupted is as good as new, on the connection that it has and on another one.
sub still_works
{
    my ($session, $name) = @_;
    is($session->{psql}->query("SELECT status, success FROM onesignal_cancel('" . $api->app_id . "', gen_random_uuid());
        SELECT status, success FROM onesignal_cancel('$closing_app', gen_random_uuid())"), "200|t\n200|t", $name);
    $session->{psql}{stderr} = '';
}

my $session = new_session();
for my $name (@stages)
{
    for my $form (qw(single batch))
    {
        my $call = $stages{$name}{$form};
        my $quoted = "interrupted_at(\$call\$$call\$call\$)";

        # Should it come before the call has begun, it is longer the next time.
        is_prompt(best_of(sub {
            my $timeout = 120 * $_[0];
            my $late = $session->{psql}->query("SET statement_timeout = $timeout;
                SELECT $quoted - extract(epoch FROM statement_timestamp()) * 1000 - $timeout;
                RESET statement_timeout");
            $session->{psql}{stderr} = '';
            return $late;
        }), "$name, $form: statement_timeout");

        is_prompt(best_of(sub {
            begin_call($session, "SELECT $quoted", $name);
            my $since = $controller->query_safe("SELECT cancel_at($session->{pid})");
            my $at = $session->{psql}->query_safe('');
            return $at eq '' ? undef : $at - $since;
        }), "$name, $form: pg_cancel_backend");
        still_works($session, "$name, $form: the session's next calls");

        is_prompt(best_of(sub {
            my $victim = new_session();
            begin_call($victim, $call, $name);
            my $ms = $controller->query_safe("SELECT terminate($victim->{pid})");
            $victim->{psql}{run}->finish;
            like($victim->{psql}{stderr}, qr/terminating connection due to administrator command/, "$name, $form: it is told")
              if $form eq 'single';
            return $ms;
        }), "$name, $form: pg_terminate_backend");
    }
}

# The resolver's thread must not run PostgreSQL's signal handlers; the session itself must.
{
    my @signals = (1, 2, 3, 10, 12, 14, 15, 17);    # HUP INT QUIT USR1 USR2 ALRM TERM CHLD
    my %blocked;
    begin_call($session, $stages{resolving}{single}, 'resolving');
    for my $task (glob "/proc/$session->{pid}/task/*")
    {
        my ($mask) = slurp_file("$task/status") =~ /^SigBlk:\s+(\w+)/m;
        $blocked{ $task =~ /\/$session->{pid}$/ ? 'session' : 'thread' }{ join ' ', grep { hex($mask) >> ($_ - 1) & 1 } @signals } = 1;
    }
    $controller->query_safe("SELECT cancel_at($session->{pid})");
    $session->{psql}->query('');
    $session->{psql}{stderr} = '';
    is_deeply(\%blocked, { session => { '' => 1 }, thread => { "@signals" => 1 } }, 'signals are for the session, not for the thread that resolves');
}

# Seen from the client
for my $name (qw(resolving headers retry_after))
{
    my ($result, $stdout, $stderr) = $node->psql('postgres', "SET statement_timeout = 50; $stages{$name}{single}",
        extra_params => [ '-v', 'VERBOSITY=verbose' ]);
    like($stderr, qr/ERROR:  57014: canceling statement due to statement timeout/, "$name: the SQLSTATE");
}

# A thousand in one session, as often in each stage as its speed allows
sub interrupt_many
{
    my ($many) = @_;
    my %share = (resolving => 0.1, connecting => 0.25, handshake => 0.1, headers => 0.25, body => 0.1, retry_after => 0.1);
    my $script = PostgreSQL::Test::Utils::tempdir() . '/calls.sql';
    my @calls = ((map { ($stages{$_}{single}) x ($many * $share{$_}) } @stages), ($stages{headers}{batch}) x ($many * 0.1));
    open my $file, '>', $script or die "$script: $!";
    print $file map { "$_;\n" } 'SET statement_timeout = 6', @calls;
    close $file;
    my $psql = $session->{psql};
    $psql->{stderr} = '';
    $psql->{stdin} .= "\\i $script\n\\warn through\n";
    pump_until($psql->{run}, $psql->{timeout}, \$psql->{stderr}, qr/^through$/m);
    # When it comes before the statement has really begun, PostgreSQL mistakes its own timeout for a cancel.
    my $interrupted = () = $psql->{stderr} =~ /canceling statement due to (?:statement timeout|user request)/g;
    # That may be interrupted, too.
    1 while $psql->query("RESET statement_timeout;\nSHOW statement_timeout") ne '0';
    $psql->{stderr} = '';
    is($interrupted, $many, "$many interrupted calls");
}

# Descriptors (other than of tables), threads and kB of memory of the session's own
sub holdings
{
    my $proc = "/proc/$session->{pid}";
    my $until = time + $PostgreSQL::Test::Utils::timeout_default;
    # A thread that asks a slow name server cannot be stopped. It ends with the answer.
    sleep 0.05 while (() = glob "$proc/task/*") > 1 && time < $until;
    my ($memory) = slurp_file("$proc/status") =~ /^RssAnon:\s+(\d+)/m;
    my @descriptors = grep { (readlink($_) // '') !~ m!/pgdata/! } glob "$proc/fd/*";
    return { descriptors => scalar(@descriptors), threads => scalar(() = glob "$proc/task/*"), memory => $memory };
}

still_works($session, 'connections for those that come so far');
$session->{psql}->query_safe("SELECT count(*) FROM onesignal_cancel_batch('" . $api->app_id . "', array_fill(gen_random_uuid(), '{1000}'))");
interrupt_many(300);
still_works($session, 'and the next calls');
my $before = holdings();
my $received = $api->received;
interrupt_many(1000);
still_works($session, 'and the next calls');
cmp_ok($api->received - $received, '>', 100, 'many of which had sent their request');
my $after = holdings();
cmp_ok($after->{descriptors}, '<=', $before->{descriptors}, 'no more descriptors than before');
is($after->{threads}, 1, 'no threads');
SKIP:
{
    skip 'AddressSanitizer keeps what was freed, and looks for leaks itself', 1 if $ENV{SANITIZE};
    cmp_ok($after->{memory} - $before->{memory}, '<', 512, sprintf 'no more memory than before (%d kB, then %d kB)', $before->{memory}, $after->{memory});
}

# Nobody is left to send a signal
my %orphans = map { $_ => new_session() } @stages;
begin_call($orphans{$_}, $stages{$_}{single}, $_) for @stages;
my $since = time;
$node->kill9;
my %left = map { $_ => 1 } @stages;
while (%left && time < $since + 60)
{
    for my $name (keys %left)
    {
        # A zombie is gone, too: whoever inherits it may take its time.
        my $stat = -e "/proc/$orphans{$name}{pid}/stat" ? eval { slurp_file("/proc/$orphans{$name}{pid}/stat") } // '' : '';
        delete $left{$name} if $stat eq '' || $stat =~ /\) Z /;
    }
    sleep 0.005;
}
my $took = time - $since;
is(join(' ', sort keys %left), '', "postmaster's death ends all of them");
cmp_ok($took, '<', 15, sprintf 'without anybody waiting for an answer (%.0f ms)', $took * 1000) if !$ENV{SANITIZE};
$_->{psql}{run}->finish for values %orphans;
$controller->{run}->finish;
$session->{psql}{run}->finish;

done_testing();
