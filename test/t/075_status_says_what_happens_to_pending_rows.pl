# onesignal_cancel_status says in words what happens to pending rows now, and when they are done only while
# somebody works on them.

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
my $node = Workers::start('main', conf => "log_statement = none\nonesignal_cancel.worker_idle_timeout = 0\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
my $STATUS = 'SELECT delivery, eta IS NULL FROM onesignal_cancel_status';

sub status { return $node->safe_psql('postgres', $STATUS) }
sub status_becomes { my ($status, $name) = @_; ok($node->poll_query_until('postgres', $STATUS, $status), $name) or diag(status()) }
sub id { return $node->safe_psql('postgres', 'SELECT gen_random_uuid()') }

is(status(), 'idle|t', 'nothing is pending');
$node->safe_psql('postgres', 'CREATE DATABASE another');
my (undef, undef, $warning) = $node->psql('another', 'CREATE EXTENSION onesignal_cancel');
like($warning, qr/WARNING:  onesignal_cancel is not in shared_preload_libraries\s+DETAIL:.*\s+HINT:  Add it/, 'without the preload CREATE EXTENSION warns');

# An answer that takes its time, at a known pace
my $slow = id();
$api->fault(message => $slow, delay => 600000);
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '1')");
Workers::request($node, 'postgres', $api, $slow);
$api->wait_for_requests(1, message => $slow);
is($node->safe_psql('postgres', 'SELECT delivery FROM onesignal_cancel_status'), 'working', 'a worker is there');
$node->safe_psql('postgres', "INSERT INTO onesignal_app (app_id, pace) VALUES ('$app', 1) ON CONFLICT (app_id) DO UPDATE SET pace = 1");
is(status(), 'working|f', 'and so it is known when they are done');
$node->safe_psql('postgres', "SELECT onesignal_cancel_pause('$app')");
is(status(), 'paused|t', 'a pause');
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
is($node->safe_psql('postgres', "SET onesignal_cancel.background_delivery = off; $STATUS"), 'by CALL only|t', 'background_delivery is off');
Workers::set($node, 'onesignal_cancel.enabled', 'off');
status_becomes('switched off|t', 'enabled is off');

# Not preloaded: after a restart nobody comes by himself.
$node->stop('fast');
$api->clear_faults;
$node->append_conf('postgresql.conf', "onesignal_cancel.enabled = on\n");
$node->start;
is(status(), 'waits for a request|t', 'nobody has been asked since the restart');

# No worker can start.
$node->append_conf('postgresql.conf', "max_worker_processes = 0\nmax_logical_replication_workers = 0\n");
$node->restart;
Workers::request($node, 'postgres', $api, id());
is(status(), 'no free worker|t', 'a commit has found no free worker slot');
$node->stop;
done_testing();
