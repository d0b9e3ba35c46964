# The request as it arrives, over each kind of connection, and to whom it goes.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use File::Temp ();
use IO::Socket::IP;
use Test::More;

# What libcurl could find in the environment of the server, and must not.
my $home = File::Temp->newdir;
open my $netrc, '>', "$home/.netrc" or die $!;
print $netrc "default login somebody password something\nmachine 127.0.0.1 login somebody password something\n";
close $netrc;
$ENV{HOME} = "$home";
$ENV{NETRC} = "$home/.netrc";

my $clinic = Clinic->new;
my $api = $clinic->api;
my $key = $api->api_key;
my ($version) = PostgreSQL::Test::Utils::slurp_file("$FindBin::RealBin/../../onesignal_cancel.control") =~ /^default_version = '(.*)'/m;

# An app that takes any message, at that URL.
sub app_at
{
    my ($url, %opts) = @_;
    return $clinic->server(url => $url, app => $api->add_app(accept_any => 1, api_key => $key)->{app_id}, %opts);
}

# A server that notes each request's head, body included, and answers with these lines and {"success":true}.
sub recorder
{
    my (@lines) = @_;
    return Peer->new(
        sub {
            my ($peer, $socket) = @_;
            my $body = '{"success":true}';
            while (defined(my $head = Peer::head($socket)))
            {
                my ($length) = $head =~ /^Content-Length: *(\d+)/mi;
                sysread $socket, $head, $length, length $head if $length;
                $peer->note($head);
                syswrite $socket, join("\r\n", $lines[0] // 'HTTP/1.1 200 OK', @lines[ 1 .. $#lines ], 'Content-Length: ' . length $body, '', $body);
            }
        });
}

# A proxy that notes what it is told, and opens a tunnel to wherever it is asked to, unless it answers with a status.
sub proxy
{
    my ($status) = @_;
    return Peer->new(
        sub {
            my ($peer, $socket) = @_;
            my $head = Peer::head($socket) // return;
            $peer->note($head);
            my ($host, $port) = $head =~ /^CONNECT ([^ ]+):(\d+) /;
            return syswrite $socket, "HTTP/1.1 $status\r\nContent-Length: 0\r\n\r\n" if $status || !$host;
            my $target = IO::Socket::IP->new(PeerAddr => $host =~ s/[\[\]]//gr, PeerPort => $port, Proto => 'tcp') or return;
            syswrite $socket, "HTTP/1.1 200 Connection established\r\n\r\n";
            Peer::relay($socket, $target);
        });
}

sub expected_head
{
    my ($peer, $app, $id) = @_;
    return join "\r\n", "DELETE /notifications/$id?app_id=$app HTTP/1.1", 'Host: 127.0.0.1:' . $peer->port,
      "Authorization: Key $key", 'Accept: application/json', "User-Agent: onesignal_cancel/$version", '', '';
}

subtest 'over each kind of connection' => sub {
    for (
        [ 'HTTP/2', $api->url, protocol => 'HTTP/2.0', tls => 'TLSv1.3', server_name => 'localhost' ],
        [ 'HTTP/1.1 only', $api->http1_url, protocol => 'HTTP/1.1', tls => 'TLSv1.3' ],
        [ 'plain', $api->plain_url, protocol => 'HTTP/1.1', tls => '' ],
        [ 'plain, by name', $api->plain_url =~ s/127\.0\.0\.1/localhost/r, protocol => 'HTTP/1.1', tls => '' ],
        $api->ipv6_url ? [ 'IPv6', $api->ipv6_url, protocol => 'HTTP/2.0', tls => 'TLSv1.3', host => $api->ipv6_url =~ s{^https://}{}r ] : (),
        [ 'with a path', $api->url . '/api/v1', protocol => 'HTTP/2.0', uri => '/api/v1/notifications/%s?app_id=%s' ],
        [ 'with a slash at its end', $api->url . '/', protocol => 'HTTP/2.0' ])
    {
        my ($name, $url, %expected) = @$_;
        my $app = app_at($url);
        my $id = $clinic->uuid;
        answer_is(($clinic->cancel($id, app => $app))[0], '200 t', [], "$name: success");
        my ($request, @more) = $api->requests(app_id => $app);
        is(scalar @more, 0, "$name: one request");
        %expected = (method => 'DELETE', key => 'right', accept => 'application/json', user_agent => "onesignal_cancel/$version",
            accept_encoding => '', cookie => '', content_length => '', message_id => $id, uri => '/notifications/%s?app_id=%s', %expected);
        $expected{uri} = sprintf $expected{uri}, $id, $app;
        is($request->{$_}, $expected{$_}, "$name: $_") for sort keys %expected;
    }
};

subtest 'nothing else' => sub {
    my $peer = recorder;
    my $app = app_at($peer->url);
    my $id = $clinic->uuid;
    answer_is(($clinic->cancel($id, app => $app))[0], '200 t', [], 'success');
    is_deeply([ $peer->notes ], [ expected_head($peer, $app, $id) ], 'every line of it');
};

subtest 'the same whatever came before' => sub {
    for (
        [ 'cookies', 'HTTP/1.1 200 OK', 'Set-Cookie: a=b; Path=/', 'Set-Cookie: c=d; Domain=127.0.0.1' ],
        [ 'another service', 'HTTP/1.1 200 OK', 'Alt-Svc: h2="127.0.0.1:1"; ma=3600, http/1.1="127.0.0.1:1"; ma=3600', 'Strict-Transport-Security: max-age=3600' ],
        [ 'a request for another login', 'HTTP/1.1 401 Unauthorized', 'WWW-Authenticate: Basic realm="x"', 'WWW-Authenticate: Digest realm="x", nonce="y"', 'WWW-Authenticate: Negotiate' ],
        [ 'a proxy\'s', 'HTTP/1.1 407 Proxy Authentication Required', 'Proxy-Authenticate: Basic realm="x"' ],
        [ 'another protocol', 'HTTP/1.1 200 OK', 'Upgrade: h2c', 'Connection: Upgrade' ],
        [ 'a refresh', 'HTTP/1.1 200 OK', 'Refresh: 0; url=http://127.0.0.1:1/', 'Location: http://127.0.0.1:1/' ])
    {
        my ($name, @lines) = @$_;
        my $peer = recorder(@lines);
        my $app = app_at($peer->url);
        my @ids = map { $clinic->uuid } 1 .. 3;
        $clinic->cancel(\@ids, app => $app);
        is_deeply([ $peer->notes ], [ map { expected_head($peer, $app, $_) } @ids ], $name);
    }
};

subtest 'another service that TLS vouches for' => sub {
    my $other = Peer->new(sub { });
    my @ids = map { $api->schedule } 1 .. 3;
    $api->fault(message => $ids[0], body => '{"success":true}', headers => { 'Alt-Svc' => 'h2="localhost:' . $other->port . '"; ma=3600; persist=1' });
    answer_is($_, '200 t', [], 'success') for $clinic->cancel(\@ids);
    is($other->connections, 0, 'and nobody went there');
};

subtest 'uuids as SQL takes them' => sub {
    my $id = $api->schedule;
    my $app = $api->app_id;
    my @status = $clinic->sql("SELECT status FROM onesignal_cancel('{" . uc($app) . "}', '" . uc($id) =~ tr/-//dr . "');");
    is($status[0], 200, 'success');
    is(($api->requests(message_id => $id, method => 'DELETE'))[0]{uri}, "/notifications/$id?app_id=$app", 'lower case, with hyphens');
};

subtest 'each app its key' => sub {
    my @apps = map { $api->add_app(accept_any => 1) } 1 .. 2;
    my @servers = map { $clinic->server(app => $_->{app_id}, key => $_->{api_key}) } @apps;
    my @rows = $clinic->sql(join '', map { "SELECT status FROM onesignal_cancel('$_', '" . $clinic->uuid . "');" } @servers, reverse @servers);
    is("@rows", '200 200 200 200', 'on one connection');
    is(scalar(grep { $_->{key} eq 'right' } map { $api->requests(app_id => $_) } @servers), 4, 'the right one each time');
};

subtest 'through a proxy' => sub {
    my $proxy = proxy;
    my $app = app_at($api->url, server_options => { proxy => $proxy->url });
    answer_is(($clinic->cancel($clinic->uuid, app => $app))[0], '200 t', [], 'success');
    my ($tunnel, @more) = $proxy->notes;
    like($tunnel, qr/^CONNECT localhost:\d+ HTTP\/1\.1\r\nHost: localhost:\d+\r\n/, 'a tunnel');
    unlike($tunnel, qr/Authorization|onesignal|\Q$app\E/i, 'whose keeper learns nothing');
    is("@more", '', 'and of which there is one');
    is(($api->requests(app_id => $app))[0]{protocol}, 'HTTP/2.0', 'with HTTP/2 inside');

    for my $status ('407 Proxy Authentication Required', '502 Bad Gateway', '302 Found')
    {
        my $refusing = proxy($status);
        my ($code) = $status =~ /^(\d+)/;
        my ($row) = $clinic->cancel($clinic->uuid, app => app_at($api->url, server_options => { proxy => $refusing->url }), max_retries => 0);
        answer_is($row, 'NULL f', qr/CONNECT.*$code|$code.*CONNECT/, "none: $status");
        unlike(join('', $refusing->notes), qr/Authorization/, 'and no key');
    }
    my $gone = do { my $peer = Peer->new(sub { }); $peer->url };
    my ($row) = $clinic->cancel($clinic->uuid, app => app_at($api->url, server_options => { proxy => $gone }), max_retries => 0);
    answer_is($row, 'NULL f', qr/connect/i, 'a proxy that is not there: no other way is tried');
};

subtest 'through a SOCKS proxy' => sub {
    my $socks = Peer->new(
        sub {
            my ($peer, $socket) = @_;
            my $take = sub { my ($n) = @_; my $b = ''; while (length $b < $n) { sysread $socket, $b, $n - length $b, length $b or die } return $b };
            $take->(ord substr $take->(2), 1);
            syswrite $socket, "\5\0";
            my (undef, undef, undef, $type) = unpack 'C4', $take->(4);
            my $host = $type == 3 ? $take->(ord $take->(1)) : join '.', unpack 'C4', $take->(4);
            my $port = unpack 'n', $take->(2);
            $peer->note("$host:$port");
            syswrite $socket, "\5\0\0\1\0\0\0\0\0\0";
            Peer::relay($socket, IO::Socket::IP->new(PeerAddr => $host, PeerPort => $port, Proto => 'tcp'));
        });
    my ($port) = $api->url =~ /:(\d+)$/;
    for ([ 'socks5h', 'localhost' ], [ 'socks5', '127.0.0.1' ])
    {
        my ($scheme, $host) = @$_;
        # Where localhost may be ::1 as well, let it be an address from the beginning.
        my $url = $scheme eq 'socks5' ? "https://127.0.0.1:$port" : $api->url;
        my $app = app_at($url, server_options => { proxy => "$scheme://127.0.0.1:" . $socks->port });
        answer_is(($clinic->cancel($clinic->uuid, app => $app))[0], '200 t', [], "$scheme: success");
        is(($socks->notes)[-1], "$host:$port", "$scheme: what the proxy is told");
    }
};

subtest 'a proxy that the environment names' => sub {
    my ($named, $never) = (proxy, proxy('502 Bad Gateway'));
    {
        local @ENV{qw(http_proxy HTTP_PROXY all_proxy ALL_PROXY https_proxy)} = (($never->url) x 4, $named->url);
        $clinic->node->restart;
    }
    answer_is(($clinic->cancel($clinic->uuid, app => app_at($api->plain_url)))[0], '200 t', [], 'plain HTTP does not leave this machine');
    is($never->connections + $named->connections, 0, 'and goes through none');
    answer_is(($clinic->cancel($clinic->uuid, app => app_at($api->url)))[0], '200 t', [], 'HTTPS');
    is($named->connections, 1, 'goes through it');
    unlike(join('', $named->notes), qr/Authorization|onesignal/i, 'which learns nothing');
    my $mine = proxy;
    answer_is(($clinic->cancel($clinic->uuid, app => app_at($api->url, server_options => { proxy => $mine->url })))[0], '200 t', [], 'the server\'s own');
    is($mine->connections . $named->connections, '11', 'comes before it');
    is($never->connections, 0, 'the others were never asked');
};

done_testing();
