# Frames: servers that send bytes as they are written, by test/onesignal/frames.c, whose head has the words.
#
#   my $peer = Frames->new($api, 'h2', 'w:' . hex_of(answer(1, '{"success":true}')), ...);   # a line for each connection
#   $peer->url
#   plain_url: Frames->new($api, 'plain', ...), HTTP/1.1 over TLS: 'h1'
#
# hex_of($bytes)  frame($type, $flags, $stream, $payload)
# answer($stream, $body, $block)   HEADERS with :status 200 and that HPACK block, and DATA with the stream's end
# large_headers($count)            a block of that many headers of 3,950 bytes as text, most of which take one
# http1($body, @headers)           an answer with its length

package Frames;

use strict;
use warnings;
use Exporter qw(import);
use IPC::Run ();
use File::Basename qw(dirname);
use PostgreSQL::Test::Utils ();
use StandIn;

our @EXPORT = qw(hex_of frame answer large_headers http1);
my $program;

sub hex_of { return unpack 'H*', join '', @_ }
sub frame { my ($type, $flags, $stream, $payload) = @_; return substr(pack('N', length $payload), 1) . pack('CCN', $type, $flags, $stream) . $payload }

sub answer
{
    my ($stream, $body, $block) = @_;
    my $answer = frame(1, 4, $stream, "\x88" . ($block // ''));
    # No frame may have more than 16 kB.
    my @parts = unpack '(a16384)*', $body;
    @parts = ('') if !@parts;
    return $answer . join '', map { frame(0, $_ == $#parts ? 1 : 0, $stream, $parts[$_]) } 0 .. $#parts;
}

# The first goes into the dynamic table, the others name it. 3,945 is 127, and then seven bits a byte.
sub large_headers { my ($count) = @_; return $count ? "\x40\x01x\x7f\xea\x1d" . 'y' x 3945 . "\xbe" x ($count - 1) : '' }

sub http1 { my ($body, @headers) = @_; return join("\r\n", 'HTTP/1.1 200 OK', @headers, 'Content-Length: ' . length $body, '', '') . $body }

sub _program
{
    return $program if $program;
    $program = PostgreSQL::Test::Utils::tempdir() . '/frames';
    my $source = dirname(__FILE__) . '/../onesignal/frames.c';
    PostgreSQL::Test::Utils::system_or_bail('cc', '-O2', '-Wall', '-Wextra', '-Werror', '-o', $program, $source, '-lssl', '-lcrypto');
    return $program;
}

sub new
{
    my ($class, $api, $protocol, @lines) = @_;
    my $script = PostgreSQL::Test::Utils::tempdir() . '/script';
    open my $file, '>', $script or die "$script: $!";
    print $file map { "$_\n" } @lines;
    close $file;
    my @command = (_program(), $script, $protocol, map { $api->dir . "/tls/$_" } qw(server.pem server.key));
    pipe(my $from, my $out) or die "pipe: $!";
    pipe(my $in, my $to) or die "pipe: $!";
    my $pid = fork // die "fork: $!";
    if (!$pid)
    {
        setpgrp 0, 0;
        open STDIN, '<&', $in;
        open STDOUT, '>&', $out;
        close $_ for $from, $to, $in, $out;
        exec @command or POSIX::_exit(1);
    }
    close $_ for $in, $out;
    my $port = readline $from;
    die 'frames did not start' if !$port;
    chomp $port;
    return bless { pid => $pid, to => $to, url => ($protocol eq 'plain' ? 'http://127.0.0.1:' : 'https://localhost:') . $port, port => $port }, $class;
}

sub url { return $_[0]{url} }
sub port { return $_[0]{port} }

sub DESTROY
{
    my ($self) = @_;
    local $?;
    close delete $self->{to} or return;
    waitpid $self->{pid}, 0;
}

1;
