# Plans are made when the statistics know nothing of the queue, or that the table is empty, and used when it
# holds millions. Whatever they say, each statement finds its rows by an index with a condition.

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
my $node = Workers::start('main', conf => <<'CONF');
log_statement = none
shared_preload_libraries = auto_explain
auto_explain.log_min_duration = 0
auto_explain.log_nested_statements = on
autovacuum = off
CONF
Workers::add_app($node, 'postgres', $api);

my %statistics = (
    'no statistics' => 'reltuples = -1, relpages = 0',
    'an empty table' => 'reltuples = 0, relpages = 0',
    'a table that was emptied' => 'reltuples = 0, relpages = 10000',
    'a row' => 'reltuples = 1, relpages = 1');
for my $case (sort keys %statistics)
{
    # A worker of its own makes its plans anew.
    Workers::wait_for_no_worker($node);
    my @ids = split /\n/, $node->safe_psql('postgres', 'SELECT gen_random_uuid() FROM generate_series(1, 100)');
    $node->safe_psql('postgres', Workers::insert_sql($api, @ids[ 50 .. 99 ])
          . "UPDATE pg_class SET $statistics{$case} WHERE relname LIKE 'onesignal_message%' AND relkind IN ('r', 'i');");
    my $offset = -s $node->logfile;
    $node->restart;
    my $locker = $node->background_psql('postgres');
    $api->fault(message => $ids[0], hold => 1);
    Workers::request($node, 'postgres', $api, @ids[ 0 .. 49 ]);
    $api->wait_for_requests(1, message => $ids[0]);
    $locker->query_safe("BEGIN; SELECT FROM onesignal_message WHERE message_id = '$ids[0]' FOR UPDATE");
    $api->clear_faults;
    ok(Workers::wait_for($node, 'postgres', [ @ids[ 1 .. 99 ] ], 'canceled'), "$case: all but a locked row");
    $node->wait_for_log(qr/FOR NO KEY UPDATE SKIP LOCKED/, $offset);
    $locker->query_safe('COMMIT');
    $locker->quit;
    ok(Workers::wait_for($node, 'postgres', $ids[0], 'canceled'), 'and that one');

    my @plans = grep { /^Query Text: (?:\/\*[^*]*\*\/ )?(?=SELECT m\.message_id|WITH RECURSIVE lane|WITH unlocked|UPDATE)/ && /onesignal_message_state|onesignal_message\b/ }
      map { s/^.*?plan:\s*//sr } split /(?=^[\d-]+ [\d:.]+ \w+ [^\n]*?\[\d+\] )/m, substr(slurp_file($node->logfile), $offset);
    @plans = grep { !/by hand/ } @plans;
    cmp_ok(scalar(@plans), '>=', 4, 'their plans are logged');
    my @bad = grep { /Seq Scan on onesignal_message/ || /Index (?:Only )?Scan using onesignal_message_pkey on onesignal_message m\b[^\n]*\n(?!\s*Index Cond)/ } @plans;
    is("@bad", '', 'no plan reads all of the table, or of its primary key');
}
$node->stop;
done_testing();
