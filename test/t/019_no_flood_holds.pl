# What a peer sends without end keeps nobody: not a statement's timeout, not the message's, not a worker.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Hostile;
use Test::More;

my %opts = map { defined $ENV{"HOSTILE_\U$_"} ? ($_ => $ENV{"HOSTILE_\U$_"}) : () } qw(seed kind);
$opts{seed} //= 1;
my $hostile = Hostile->new(%opts);
for my $way (split / /, $ENV{HOSTILE_PROTOCOL} // 'h1 plain proxy h2')
{
    # One of each kind, unless told otherwise.
    $hostile->floods($way, $ENV{HOSTILE_COUNT} // 0);
    $hostile->worker_with_floods($way) if $way =~ /^h/;
}
$hostile->unharmed;

done_testing();
