# An answer is read as soon as it has arrived, however long its body is, and whether its headers and body arrive
# in one TLS record or in many; and however long its headers are.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Frames;
use Test::More;

my $clinic = Clinic->new(conf => "onesignal_cancel.max_retries = 0\n");
my @sizes = (16 .. 20, map({ $_ * 1024 } 1 .. 3), map({ 4096 + $_ } -40 .. 12), map({ 512 * $_ } 9 .. 32),
    map({ 16384 + $_ } -40, -20 .. 2), map({ $_ * 1024 } 17, 24, 32, 40, 48, 63), 65535, 65536);
my @bodies = map { body($_) } @sizes;
# What comes in one read may be many times longer as text, of which there are 15 bytes without these headers.
my @large = map { my $count = $_; map { [ $_, $count ] } 16, 500, 4000, 12_000, 16_300, 40_000, 65_536, grep({ $_ > 16 } map { 16384 - 3950 * $count - 15 + $_ } -20 .. 20) } 1, 3, 4, 5, 8;

sub body { my ($size) = @_; return '{"success":true}' . ' ' x ($size - 16) }

# Headers and body in a record each
my $apart = sub { my ($answer, $head) = @_; return 'w:' . hex_of(substr $answer, 0, $head) . ' w:' . hex_of(substr $answer, $head) };

sub try
{
    my ($name, $protocol, $sizes, @lines) = @_;
    # The peer waits with its end, which would be a reason to read.
    my $peer = Frames->new($clinic->api, $protocol, map { "$_ h" } @lines);
    my @apps = $clinic->servers(map { { url => $peer->url } } 1);
    my (@wrong, @slow);
    # A session each: a new connection, which takes the next line.
    my @rows = $clinic->rows({ %{ $clinic->_start(join('', map { "SELECT clock_timestamp() AS begun \\gset\n"
          . "SELECT format('%s %s %s %s', round(extract(epoch FROM clock_timestamp() - :'begun'::timestamptz) * 1000), coalesce(status::text, 'NULL'), success::text, to_json(errors))"
          . " FROM onesignal_cancel('$apps[0]', gen_random_uuid());\n\\connect\nSET onesignal_cancel.timeout = '15s';\n" } @lines), timeout => '15s') }, first => 'ms' });
    for my $n (0 .. $#lines)
    {
        push @wrong, $sizes->[$n] if "$rows[$n]{status} $rows[$n]{success}" ne '200 true';
        push @slow, $sizes->[$n] if $rows[$n]{ms} > 10_000;
    }
    is("@wrong", '', "$name: read");
    is("@slow", '', "$name: at once");
}

try('HTTP/2, together', 'h2', \@sizes, map { 'w:' . hex_of(answer(1, $_)) } @bodies);
try('HTTP/2, apart', 'h2', \@sizes, map { $apart->(answer(1, $_), 10) } @bodies);
try('HTTP/2, large headers', 'h2', [ map { "$_->[0]+$_->[1]" } @large ], map { 'w:' . hex_of(answer(1, body($_->[0]), large_headers($_->[1]))) } @large);
try('HTTP/1.1, together', 'h1', \@sizes, map { 'w:' . hex_of(http1($_)) } @bodies);
try('HTTP/1.1, plain', 'plain', \@sizes, map { 'w:' . hex_of(http1($_)) } @bodies);

for ([ 'one byte more is too much', qr/^the answer is larger than 64 kB$/, answer(1, ' ' x 65537) ],
    [ 'nine large headers are, too', qr/^the answer's headers are larger than 32 kB$/, answer(1, body(16), large_headers(9)) ],
    [ 'and thirty', qr/^the answer's headers are larger than 32 kB$/, answer(1, body(16), large_headers(30)) ])
{
    my ($name, $words, $answer) = @$_;
    my $peer = Frames->new($clinic->api, 'h2', 'w:' . hex_of($answer) . ' h');
    my ($row) = $clinic->cancel($clinic->uuid, app => $clinic->server(url => $peer->url));
    answer_is($row, 'NULL f', $words, $name);
}

done_testing();
