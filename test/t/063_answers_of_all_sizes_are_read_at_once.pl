# An answer is read as soon as it has arrived, however long its body is, and whether its headers and body arrive
# in one TLS record or in many.

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
my @bodies = map { '{"success":true}' . ' ' x ($_ - 16) } @sizes;
# Headers and body in a record each
my $apart = sub { my ($answer, $head) = @_; return 'w:' . hex_of(substr $answer, 0, $head) . ' w:' . hex_of(substr $answer, $head) };

for ([ 'HTTP/2, together', 'h2', map { 'w:' . hex_of(answer(1, $_)) } @bodies ],
    [ 'HTTP/2, apart', 'h2', map { $apart->(answer(1, $_), 10) } @bodies ],
    [ 'HTTP/1.1, together', 'h1', map { 'w:' . hex_of(http1($_)) } @bodies ],
    [ 'HTTP/1.1, plain', 'plain', map { 'w:' . hex_of(http1($_)) } @bodies ])
{
    my ($name, $protocol, @lines) = @$_;
    # The peer waits with its end, which would be a reason to read.
    my $peer = Frames->new($clinic->api, $protocol, map { "$_ h" } @lines);
    my @apps = $clinic->servers(map { { url => $peer->url } } 1);
    my (@wrong, @slow);
    # A session each: a new connection, which takes the next line.
    my @rows = $clinic->rows({ %{ $clinic->_start(join('', map { "SELECT clock_timestamp() AS begun \\gset\n"
          . "SELECT format('%s %s %s %s', round(extract(epoch FROM clock_timestamp() - :'begun'::timestamptz) * 1000), coalesce(status::text, 'NULL'), success::text, to_json(errors))"
          . " FROM onesignal_cancel('$apps[0]', gen_random_uuid());\n\\connect\nSET onesignal_cancel.timeout = '15s';\n" } @sizes), timeout => '15s') }, first => 'ms' });
    for my $n (0 .. $#sizes)
    {
        push @wrong, $sizes[$n] if "$rows[$n]{status} $rows[$n]{success}" ne '200 true';
        push @slow, $sizes[$n] if $rows[$n]{ms} > 10_000;
    }
    is("@wrong", '', "$name: read");
    is("@slow", '', "$name: at once");
}

my $peer = Frames->new($clinic->api, 'h2', 'w:' . hex_of(answer(1, ' ' x 65537)) . ' h');
my ($row) = $clinic->cancel($clinic->uuid, app => $clinic->server(url => $peer->url));
answer_is($row, 'NULL f', qr/^the answer is larger than 64 kB$/, 'one byte more is too much');

done_testing();
