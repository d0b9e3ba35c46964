# A deliverer that is told to stop records what it has sent: after it nobody has to cancel a message
# again whose cancel OneSignal has confirmed, and which it would then refuse.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(time);
use Workers;

my $COUNT = 3000;
my $api = StandIn->new(accept_any => 1);
$api->repeat_status(400);

# Whatever waits for an answer, or for the end of a statement, would wait for ten minutes.
my $node = Workers::start('main', preload => 1, conf => "onesignal_cancel.timeout = '10min'\n");
Workers::add_app($node, 'postgres', $api);
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '600')");

# Whoever comes next begins nothing of the app until it is resumed.
sub pause { $node->safe_psql('postgres', "SELECT onesignal_cancel_pause('" . $api->app_id . "')") }
sub resume { $node->safe_psql('postgres', "SELECT onesignal_cancel_resume('" . $api->app_id . "')") }

sub count { my ($where) = @_; return $node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE $where") }

# Requests $COUNT cancels, and returns in the middle of their delivery.
sub begin_to_drain
{
    ok(Workers::wait_for_no_worker($node), 'no worker is there');
    $node->safe_psql('postgres', 'TRUNCATE onesignal_message');
    $api->fault(method => 'DELETE', delay => 200);
    $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '"
          . $api->app_id . "', true FROM generate_series(1, $COUNT)");
    ok($node->poll_query_until('postgres', "SELECT count(*) > 10 FROM onesignal_message WHERE state = 'canceled'"), 'a drain is on its way');
}

sub all_is_canceled
{
    my ($how) = @_;
    $api->clear_faults;
    ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'pending'", '0'), "$how: everything is delivered");
    is(count("state = 'refused'"), '0', "$how: nothing confirmed is recorded as refused");
    is(count("state = 'canceled'"), $COUNT, "$how: all are canceled");
}

begin_to_drain();
my $began = time;
$node->stop('fast');
cmp_ok(time - $began, '<', 60, 'fast stop: the server does not wait');
$node->start;
all_is_canceled('fast stop');

# Does this in the middle of a drain. Whoever is slow finds it over, and has to begin again.
sub in_mid_drain
{
    my ($how, $end) = @_;
    for (1 .. 10)
    {
        begin_to_drain();
        $end->();
        last if count("state = 'pending'") > 0;
    }
    cmp_ok(count("state = 'pending'"), '>', 0, "$how: before it is through");
}

my $worker;
in_mid_drain('pg_terminate_backend', sub {
    $worker = Workers::worker($node, 'postgres') or return;
    is($node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 60000)"), 't', 'pg_terminate_backend: the worker ends');
});
all_is_canceled('pg_terminate_backend');

in_mid_drain('reload', sub {
    Workers::set($node, 'onesignal_cancel.enabled', 'off');
    ok(Workers::wait_for_no_worker($node), 'reload: the worker leaves');
    Workers::set($node, 'onesignal_cancel.enabled', 'on') if count("state = 'pending'") == 0;
});
Workers::set($node, 'onesignal_cancel.enabled', 'on');
all_is_canceled('reload');

# ---- what does not answer is recorded as an attempt without answer, and does not hold up the end ----

$api->accept_any(0);
my @ids = map { $api->schedule } 1 .. 3;
$api->fault(method => 'DELETE', kind => 'hang', effect => 1);
$node->safe_psql('postgres', 'TRUNCATE onesignal_message');
Workers::request($node, 'postgres', $api, @ids);
$api->wait_for_requests(1, message => $_) for @ids;
pause();
$worker = Workers::worker($node, 'postgres');
$began = time;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $worker", '0'), 'with hanging requests the worker ends');
cmp_ok(time - $began, '<', 60, 'soon');
is(count('unanswered AND attempts = 1'), '3', 'and records them as attempts without answer');
$api->clear_faults;
resume();
ok(Workers::wait_for($node, 'postgres', \@ids, 'canceled'), 'they are canceled in the end, though OneSignal refuses to do it again');

# ---- the postmaster sends each SIGTERM twice ----

@ids = map { $api->schedule } 1 .. 3;
$api->fault(method => 'DELETE', kind => 'hang', effect => 1);
$node->safe_psql('postgres', 'TRUNCATE onesignal_message');
Workers::request($node, 'postgres', $api, @ids);
$api->wait_for_requests(1, message => $_) for @ids;
pause();
$worker = Workers::worker($node, 'postgres');
$began = time;
kill 'TERM', $worker;
select undef, undef, undef, 0.01;
kill 'TERM', $worker;
# One that comes half a second later is somebody's who has no patience.
my $at_once = time - $began < 0.4;
ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $worker", '0'), 'a worker that is told twice ends');
is(count('unanswered AND attempts = 1'), '3', 'and records as one that is told once') if $at_once;
$api->clear_faults;
resume();
ok(Workers::wait_for($node, 'postgres', \@ids, 'canceled'), 'nothing is lost by that');

# ---- a statement that hangs does not hold up the end ----

my $slow = $api->schedule;
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF new.state <> ''pending'' THEN PERFORM pg_sleep(600); END IF; RETURN NULL; END';
CREATE TRIGGER hang AFTER UPDATE ON onesignal_message FOR EACH ROW EXECUTE FUNCTION hang();
ALTER TABLE onesignal_message ENABLE ALWAYS TRIGGER hang;
SQL
Workers::request($node, 'postgres', $api, $slow);
ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker' AND wait_event = 'PgSleep'", '1'), 'a trigger hangs');
$worker = Workers::worker($node, 'postgres');
is($node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 60000)"), 't', 'the worker ends all the same');
$node->safe_psql('postgres', 'DROP FUNCTION hang() CASCADE');
ok(Workers::wait_for($node, 'postgres', $slow, 'canceled'), 'and the message is canceled by another');

# ---- a worker that waits for a lock ends at once ----

Workers::wait_for_no_worker($node);
my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK onesignal_message IN SHARE ROW EXCLUSIVE MODE');
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (SET rate_limit '100')");
ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker' AND wait_event_type = 'Lock'", '1'),
    'a worker waits for the lock of the table');
$worker = Workers::worker($node, 'postgres');
$began = time;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 60000)");
cmp_ok(time - $began, '<', 60, 'and ends at once');
$locker->quit;

# ---- nor does a lock hold up a worker that has to record before it ends ----

ok(Workers::wait_for_no_worker($node), 'it is there no more');
my $hung = $api->schedule;
$api->fault(message => $hung, kind => 'hang', times => 1);
Workers::request($node, 'postgres', $api, $hung);
$api->wait_for_requests(1, message => $hung);
$locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK onesignal_message');
$worker = Workers::worker($node, 'postgres');
$began = time;
is($node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 60000)"), 't', 'a worker that cannot record ends as well');
cmp_ok(time - $began, '<', 60, 'soon');
$locker->quit;
ok(Workers::wait_for($node, 'postgres', $hung, 'canceled'), 'and the message is canceled by another');

unlike(slurp_file($node->logfile), qr/PANIC|server process .* was terminated/, 'nothing crashed');
$node->stop;
done_testing();
