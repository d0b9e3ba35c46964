# A worker that has to stop takes the answers that arrive within a second. A call into libcurl that takes long because
# the machine stands still is no flood: it must not end the connections on which these answers come.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/still.c", <<'C');
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* While the file is there, nothing is read from a TCP connection before 70 ms have passed. */
static void
stand_still(int fd)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);
    struct timespec left = {.tv_nsec = 70000000};

    if (access(getenv("STILL"), F_OK) != 0 || getpeername(fd, (struct sockaddr *) &address, &length) != 0 || address.ss_family != AF_INET)
        return;
    while (nanosleep(&left, &left) != 0)
        ;
}

ssize_t
read(int fd, void *bytes, size_t length)
{
    stand_still(fd);
    return syscall(SYS_read, fd, bytes, length);
}

ssize_t
recv(int fd, void *bytes, size_t length, int flags)
{
    if (!(flags & MSG_PEEK))
        stand_still(fd);
    return syscall(SYS_recvfrom, fd, bytes, length, flags, NULL, NULL);
}
C
system_or_bail('cc', '-Wall', '-Werror', '-shared', '-fPIC', '-o', "$dir/still.so", "$dir/still.c");

my $api = StandIn->new(accept_any => 1);
my $node;
{
    local $ENV{LD_PRELOAD} = join ':', $ENV{LD_PRELOAD} // (), "$dir/still.so";
    local $ENV{STILL} = "$dir/still";
    $node = Workers::start('main', conf => "onesignal_cancel.timeout = '10min'\n");
}
Workers::add_app($node, 'postgres', $api);

# A machine that really stands still may take the second: then nobody knows.
my $state = '';
for my $try (1 .. 10)
{
    ok(Workers::wait_for_no_worker($node), 'no worker is there');
    my $id = $api->schedule;
    my $fault = $api->fault(message => $id, delay => 300);
    Workers::request($node, 'postgres', $api, $id);
    $api->wait_for_requests(1, message => $id);
    my $worker = Workers::worker($node, 'postgres');
    append_to_file("$dir/still", '');
    $node->safe_psql('postgres', "SELECT onesignal_cancel_pause('" . $api->app_id . "')");
    kill 'TERM', $worker;
    $node->poll_query_until('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $worker", '0');
    unlink "$dir/still";
    ($state) = $node->safe_psql('postgres', "SELECT state || ' ' || errors::text FROM onesignal_message WHERE message_id = '$id'");
    $node->safe_psql('postgres', "SELECT onesignal_cancel_resume('" . $api->app_id . "')");
    ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'the message is canceled in the end');
    last if $state eq 'canceled {}';
}
is($state, 'canceled {}', 'the answer that came in time was taken');
$node->stop;
done_testing();
