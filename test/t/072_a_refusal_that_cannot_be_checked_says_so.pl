# A refusal after a lost answer is checked within the message's timeout. Where that fails, errors end with a hint,
# unless no earlier attempt left this machine.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Test::More;
use Time::HiRes ();

my $clinic = Clinic->new;
my $api = $clinic->api;
my $HINT = 'an earlier attempt had no answer and may have canceled it';

sub refused_message
{
    my ($view, @errors) = @_;
    my $id = $api->schedule;
    $api->fault(message => $id, method => 'DELETE', kind => 'reset', effect => 1, times => 1);
    $api->fault(message => $id, method => 'DELETE', status => 400, body => '{"errors":[' . join(',', map { qq("$_") } @errors) . ']}');
    $api->fault(message => $id, method => 'GET', %$view) if $view;
    return $id;
}

$api->view_limit(0);
my @views = (
    [ '429', { status => 429 }, 1 ],
    [ '429 for long', { status => 429, headers => { 'Retry-After' => '600' } } ],
    [ '500', { status => 500 }, 1 ],
    [ 'nothing', { kind => 'hang' }, 1 ],
    [ 'a reset', { kind => 'reset' }, 1 ],
    [ '403', { status => 403 } ],
    [ 'a page', { body => '<html>' } ],
    [ 'JSON without it', { body => '{"cancelled":true}' } ],
    [ 'JSON where it is no boolean', { body => '{"canceled":1}' } ]);
for my $call (qw(cancel batch))
{
    for (@views)
    {
        my ($name, $view, $whole_time) = @$_;
        my $begun = Time::HiRes::time();
        my ($row) = $clinic->$call([ my $id = refused_message($view, 'too late') ], timeout => '3s');
        my $took = Time::HiRes::time() - $begun;
        answer_is($row, '400 f', [ 'too late', $HINT ], "$call: View message answers $name");
        cmp_ok($took, '<', 30, 'within the timeout');
        cmp_ok($took, '>', 2, 'tried all the time') if $whole_time;
        # What a kept connection does not answer is sent again at once.
        cmp_ok(scalar $api->requests(method => 'GET', message_id => $id), '<=', $name eq 'a reset' ? 20 : 5, 'and not too often');
    }
}

{
    my @errors = map { "e$_" } 1 .. 8;
    my $id = refused_message({ status => 403 }, @errors);
    my ($row) = $clinic->cancel($id);
    answer_is($row, '400 f', [ @errors[ 0 .. 6 ], $HINT ], 'eight errors at most');
}

# A 429 delays the check alone.
{
    my $checked = refused_message(undef, 'too late');
    $api->fault(message => $checked, method => 'GET', status => 429, headers => { 'Retry-After' => '3' }, times => 1);
    my @others = map { $api->schedule } 1 .. 20;
    my @rows = $clinic->batch([ $checked, @others ]);
    answer_is($rows[0], '400 t', [], 'asked again later');
    my ($asked) = map { $_->{time} } $api->requests(method => 'GET', message_id => $checked, status => 200);
    cmp_ok((sort { $b <=> $a } map { $_->{time} } map { $api->requests(method => 'DELETE', message_id => $_) } @others)[0], '<', $asked, 'others did not wait');
}

# The first connection ends before the request can be sent.
{
    my ($port) = $api->url =~ /:(\d+)$/;
    my $peer = Peer->new(
        sub {
            my ($self, $socket, $n) = @_;
            Peer::relay($socket, IO::Socket::IP->new(PeerAddr => '127.0.0.1', PeerPort => $port, Proto => 'tcp')) if $n > 1;
        });
    my $app = $clinic->server(url => $peer->url =~ s/http:..127.0.0.1/https:\/\/localhost/r, app => $api->add_app(api_key => $api->api_key)->{app_id});
    my $id = $api->schedule(app => $app);
    $api->fault(message => $id, method => 'DELETE', status => 400, body => '{"errors":["too late"]}');
    my ($row) = $clinic->cancel($id, app => $app);
    answer_is($row, '400 f', ['too late'], 'no attempt left this machine: no hint');
    cmp_ok($peer->connections, '>', 1, 'there were two');
    is(scalar $api->requests(method => 'GET', message_id => $id), 0, 'and nothing to ask');
}

done_testing();
