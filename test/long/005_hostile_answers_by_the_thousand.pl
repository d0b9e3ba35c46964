# What test/t/018 tries, 20,000 times of each protocol; HOSTILE_SEED chooses others.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t";
use Hostile;
use Test::More;

my $hostile = Hostile->new(count => $ENV{HOSTILE_COUNT} // 20_000, seed => $ENV{HOSTILE_SEED} // 2);
for my $way ('h1', 'h2')
{
    $hostile->functions($way);
    $hostile->batches($way);
    $hostile->worker($way);
}
$hostile->unharmed;

done_testing();
