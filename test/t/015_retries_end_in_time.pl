# What is tried again, how often, after which wait, and that all of it stays within the timeout.
#
# Waits take seconds, so all sessions run side by side; each subtest looks at one of them.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use POSIX ();
use Test::More;

my $clinic = Clinic->new;
my $api = $clinic->api;
my @subtests;

# Makes a message for each fault (or list of faults), the last of which lasts or is followed by success.
sub ids_for
{
    my (@faults) = @_;
    my @ids = map { $api->schedule } @faults;
    for my $n (0 .. $#faults)
    {
        my @list = ref $faults[$n] eq 'ARRAY' ? @{ $faults[$n] } : $faults[$n];
        $api->fault(message => $ids[$n], times => 1, %$_) for @list;
    }
    return @ids;
}

sub always { my ($fault) = @_; return { times => 1000, %$fault } }
sub with_header { my ($status, $value) = @_; return { status => $status, headers => { 'Retry-After' => $value } } }

# Begins at once; the code that is to look at the rows is called with them and the ids at the end.
sub while_others_run
{
    my ($name, $how, $ids, $settings, $look) = @_;
    my $start = $how eq 'batch' ? 'start_batch' : 'start_cancel';
    my $session = $clinic->$start($ids, %$settings);
    push @subtests, [ $name, sub { $look->([ $clinic->rows($session) ], $ids) } ];
}

sub received { my ($id) = @_; return $api->received(message => $id) }

# Milliseconds between the ends of the first request for a message and the last.
sub apart
{
    my ($id) = @_;
    my @times = map { $_->{time} } $api->requests(method => 'DELETE', message_id => $id);
    return @times > 1 ? 1000 * ($times[-1] - $times[0]) : 0;
}

sub between { my ($got, $least, $most, $name) = @_; ok($got >= $least && $got <= $most, "$name: $least <= " . int($got) . " <= $most") }

{
    my @statuses = (408, 500, 501, 502, 503, 504, 599);
    my @faults = ((map { { status => $_ } } @statuses), { status => 503, body => '' }, { status => 502, body => '<html>' });
    while_others_run 'tried again', 'batch', [ ids_for(@faults) ], { max_retries => 1 }, sub {
        my ($rows, $ids) = @_;
        for my $n (0 .. $#faults)
        {
            answer_is($rows->[$n], '200 t', [], "status $faults[$n]{status}");
            is(received($ids->[$n]), 2, "status $faults[$n]{status}: two requests");
            between(apart($ids->[$n]), 990, 20_000, 'apart');
        }
    };
}

# A session of its own, since in a batch others would wait as well.
while_others_run '429 is tried again', 'cancel', [ ids_for({ status => 429 }) ], { max_retries => 1 }, sub {
    my ($rows, $ids) = @_;
    answer_is($rows->[0], '200 t', [], 'success in the end');
    is(received($ids->[0]), 2, 'two requests');
};

{
    my $app = $clinic->server(url => $api->http1_url, app => $api->add_app(accept_any => 1, api_key => $api->api_key)->{app_id});
    my ($fresh, $first, $kept) = map { $clinic->uuid } 1 .. 3;
    $api->fault(message => $_, kind => 'reset', times => 1) for $fresh, $kept;
    while_others_run 'no answer is tried again', 'cancel', [$fresh], { app => $app, max_retries => 1 }, sub {
        my ($rows) = @_;
        answer_is($rows->[0], '200 t', [], 'success in the end');
        is(received($fresh), 2, 'two requests');
    };
    while_others_run 'a kept connection that is reset says nothing about OneSignal', 'cancel', [ $first, $kept ], { app => $app, max_retries => 0 }, sub {
        my ($rows) = @_;
        answer_is($rows->[1], '200 t', [], 'success without a retry');
        is(received($kept), 2, 'two requests');
    };
}

{
    my $refused = Peer->new(sub { });
    my $app = $clinic->server(url => $refused->url);
    while_others_run 'no connection is tried again', 'cancel', [ $clinic->uuid ], { app => $app, max_retries => 1 }, sub {
        my ($rows) = @_;
        is("$rows->[0]{status} $rows->[0]{success}", 'NULL false', 'in vain');
        is($refused->connections, 2, 'twice');
    };
}

while_others_run 'the number of retries', 'cancel', [ ids_for(map { always({ status => 503 }) } 1 .. 1) ], {}, sub {
    my ($rows, $ids) = @_;
    answer_is($rows->[0], '503 f', ['Service temporarily unavailable'], 'the last answer');
    is(received($ids->[0]), 3, 'unless told otherwise, two retries');
    between(apart($ids->[0]), 2980, 30_000, 'longer and longer');
};

{
    my @faults = map { { status => $_ } } 503, 429, 408;
    while_others_run 'no retries', 'cancel', [ ids_for(@faults) ], { max_retries => 0 }, sub {
        my ($rows, $ids) = @_;
        for my $n (0 .. $#faults)
        {
            is($rows->[$n]{status}, $faults[$n]{status}, "status $faults[$n]{status}");
            is(received($ids->[$n]), 1, 'one request');
        }
    };
}

{
    my @faults = ({ body => '{"success":false}' }, { body => '' }, map { { status => $_ } } 201, 204, 302, 400, 401, 403, 404, 409, 410, 422);
    while_others_run 'not tried again', 'cancel', [ ids_for(@faults) ], { max_retries => 5 }, sub {
        my ($rows, $ids) = @_;
        for my $n (0 .. $#faults)
        {
            is($rows->[$n]{status}, $faults[$n]{status} // 200, 'status ' . ($faults[$n]{status} // 200));
            is(received($ids->[$n]), 1, 'one request');
        }
    };
}

while_others_run 'Retry-After in seconds', 'batch', [ ids_for(with_header(503, 4), with_header(500, '+4'), with_header(408, ' 4')) ], { max_retries => 1 }, sub {
    my ($rows, $ids) = @_;
    answer_is($rows->[0], '200 t', [], 'success in the end');
    between(apart($ids->[0]), 3980, 30_000, 'apart');
};

my $date = time + 6;
while_others_run 'Retry-After as a date', 'cancel', [ ids_for(with_header(503, POSIX::strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime($date)))) ], { max_retries => 1 }, sub {
    my ($rows, $ids) = @_;
    answer_is($rows->[0], '200 t', [], 'success in the end');
    my ($first, $last) = map { $_->{time} } $api->requests(method => 'DELETE', message_id => $ids->[0]);
    # libcurl counts whole seconds.
    between(1000 * ($last - $date), -1000, 20_000, 'after that date');
};

{
    my @values = ('0', '-5', '-4294963697', '-99999999999999', 'soon', '', '1', '1.5', '0x1000', 'Thu, 01 Jan 1970 00:00:00 GMT', 'Mon, 01 Jan 1900 00:00:00 GMT', 'Sat, 31 Feb 2099 99:99:99 GMT');
    while_others_run 'a Retry-After that asks for no wait', 'batch', [ ids_for(map { with_header(503, $_) } @values) ], { max_retries => 1 }, sub {
        my ($rows, $ids) = @_;
        for my $n (0 .. $#values)
        {
            answer_is($rows->[$n], '200 t', [], "\"$values[$n]\"");
            between(apart($ids->[$n]), 990, 20_000, 'the usual wait');
        }
    };
}

{
    my @values = ('60', '3600', '86400', '2147483648', '4294967297', '99999999999', 'Fri, 31 Dec 9999 23:59:59 GMT');
    while_others_run 'a Retry-After beyond the timeout', 'cancel', [ ids_for(map { always(with_header(429, $_)) } @values) ], { max_retries => 5 }, sub {
        my ($rows, $ids) = @_;
        for my $n (0 .. $#values)
        {
            answer_is($rows->[$n], '429 f', ['API rate limit exceeded'], "\"$values[$n]\": the last answer");
            is(received($ids->[$n]), 1, 'one request');
            between($rows->[$n]{ms}, 0, 50_000, 'and no wait');
        }
    };
}

{
    my @ids = ids_for(with_header(503, 100));
    push @ids, ids_for(with_header(503, ''));
    while_others_run 'each answer speaks for itself', 'cancel', \@ids, { max_retries => 1 }, sub {
        my ($rows) = @_;
        answer_is($rows->[0], '503 f', ['Service temporarily unavailable'], 'one that asks for a long wait');
        answer_is($rows->[1], '200 t', [], 'the next, which does not, is not held to that');
        is(received($ids[1]), 2, 'two requests');
    };
}

# The first retry comes after one to two seconds, the second would come too late.
while_others_run 'the timeout ends the retries', 'cancel', [ ids_for([ { status => 503 }, always(with_header(503, 60)) ]) ], { max_retries => 100, timeout => '50s' }, sub {
    my ($rows, $ids) = @_;
    answer_is($rows->[0], '503 f', ['Service temporarily unavailable'], 'the last answer');
    is(received($ids->[0]), 2, 'requests');
    between($rows->[0]{ms}, 1000, 49_000, 'in all');
};

while_others_run 'a retry has only the time that is left', 'cancel', [ ids_for([ { status => 503 }, always({ kind => 'hang' }) ]) ], { max_retries => 2, timeout => '4s' }, sub {
    my ($rows, $ids) = @_;
    answer_is($rows->[0], 'NULL f', qr/^no answer within [123]\d{3} ms$/, 'no answer');
    is(received($ids->[0]), 2, 'two requests');
    between($rows->[0]{ms}, 3900, 50_000, 'in all');
};

{
    # The stand-in behind a long road: connecting takes most of the time.
    my ($port) = $api->url =~ /:(\d+)$/;
    my $road = Peer->new(
        sub {
            my ($peer, $socket) = @_;
            Time::HiRes::sleep(8);
            Peer::relay($socket, IO::Socket::IP->new(PeerAddr => '127.0.0.1', PeerPort => $port, Proto => 'tcp'));
        });
    my ($message) = ids_for(always({ kind => 'hang' }));
    my $app = $clinic->server(url => $road->url =~ s/http:..127.0.0.1/https:\/\/localhost/r);
    while_others_run 'connecting counts', 'cancel', [$message], { app => $app, max_retries => 2, timeout => '9s', connect_timeout => '100s' }, sub {
        my ($rows) = @_;
        my $kept = $road;
        answer_is($rows->[0], 'NULL f', ['no answer within 9000 ms'], 'no answer');
        between($rows->[0]{ms}, 8900, 16_500, 'in all');
    };
}

{
    # Streams that end badly on a connection that was used before are sent again, at once.
    my @ids = (ids_for({}), ids_for(always({ kind => 'reset', delay => 8000 })));
    while_others_run 'sending again counts', 'cancel', \@ids, { max_retries => 0, timeout => '10s' }, sub {
        my ($rows) = @_;
        answer_is($rows->[0], '200 t', [], 'a first one');
        answer_is($rows->[1], 'NULL f', ['no answer within 10000 ms'], 'no answer');
        between($rows->[1]{ms}, 9900, 17_500, 'in all');
        is(received($ids[1]), 2, 'two requests');
    };
}

subtest $_->[0] => $_->[1] for @subtests;

done_testing();
