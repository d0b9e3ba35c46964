# The stand-in itself: if it did not do what it promises, the tests that lean on it would prove nothing.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run ();
use JSON::PP qw(decode_json);
use StandIn;
use Test::More;
use Time::HiRes qw(time sleep);

my $api = StandIn->new;
my $app = $api->app_id;

# One request by curl: { exit, status, version, body, headers, error }.
sub call
{
    my ($method, $url, %opts) = @_;
    my @arguments = ('curl', '--silent', '--show-error', '--noproxy', '*', '--max-time', $opts{max_time} // 20,
        '--cacert', $api->ca, '-X', $method, '-H', 'Authorization: Key ' . ($opts{key} // $api->api_key),
        '--dump-header', '-', '--write-out', "\n\tEND\t%{http_code}\t%{http_version}", @{ $opts{curl} // [] }, $url);
    # Not IPC::Run, which takes longer than curl does; there are hundreds of these.
    my $said = $api->dir . '/curl.err';
    open(my $from, '-|', 'sh', '-c', 'exec 2>"$0"; exec "$@"', $said, @arguments) or die "curl: $!";
    binmode $from;
    my $out = do { local $/; <$from> } // '';
    close $from;
    my $exit = $? >> 8;
    chomp(my $err = StandIn::_slurp($said));
    $out =~ s/\n\tEND\t(\d+)\t(.*)$//;
    my ($status, $version) = ($1, $2);
    my ($headers, $body) = split /\r\n\r\n/, $out, 2;
    return { exit => $exit, status => $status, version => $version, headers => $headers // '', body => $body // '', error => $err };
}

sub message_url { my ($id, %opts) = @_; return ($opts{url} // $api->url) . "/notifications/$id?app_id=" . ($opts{app} // $app) }
sub cancel { my ($id, %opts) = @_; return call('DELETE', message_url($id, %opts), %opts) }

sub is_answer
{
    my ($answer, $status, $body, $name) = @_;
    is("$answer->{exit} $answer->{status} $answer->{body}", "0 $status $body", $name);
}

subtest 'every listener' => sub {
    for (
        [ 'by ALPN', $api->url, '2' ],
        [ 'HTTP/1.1 only', $api->http1_url, '1.1' ],
        [ 'plain', $api->plain_url, '1.1' ],
        $api->ipv6_url ? [ 'IPv6', $api->ipv6_url, '2' ] : ())
    {
        my ($name, $url, $version) = @$_;
        my $answer = cancel($api->schedule, url => $url);
        is_answer($answer, 200, '{"success":true}', $name);
        is($answer->{version}, $version, "$name: HTTP version");
    }
    is(cancel($api->schedule, curl => ['--http1.1'])->{version}, '1.1', 'HTTP/1.1 where both are offered');
    is(cancel($api->schedule, curl => [ '--tlsv1.2', '--tls-max', '1.2' ])->{status}, 200, 'TLS 1.2');
    for ([ 'self-signed', $api->self_signed_url ], [ 'expired', $api->expired_url ], [ 'wrong host', $api->wrong_host_url ])
    {
        my ($name, $url) = @$_;
        is(cancel('x', url => $url)->{exit}, 60, "$name: a client that verifies gives up");
        is(cancel('x', url => $url, curl => ['--insecure'])->{status}, 404, "$name: there is a server all the same");
    }
    is(cancel('x', url => $api->tls11_url, curl => ['--tlsv1.2'])->{exit}, 35, 'only TLS 1.1: a client that wants 1.2 gives up');
};

subtest 'a message and what becomes of it' => sub {
    my $id = $api->schedule;
    like($id, qr/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/, 'a version 4 UUID');
    is(decode_json(call('GET', message_url($id))->{body})->{canceled}, JSON::PP::false, 'not canceled yet');
    is_answer(cancel(uc $id), 200, '{"success":true}', 'canceled, in capitals');
    is($api->state($id), 'canceled', 'and it is');
    is(decode_json(call('GET', message_url($id))->{body})->{canceled}, JSON::PP::true, 'and says so');
    is_answer(cancel($id), 200, '{"success":true}', 'once more');
    is($api->received(message => $id), 2, 'two DELETEs arrived');

    my $sent = $api->schedule(send_after => undef);
    is_answer(cancel($sent), 400, '{"errors":["Notification has already been sent to all recipients"]}', 'already sent');
    is_answer(cancel('00000000-0000-4000-a000-000000000000'), 404, '{"errors":["Notification not found"]}', 'unknown');
    is($api->state($api->schedule(send_after => time + 60)), 'scheduled', 'about to be sent');
    is($api->state($api->schedule(send_after => time - 1)), 'sent', 'and a second later');
    for ('2031-01-31T14:00:00Z', '2031-01-31 14:00:00 UTC', '2031-01-31 07:00:00 GMT-0700', '2031-01-31T15:00+01:00')
    {
        my $message = decode_json(call('GET', message_url($api->schedule(send_after => $_)))->{body});
        is($message->{send_after}, 1927634400, "send_after $_");
    }
    ok(!eval { $api->schedule(send_after => 'tomorrow') }, 'not a time');

    my @ids = map { sprintf '11111111-0000-4000-a000-%012d', $_ } 1 .. 1000;
    $api->preset(\@ids);
    is(cancel($ids[999])->{status}, 200, 'an id of our own choice');
};

subtest 'apps and keys' => sub {
    my $id = $api->schedule;
    my $other = $api->add_app;
    for ([ 'wrong', 'Key os_v2_app_wrong' ], [ 'missing', '' ], [ 'of another app', "Key $other->{api_key}" ])
    {
        my ($name, $header) = @$_;
        my $answer = call('DELETE', message_url($id), key => '', curl => [ '-H', 'Authorization:', $header ? ('-H', "X: 1") : () ]);
        $answer = cancel($id, key => $header =~ s/^Key //r) if $header;
        is($answer->{status}, 403, "$name key");
        like($answer->{body}, qr/Access denied.  Please include an 'Authorization: ...' header with a valid API key/, "$name key: the text");
    }
    is(cancel($id, app => $other->{app_id}, key => $other->{api_key})->{status}, 404, 'not that app\'s message');
    is($api->state($id), 'scheduled', 'nothing happened to it');

    my $old = $api->api_key;
    isnt($api->rotate, $old, 'a new key');
    is(cancel($id, key => $old)->{status}, 403, 'the old key is dead');
    is(cancel($id)->{status}, 200, 'the new one works');
    is(call('DELETE', $api->url . "/notifications/$id")->{status}, 400, 'no app_id');

    $api->accept_any(1);
    is(cancel('22222222-0000-4000-a000-000000000000')->{status}, 200, 'any id, when told so');
    is($api->state('22222222-0000-4000-a000-000000000000'), 'canceled', 'and it counts as canceled');
    $api->accept_any(0);
};

subtest 'rate limit' => sub {
    my $limited = $api->add_app(rate_limit => 1);
    # Even two requests could straddle a second; then a later round will not.
    my @statuses;
    for (1 .. 20)
    {
        @statuses = map { cancel('x', app => $limited->{app_id}, key => $limited->{api_key}, url => $api->plain_url) } 1 .. 5;
        last if grep { $_->{status} == 429 } @statuses;
    }
    my ($refused) = grep { $_->{status} == 429 } @statuses;
    is($refused->{body}, '{"errors":["API rate limit exceeded"]}', 'too many');
    like($refused->{headers}, qr/^Retry-After: 1\r?$/mi, 'Retry-After');
    $api->rate_limit(0, app => $limited->{app_id}, retry_after => 7);
    $refused = cancel('x', app => $limited->{app_id}, key => $limited->{api_key});
    like($refused->{headers}, qr/^Retry-After: 7\r?$/mi, 'Retry-After of our choice');
    is(call('GET', message_url('x', app => $limited->{app_id}), key => $limited->{api_key})->{status}, 404, 'looking costs nothing');
    ok(!eval { $api->schedule(app => $limited->{app_id}) }, 'creating does');
    $api->rate_limit(undef, app => $limited->{app_id});
    is(cancel('x', app => $limited->{app_id}, key => $limited->{api_key})->{status}, 404, 'limit lifted');
    is(cancel($api->schedule)->{status}, 200, 'other apps never noticed');
};

for ([ 'HTTP/2', $api->url ], [ 'HTTP/1.1', $api->http1_url ], [ 'plain', $api->plain_url ])
{
    my ($version, $url) = @$_;
    subtest "faults over $version" => sub {
        my $try = sub {
            my ($fault, %opts) = @_;
            my $id = $api->schedule;
            $api->fault(message => $id, %$fault);
            my $answer = cancel($id, url => $url, %opts);
            $answer->{id} = $id;
            return $answer;
        };
        is_answer($try->({ status => 503 }), 503, '{"errors":["Service temporarily unavailable"]}', 'status 503');
        is_answer($try->({ status => 503, body => '' }), 503, '', '503, empty');
        my $html = $try->({ status => 503, body => '<html>no</html>', content_type => 'text/html' });
        is_answer($html, 503, '<html>no</html>', '503, HTML');
        like($html->{headers}, qr{^content-type: text/html\r?$}mi, 'its type');
        is_answer($try->({ status => $_, body => "$_" }), $_, "$_", "status $_") for 299, 400, 401, 403, 404, 408, 409, 429, 500, 502, 599;
        is_answer($try->({ status => 204 }), 204, '', 'status 204');
        my ($held, $said) = ($api->schedule, $api->dir . '/held.out');
        $api->fault(message => $held, hold => 1);
        my $waits = IPC::Run::start([ 'curl', '-s', '--noproxy', '*', '--cacert', $api->ca, '-H', 'Authorization: Key ' . $api->api_key, '-X', 'DELETE', message_url($held, url => $url) ],
            '<', \undef, '>', $said);
        $api->wait_for_requests(1, message => $held);
        is($api->state($held), 'scheduled', 'held');
        $api->clear_faults;
        $waits->finish;
        is(StandIn::_slurp($said), '{"success":true}', 'and answered when the fault is cleared');
        is_answer($try->({ status => 200, body => '{"success":"true"}' }), 200, '{"success":"true"}', 'success, a string');
        is($try->({ status => 429 })->{headers} =~ /^retry-after: 1\r?$/mi, 1, '429 has Retry-After');
        unlike($try->({ status => 429, headers => { 'Retry-After' => '' } })->{headers}, qr/^retry-after/mi, '429 without Retry-After');
        like($try->({ status => 429, headers => { 'Retry-After' => 'Fri, 31 Dec 2027 23:59:59 GMT' } })->{headers},
            qr/^retry-after: Fri, 31 Dec 2027 23:59:59 GMT\r?$/mi, 'Retry-After as a date');
        like($try->({ status => 302, headers => { Location => 'https://elsewhere.example/' } })->{headers},
            qr{^location: https://elsewhere.example/\r?$}mi, 'redirect');
        is($try->({ body_bytes => "\xff\x00\xfe" })->{body}, "\xff\x00\xfe", 'bytes');
        is($try->({ what => $_ })->{status}, 200, "garbled: $_")
          for qw(invalid_utf8 nul nul_byte nested nested_open big_number surrogate not_json half control many long);
        is(length $try->({ what => 'nested' })->{body}, 200_000, 'deeply nested');
        my $key = $api->api_key;
        like($try->({ kind => 'echo' })->{body}, qr/Key \Q$key\E/, 'echo');

        my $since = time;
        my $late = $try->({ delay => 300 });
        is_answer($late, 200, '{"success":true}', 'late');
        cmp_ok(time - $since, '>', 0.3, 'by 300 ms');
        is($api->state($late->{id}), 'canceled', 'canceled');

        is($try->({ kind => 'hang' }, max_time => 0.3)->{exit}, 28, 'hang');
        my $reset = $try->({ kind => 'reset', times => 1 });
        isnt($reset->{exit}, 0, "reset: $reset->{error}");
        is($reset->{status}, '000', 'reset: no status');
        is($api->state($reset->{id}), 'scheduled', 'reset: not canceled');
        my $lost = $try->({ kind => 'reset', effect => 1, times => 1 });
        isnt($lost->{exit}, 0, 'answer lost');
        is($api->state($lost->{id}), 'canceled', 'but canceled');
        my $short = $try->({ kind => 'truncate' });
        isnt($short->{exit}, 0, "truncated: $short->{error}");
        is($short->{status}, 200, 'truncated: it began well');
        my $flood = $try->({ kind => 'flood' }, curl => [ '--output', '/dev/null' ], max_time => 0.5);
        is($flood->{exit}, 28, 'flood');
        $since = time;
        is_answer($try->({ kind => 'drip', pause => 10 }), 200, '{"success":true}', 'drip');
        cmp_ok(time - $since, '>', 0.16, 'slowly');
    };
}

subtest 'whom a fault concerns, and how often' => sub {
    my ($one, $two) = map { $api->schedule } 1 .. 2;
    $api->fault(message => $one, status => 503, times => 2);
    $api->fault(message => $one, status => 500, times => 1);
    is(join(' ', map { cancel($one)->{status} } 1 .. 4), '503 503 500 200', 'used up in their order');
    is(cancel($two)->{status}, 200, 'the other message is not concerned');
    $api->fault(status => 503);
    $api->fault(status => 502);
    is(cancel($two)->{status}, 502, 'the later of two without end');
    ok(!eval { $api->schedule }, 'all requests are concerned');
    $api->fault(message => $two, status => 418);
    is(cancel($two)->{status}, 418, 'a message\'s own comes first');
    $api->clear_faults;
    is(cancel($two)->{status}, 200, 'cleared');
    my $other = $api->add_app(accept_any => 1);
    $api->fault(app => $other->{app_id}, status => 503);
    is(cancel($two)->{status}, 200, 'another app\'s fault');
    is(cancel($two, app => $other->{app_id}, key => $other->{api_key})->{status}, 503, 'that app\'s fault');
    $api->fault(method => 'DELETE', status => 503);
    my $three = $api->schedule;
    is(cancel($three)->{status}, 503, 'only DELETE');
    $api->clear_faults;
    $api->fault(message => [ $one, $two ], status => 503, times => 2);
    is(join(' ', map { cancel($_)->{status} } $one, $three, $two, $one), '503 200 503 200', 'some messages');
    $api->clear_faults;
    $api->fault(status => 503, one_in => 2);
    my %seen = map { cancel($one, url => $api->plain_url)->{status} => 1 } 1 .. 30;
    is(join(' ', sort keys %seen), '200 503', 'by chance');
    $api->clear_faults;
    ok(!eval { $api->fault(kind => 'nonsense') }, 'an unknown kind');
    ok(!eval { $api->fault(stauts => 503) }, 'an unknown field');
};

subtest 'what it saw' => sub {
    my $id = $api->schedule;
    $api->reset;
    is(scalar($api->requests), 0, 'an empty log');
    is(cancel($id)->{status}, 404, 'messages are forgotten');
    $id = $api->schedule;
    cancel($id, key => 'os_v2_app_wrong', curl => [ '-A', "agent \"quoted\"", '-H', 'Accept-Encoding: gzip' ]);
    my ($request) = $api->requests(message_id => $id, method => 'DELETE');
    my %expected = (protocol => 'HTTP/2.0', app_id => $app, status => 403, key => 'wrong', user_agent => 'agent "quoted"',
        accept_encoding => 'gzip', accept => '*/*', uri => "/notifications/$id?app_id=$app", server_name => 'localhost');
    is($request->{$_}, $expected{$_}, "log: $_") for sort keys %expected;
    my ($created) = $api->requests(method => 'POST');
    is("$created->{app_id} $created->{message_id} $created->{key}", "$app $id right", 'log: a created message');
    is_deeply($api->counts, { received => 3, answered => { POST => { 200 => 1 }, DELETE => { 404 => 1, 403 => 1 } } }, 'counts');

    $api->fault(message => $id, kind => 'hang');
    my @hanging = map { IPC::Run::start([ 'curl', '-s', '--noproxy', '*', '--cacert', $api->ca, '-X', 'DELETE', '--max-time', 600, message_url($id) ], '<', \undef, '>', \my $out) } 1 .. 3;
    ok($api->wait_for_requests(4, message => $id), 'hanging requests are counted when they arrive');
    $_->kill_kill for @hanging;
    # Their lines follow once nginx has noticed that the clients have gone.
    for (1 .. 200) { last if $api->requests(message_id => $id, method => 'DELETE') == 4; sleep 0.05 }
    is(scalar($api->requests(message_id => $id, method => 'DELETE')), 4, 'and logged when they end');
    is($api->max_in_flight(method => 'DELETE'), 3, 'three at one time');
    ok(!eval { $api->wait_for_requests(9, timeout => 0.1) }, 'waiting ends');
};

subtest 'an outage' => sub {
    my $id = $api->schedule;
    my $key = $api->rotate;
    $api->fault(message => $id, status => 503, times => 2);
    is(cancel($id)->{status}, 503, 'before');
    my $received = $api->received;
    $api->stop;
    is(cancel($id)->{exit}, 7, 'nobody there');
    $api->start_again;
    is($api->received, $received, 'counts are kept');
    is(join(' ', map { cancel($id)->{status} } 1 .. 2), '503 200', 'so are faults and messages');
    is($api->api_key, $key, 'and the key');
};

subtest 'a port that another server gets meanwhile' => sub {
    my $mine = StandIn->new(accept_any => 1);
    $mine->stop;
    my ($port) = $mine->plain_url =~ /(\d+)$/;
    # For longer than nginx tries.
    my $other = IPC::Run::start([ $^X, '-MIO::Socket::IP', '-e', '$| = 1; our $s = IO::Socket::IP->new(LocalAddr => "127.0.0.1", LocalPort => shift, Listen => 1, ReuseAddr => 1) or die; print "there\n"; sleep 5', $port ],
        '<', \undef, '>', \my $said);
    $other->pump until $said;
    ok(eval { $mine->start_again; 1 }, 'is waited for') or diag $@;
    is($mine->received, 0, 'and then it serves');
    $other->finish;
};

subtest 'connections' => sub {
    my $short = StandIn->new(keepalive_requests => 2, accept_any => 1, rate_limit => 100_000, delay => 20);
    my @urls = map { $short->url . "/notifications/$_?app_id=" . $short->app_id } 1 .. 6;
    my $got = call('DELETE', $urls[0], key => $short->api_key, curl => [ '--cacert', $short->ca, '-o', '/dev/null', map { ('-o', '/dev/null', $_) } @urls[ 1 .. 5 ] ]);
    is($got->{exit}, 0, 'six requests');
    is(join(' ', map { $_->{status} } $short->requests), '200 200 200 200 200 200', 'all of them well');
    is(join(' ', map { $_->{request} } $short->requests), '1 2 1 2 1 2', 'two a connection');
    # nginx measures with a clock that may be a few milliseconds behind.
    cmp_ok(($short->requests)[0]{took}, '>=', 0.015, 'all of them late');
    my $dir = $short->dir;
    undef $short;
    ok(!-e "$dir/nginx.pid", 'gone with its object');
};

subtest 'raw servers' => sub {
    my $raw_call = sub {
        my ($raw, %opts) = @_;
        return call('DELETE', $raw->url . '/notifications/1', curl => [ '--output', '/dev/null' ], %opts);
    };
    # Several exit codes: curl changed its mind.
    for (
        [ 'answer', 0, 0 ], [ 'answer', 1, 0 ], [ 'rst', 0, 56 ], [ 'endless_headers', 0, qr/^(?:56|100)$/ ], [ 'garbage', 0, 1 ],
        [ 'silent', 1, 28 ], [ 'no_accept', 0, 28 ], [ 'tls_alert', 1, 35 ], [ 'close_after_request', 1, qr/^(?:52|56)$/ ],
        [ 'h2_answer', 1, 0 ], [ 'h2_reset', 1, 92 ], [ 'h2_bad_frame', 1, qr/^(?:16|52|92)$/ ])
    {
        my ($mode, $tls, $exit) = @$_;
        my $raw = $api->raw_server(mode => $mode, tls => $tls);
        # Only what never answers is given up soon: the machine may be busy.
        my $got = $raw_call->($raw, max_time => $exit eq '28' ? 0.7 : 60);
        like($got->{exit}, ref $exit ? $exit : qr/^$exit$/, "$mode, TLS $tls");
    }
    my $raw = $api->raw_server(mode => 'rst_after_request', times => 2);
    is(join(' ', map { $raw_call->($raw)->{exit} } 1 .. 3), '56 56 0', 'twice badly, then well');
    is($raw->connections . ' ' . $raw->requests, '3 3', 'counted');
    my $echo = $api->raw_server(mode => 'echo_status');
    is($raw_call->($echo)->{status}, 502, 'a status line with the key');
};

subtest 'no key in the log' => sub {
    my $log = StandIn::_slurp($api->dir . '/requests.log') . StandIn::_slurp($api->dir . '/error.log');
    cmp_ok(length $log, '>', 0, 'there is a log');
    unlike($log, qr/os_v2_app_/, 'no key');
    my $start = StandIn::_slurp($api->dir . '/error.log');
    unlike($start, qr/\[(?:error|alert|crit|emerg)\]/, 'no errors of nginx or Lua');
};

subtest 'SQL' => sub {
    my $sql = $api->setup_sql('clinic', grant => 'nurse', server_options => { rate_limit => 0 });
    like($sql, qr/^CREATE SERVER clinic FOREIGN DATA WRAPPER onesignal OPTIONS \(app_id '$app', base_url 'https:[^']*', ca_file '[^']*', rate_limit '0'\);$/m, 'server');
    like($sql, qr/^CREATE USER MAPPING FOR PUBLIC SERVER clinic OPTIONS \(api_key '[^']*'\);$/m, 'mapping');
    like($sql, qr/^GRANT USAGE ON FOREIGN SERVER clinic TO nurse;$/m, 'grant');
};

done_testing();
