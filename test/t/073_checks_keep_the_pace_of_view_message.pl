# View message allows an app 10 requests in 10 seconds: a batch that has more refusals to check takes its time.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Test::More;

my $clinic = Clinic->new;
my $api = $clinic->api;
my $HINT = 'an earlier attempt had no answer and may have canceled it';

sub messages
{
    my ($n) = @_;
    my @ids = map { $api->schedule } 1 .. $n;
    $api->fault(message => $_, method => 'DELETE', kind => 'reset', effect => 1, times => 1) for @ids;
    $api->fault(message => $_, method => 'DELETE', status => 400) for @ids;
    return @ids;
}

my @rows = $clinic->batch([ messages(30) ]);
is(scalar(grep { "$_->{status} $_->{success} @{ $_->{errors} }" eq '400 true ' } @rows), 30, 'all are known to be canceled');
my @views = $api->requests(method => 'GET');
is(scalar(@views), 30, 'each was asked for once');
is_deeply([ grep { $_->{status} != 200 } @views ], [], 'and never too early');
my @arrived = sort { $a <=> $b } map { $_->{arrived} } @views;
is_deeply([ grep { $arrived[ $_ + 10 ] - $arrived[$_] < 10 } 0 .. 19 ], [], 'no more than 10 in 10 seconds');

# Of two sessions neither knows of the other: OneSignal's 429 tells them.
$api->reset;
my @started = map { $clinic->start_batch([ messages(8) ]) } 1 .. 2;
@rows = map { $clinic->rows($_) } @started;
is(scalar(grep { "$_->{status} $_->{success}" eq '400 true' } @rows), 16, 'two sessions have their answers');

# Those whose turn comes after their time are not kept waiting for it.
$api->reset;
my $begun = time;
@rows = $clinic->batch([ messages(30) ], timeout => '8s');
# Thirty checks would take 20 s.
cmp_ok(time - $begun, '<', 18, 'a short time ends early');
my @known = grep { "$_->{status} $_->{success}" eq '400 true' } @rows;
cmp_ok(scalar(@known), '<=', 10, 'with as many checked as can be had');
is(scalar(grep { $_->{success} eq 'false' && $_->{errors}[-1] eq $HINT } @rows), 30 - @known, 'and a hint for the others');

done_testing();
