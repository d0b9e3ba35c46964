# A paid plan's 6,000 requests a second are not known beforehand. Beginning with 100 a second, a mass cancel
# finds them within a minute, which the first 429 tells, and from then on leaves a fifth to live sends.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t";
use List::Util qw(min max);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $LIMIT = 6000;
my $ROWS = 120_000;

my $api = StandIn->new(accept_any => 1, rate_limit => $LIMIT, log_buffer => 1);
my $node = Workers::start('main', conf => "log_statement = none\nmax_wal_size = 4GB\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;

$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$app', true FROM generate_series(1, $ROWS)");
ok($node->poll_query_until('postgres', "SELECT canceled_total = $ROWS FROM onesignal_app"), 'all are canceled');

my ($began, $refused, $ended);
my @requests = $api->requests(method => 'DELETE');
for (@requests)
{
    $began = min($began // $_->{arrived}, $_->{arrived});
    $ended = max($ended // 0, $_->{arrived});
    $refused = min($refused // $_->{arrived}, $_->{arrived}) if $_->{status} == 429;
}
ok($refused, 'the limit was found') or die 'no request was refused';
note(sprintf('after %.1f s', $refused - $began));
cmp_ok($refused - $began, '<', 60, 'within a minute');

# The second after a 429 is that of the pause which it asks for.
my $later = grep { $_->{arrived} > $refused + 2 } @requests;
my $rate = $later / ($ended - $refused - 2);
note(sprintf('then %.0f a second', $rate));
# The arithmetic is tested in test/unit, to the digit. Here, how far over the limit the pace was when the 429 came
# depends on where the second begins, two steps of a tenth at most.
cmp_ok($rate, '<', 0.8 * 1.1 * 1.1 * $LIMIT, 'then it stays a fifth below');
cmp_ok($node->safe_psql('postgres', 'SELECT pace FROM onesignal_app'), '>', 0.7 * $LIMIT, 'and no more');
cmp_ok(scalar(grep { $_->{status} == 429 } @requests), '<', $ROWS / 100, 'few requests are refused');
$node->stop;
done_testing();
