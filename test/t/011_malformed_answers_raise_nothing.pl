# Answers that no sound server gives: each comes to a row, and costs little.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Test::More;

my $clinic = Clinic->new;
my $api = $clinic->api;

# Each case is [ name, fault, outcome, errors ]; all of them go through one session.
sub all_are
{
    my (@cases) = @_;
    my @ids = map { $api->schedule } @cases;
    $api->fault(message => $ids[$_], %{ $cases[$_][1] }) for 0 .. $#cases;
    my @rows = $clinic->cancel(\@ids, max_retries => 0);
    answer_is($rows[$_], @{ $cases[$_] }[ 2, 3 ], $cases[$_][0]) for 0 .. $#cases;
}

sub garbled { my ($status, $what) = @_; return { status => $status, what => $what } }
sub bytes { my ($status, $bytes) = @_; return { status => $status, body_bytes => $bytes } }
sub unexpected { my ($status, $text) = @_; return ["unexpected answer: HTTP $status with $text"] }

subtest 'no JSON' => sub {
    for my $status (200, 400)
    {
        all_are(
            [ "$status, half of it", garbled($status, 'half'), "$status f", unexpected($status, '{"success":tr') ],
            [ "$status, a page", garbled($status, 'not_json'), "$status f", unexpected($status, '<html><body><h1>502 Bad Gateway</h1></body></html>') ],
            (map { [ "$status, $_", bytes($status, $_), "$status f", unexpected($status, $_) ] }
                  q({'success':true,'errors':['x']}), '{"success":true,"errors":["x"],}', '{success:true,errors:["x"]}',
                '{"success":true,"errors":["x"]} // done', '{"success":true,"errors":["x"]]', '{"success":NaN,"errors":["x"]}',
                '{"success":true,"errors":["x\\q"]}', '{"success":true,"errors":["x\\u12"]}', '{"success":true,"errors":["x'),
            [ "$status, a byte order mark", bytes($status, "\xef\xbb\xbf{\"success\":true,\"errors\":[\"x\"]}"), "$status f",
                unexpected($status, "\x{feff}{\"success\":true,\"errors\":[\"x\"]}") ],
            [ "$status, a line break within a text", bytes($status, "{\"success\":true,\"errors\":[\"x\ny\"]}"), "$status f",
                unexpected($status, '{"success":true,"errors":["x y"]}') ]);
    }
};

subtest 'no text' => sub {
    all_are(
        [ 'invalid UTF-8', garbled(400, 'invalid_utf8'), '400 f', unexpected(400, '{"errors":["\\xFF\\xFE\\xC0\\xAF \\xED\\xA0\\x80"]}') ],
        [ 'UTF-8 that ends early', bytes(503, "caf\xc3"), '503 f', ['HTTP 503 with caf\\xC3'] ],
        [ 'LATIN1', bytes(503, "caf\xe9 ferm\xe9"), '503 f', ['HTTP 503 with caf\\xE9 ferm\\xE9'] ],
        [ 'gzip', bytes(200, "\x1f\x8b\x08\x00\x00"), '200 f', unexpected(200, '\\x1F\\x8B\\x08') ],
        [ 'a NUL byte', garbled(400, 'nul_byte'), '400 f', unexpected(400, '{"errors":["a') ],
        [ 'a NUL byte behind success', bytes(200, "{\"success\":true}\0"), '200 f', unexpected(200, '{"success":true}') ],
        [ 'nothing but a NUL byte', bytes(500, "\0"), '500 f', ['HTTP 500 with an empty body'] ]);
};

