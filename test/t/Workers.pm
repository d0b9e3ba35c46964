# Workers: what tests of the workers share.
#
#   my $node = Workers::start('main', preload => 1, conf => "onesignal_cancel.worker_idle_timeout = '1s'");
#   Workers::add_app($node, 'postgres', $api);      # CREATE EXTENSION, server, mapping
#   my $id = $api->schedule;
#   Workers::request($node, 'postgres', $api, $id);
#   Workers::wait_for($node, 'postgres', $id, 'canceled');
#   Workers::wait_for_no_worker($node);             # none is there, and none is about to come

package Workers;

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

sub start
{
    my ($name, %opts) = @_;
    my $node = PostgreSQL::Test::Cluster->new($name);
    $node->init(%{ $opts{init} // {} });
    $node->append_conf('postgresql.conf', "shared_preload_libraries = '" . ($opts{preload} ? 'onesignal_cancel' : '') . "'\n"
          . "log_min_messages = debug1\n" . ($opts{conf} // ''));
    $node->start;
    wait_for_launcher($node) if $opts{preload};
    return $node;
}

sub add_app
{
    my ($node, $database, $api) = @_;
    # Without preload it warns, which some tests look for in the log.
    $node->safe_psql($database, "SET log_min_messages = error; CREATE EXTENSION onesignal_cancel; RESET log_min_messages;\n" . $api->setup_sql('clinic'));
}

sub insert_sql
{
    my ($api, @ids) = @_;
    return 'INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES '
      . join(', ', map { "('$_', '" . $api->app_id . "', true)" } @ids) . ';';
}

sub request
{
    my ($node, $database, $api, @ids) = @_;
    $node->safe_psql($database, insert_sql($api, @ids));
}

# Until all of the ids are in this state; true if they are.
sub wait_for
{
    my ($node, $database, $ids, $state) = @_;
    my @ids = ref $ids ? @$ids : $ids;
    return $node->poll_query_until($database, "SELECT count(*) FROM onesignal_message WHERE state = '$state' AND message_id IN ('"
          . join("', '", @ids) . "')", scalar(@ids));
}

sub state
{
    my ($node, $database, $id) = @_;
    return $node->safe_psql($database, "SELECT state FROM onesignal_message WHERE message_id = '$id'");
}

# The pid of the database's worker, or ''.
sub worker
{
    my ($node, $database) = @_;
    return $node->safe_psql('postgres',
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker' AND datname = '$database'");
}

# kill -9. Once the postmaster has reaped the process, it lets nobody in before its restart: until then it would let a
# session in that it ends a moment later.
sub kill9
{
    my ($node, $pid) = @_;
    kill 'KILL', $pid;
    sleep 0.01 while kill 0 => $pid;
    return $node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)");
}

# The postmaster is dead. Where nobody reaps it, the next would take it to be alive.
sub forget_postmaster
{
    my ($node) = @_;
    unlink $node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock';
    $node->{_pid} = undef;
}

# kill -9 of the postmaster, and a new one: the children have to notice before it may have the data directory.
sub crash
{
    my ($node) = @_;
    $node->kill9;
    forget_postmaster($node);
    for (1 .. 1200)
    {
        last if run_log([ 'pg_ctl', '--wait', '--pgdata', $node->data_dir, '--log', $node->logfile, 'start' ]);
        sleep 0.1;
    }
    $node->_update_pid(1);
}

my $COUNT = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker'";

sub workers { my ($node) = @_; return $node->safe_psql('postgres', $COUNT) }

# How many workers the server has started since it accepts connections, in all or for one database, and how many of
# all have ended. The log is certain: pg_stat_activity does not show a worker that is on its way, and the next look
# may come too late for one that leaves soon.
sub _log
{
    my ($node) = @_;
    my $log = slurp_file($node->logfile);
    my $begin = rindex $log, 'database system is ready to accept connections';
    return substr $log, $begin < 0 ? 0 : $begin;
}

sub starts
{
    my ($node, $database) = @_;
    my $oid = defined $database ? $node->safe_psql('postgres', "SELECT oid FROM pg_database WHERE datname = '$database'") : qr/\d+/;
    # The postmaster starts what was registered before it lets this session in.
    $node->safe_psql('postgres', 'SELECT 1');
    return scalar(() = _log($node) =~ /starting background worker process "onesignal_cancel worker for database $oid"/g);
}

sub wait_for_no_worker
{
    my ($node) = @_;
    my $until = time + $PostgreSQL::Test::Utils::timeout_default;
    while (time < $until)
    {
        # Neither may the launcher be about to start one.
        my ($failed, $count) = $node->psql('postgres', "$COUNT OR backend_type = 'onesignal_cancel launcher' AND (state IS DISTINCT FROM 'idle' OR wait_event_type IS DISTINCT FROM 'Extension')");
        if (!$failed && $count eq '0')
        {
            my $log = _log($node);
            my $started = () = $log =~ /starting background worker process "onesignal_cancel worker /g;
            my $ended = () = $log =~ /background worker "onesignal_cancel worker" \(PID \d+\) (?:exited|was terminated)/g;
            return 1 if $started == $ended;
        }
        sleep 0.05;
    }
    return 0;
}

sub wait_for_worker
{
    my ($node, $database) = @_;
    return $node->poll_query_until('postgres', "$COUNT AND datname = '$database'", '1');
}

# The worker has recorded everything: it waits for the next commit, or has left.
sub wait_for_idle
{
    my ($node, $database) = @_;
    return $node->poll_query_until('postgres', "$COUNT AND datname = '$database' AND state IS DISTINCT FROM 'idle'", '0');
}

sub launcher
{
    my ($node) = @_;
    return $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel launcher'");
}

# Preloaded, the launcher has looked at what there is to do, and sleeps.
sub wait_for_launcher
{
    my ($node) = @_;
    return $node->poll_query_until('postgres',
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel launcher' AND state = 'idle' AND wait_event_type = 'Extension'", '1');
}

# Somebody requests a cancel of this app and commits, again and again, with pauses of so many seconds, until the session
# that this returns ends. Some of it is delivered when this returns.
sub commit_all_the_time
{
    my ($node, $app, $pause) = @_;
    my $session = $node->background_psql('postgres');
    $session->query_until(qr/begun/, <<SQL);
\\echo begun
DO \$\$ BEGIN
    FOR i IN 1 .. 100000 LOOP
        INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (gen_random_uuid(), '$app', true);
        COMMIT;
        PERFORM pg_sleep($pause);
    END LOOP;
END \$\$;
SQL
    ok($node->poll_query_until('postgres', "SELECT count(*) > 50 FROM onesignal_message WHERE app_id = '$app' AND state = 'canceled'"), 'somebody commits all the time');
    return $session;
}

# Once this returns, new sessions and workers have the value; those that are there get it at their next look.
sub set
{
    my ($node, $setting, $value) = @_;
    my $before = $node->safe_psql('postgres', 'SELECT pg_conf_load_time()');
    $node->append_conf('postgresql.conf', "$setting = $value\n");
    $node->reload;
    $node->poll_query_until('postgres', "SELECT pg_conf_load_time() > '$before'") or die 'not reloaded';
}

1;
