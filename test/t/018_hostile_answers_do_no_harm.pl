# Whatever is answered: the server goes on, nothing is raised, and each answer comes to what the contract says.
#
# The generator of answers is test/onesignal/hostile. test/hostile runs this with other seeds, counts and kinds; there are more
# of them in test/long/005.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Hostile;
use Test::More;

my %opts = map { defined $ENV{"HOSTILE_\U$_"} ? ($_ => $ENV{"HOSTILE_\U$_"}) : () } qw(seed count kind ids timeout);
$opts{ids} = [ split / /, $opts{ids} ] if defined $opts{ids};
$opts{count} //= 100;
# The same ones each time: others are tried by hand and before a release.
$opts{seed} //= 1;
my $hostile = Hostile->new(%opts);
my @ways = split / /, $ENV{HOSTILE_PROTOCOL} // 'h1 h2';
my @through = split / /, $ENV{HOSTILE_THROUGH} // 'function batch worker';

for my $way (@ways)
{
    $hostile->functions($way) if grep { $_ eq 'function' } @through;
    $hostile->batches($way) if grep { $_ eq 'batch' } @through;
    $hostile->worker($way) if grep { $_ eq 'worker' } @through;
}
if (!$ENV{HOSTILE_PROTOCOL} && !$opts{ids})
{
    $hostile->functions('plain', $hostile->ids('h1', count => $opts{count} / 5));
    $hostile->strays;
    $hostile->handshakes;
    $hostile->proxies($opts{count} / 10);
}
$hostile->unharmed;

done_testing();
