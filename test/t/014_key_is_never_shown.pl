# Somebody sends the key back, by mistake or not: what is handed on says "[api key]" in its place.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use IPC::Run ();
use JSON::PP ();
use Test::More;
use Time::HiRes ();

my $clinic = Clinic->new(conf => "log_min_messages = debug5\nlog_error_verbosity = verbose\n");
my $api = $clinic->api;
my $key = $api->api_key;
my @keys = ($key);

# Not even a part of it that somebody could complete, nor spelled as JSON may spell it.
sub hides
{
    my ($text, $name) = @_;
    my $unescaped = sub { my ($t) = @_; $t =~ s/\\u([0-9a-f]{4})/chr hex $1/gie; return $t =~ tr{\\}{}dr };
    for my $secret (map { $unescaped->($_) } @keys)
    {
        for my $part (map { substr $secret, $_, 14 } 0 .. length($secret) - 14)
        {
            return fail("$name: $text") if index($unescaped->($text), $part) >= 0;
        }
    }
    return pass("$name: no key");
}

# Each case is [ name, fault, outcome, errors ]; all of them go through one session.
sub all_hide
{
    my ($app, @cases) = @_;
    my @ids = map { $api->schedule } @cases;
    $api->fault(message => $ids[$_], %{ $cases[$_][1] }) for 0 .. $#cases;
    my @rows = $clinic->cancel(\@ids, max_retries => 0, app => $app);
    for (0 .. $#cases)
    {
        answer_is($rows[$_], @{ $cases[$_] }[ 2, 3 ], $cases[$_][0]);
        hides(JSON::PP->new->encode($rows[$_]{errors}), $cases[$_][0]);
    }
}

sub body { my ($status, $body, %more) = @_; return { status => $status, body => $body, %more } }
sub all_escaped { my ($text, $format) = @_; return join '', map { sprintf $format // '\\u%04x', ord } split //, $text }

subtest 'in errors' => sub {
    my $one = '\\u006f' . substr($key, 1);
    all_hide(
        $api->app_id,
        [ 'an echo', { kind => 'echo' }, '400 f', ['you sent Authorization: Key [api key]'] ],
        [ 'alone', body(400, qq({"errors":["$key"]})), '400 f', ['[api key]'] ],
        [ 'twice, and again', body(400, qq({"errors":["$key-$key","x$key"]})), '400 f', [ '[api key]-[api key]', 'x[api key]' ] ],
        [ 'beside success', body(200, qq({"success":true,"errors":["$key"],"$key":"$key"})), '200 t', ['[api key]'] ],
        [ 'as code and title', body(400, qq({"errors":[{"code":"$key","title":"$key"}]})), '400 f', ['[api key]: [api key]'] ],
        [ 'as a name', body(400, qq({"errors":{"$key":[1]}})), '400 f', ['{"[api key]": [1]}'] ],
        [ 'with one escape', body(400, qq({"errors":["$one"]})), '400 f', ['[api key]'] ],
        [ 'with nothing but escapes', body(400, '{"errors":["' . all_escaped($key) . '"]}'), '400 f', ['[api key]'] ],
        [ 'in capitals', body(400, '{"errors":["' . all_escaped($key, '\\u%04X') . '"]}'), '400 f', ['[api key]'] ],
        [ 'escaped twice', body(400, '{"errors":["' . all_escaped($key, '\\\\u%04X') . '"]}'), '400 f', ['[api key]'] ],
        [ 'beside what is lost', body(400, qq({"errors":["\\u0000$one"]})), '400 f', ['?[api key]'] ],
        (map { [ "$_ characters before the cut", body(400, '{"errors":["' . 'x' x (1024 - $_) . $key . 'y"]}'), '400 f', [ substr('x' x (1024 - $_) . '[api key]y', 0, 1024) ] ] } 0, 1, 9, 10, 73, 74, 75),
    );
};

subtest 'in what is no answer of OneSignal' => sub {
    my $one = '\\u006f' . substr($key, 1);
    my $page = sub { my ($text) = @_; return body(502, "<html>\n$text</html>", content_type => 'text/html') };
    all_hide(
        $api->app_id,
        [ 'a page', $page->("Key $key"), '502 f', ['HTTP 502 with <html> Key [api key]</html>'] ],
        [ 'a page that is not UTF-8', { status => 502, body_bytes => "\xff$key\xff" }, '502 f', ['HTTP 502 with \\xFF[api key]\\xFF'] ],
        [ 'another object', body(200, qq({"got":"$key"})), '200 f', ['unexpected answer: HTTP 200 with {"got":"[api key]"}'] ],
        [ 'another object, escaped', body(200, qq({"got":"$one"})), '200 f', ['unexpected answer: HTTP 200 with {"got":"[api key]"}'] ],
        [ 'half an object, escaped', body(500, qq({"got":"$one)), '500 f', ['HTTP 500 with {"got":"[api key]'] ],
        [ 'all escaped', body(403, '{"got":"' . all_escaped($key) . '"}'), '403 f', ['HTTP 403 with {"got":"[api key]"}'] ],
        (map { [ "$_ characters before the cut", body(502, 'x' x (200 - $_) . "${key}y"), '502 f', [ 'HTTP 502 with ' . substr('x' x (200 - $_) . '[api key]y', 0, 200) ] ] } 0, 1, 9, 10, 73, 74, 75),
        [ 'a redirect', { status => 302, headers => { Location => "https://$key.evil.example/$key?$key" } }, '302 f', ['HTTP 302 redirects to host "[api key].evil.example", which is not followed'] ],
        [ 'a redirect, escaped', { status => 302, headers => { Location => 'https://%6f' . substr($key, 1) . '.evil.example/' } }, '302 f', ['HTTP 302 redirects to host "[api key].evil.example", which is not followed'] ],
        [ 'headers', { status => 500, headers => { 'X-Echo' => $key, 'Retry-After' => $key, 'Content-Location' => $key } }, '500 f', ['Internal server error'] ],
        [ 'in two rows', $page->($key), '502 f', ['HTTP 502 with <html> [api key]</html>'] ],
    );
    my $status = $api->raw_server(mode => 'echo_status');
    my ($row) = $clinic->cancel($clinic->uuid, app => $clinic->server(url => $status->url), max_retries => 0);
    answer_is($row, '502 f', ['HTTP 502 with an empty body'], 'a status line');
    my @ids = map { $api->schedule } 1 .. 3;
    $api->fault(message => \@ids, kind => 'echo');
    answer_is($_, '400 f', ['you sent Authorization: Key [api key]'], 'in a batch') for $clinic->batch(\@ids, max_retries => 0);
};

subtest 'a key that JSON escapes' => sub {
    my $app = $api->add_app(accept_any => 1);
    my $odd = push(@keys, q(a"b\\c\\\\d/e'f%g{h}<i>"end")) && $keys[-1];
    my $server = $clinic->server(app => $app->{app_id}, key => $odd);
    my $json = JSON::PP->new->allow_nonref->encode($odd);
    my $slash = $json =~ s{/}{\\/}r;
    all_hide(
        $server,
        [ 'a page', body(502, "($odd)"), '502 f', ['HTTP 502 with ([api key])'] ],
        [ 'errors', body(400, qq({"errors":[$json]})), '400 f', ['[api key]'] ],
        [ 'errors, with an escaped slash', body(400, qq({"errors":[$slash]})), '400 f', ['[api key]'] ],
        [ 'an object in errors', body(400, qq({"errors":[{"a":$json}]})), '400 f', ['{"a": "[api key]"}'] ],
        [ 'another object', body(200, qq({"a":$slash})), '200 f', ['unexpected answer: HTTP 200 with {"a":"[api key]"}'] ],
        [ 'success', body(200, qq({"success":true,"a":$json,$json:1})), '200 t', [] ]);
};

# The one way for a peer to put its text into one of libcurl's messages.
subtest 'a certificate with the key for a name' => sub {
    my $named = push(@keys, 'os_v2_app_key_in_a_certificate') && $keys[-1];
    my ($dir, $said, $port) = ($api->dir, '', PostgreSQL::Test::Cluster::get_free_port());
    my @ca = ('-CA', "$dir/ca.pem", '-CAkey', "$dir/tls/ca.key");
    IPC::Run::run([ 'openssl', 'req', '-new', '-config', "$dir/tls/openssl.cnf", '-subj', "/CN=$named", '-key', "$dir/tls/server.key", '-out', "$dir/named.csr" ], '>&', \$said)
      && IPC::Run::run([ 'openssl', 'x509', '-req', '-in', "$dir/named.csr", @ca, '-set_serial', 77, '-days', 2, '-out', "$dir/named.pem" ], '>&', \$said)
      or die "openssl: $said";
    my $server = IPC::Run::start([ 'openssl', 's_server', '-quiet', '-accept', "127.0.0.1:$port", '-cert', "$dir/named.pem", '-key', "$dir/tls/server.key" ], '<', \undef, '>&', \my $served);
    for (1 .. 1000) { last if IO::Socket::IP->new(PeerAddr => '127.0.0.1', PeerPort => $port); Time::HiRes::sleep(0.02) }
    my ($row) = $clinic->cancel($clinic->uuid, app => $clinic->server(url => "https://localhost:$port", key => $named), max_retries => 0);
    answer_is($row, 'NULL f', qr/\[api key\].*match/, 'an error of libcurl');
    hides(JSON::PP->new->encode($row->{errors}), 'an error of libcurl');
    $server->kill_kill;
};

subtest 'in the server\'s log' => sub {
    my $log = PostgreSQL::Test::Utils::slurp_file($clinic->node->logfile);
    like($log, qr/DEBUG:  \w+: onesignal_cancel: https:\S+ from port [1-9]\d*, HTTP\/2, \d+\.\d ms: 400 \(No error\)$/m, 'which shows each exchange');
    hides(join("\n", grep { !/CREATE (?:SERVER|USER MAPPING)/ } split /\n/, $log), 'log');
};

done_testing();
