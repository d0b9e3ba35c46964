# Whatever keeps an answer from arriving: status NULL, no success, and libcurl's own words.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Test::More;

my $clinic = Clinic->new;
my $api = $clinic->api;

sub raw { my ($mode, @options) = @_; return { raw => $api->raw_server(mode => $mode, @options) } }

# Each case is [ name, server or fault, errors ], the former with a url or a raw server.
sub start_all
{
    my ($settings, @cases) = @_;
    my @servers = map { { $_->[1]{raw} ? (url => $_->[1]{raw}->url) : %{ $_->[1] } } } @cases;
    my @ids = map { $clinic->uuid } @cases;
    for (0 .. $#cases)
    {
        my $fault = delete $servers[$_]{fault} // next;
        $api->fault(message => $ids[$_], %$fault);
    }
    my @apps = $clinic->servers(@servers);
    # In one session, so that each must leave the transport as it was.
    my $sql = join '', map { "SELECT format('0 %s %s %s', coalesce(status::text, 'NULL'), success, to_json(errors)) FROM onesignal_cancel('$apps[$_]', '$ids[$_]');\n" } 0 .. $#cases;
    return { cases => \@cases, session => { %{ $clinic->_start($sql, max_retries => 0, %$settings) }, first => 'ms' } };
}

sub finish_all
{
    my ($started) = @_;
    my @rows = $clinic->rows($started->{session});
    answer_is($rows[$_], $started->{cases}[$_][3] // 'NULL f', @{ $started->{cases}[$_] }[ 2, 0 ]) for 0 .. $#rows;
    is(scalar @rows, scalar @{ $started->{cases} }, 'a row each');
    return @rows;
}

sub accepting { my $app = $api->add_app(accept_any => 1); return { url => $api->url, app => $app->{app_id}, key => $app->{api_key} } }
sub works { return [ 'and the next one works', accepting(), [], '200 t' ] }

# Those that last as long as their timeout run beside all others.
my $late = qr/^no answer within 1500 ms$/;
my @hanging = map { start_all({ timeout => '1500ms', connect_timeout => '20s' }, $_) }
  (map { [ "hangs, $_", { url => $api->$_, fault => { kind => 'hang' } }, $late ] } qw(url http1_url plain_url)),
  (map { [ "drips, $_", { url => $api->$_, fault => { kind => 'drip', pause => 1000 } }, $late ] } qw(url http1_url)),
  [ 'silent', raw('silent', tls => 1), $late ],
  [ 'a TLS handshake that stalls', raw('tls_stall'), $late ],
  [ 'half a status line', raw('half_status'), $late ],
  [ 'headers that drip', raw('drip_headers'), $late ],
  [ 'an HTTP/2 connection that only pings', raw('h2_pings'), qr/$late|Flooding|kept sending/ ],
  [ 'another protocol from here on', raw('switch'), $late ];
my $unconnected = start_all({ timeout => '60s', connect_timeout => '300ms' },
    [ 'no connection', raw('no_accept'), qr/tim(?:eout|ed out)/i ],
    [ 'no handshake', raw('silent', tls => 1), qr/tim(?:eout|ed out)/i ]);

# Everything else has all the time it could want, and does not take it.
my %soon = (timeout => '30s', connect_timeout => '30s');

subtest 'no connection' => sub {
    my $gone = Peer->new(sub { });
    my $refusing = $gone->url;
    undef $gone;
    finish_all(start_all(\%soon,
            [ 'no such host', { url => 'https://' . 'a' x 64 . '.example' }, qr/^Could not resolve host: a{64}\.example$/ ],
            [ 'refused', { url => $refusing }, qr/^Failed to connect to 127\.0\.0\.1(?: port |:)\d+.*$/ ],
            [ 'closed', raw('close'), qr/^(?:Recv failure: Connection reset by peer|Empty reply from server)$/ ],
            [ 'reset', raw('rst'), qr/^Recv failure: Connection reset by peer$/ ],
            works()));
};

# Under AddressSanitizer reading the system's CAs may take longer than one call of libcurl may; then the peer is cut off.
my $slow = $ENV{SANITIZE} ? '|^Recv failure: Connection reset' : '';

subtest 'no trust' => sub {
    finish_all(start_all(\%soon,
            [ 'a CA that nobody knows', { url => $api->url, server_options => { ca_file => undef } }, qr/^SSL certificate .*: unable to get local issuer certificate$slow/ ],
            [ 'self-signed', { url => $api->self_signed_url }, qr/^SSL certificate .*: self[- ]signed certificate/ ],
            [ 'expired', { url => $api->expired_url }, qr/^SSL certificate .*: certificate has expired/ ],
            [ 'for another host', { url => $api->wrong_host_url }, qr/^SSL: .*match.*'localhost'/ ],
            [ 'TLS 1.1', { url => $api->tls11_url }, qr/SSL|TLS/ ],
            [ 'no TLS', { url => $api->plain_url =~ s/^http:/https:/r }, qr/SSL|TLS/ ],
            [ 'an alert', raw('tls_alert'), qr/alert/ ],
            [ 'no CA file', { url => $api->url, server_options => { ca_file => '/nonexistent/ca.pem' } }, qr{/nonexistent/ca\.pem} ],
            works()));
};

subtest 'an answer that breaks off' => sub {
    finish_all(start_all(\%soon,
            (map { [ "reset, $_", { url => $api->$_, fault => { kind => 'reset' } }, qr/reset by|Empty reply|not closed cleanly/ ] } qw(url http1_url plain_url)),
            (map { [ "truncated, $_", { url => $api->$_, fault => { kind => 'truncate' } }, qr/bytes remaining to read|bytes missing|reset by|not closed cleanly/ ] } qw(url http1_url plain_url)),
            [ 'closed once the request is there', raw('close_after_request'), qr/^Empty reply from server$/ ],
            [ 'reset once the request is there', raw('rst_after_request'), qr/reset by peer/ ],
            [ 'a body that is shorter than it says', raw('truncate'), qr/984 bytes (?:remaining|missing)/ ],
            [ 'two lengths', raw('two_lengths'), qr/\w/ ],
            [ 'half an HTTP/2 body', raw('h2_half'), qr/not closed cleanly|reset by|HTTP2|unexpected eof/ ],
            works()));
};

subtest 'no HTTP' => sub {
    finish_all(start_all(\%soon,
            [ 'garbage', raw('garbage'), qr/HTTP/ ],
            [ 'another protocol', raw('not_http'), qr/HTTP/ ],
            [ 'a body alone', raw('http_0_9'), qr/HTTP/ ],
            [ 'version 9.9', raw('bad_version'), qr/HTTP/ ],
            [ 'a negative length', raw('bad_length'), qr/Content-Length/ ],
            [ 'a length that is no number', raw('bad_chunk'), qr/chunk/i ],
            [ 'HTTP/2 frames that must not be', raw('h2_bad_frame'), qr/\w/ ],
            works()));
};

subtest 'too large an answer' => sub {
    my $too_large = qr/^the answer is larger than 64 kB$/;
    my $large_headers = qr/^the answer's headers are larger than 32 kB$/;
    my $sized = sub { my ($n) = @_; return { body => '{"success":true}' . ' ' x ($n - 16) } };
    my @cases = ([ '60 kB', $sized->(60_000), '200 t', [] ], [ '70 kB', $sized->(70_000), 'NULL f', $too_large ], [ 'and then a small one', {}, '200 t', [] ]);
    push @cases, [ 'without end', { kind => 'flood' }, 'NULL f', $too_large ], [ "and then one of $_ bytes", $sized->($_), '200 t', [] ]
      for 16, 50_000, 57_000, 60_000, 62_000, 63_000, 65_000;
    my @ids = map { $api->schedule } @cases;
    $api->fault(message => $ids[$_], %{ $cases[$_][1] }) for 0 .. $#cases;
    my @rows = $clinic->cancel(\@ids, max_retries => 0, timeout => '10s');
    answer_is($rows[$_], @{ $cases[$_] }[ 2, 3, 0 ]) for 0 .. $#cases;
    finish_all(start_all(\%soon,
            (map { [ "a body without end, $_", { url => $api->$_, fault => { kind => 'flood' } }, $too_large ] } qw(http1_url plain_url)),
            [ 'headers without end', raw('endless_headers'), $large_headers ],
            [ 'interim answers without end', raw('endless_1xx'), $large_headers ],
            [ 'HTTP/2 headers without end', raw('h2_endless_headers'), qr/\w/ ]));
};

subtest 'what takes too long' => sub {
    finish_all($_) for @hanging, $unconnected;
};

done_testing();
