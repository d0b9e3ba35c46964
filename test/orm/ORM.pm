# ORM: what the tests of object-relational mappers share.
#
#   ORM::run('Django', '/usr/bin/python3', "$FindBin::RealBin/django_app.py");
#
# The program is given the socket's folder, port, role and an app's id, then ids of messages. It inserts them,
# keeps copies of its objects, requests the cancels, saves old copies while these are pending, and prints
# "pending". When it is sent a line, all are canceled: it saves all copies once more, and ends. Each of its
# steps saves whole rows; the reason of its last save is "saved". It runs as the table's owner and as an application.

package ORM;

use strict;
use warnings;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $MESSAGES = 8;

sub run
{
    my ($name, @program) = @_;
    my $api = StandIn->new(accept_any => 1);
    my $node = Workers::start('main', conf => "log_statement = none\n");
    # In a schema of its own, as README recommends.
    $node->safe_psql('postgres', 'CREATE SCHEMA onesignal; CREATE EXTENSION onesignal_cancel SCHEMA onesignal;
             ALTER DATABASE postgres SET search_path = "$user", public, onesignal; SET search_path = onesignal;' . $api->setup_sql('clinic')
          . 'CREATE ROLE owner LOGIN; CREATE ROLE app LOGIN; GRANT USAGE ON FOREIGN SERVER clinic TO owner, app;
             GRANT USAGE ON SCHEMA onesignal TO owner, app;
             GRANT SELECT, INSERT, UPDATE ON onesignal_message TO app;
             ALTER TABLE onesignal_message OWNER TO owner; ALTER TABLE onesignal_app OWNER TO owner');
    _run_as($_, $name, $api, $node, @program) for 'owner', 'app';
    $node->stop;
    done_testing();
}

sub _run_as
{
    my ($role, $name, $api, $node, @program) = @_;
    my $app = $api->app_id;
    my @ids = map { $node->safe_psql('postgres', 'SELECT gen_random_uuid()') } 1 .. $MESSAGES;
    my $of = "WHERE message_id IN ('" . join("', '", @ids) . "')";
    my $said;
    my $count = sub { return $node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message $of AND $_[0]") };

    $node->safe_psql('postgres', "SELECT onesignal_cancel_pause('$app')");
    my ($in, $out, $err) = ('', '', '');
    my $timer = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
    my $run = IPC::Run::start([ @program, $node->host, $node->port, $role, $app, @ids ], '<', \$in, '>', \$out, '2>', \$err, $timer);
    eval { $run->pump until $out =~ /^pending$/m; 1 } or diag($@);
    is($count->("state = 'pending' AND cancel AND requested_by = '$role'"), $MESSAGES, "$name as $role: old copies take no request back")
      or diag($out, $err), return;

    $node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
    ok(Workers::wait_for($node, 'postgres', \@ids, 'canceled'), "$name as $role: all are delivered");
    my $outcome = "SELECT message_id, state, http_status, errors, response, attempts, requested_by, requested_at, last_attempt_at, finished_at, created_at
        FROM onesignal_message $of ORDER BY 1";
    my $before = $node->safe_psql('postgres', $outcome);

    $in .= "go on\n";
    eval { $run->finish } or diag($@);
    is($run->result(0), 0, "$name as $role: no save is an error") or diag($out, $err);
    is($node->safe_psql('postgres', $outcome), $before, "$name as $role: the outcome is kept");
    is($count->("reason = 'saved' AND cancel"), $MESSAGES, "$name as $role: the application's own column is saved");
    is(join(' ', map { $api->received(message => $_) } @ids), join(' ', (1) x $MESSAGES), "$name as $role: each was sent once");
}

1;