subtest 'text that jsonb cannot hold' => sub {
    all_are(
        [ '\u0000', garbled(400, 'nul'), '400 f', ['a?b'] ],
        [ '\u0000 beside success', bytes(200, '{"success":true,"a\\u0000":"\\u0000"}'), '200 t', [] ],
        [ 'which is none: \\\\u0000', bytes(400, '{"errors":["\\\\u0000 \\u0000"]}'), '400 f', ['\\u0000 ?'] ],
        [ 'half of a surrogate pair', garbled(400, 'surrogate'), '400 f', ['?'] ],
        [ 'half of a surrogate pair beside success', bytes(200, '{"success":true,"x":"\\udc00"}'), '200 t', [] ],
        [ '1e999999', garbled(400, 'big_number'), '400 f', unexpected(400, '{"success":1e999999}') ],
        [ 'a number that is long to write', bytes(400, '{"errors":[1e100000]}'), '400 f', unexpected(400, '{"errors":[1e100000]}') ],
        [ 'a number of many digits', bytes(400, '{"errors":["x",0.' . '1' x 20_000 . ']}'), '400 f', unexpected(400, '{"errors":["x",0.' . '1' x 183) ],
        [ 'and one of as many as are taken', bytes(400, '{"errors":[0.' . '1' x 998 . ']}'), '400 f', [ '0.' . '1' x 998 ] ],
        [ 'and one that is short', bytes(400, '{"errors":[1.5e3,"1e100000",-2E-2]}'), '400 f', [ '1500', '1e100000', '-0.02' ] ]);
};

subtest 'nesting' => sub {
    my $deep = sub { my ($n) = @_; return '[' x $n . ']' x $n };
    all_are(
        [ '100,000 brackets', garbled(400, 'nested'), 'NULL f', ['the answer is larger than 64 kB'] ],
        [ '100,000 brackets, open', garbled(400, 'nested_open'), 'NULL f', ['the answer is larger than 64 kB'] ],
        [ '32,000 brackets', bytes(400, '{"errors":' . $deep->(32_000) . '}'), '400 f', unexpected(400, '{"errors":' . '[' x 190) ],
        [ '60,000 brackets, open', bytes(200, '[' x 60_000), '200 f', unexpected(200, '[' x 200) ],
        [ 'objects', bytes(200, '{"a":' x 10_000 . '1' . '}' x 10_000), '200 f', unexpected(200, '{"a":' x 40) ],
        [ 'one level more than is taken', bytes(400, '{"errors":' . $deep->(200) . '}'), '400 f', unexpected(400, '{"errors":' . '[' x 190) ],
        [ 'as much as is taken', bytes(400, '{"errors":' . $deep->(199) . '}'), '400 f', [ '[' x 198 . ']' x 198 ] ],
        [ 'as much within a text', bytes(400, '{"errors":["' . '[' x 1000 . '\\"[["]}'), '400 f', [ '[' x 1000 . '"[[' ] ]);
};

subtest 'control characters' => sub {
    my $c1 = "\xc2\x80 \xc2\x9b31m \xc2\x9f \xc2\xa0";
    all_are(
        [ 'in errors', garbled(400, 'control'), '400 f', [ "line\\x0Abreak \\x1B[31mred\\x07 \x{202e}" ] ],
        [ 'in a page', bytes(502, "\x1b]0;title\x07 \x01\x7f\x08."), '502 f', ['HTTP 502 with \\x1B]0;title\\x07 \\x01\\x7F\\x08.'] ],
        [ 'C1 in errors', bytes(400, '{"errors":["\\u0080 \\u009b31m \\u009f \\u00a0"]}'), '400 f', ["\\xC2\\x80 \\xC2\\x9B31m \\xC2\\x9F \x{a0}"] ],
        [ 'C1 in a page', bytes(502, $c1), '502 f', ["HTTP 502 with \\xC2\\x80 \\xC2\\x9B31m \\xC2\\x9F \x{a0}"] ]);
};

