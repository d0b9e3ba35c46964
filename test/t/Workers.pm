# Workers: what tests of the workers share.
#
#   my $node = Workers::start('main', preload => 1, conf => "onesignal_cancel.worker_idle_timeout = '1s'");
#   Workers::add_app($node, 'postgres', $api);      # CREATE EXTENSION, server, mapping
#   my $id = $api->schedule;
#   Workers::request($node, 'postgres', $api, $id);
#   Workers::wait_for($node, 'postgres', $id, 'canceled');
#   Workers::wait_for_no_worker($node);

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
          . "log_min_messages = info\n" . ($opts{conf} // ''));
    $node->start;
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

my $COUNT = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker'";

sub workers { my ($node) = @_; return $node->safe_psql('postgres', $COUNT) }
sub wait_for_no_worker { my ($node) = @_; return $node->poll_query_until('postgres', $COUNT, '0') }

sub wait_for_worker
{
    my ($node, $database) = @_;
    return $node->poll_query_until('postgres', "$COUNT AND datname = '$database'", '1');
}

# The worker has recorded everything and waits for the next commit.
sub wait_for_idle
{
    my ($node, $database) = @_;
    return $node->poll_query_until('postgres', "$COUNT AND datname = '$database' AND state = 'idle'", '1');
}

sub launcher
{
    my ($node) = @_;
    return $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel launcher'");
}

sub set
{
    my ($node, $setting, $value) = @_;
    $node->append_conf('postgresql.conf', "$setting = $value\n");
    $node->reload;
}

1;
