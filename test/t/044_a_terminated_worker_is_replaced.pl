# pg_terminate_backend() on a worker loses nothing: the launcher, or without preload the next commit,
# starts another one; pg_cancel_backend() only interrupts it.

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
my $COUNT = 300;

sub request_many
{
    my ($node) = @_;
    $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '"
          . $api->app_id . "', true FROM generate_series(1, $COUNT)");
}

sub wait_for_all
{
    my ($node) = @_;
    return $node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled'", '0');
}

# Interrupts the worker while its requests are on the wire.
sub interrupt_by
{
    my ($node, $function) = @_;
    my $received = $api->received;
    $api->fault(method => 'DELETE', hold => 1);
    request_many($node);
    $api->wait_for_requests($received + 1);
    ok(Workers::wait_for_worker($node, 'postgres'), 'a worker is at work');
    my $worker = Workers::worker($node, 'postgres');
    is($node->safe_psql('postgres', "SELECT $function($worker)"), 't', $function);
    return $worker;
}

# ---- preloaded ----

# What is replaced or goes on is there when it is looked for.
my $PATIENT = "onesignal_cancel.worker_idle_timeout = '1h'\n";

my $node = Workers::start('preloaded', preload => 1, conf => $PATIENT);
Workers::add_app($node, 'postgres', $api);
my $worker = interrupt_by($node, 'pg_terminate_backend');
$api->clear_faults;
ok(wait_for_all($node), 'preloaded: a terminated worker is replaced, and everything delivered');
isnt(Workers::worker($node, 'postgres'), $worker, 'by another process');

$worker = interrupt_by($node, 'pg_cancel_backend');
$api->clear_faults;
ok(wait_for_all($node), 'preloaded: a canceled worker goes on by itself');
is(Workers::worker($node, 'postgres'), $worker, 'and is the same process');

# The launcher is restarted by the postmaster, and then looks into all databases.
my $launcher = Workers::launcher($node);
interrupt_by($node, 'pg_terminate_backend');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
$api->clear_faults;
ok(wait_for_all($node), 'preloaded: launcher and worker terminated, and everything delivered');
ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel launcher'", '1'),
    'the launcher is back');
unlike(slurp_file($node->logfile), qr/PANIC|server process .* was terminated/, 'nothing crashed');
$node->stop;

# ---- not preloaded ----

$node = Workers::start('plain', conf => $PATIENT);
Workers::add_app($node, 'postgres', $api);
interrupt_by($node, 'pg_terminate_backend');
$api->clear_faults;
ok(Workers::wait_for_no_worker($node), 'not preloaded: nobody replaces a terminated worker');
my $id = $api->schedule;
Workers::request($node, 'postgres', $api, $id);
ok(wait_for_all($node), 'but the next commit, and everything is delivered');

$worker = interrupt_by($node, 'pg_cancel_backend');
$api->clear_faults;
ok(wait_for_all($node), 'not preloaded: a canceled worker goes on by itself');
is(Workers::worker($node, 'postgres'), $worker, 'and is the same process');

# An idle one as well: it has to be there for the retry.
$id = $api->schedule;
$api->fault(message => $id, status => 429, headers => { 'Retry-After' => 6 }, times => 1);
Workers::request($node, 'postgres', $api, $id);
$node->poll_query_until('postgres', "SELECT http_status = 429 FROM onesignal_message WHERE message_id = '$id'");
Workers::wait_for_idle($node, 'postgres');
$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . Workers::worker($node, 'postgres') . ')');
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'not preloaded: and so does an idle one that waits for a retry');
unlike(slurp_file($node->logfile), qr/PANIC|server process .* was terminated/, 'nothing crashed');
$node->stop;
done_testing();
