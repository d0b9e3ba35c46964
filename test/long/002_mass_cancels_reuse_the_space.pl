# Ten times 100,000 messages are scheduled, canceled and purged. Autovacuum has the settings that
# it comes with, but looks more often: the table and its indexes do not grow from round to round.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $COUNT = 100_000;

my $api = StandIn->new(accept_any => 1, no_log => 1);
my $node = Workers::start('main', conf => "log_statement = none\nautovacuum_naptime = 1s\nmax_wal_size = 4GB\n");
$node->safe_psql('postgres', "CREATE EXTENSION onesignal_cancel;\n" . $api->setup_sql('clinic', server_options => { rate_limit => 0 }));
my $app = $api->app_id;

sub drain
{
    my ($round) = @_;
    $node->safe_psql('postgres', <<"SQL");
INSERT INTO onesignal_message (message_id, app_id, send_after)
    SELECT gen_random_uuid(), '$app', now() + interval '1 day' FROM generate_series(1, $COUNT);
UPDATE onesignal_message SET cancel = true WHERE state = 'scheduled';
SQL
    $node->poll_query_until('postgres', "SELECT canceled_total = $round * $COUNT FROM onesignal_app") or die 'not drained';
    my $size = $node->safe_psql('postgres', "SELECT pg_total_relation_size('onesignal_message') / 1048576");
    $node->safe_psql('postgres', "DELETE FROM onesignal_message");
    # All that was deleted is known to the statistics, and has been vacuumed.
    $node->poll_query_until('postgres', <<"SQL") or die 'not vacuumed';
SELECT n_tup_del = $round * $COUNT AND n_dead_tup < $COUNT / 20
    FROM pg_stat_user_tables WHERE relname = 'onesignal_message'
SQL
    return $size;
}

sub median { return (sort { $a <=> $b } @_)[ @_ / 2 ] }

# Autovacuum may come in the middle of a round, or not: the room of a round differs, but does not grow.
my @size = map { drain($_) } 1 .. 10;
note("MB at the end of each: @size");
my ($early, $late) = (median(@size[ 0 .. 4 ]), median(@size[ 5 .. 9 ]));
cmp_ok($late, '<=', 1.2 * $early, 'later rounds need no more room than earlier ones');
cmp_ok((sort { $a <=> $b } @size)[-1], '<=', 2 * $early, 'and none twice as much');
is($node->safe_psql('postgres', 'SELECT count(*) FROM onesignal_message'), '0', 'nothing is left behind');
$node->stop;
done_testing();
