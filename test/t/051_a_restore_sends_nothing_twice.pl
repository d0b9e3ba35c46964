# pg_dump takes the companion table along. In the copy finished rows are finished and are not sent again,
# pending ones are pending and are delivered, and a pause and the totals are what they were.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main', conf => "log_statement = none\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;

sub new_id { return $node->safe_psql('postgres', 'SELECT gen_random_uuid()') }

my ($canceled, $refused, $scheduled, $pending) = map { new_id() } 1 .. 4;
$api->fault(message => $refused, status => 400, body => '{"errors":["too late"]}');
Workers::request($node, 'postgres', $api, $canceled, $refused);
Workers::wait_for($node, 'postgres', $canceled, 'canceled');
Workers::wait_for($node, 'postgres', $refused, 'refused');
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, reason) VALUES ('$scheduled', '$app', 'not asked for')");
$node->safe_psql('postgres', "SELECT onesignal_cancel_pause('$app')");
Workers::request($node, 'postgres', $api, $pending);

my $ROWS = 'SELECT message_id, state, http_status, errors, attempts, requested_by, requested_at, finished_at FROM onesignal_message ORDER BY 1';
my $rows = $node->safe_psql('postgres', $ROWS);
my $APPS = 'SELECT app_id, paused_until, paused_by, canceled_total, refused_total FROM onesignal_app';
# The worker that found the app paused has saved all that it knew.
Workers::wait_for_no_worker($node);
my $apps = $node->safe_psql('postgres', $APPS);
is($apps, join('|', $app, 'infinity', scalar getpwuid($<), 1, 1), 'an app is paused and has its totals');

my $dump = $node->basedir . '/dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
my $sql = `pg_restore -f - $dump`;
like($sql, qr/COPY \S*onesignal_app/, 'onesignal_app is dumped, too');

# The copy takes the place of the original, which delivers no more.
my $sent = $api->received;
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->safe_psql('postgres', "ALTER DATABASE copy SET onesignal_cancel.background_delivery = off");
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('copy'), $dump ], 'pg_restore');
is($node->safe_psql('copy', $ROWS), $rows, 'the rows are what they were');
is($node->safe_psql('copy', $APPS), $apps, 'so are the pause and the totals');
$node->safe_psql('copy', 'CALL onesignal_cancel_deliver()');
is($api->received, $sent, 'while the app is paused nothing is sent');
$node->safe_psql('copy', "SELECT onesignal_cancel_resume('$app')");
$node->safe_psql('copy', 'CALL onesignal_cancel_deliver()');
is(Workers::state($node, 'copy', $pending), 'canceled', 'the pending one is delivered in the copy');
is($api->received, $sent + 1, 'and nothing else');
is($node->safe_psql('copy', $ROWS =~ s/ORDER/WHERE message_id <> '$pending' ORDER/r), join("\n", grep { !/^$pending/ } split /\n/, $rows), 'the others are as they were');

# Without the setting a worker does it, woken by the restore's own commit, once the pause is over.
$node->safe_psql('postgres', 'CREATE DATABASE copy2');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('copy2'), $dump ], 'another restore');
Workers::wait_for_no_worker($node);
is(Workers::state($node, 'copy2', $pending), 'pending', 'is paused as well');
$node->safe_psql('copy2', "SELECT onesignal_cancel_resume('$app')");
ok(Workers::wait_for($node, 'copy2', $pending, 'canceled'), 'and then delivered by a worker');
is($api->received, $sent + 2, 'the one that was pending');
$node->stop;
done_testing();
