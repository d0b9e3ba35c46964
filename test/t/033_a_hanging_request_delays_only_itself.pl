# While one request waits for its answer, the others are sent, answered and recorded.

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
my $node = Workers::start('main', conf => "onesignal_cancel.timeout = '25s'\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '0')");

my $hung = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
$api->fault(message => $hung, kind => 'hang', times => 1);
Workers::request($node, 'postgres', $api, $hung);
$api->wait_for_requests(1, message => $hung);
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$app', true FROM generate_series(1, 1000)");
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'canceled'", '1000'), 'the others are delivered and recorded');

# With no transaction, snapshot or lock on the table while it waits.
my $worker = Workers::worker($node, 'postgres');
# It may just be recording the last of the others.
ok($node->poll_query_until('postgres', "SELECT xact_start IS NULL AND backend_xid IS NULL AND backend_xmin IS NULL FROM pg_stat_activity WHERE pid = $worker"), 'no transaction is open on the wire');
ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_locks WHERE pid = $worker AND locktype = 'relation'", '0'), 'and no table is locked');
is($api->received(message => $hung), 1, 'it still hangs');

ok(Workers::wait_for($node, 'postgres', $hung, 'canceled'), 'after its timeout it is tried again');
is($api->received(message => $hung), 2, 'once');
is($node->safe_psql('postgres', "SELECT attempts, unanswered FROM onesignal_message WHERE message_id = '$hung'"), '2|t', 'and the row tells');
$node->stop;
done_testing();
