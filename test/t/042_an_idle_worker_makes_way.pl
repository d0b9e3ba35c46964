# DROP, RENAME and CREATE DATABASE ... TEMPLATE succeed while a worker is idle, whatever it waits for:
# PostgreSQL gives it five seconds to leave.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $api = StandIn->new;
my $node = Workers::start('main');

sub create
{
    my ($database, $setting) = @_;
    $node->safe_psql('postgres', "CREATE DATABASE $database" . ($setting ? "; ALTER DATABASE $database SET $setting" : ''));
    Workers::add_app($node, $database, $api);
    return $database;
}

# A worker that has delivered something and waits for the next commit, longer than this test takes.
sub with_idle_worker
{
    my ($database) = @_;
    create($database, "onesignal_cancel.worker_idle_timeout = '1h'");
    my $id = $api->schedule;
    Workers::request($node, $database, $api, $id);
    ok(Workers::wait_for($node, $database, $id, 'canceled'), "$database: delivered") or die;
    like(Workers::worker($node, $database), qr/^\d+$/, "$database: an idle worker is there");
    return $database;
}

sub succeeds
{
    my ($sql, $name) = @_;
    my ($ret, $out, $err) = $node->psql('postgres', $sql);
    is($ret, 0, $name) or diag $err;
    return $ret == 0;
}

# ---- after it has delivered ----

succeeds('DROP DATABASE ' . with_idle_worker('dropped'), 'DROP DATABASE');
succeeds('ALTER DATABASE ' . with_idle_worker('old_name') . ' RENAME TO new_name', 'ALTER DATABASE ... RENAME');
succeeds('CREATE DATABASE copy TEMPLATE ' . with_idle_worker('original'), 'CREATE DATABASE ... TEMPLATE');

$node->safe_psql('postgres', "ALTER DATABASE $_ SET onesignal_cancel.worker_idle_timeout = '200ms'") for 'new_name', 'copy';
my $id = $api->schedule;
Workers::request($node, 'new_name', $api, $id);
ok(Workers::wait_for($node, 'new_name', $id, 'canceled'), 'a renamed database is delivered');
$id = $api->schedule;
Workers::request($node, 'copy', $api, $id);
ok(Workers::wait_for($node, 'copy', $id, 'canceled'), 'and so is a copy');

# ---- while a retry is scheduled, for which the worker stays ----

sub with_retry
{
    my ($database) = @_;
    create($database);
    my $id = $api->schedule;
    $api->fault(message => $id, status => 429, headers => { 'Retry-After' => 8 }, times => 1);
    Workers::request($node, $database, $api, $id);
    ok($node->poll_query_until($database, "SELECT http_status = 429 FROM onesignal_message"), "$database: a retry is scheduled") or die;
    is(Workers::state($node, $database, $id), 'pending', "$database: and pending");
    return $id;
}

$id = with_retry('retried');
succeeds('ALTER DATABASE retried RENAME TO retried_on', 'RENAME while the worker waits for a retry');
ok(Workers::wait_for($node, 'retried_on', $id, 'canceled'), 'the retry takes place all the same');
with_retry('retried_never');
succeeds('DROP DATABASE retried_never', 'DROP DATABASE while the worker waits for a retry');

# ---- none of them comes back ----

ok(Workers::wait_for_no_worker($node), 'in the end there is no worker');
my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|ERROR|FATAL/, 'no worker failed, nor went on looking for a dropped database');
$node->stop;
done_testing();
