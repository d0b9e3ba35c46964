# A peer that sends without end holds up nobody: the call ends in time, with words, and at once when it is
# interrupted. A worker goes on with other apps' messages.
#
# By the server's own clock it takes 150 to 350 ms; the bounds here leave room for a machine that is busy.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Frames;
use IO::Socket::IP;
use IPC::Run;
use Test::More;
use Time::HiRes;
use Workers;

my $clinic = Clinic->new(accept_any => 1, conf => "onesignal_cancel.max_retries = 0\nonesignal_cancel.connect_timeout = '60s'\n");
my $api = $clinic->api;
my $node = $clinic->node;

sub many { my ($frame, $times) = @_; return 'f:' . hex_of($frame x ($times // 500)) }

my $headers = 'w:' . hex_of(frame(1, 4, 1, "\x88"));
my $data = frame(0, 0, 1, '');
my @floods = (
    [ 'empty DATA', 'h2', "$headers " . many($data) ],
    [ 'WINDOW_UPDATE', 'h2', many(frame(8, 0, 0, pack 'N', 1), 400) ],
    [ 'WINDOW_UPDATE of a stream', 'h2', many(frame(8, 0, 1, pack 'N', 1)) ],
    [ 'GOAWAY', 'h2', many(frame(7, 0, 0, pack 'NN', 1, 0)) ],
    [ 'RST_STREAM', 'h2', many(frame(3, 0, 1, pack 'N', 8)) ],
    [ 'PRIORITY', 'h2', many(frame(2, 0, 1, pack 'NC', 0, 1)) ],
    [ 'PING', 'h2', many(frame(6, 0, 0, 'stand-in')) ],
    [ 'PING acknowledged', 'h2', many(frame(6, 1, 0, 'stand-in')) ],
    [ 'SETTINGS', 'h2', many(frame(4, 0, 0, '')) ],
    [ 'SETTINGS acknowledged', 'h2', many(frame(4, 1, 0, '')) ],
    [ 'an unknown frame', 'h2', many(frame(99, 0, 0, 'x' x 100)) ],
    [ 'CONTINUATION', 'h2', 'w:' . hex_of(frame(1, 0, 1, "\x88")) . ' ' . many(frame(9, 0, 1, '')) ],
    [ 'interim answers', 'h2', many(frame(1, 4, 1, "\x08\x03103")) ],
    [ 'a body', 'h2', "$headers " . many(frame(0, 0, 1, ' ' x 1000), 30) ],
    [ 'headers of HTTP/1.1', 'h1', 'w:' . hex_of("HTTP/1.1 200 OK\r\n") . ' ' . many("X: y\r\n") ],
    [ 'interim answers of HTTP/1.1', 'plain', many("HTTP/1.1 103 Early Hints\r\n\r\n") ],
    [ 'a body of HTTP/1.1', 'plain', 'w:' . hex_of("HTTP/1.1 200 OK\r\n\r\n") . ' ' . many(' ' x 1000) ],
    [ 'chunks', 'plain', 'w:' . hex_of("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n") . ' ' . many("1\r\n \r\n") ],
    [ 'trailers', 'plain', 'w:' . hex_of("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n") . ' ' . many("X: y\r\n") ],
    [ 'TLS KeyUpdate', 'h1', 'k' ],
    [ 'TLS session tickets', 'h1', 't' ],
    # Reading them costs more than writing them: there are always more, also while the connection is closed.
    [ 'records full of TLS session tickets', 'h1', 'T' ],
    [ "a proxy's headers", 'proxy', 'w:' . hex_of("HTTP/1.1 200 OK\r\n") . ' ' . many("X: y\r\n") ],
    [ "a proxy's body", 'proxy', 'w:' . hex_of("HTTP/1.1 407 Who are you\r\nContent-Length: 99999999999\r\n\r\n") . ' ' . many(' ' x 1000) ]);

my (%app, @peers);
for (@floods)
{
    my ($name, $protocol, @lines) = @$_;
    my $proxy = $protocol eq 'proxy';
    push @peers, Frames->new($api, $proxy ? 'plain' : $protocol, @lines);
    $app{$name} = $clinic->server(url => $proxy ? 'https://localhost:9' : $peers[-1]->url,
        server_options => { rate_limit => 0, $proxy ? (proxy => $peers[-1]->url) : () });
}

my %took;
sub took
{
    my ($name, $what, $ms) = @_;
    push @{ $took{$what} }, $ms;
    note("$name, $what: $ms ms");
    return $ms < 10_000;
}

my $memory = q{SELECT (regexp_match(pg_read_file('/proc/self/status'), 'VmHWM:\s+(\d+) kB'))[1]};
for my $name (map { $_->[0] } @floods)
{
    my @said = $clinic->sql("$memory;\nSELECT clock_timestamp() AS begun \\gset\n"
          . "SELECT format('%s %s', coalesce(status::text, 'NULL'), errors[1]) FROM onesignal_cancel('$app{$name}', gen_random_uuid());\n"
          . "SELECT round(extract(epoch FROM clock_timestamp() - :'begun'::timestamptz) * 1000);\n$memory;", timeout => '1s');
    like($said[1], qr/^NULL \w/, "$name: ends") and note($said[1]);
    ok(took($name, 'by itself', $said[2]), "$name: in time");
    cmp_ok($said[3] - $said[0], '<', 20_000, "$name: kB that it takes") if !$ENV{SANITIZE};

    my ($ms) = $clinic->sql("SET statement_timeout = 300;\nSELECT clock_timestamp() AS begun \\gset\n\\set ON_ERROR_STOP 0\n"
          . "SELECT FROM onesignal_cancel('$app{$name}', gen_random_uuid()), pg_sleep(60) WHERE status IS NULL;\n"
          . "SET statement_timeout = 0;\nSELECT round(extract(epoch FROM clock_timestamp() - :'begun'::timestamptz) * 1000);", timeout => '60s');
    ok(took($name, 'by statement_timeout of 300 ms', $ms), "$name: statement_timeout");

    ($ms) = $clinic->sql("SELECT clock_timestamp() AS begun \\gset\n"
          . "SELECT WHERE (SELECT count(*) FROM onesignal_cancel('$app{$name}', gen_random_uuid())) = 0;\n"
          . "SELECT round(extract(epoch FROM clock_timestamp() - :'begun'::timestamptz) * 1000);", timeout => '100ms');
    ok(took($name, 'with a timeout of 100 ms', $ms), "$name: timeout");
}
for my $what (sort keys %took)
{
    my @sorted = sort { $a <=> $b } @{ $took{$what} };
    note("$what: $sorted[0] to $sorted[-1] ms, median $sorted[ @sorted / 2 ]");
}

# A group of any size is the server's to choose, and a large one costs the client a second in which it cannot be
# interrupted.
subtest 'a finite-field key exchange' => sub {
    my ($dir, $said, $port) = ($api->dir, '', PostgreSQL::Test::Cluster::get_free_port());
    my @ca = ('-CA', "$dir/ca.pem", '-CAkey', "$dir/tls/ca.key");
    my @files = ('-key', "$dir/rsa.key", '-cert', "$dir/rsa.pem");
    IPC::Run::run([ 'openssl', 'req', '-new', '-config', "$dir/tls/openssl.cnf", '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost', '-newkey', 'rsa:2048', '-nodes', '-keyout', "$dir/rsa.key", '-out', "$dir/rsa.csr" ], '>&', \$said)
      && IPC::Run::run([ 'openssl', 'x509', '-req', '-in', "$dir/rsa.csr", @ca, '-set_serial', 78, '-days', 2, '-copy_extensions', 'copyall', '-out', "$dir/rsa.pem" ], '>&', \$said)
      or die "openssl: $said";
    for my $cipher ('ECDHE-RSA-AES128-GCM-SHA256', 'DHE-RSA-AES128-GCM-SHA256')
    {
        my $server = IPC::Run::start([ 'openssl', 's_server', '-quiet', '-www', '-tls1_2', '-cipher', "$cipher:\@SECLEVEL=0", '-accept', "127.0.0.1:$port", @files ], '<', \undef, '>&', \my $served);
        for (1 .. 1000) { last if IO::Socket::IP->new(PeerAddr => '127.0.0.1', PeerPort => $port); Time::HiRes::sleep(0.02) }
        my $is_finite = $cipher =~ /^D/;
        # Nobody answers a DELETE there: after a handshake the call waits.
        my ($row) = $clinic->cancel($clinic->uuid, app => $clinic->server(url => "https://localhost:$port"), timeout => $is_finite ? '60s' : '2s');
        like($row->{errors}[0], $is_finite ? qr/handshake failure/ : qr/^no answer/, $cipher . ($is_finite ? ' is not offered' : ' will do'));
        $server->kill_kill;
        $port = PostgreSQL::Test::Cluster::get_free_port();
    }
};

subtest 'a worker' => sub {
    my $healthy = $api->app_id;
    my $count = scalar keys %app;
    $node->safe_psql('postgres', join '', map { "INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (gen_random_uuid(), '$_', true);" } values %app);
    for (1 .. 3)
    {
        $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$healthy', true FROM generate_series(1, 100)");
        ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE app_id = '$healthy' AND state = 'pending'", 0), 'delivers what others have requested');
    }
    is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE app_id = '$healthy' AND state = 'canceled' AND attempts = 1"), 300, 'at the first attempt');
    ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE attempts > 0 AND state = 'pending' AND http_status IS NULL AND errors[1] <> ''", $count), 'and those that are flooded are tried again');
    my $worker = Workers::worker($node, 'postgres');
    is($node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 20000)"), 't', 'pg_terminate_backend ends it');
    $node->stop('fast');
    pass('and so does a stop');
};

done_testing();
