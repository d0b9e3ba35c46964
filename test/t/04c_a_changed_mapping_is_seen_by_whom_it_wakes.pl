# PostgreSQL tells other processes of a changed user mapping some time after the commit. Whom the commit wakes must not
# look before.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Text::ParseWords;
use Workers;

# A commit takes its time at the place where other libraries' callbacks run: until the file "go" is there.
my $dir = PostgreSQL::Test::Utils::tempdir;
append_to_file("$dir/slow.c", <<"C");
#include "postgres.h"
#include <unistd.h>
#include "access/xact.h"
#include "fmgr.h"
PG_MODULE_MAGIC;
void _PG_init(void);
static void
wait_for_go(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT)
		while (access("$dir/slow", F_OK) == 0 && access("$dir/go", F_OK) != 0)
			usleep(10000);
}
void
_PG_init(void)
{
	RegisterXactCallback(wait_for_go, NULL);
}
C
my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
chomp(my $include = qx{'$pg_config' --includedir-server});
chomp(my $cc = $ENV{CC} || qx{'$pg_config' --cc});
system_or_bail(shellwords($cc), '-fPIC', '-shared', '-I', $include, '-o', "$dir/slow.so", "$dir/slow.c");

my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main', conf => "log_statement = none\nonesignal_cancel.worker_idle_timeout = '1s'\n");
Workers::add_app($node, 'postgres', $api);
my $key = $api->api_key;

# Loaded before this extension, it is called after it.
my $session = $node->background_psql('postgres');
$session->query_safe("LOAD '$dir/slow.so'");
my $id = $api->schedule;
$session->query_safe(Workers::insert_sql($api, $id));
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'a message is canceled');
my $waiting = $api->schedule;
$node->safe_psql('postgres', "SELECT onesignal_cancel_pause('" . $api->app_id . "')");
Workers::request($node, 'postgres', $api, $waiting);
$node->safe_psql('postgres', "DROP USER MAPPING FOR PUBLIC SERVER clinic; SELECT onesignal_cancel_resume('" . $api->app_id . "')");
ok($node->poll_query_until('postgres', "SELECT circuit_reason ~ 'no user mapping' FROM onesignal_app"), 'a message waits for a user mapping');
append_to_file("$dir/slow", '');
$session->{stdin} .= "CREATE USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (api_key '$key');\n";
$session->{run}->pump_nb;
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_user_mappings WHERE srvname = 'clinic'"), 'one is committed');
# Whoever was woken has looked, and nobody was too soon.
ok(Workers::wait_for_no_worker($node), 'a worker that has nothing to do leaves');
append_to_file("$dir/go", '');
ok(Workers::wait_for($node, 'postgres', $waiting, 'canceled'), 'when others are told of the mapping, the message is canceled');
$session->quit;
$node->stop;
done_testing();