subtest 'at most 8 errors of 1 kB' => sub {
    my $errors = sub { bytes(400, '{"errors":["' . join('","', @_) . '"]}') };
    all_are(
        [ 'eight', $errors->(1 .. 8), '400 f', [ 1 .. 8 ] ],
        [ 'nine', $errors->(1 .. 9), '400 f', [ 1 .. 8 ] ],
        [ 'thousands', $errors->(1 .. 5000), '400 f', [ 1 .. 8 ] ],
        [ 'too many for the answer', garbled(400, 'many'), 'NULL f', ['the answer is larger than 64 kB'] ],
        [ 'one of 50 kB', garbled(400, 'long'), '400 f', [ 'x' x 1024 ] ],
        [ 'eight of 7 kB', $errors->(map { $_ x 7000 } 1 .. 8), '400 f', [ map { $_ x 1024 } 1 .. 8 ] ],
        [ 'cut between characters', $errors->('\\u20ac' x 2000, 'x' . '\\u00e9' x 600), '400 f', [ "\x{20ac}" x 341, 'x' . "\x{e9}" x 511 ] ],
        [ 'escapes count', $errors->('\\n' x 1000), '400 f', [ '\\x0A' x 256 ] ]);
};

subtest 'memory' => sub {
    plan skip_all => 'no /proc here' if !-r '/proc/self/status';

    # The answers' sizes, if they were kept or written out: endless, or a gigabyte.
    my @raw = map { $api->raw_server(mode => $_) }
      qw(gigabyte endless_chunks endless_trailers endless_headers huge_header endless_1xx);
    my @calls = (
        (map { [ $_->{log}, $clinic->server(url => $_->url), $clinic->uuid ] } @raw),
        (map { [ "flood $_", $clinic->server(url => $api->$_), my $id = $clinic->uuid ] } qw(url http1_url plain_url)),
        (map { [ "numbers $_", $api->app_id, $_ ] } map { $api->schedule } 1 .. 3));
    $api->fault(message => $_->[2], kind => 'flood') for grep { $_->[0] =~ /flood/ } @calls;
    my @numbers = map { $_->[2] } grep { $_->[0] =~ /numbers/ } @calls;
    my $numbers = join ',', ('1e131071') x 7000;
    $api->fault(message => $numbers[0], status => 400, body => qq({"errors":[[$numbers]]}));
    $api->fault(message => $numbers[1], status => 400, body => qq({"errors":[$numbers]}));
    $api->fault(message => $numbers[2], status => 503, body => qq({"errors":["x"],"y":[$numbers]}));

    my $peak = q{SELECT 'peak ' || (regexp_match(pg_read_file('/proc/self/status'), 'VmHWM:\s+(\d+) kB'))[1];};
    my $warm = join "\n", map { "SELECT r.status FROM onesignal_cancel('" . $api->app_id . "', '" . $clinic->uuid . "') r;" } 1 .. 2;
    my @said = $clinic->sql(join("\n", $warm, $peak,
            (map { "SELECT status, errors FROM onesignal_cancel('$_->[1]', '$_->[2]');" } @calls), $peak),
        timeout => '100s', max_retries => 0);
    my @peaks = map { /^peak (\d+)$/ ? $1 : () } @said;
    cmp_ok($peaks[1] - $peaks[0], '<', 4096, 'kB that all these cost together') if !$ENV{SANITIZE};
    my @answers = @said[ 3 .. $#said - 1 ];
    is($answers[$_], $_ < 2 ? '|{"the answer is larger than 64 kB"}' : q(|{"the answer's headers are larger than 32 kB"}), $raw[$_]{log} =~ s/.*\///r)
      for grep { $raw[$_]->requests && $_ != 4 } 0 .. $#raw;
    like($answers[4], qr/^\|\{.*\}$/, 'a header without end');
    is($answers[$_], '|{"the answer is larger than 64 kB"}', 'a body without end') for 6 .. 8;
    like($answers[$_], qr/^400\|\{"unexpected answer: HTTP 400 with .*1e131071/, 'huge numbers') for 9, 10;
    like($answers[11], qr/^503\|/, 'huge numbers beside errors');
};

done_testing();
