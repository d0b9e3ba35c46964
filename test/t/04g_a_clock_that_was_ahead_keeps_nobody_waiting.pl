# A clock that was ahead, as after the start of a machine, leaves times behind that lie in the future: when to try a row
# again, when an app's pause ends, when to start a worker. Once the clock is right nobody waits for them.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/clock.c", <<'C');
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

/* All of a server's times come from here. The file says how many seconds its clock is ahead. */
int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    char ahead[20] = "";
    int file = open(getenv("CLOCK"), O_RDONLY);

    if (file >= 0 && read(file, ahead, sizeof(ahead) - 1) < 0)
        ahead[0] = '\0';
    close(file);
    syscall(SYS_gettimeofday, now, zone);
    now->tv_sec += atoi(ahead);
    return 0;
}
C
system_or_bail('cc', '-Wall', '-Werror', '-shared', '-fPIC', '-o', "$dir/clock.so", "$dir/clock.c");

sub set_clock
{
    my ($ahead) = @_;
    open my $file, '>', "$dir/clock.new" or die "clock: $!";
    print $file $ahead;
    close $file;
    rename "$dir/clock.new", "$dir/clock" or die "clock: $!";
}

my $api = StandIn->new(accept_any => 1);
for my $preload (0, 1)
{
    # Whoever is woken by nobody waits for what is due.
    for my $fault ({ status => 503 }, { status => 429, headers => { 'Retry-After' => 2 } })
    {
        my $how = ($preload ? 'preloaded' : 'not preloaded') . ", $fault->{status}";
        my $node;
        set_clock(86400);
        {
            local $ENV{LD_PRELOAD} = join ':', $ENV{LD_PRELOAD} // (), "$dir/clock.so";
            local $ENV{CLOCK} = "$dir/clock";
            $node = Workers::start("clock_${preload}_$fault->{status}", preload => $preload, conf => "onesignal_cancel.worker_idle_timeout = '100ms'\n");
        }
        Workers::add_app($node, 'postgres', $api);
        $api->fault(method => 'DELETE', %$fault);
        $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '" . $api->app_id . "', true FROM generate_series(1, 8)");
        ok($node->poll_query_until('postgres', "SELECT circuit_until > now() + '10 s' OR circuit_until IS NOT NULL AND '$fault->{status}' = '429' FROM onesignal_app"), "$how: the app is paused");
        set_clock(0);
        $api->clear_faults;
        ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'canceled'", 8), "$how: all is delivered when the clock is right")
          or diag $node->safe_psql('postgres', "SELECT now(), delivery, paused_until FROM onesignal_cancel_status; SELECT state, attempts, next_attempt_at FROM onesignal_message");
        $node->stop('immediate');
    }
}

# It is set back while a run that is going to end records its outcome.
{
    my $node;
    set_clock(86400);
    {
        local $ENV{LD_PRELOAD} = join ':', $ENV{LD_PRELOAD} // (), "$dir/clock.so";
        local $ENV{CLOCK} = "$dir/clock";
        $node = Workers::start('recording', preload => 0);
    }
    Workers::add_app($node, 'postgres', $api);
    $node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END';
CREATE TRIGGER aa_hold BEFORE UPDATE ON onesignal_message FOR EACH ROW EXECUTE FUNCTION hold();
ALTER TABLE onesignal_message ENABLE ALWAYS TRIGGER aa_hold;
SQL
    my $holder = $node->background_psql('postgres');
    $holder->query_safe('SELECT pg_advisory_lock(7)');
    $api->fault(method => 'DELETE', status => 429, headers => { 'Retry-After' => 2 });
    $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (gen_random_uuid(), '" . $api->app_id . "', true)");
    ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"), 'an outcome is being recorded');
    set_clock(0);
    $api->clear_faults;
    $holder->quit;
    ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'canceled'", 1), 'nobody waits for a time that was computed before');
    $node->stop('immediate');
}

# What was sent before a crash may have worked, also if it was requested at a time that is yet to come.
$api = StandIn->new;
$api->repeat_status(400);
set_clock(86400);
local $ENV{LD_PRELOAD} = join ':', $ENV{LD_PRELOAD} // (), "$dir/clock.so";
local $ENV{CLOCK} = "$dir/clock";
my $node = Workers::start('crash', preload => 1);
Workers::add_app($node, 'postgres', $api);
my $id = $api->schedule;
$api->fault(message => $id, kind => 'hang', effect => 1);
Workers::request($node, 'postgres', $api, $id);
$api->wait_for_requests(1, message => $id);
$node->stop('immediate');
$api->clear_faults;
set_clock(0);
$node->start;
ok($node->poll_query_until('postgres', "SELECT state <> 'pending' FROM onesignal_message"), 'after a crash, too, it is tried again');
is(Workers::state($node, 'postgres', $id), 'canceled', 'and its refusal is not believed unchecked');

# Nor does a resume at a time that is yet to come make a later one void.
my $app = $api->app_id;
set_clock(86400);
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
set_clock(0);
$api->fault(method => 'DELETE', status => 429, headers => { 'Retry-After' => 600 });
my ($throttled, $next) = map { $api->schedule } 1 .. 2;
Workers::request($node, 'postgres', $api, $throttled);
ok($node->poll_query_until('postgres', 'SELECT circuit_until IS NOT NULL FROM onesignal_app'), 'a 429 pauses the app');
$api->clear_faults;
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
Workers::request($node, 'postgres', $api, $next);
ok(Workers::wait_for($node, 'postgres', $next, 'canceled'), 'a resume ends that');
$node->stop;
done_testing();
