# Programs that the session starts do not hold its connections, and a connection that the peer has closed is closed
# when the statement ends.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Frames;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'needs /proc' if !-r '/proc/self/net/tcp';
my $clinic = Clinic->new(accept_any => 1, conf => "onesignal_cancel.max_retries = 0\n");
my $api = $clinic->api;
my $app = $api->app_id;

# The connections to a port that are in this state
sub connections
{
    my ($port, $state) = @_;
    return scalar grep { /^\s*\d+: \S+ 0100007F:@{[ sprintf '%04X', $port ]} $state / } split /\n/, slurp_file('/proc/net/tcp');
}

my $call = "SELECT status FROM onesignal_cancel('%s', gen_random_uuid())";
my $list = "CREATE TEMP TABLE held (fd text); COPY held FROM PROGRAM 'ls -l /proc/self/fd | sed -n s/.*socket:.//p'; SELECT string_agg(fd, ' ') FROM held;";
{
    my $session = $clinic->node->background_psql('postgres');
    my $before = $session->query_safe($list);
    is($session->query_safe(sprintf $call, $app), 200, 'a connection is there');
    my @inodes = map { /-> socket:\[(\d+)\]/ } split /\n/, `ls -l /proc/${\ $session->query_safe('SELECT pg_backend_pid()') }/fd`;
    my ($port) = $api->url =~ /:(\d+)$/;
    my %ours = map { (split ' ')[9] => 1 } grep { /^\s*\d+: \S+ \S+:@{[ sprintf '%04X', $port ]} 01 / } split /\n/, join '', map { slurp_file($_) } grep { -r } glob '/proc/net/tcp{,6}';
    is(scalar(grep { $ours{$_} } @inodes), 1, 'of this process');
    my $held = $session->query_safe("TRUNCATE held; " . $list =~ s/^.*?; //r);
    is(scalar(grep { $ours{$_} } $held =~ /(\d+)/g), 0, 'a program does not have it');
    $session->quit;
}

subtest 'a peer that closes' => sub {
    # Its end arrives with the answer.
    my $peer = Frames->new($api, 'plain', 'b w:' . hex_of(http1('{"success":true}')));
    my $tls = Frames->new($api, 'h1', 'w:' . hex_of(http1('{"success":true}')));
    my ($closing, $also) = $clinic->servers({ url => $peer->url, server_options => { rate_limit => 0 } }, { url => $tls->url });
    my $session = $clinic->node->background_psql('postgres');
    is($session->query_safe(sprintf $call, $closing), 200, 'an answer');
    is(connections($peer->port, '08'), 0, 'no connection is left in CLOSE_WAIT');
    is($session->query_safe("SELECT count(*) FROM onesignal_cancel_batch('$closing', ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 20))) WHERE success"), 20, 'a batch');
    is(connections($peer->port, '08'), 0, 'none');
    # Over TLS its end takes a moment, and is seen by the end of the next statement.
    is($session->query_safe(sprintf $call, $also), 200, 'over TLS');
    ok($clinic->node->poll_query_until('postgres', 'SELECT true') && wait_for(sub { connections($tls->port, '01') == 0 }), 'it closes');
    is($session->query_safe(sprintf $call, $app), 200, 'a call to somebody else');
    is(connections($tls->port, '08'), 0, 'none');
    is($session->query_safe(sprintf $call, $also), 200, 'and the next call has a new connection');
    $session->quit;
};

sub wait_for
{
    my ($condition) = @_;
    my $until = time + $PostgreSQL::Test::Utils::timeout_default;
    while (!$condition->()) { return 0 if time > $until; select undef, undef, undef, 0.01 }
    return 1;
}

done_testing();
