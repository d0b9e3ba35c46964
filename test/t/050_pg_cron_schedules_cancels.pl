# The real pg_cron: a job that cancels now, and one that delivers what the table path requested where no
# worker runs.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

plan skip_all => 'NO_PG_CRON is set: there is no pg_cron for this PostgreSQL' if $ENV{NO_PG_CRON};
my $api = StandIn->new;
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
my $socket = $node->host;
$node->append_conf('postgresql.conf', <<CONF);
shared_preload_libraries = 'pg_cron, onesignal_cancel'
cron.database_name = 'postgres'
cron.use_background_workers = on
cron.host = '$socket'
onesignal_cancel.background_delivery = off
max_worker_processes = 20
CONF
$node->start;
my ($ret, $out, $err) = $node->psql('postgres', 'CREATE EXTENSION pg_cron');
is($ret, 0, 'pg_cron is there') or BAIL_OUT("pg_cron is needed: $err");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
my ($direct, $queued) = map { $api->schedule } 1 .. 2;

Workers::request($node, 'postgres', $api, $queued);
is(Workers::workers($node), '0', 'with background_delivery off there is no worker');
is(Workers::state($node, 'postgres', $queued), 'pending', 'and the request waits');

# Each minute is pg_cron's shortest interval before 1.5.
$node->safe_psql('postgres', "SELECT cron.schedule('direct', '* * * * *', \$\$SELECT onesignal_cancel('$app', '$direct')\$\$);"
      . "SELECT cron.schedule('deliver', '* * * * *', 'CALL onesignal_cancel_deliver()')");
ok(Workers::wait_for($node, 'postgres', $queued, 'canceled'), 'CALL onesignal_cancel_deliver() by pg_cron delivers it');
is($api->state($queued), 'canceled', 'at OneSignal, too');
ok($node->poll_query_until('postgres', "SELECT count(*) > 0 FROM cron.job_run_details d JOIN cron.job j USING (jobid) WHERE j.jobname = 'direct' AND d.status = 'succeeded'"), 'SELECT onesignal_cancel() by pg_cron');
is($api->state($direct), 'canceled', 'cancels');
is($node->safe_psql('postgres', "SELECT count(*) FROM cron.job_run_details WHERE status = 'failed'"), '0', 'no run failed');
is(Workers::workers($node), '0', 'and still there is no worker');
$node->stop;
done_testing();
