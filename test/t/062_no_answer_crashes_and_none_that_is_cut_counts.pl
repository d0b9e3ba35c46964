# No answer ends the process, whatever an earlier one was. An answer that was cut, anywhere, is none; so is one
# without a status.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Frames;
use PostgreSQL::Test::Utils;
use Test::More;

my $clinic = Clinic->new(conf => "onesignal_cancel.max_retries = 0\n");
my $api = $clinic->api;
my $node = $clinic->node;
my %soon = (timeout => '20s', connect_timeout => '20s');
my @peers;

# An app whose peer does this, a line for each connection.
sub app
{
    my ($protocol, @lines) = @_;
    push @peers, Frames->new($api, $protocol, @lines);
    return $clinic->server(url => $peers[-1]->url, server_options => { rate_limit => 0 });
}

sub write_word { return 'w:' . hex_of(@_) }

my $folded = write_word("HTTP/1.1 200 OK\r\n folded: x\r\nContent-Length: 17\r\n\r\n{\"success\":false}");

subtest 'a first header that begins with a blank' => sub {
    # Whole answers on a handle before, then the other kind
    my $app = app('plain', join ' n ', (write_word(http1('{"success":false}')), $folded) x 2);
    # libcurl from 7.84 on takes it for no answer.
    my @rows = ($clinic->cancel([ map { $clinic->uuid } 1 .. 10 ], app => $app, %soon), $clinic->batch([ map { $clinic->uuid } 1 .. 10 ], app => $app, %soon));
    is(scalar(grep { "$_->{status} $_->{success}" =~ /^(?:200|NULL) false$/ } @rows), 20, 'in a session and in a batch');
    $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$app', true FROM generate_series(1, 5)");
    ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE app_id = '$app' AND attempts > 0", 5), 'from the queue');
    unlike(slurp_file($node->logfile), qr/terminated by signal/, 'no process was ended');
};

# The last one is whole, and its connection stays. (Of chunks libcurl does without the last byte.)
sub cut_everywhere
{
    my ($protocol, $answer, $name) = @_;
    my $length = length $answer;
    my @cuts = map { substr $answer, 0, $_ } grep { $name ne 'chunks' || $_ != $length - 1 } 0 .. $length;
    $length = $#cuts;
    my $app = app($protocol, (map { length $_ ? write_word($_) : 's:0' } @cuts[ 0 .. $length - 1 ]), write_word($answer) . ' h');
    my @rows = $clinic->cancel([ map { $clinic->uuid } @cuts ], app => $app, %soon);
    my @wrong = grep { "$rows[$_]{status} $rows[$_]{success}" ne ($_ < $length ? 'NULL false' : '200 true') } 0 .. $length;
    is("@wrong", '', "$name: cut at none of $length bytes counts");
    is_deeply([ grep { !length($rows[$_]{errors}[0] // '') } 0 .. $length - 1 ], [], "$name: words say why");
}

my $ok = '{"success":true}';
cut_everywhere('plain', http1($ok, 'X-Header: y'), 'HTTP/1.1');
cut_everywhere('plain', "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n$ok\r\n0\r\n\r\n", 'chunks');
cut_everywhere('h2', answer(1, $ok), 'HTTP/2');

subtest 'an HTTP/2 body that is cut on a connection that says GOAWAY' => sub {
    my $goaway = frame(7, 0, 0, pack 'NN', 9, 0);
    my $part = sub { my ($stream, $body) = @_; return frame(1, 4, $stream, "\x88") . frame(0, 0, $stream, $body) };
    for ([ 'half a body', '{"succ' ], [ 'none of it', '' ])
    {
        my ($name, $body) = @$_;
        my $app = app('h2', write_word($part->(1, $body), $goaway));
        my @rows = $clinic->cancel($clinic->uuid, app => $app, %soon);
        is("$rows[0]{status} $rows[0]{success}", 'NULL false', "$name: alone");
        my $parts = join '', map { $part->($_, $body) } 1, 3, 5, 7, 9;
        for my $order ([ 'before', write_word($goaway, $parts) ], [ 'after', write_word($parts, $goaway) ],
            [ 'between', write_word($parts) . ' s:50 ' . write_word($goaway) ])
        {
            my $shared = app('h2', "n n n n $order->[1]");
            @rows = $clinic->batch([ map { $clinic->uuid } 1 .. 5 ], app => $shared, %soon);
            is(join(' ', map { "$_->{status} $_->{success}" } @rows), join(' ', ('NULL false') x 5), "$name: five on one connection, GOAWAY $order->[0]");
        }
    }
    my $app = app('h2', 'n n n n ' . write_word($goaway, map { answer($_, $ok) } 1, 3, 5, 7, 9) . ' h');
    my @rows = $clinic->batch([ map { $clinic->uuid } 1 .. 5 ], app => $app, %soon);
    is(join(' ', map { "$_->{status} $_->{success}" } @rows), join(' ', ('200 true') x 5), 'whole ones count');
};

subtest 'a status that is none' => sub {
    for my $status ('000', '001', '099')
    {
        my $app = app('h2', write_word(frame(1, 4, 1, "\x08\x03$status") . frame(0, 1, 1, $ok)));
        my @rows = $clinic->cancel($clinic->uuid, app => $app, %soon);
        answer_is($rows[0], 'NULL f', qr/\w/, ":status $status");
    }
};

done_testing();
