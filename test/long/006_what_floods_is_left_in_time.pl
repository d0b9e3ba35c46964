# What a peer sends without end keeps nobody: at a timeout of 300 ms no statement and no message for longer than 450 ms, no
# worker for longer than 1.5 s after pg_terminate_backend, no fast stop for longer than 3 s. Other apps go on.
#
# These times need a machine with nothing else to do, and who is late has some tries; test/t/064 shows beside others
# that floods end.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t";
use Hostile;
use Test::More;

my %opts = map { defined $ENV{"HOSTILE_\U$_"} ? ($_ => $ENV{"HOSTILE_\U$_"}) : () } qw(seed kind);
$opts{seed} //= 1;
my $hostile = Hostile->new(%opts, flood_seconds => 20);
for my $way (split / /, $ENV{HOSTILE_PROTOCOL} // 'h1 plain proxy h2')
{
    # One of each kind, unless told otherwise.
    $hostile->floods($way, $ENV{HOSTILE_FLOODS} // 0);
    $hostile->worker_with_floods($way) if $way =~ /^h/;
}
$hostile->unharmed;

done_testing();
