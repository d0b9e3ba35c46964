# While somebody holds a lock on the table, the worker cannot read what arrives, on whichever connection.
# That is not OneSignal's fault: nothing counts as unanswered, and nothing is sent again.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

# As many as an app may have on the wire at first.
my $COUNT = 20;
my $api = StandIn->new(accept_any => 1, http2_max_concurrent_streams => 4);
my $node = Workers::start('main', conf => "log_statement = none\nonesignal_cancel.timeout = '10s'\n");
$node->safe_psql('postgres', "CREATE EXTENSION onesignal_cancel;\n" . $api->setup_sql('clinic', server_options => { rate_limit => 0 }));

# All are sent before the first is answered; then the worker wants to record it, and is kept from it.
my ($first, @others) = split /\n/, $node->safe_psql('postgres', "SELECT gen_random_uuid() FROM generate_series(1, $COUNT)");
$api->fault(hold => 1);
my $locker = $node->background_psql('postgres');
Workers::request($node, 'postgres', $api, $first, @others);
$api->wait_for_requests($COUNT);
$locker->query_safe('BEGIN; LOCK TABLE onesignal_message IN ACCESS EXCLUSIVE MODE');
$api->clear_faults;
ok($node->poll_query_until('postgres', "SELECT clock_timestamp() > query_start + interval '11 s' FROM pg_stat_activity WHERE query LIKE '%LOCK TABLE%' AND state = 'idle in transaction'"),
    'the table is locked for longer than a request may take');
$locker->query_safe('COMMIT');
$locker->quit;
ok(Workers::wait_for($node, 'postgres', [ $first, @others ], 'canceled'), 'all are canceled');
is($api->received, $COUNT, 'each was sent once');
is($node->safe_psql('postgres', 'SELECT count(*) FROM onesignal_message WHERE unanswered'), '0', 'and none is said to have had no answer');
cmp_ok(scalar(keys %{ { map { ($_->{connection} => 1) } $api->requests } }), '>', 2, 'over more than two connections');
$node->stop;
done_testing();
