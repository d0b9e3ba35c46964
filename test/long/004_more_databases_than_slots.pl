# There is shared memory for 128 databases with something due. With more of them each still has its turn, at
# the server's start and for a retry: one that lost its place to another is found by a sweep through all.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main', preload => 1, conf => "log_statement = none\nmax_worker_processes = 20\nonesignal_cancel.worker_idle_timeout = 0\n");
my @databases = map { "d$_" } 1 .. 140;
my %id;

$node->safe_psql('postgres', 'CREATE DATABASE clinic');
Workers::add_app($node, 'clinic', $api);
Workers::wait_for_no_worker($node);
$node->safe_psql('postgres', join ' ', map { "CREATE DATABASE $_ TEMPLATE clinic;" } @databases);
for my $database (@databases)
{
    $id{$database} = sprintf '00000000-0000-4000-8000-%012d', substr $database, 1;
    $node->safe_psql($database, "SET onesignal_cancel.background_delivery = off;\n" . Workers::insert_sql($api, $id{$database}));
}

# Until each has arrived and was answered so; each has an id of its own.
sub arrive_and_are_answered
{
    my ($status, $name) = @_;
    my ($deadline, $arrived) = (time + 180, 0);
    while ($arrived < @databases && time < $deadline)
    {
        my %ids = map { ($_->{message_id} => 1) } $api->requests(method => 'DELETE', status => $status);
        $arrived = keys %ids;
        select undef, undef, undef, 0.2;
    }
    return is($arrived, scalar(@databases), $name);
}

$api->fault(status => 503, headers => { 'Retry-After' => 10 });
$node->restart;
arrive_and_are_answered(503, 'each is tried at the start');
$api->clear_faults;
arrive_and_are_answered(200, 'and once more when it is due');
$node->stop;
done_testing();
