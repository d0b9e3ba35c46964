# A batch that takes its time shows "n of m" in pg_stat_activity, and sends nothing to the client about it.

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
my $node = Workers::start('main', conf => "log_statement = none\ncompute_query_id = on\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '20')");

my $session = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $session->query_safe('SELECT pg_backend_pid()');
$session->query_until(qr/started/, "\\echo started\nSELECT count(*) FROM onesignal_cancel_batch('$app', ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 150)));\n");
ok($node->poll_query_until('postgres', "SELECT query ~ '^onesignal_cancel_batch: [0-9]+ of 150' FROM pg_stat_activity WHERE pid = $pid"), 'pg_stat_activity says how far it is');
is($node->safe_psql('postgres', "SELECT query_id IS NOT NULL FROM pg_stat_activity WHERE pid = $pid"), 't', "and still has the query's id");
is($session->query('SELECT 1'), "150\n1", 'all are answered');
unlike($session->{stderr}, qr/NOTICE/, 'without a NOTICE');
is($node->safe_psql('postgres', "SELECT query ~ '^SELECT 1' FROM pg_stat_activity WHERE pid = $pid"), 't', 'and the session goes on as before');
$session->quit;
$node->stop;
done_testing();
