# A row waits for its turn with one role's requests when another role takes it back and requests it anew: then both
# roles' lanes have it. It is begun for one of them only; the other's comes when that outcome is known.

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
my $node = Workers::start('main', conf => "log_statement = none\nrestart_after_crash = off\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE a; CREATE ROLE b; CREATE ROLE c;
GRANT SELECT, INSERT, UPDATE ON onesignal_message TO a, b, c;
GRANT USAGE ON FOREIGN SERVER clinic TO a, b, c;
ALTER SERVER clinic OPTIONS (ADD rate_limit '0');
SQL
for my $round (1 .. 6)
{
    # They fill the app's allowance, as of an app that was never answered.
    $node->safe_psql('postgres', "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker'");
    $api->fault(app => $app, method => 'DELETE', hold => 1);
    my @first = split /\n/, $node->safe_psql('postgres', 'SELECT gen_random_uuid() FROM generate_series(1, 20)');
    $node->safe_psql('postgres', 'SET ROLE c; ' . Workers::insert_sql($api, @first));
    $api->wait_for_requests(1, message => $_) for @first;
    my @ids = split /\n/, $node->safe_psql('postgres', 'SELECT gen_random_uuid() FROM generate_series(1, 3)');
    my $these = "message_id IN ('" . join("', '", @ids) . "')";
    # The worker looks at once; what it reads counts for half a second.
    $node->safe_psql('postgres', 'SET ROLE a; ' . Workers::insert_sql($api, @ids) . "SELECT pg_sleep(0.1);\n"
          . "SET ROLE b; UPDATE onesignal_message SET cancel = false WHERE $these; UPDATE onesignal_message SET cancel = true WHERE $these; SELECT pg_sleep(0.1)");
    $api->clear_faults;
    ok(Workers::wait_for($node, 'postgres', [ @first, @ids ], 'canceled'), "round $round: all are canceled");
    is(scalar(grep { $api->received(message => $_) > 2 } @ids), 0, 'once for each role at most');
}
$node->stop;
done_testing();
