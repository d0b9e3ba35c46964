# A batch goes over at most eight connections with many streams each, however few streams the peer
# allows. What waits for its turn loses none of its time, and a connection that ends in the middle
# costs nothing. Retries are off in here: what goes well does so without them.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "onesignal_cancel.max_retries = 0\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION onesignal_cancel');

# A stand-in with its server; all of its apps are unpaced, for the pace is another test's.
my $servers = 0;
sub new_api
{
    my (%options) = @_;
    my $url = delete $options{url} // 'url';
    my $api = StandIn->new(accept_any => 1, %options);
    $node->safe_psql('postgres', $api->setup_sql('server_' . ++$servers, url => $api->$url, server_options => { rate_limit => 0 }));
    return $api;
}

# What becomes of a batch of so many: "200 t {}: 1000"
sub batch
{
    my ($api, $count, %settings) = @_;
    my $app = $api->app_id;
    return $node->safe_psql('postgres', join('', map { "SET onesignal_cancel.$_ = '$settings{$_}';" } sort keys %settings)
        . "SELECT concat_ws(' ', status, success, errors) || ': ' || count(*)
             FROM onesignal_cancel_batch('$app', ARRAY(SELECT md5(i::text)::uuid FROM generate_series(1, $count) i))
            GROUP BY status, success, errors ORDER BY 1");
}

sub connections
{
    my ($api) = @_;
    my %seen = map { $_->{connection} => 1 } $api->requests;
    return scalar keys %seen;
}

# The most connections that had requests at one time
sub connections_at_once
{
    my ($api) = @_;
    my (%first, %last, $now, $most);
    for ($api->requests)
    {
        my ($c, $from, $to) = ($_->{connection}, $_->{time} - $_->{took}, $_->{time});
        $first{$c} = $from if !defined $first{$c} || $from < $first{$c};
        $last{$c} = $to if !defined $last{$c} || $to > $last{$c};
    }
    for (sort { $a->[0] <=> $b->[0] || $a->[1] <=> $b->[1] } map { ([ sprintf('%.3f', $first{$_}), 1 ], [ $last{$_}, -1 ]) } keys %first)
    {
        $now += $_->[1];
        $most = $now if $now > ($most // 0);
    }
    return $most;
}

subtest 'few connections, many streams' => sub {
    my $api = new_api(delay => 400);
    is(batch($api, 1600), '200 t {}: 1600', 'all canceled');
    cmp_ok(connections($api), '<=', 8, 'at most eight connections');
    cmp_ok($api->max_in_flight, '>', 200, 'hundreds of requests at one time') if !$ENV{SANITIZE};
    $api->reset;
    is(batch($api, 35, max_in_flight => 7), '200 t {}: 35', 'in sevens');
    cmp_ok($api->max_in_flight, '<=', 7, 'never more than allowed');
};

for my $streams (1, 3, 10)
{
    my $api = new_api(http2_max_concurrent_streams => $streams, delay => 20);
    is(batch($api, 200), '200 t {}: 200', "$streams streams a connection: all canceled");
    # Until a connection has announced its limit, more are tried on it; they are refused, and it ends.
    cmp_ok(connections_at_once($api), '<=', 8, 'at most eight connections at one time');
    cmp_ok($api->max_in_flight, '<=', 8 * $streams, 'with so many streams each');
    cmp_ok($api->max_in_flight, '>', $streams, 'more than one of them') if !$ENV{SANITIZE};
}

subtest 'HTTP/1.1 keeps its connections' => sub {
    my $http1 = new_api(url => 'http1_url', delay => 5);
    is(batch($http1, 400), '200 t {}: 400', 'all canceled');
    cmp_ok(connections($http1), '<=', 8, 'over eight connections in all');
};

subtest 'queueing is not counted' => sub {
    my $slow = new_api(http2_max_concurrent_streams => 1, delay => 200);
    is(batch($slow, 120, timeout => '1500ms'), '200 t {}: 120', 'behind other streams: all canceled');
    my @requests = sort { $a->{time} <=> $b->{time} } $slow->requests;
    cmp_ok($requests[-1]{time} - $requests[0]{time}, '>', 1.5, 'although it took longer than one may');

    # New connections are needed on the way, by requests that have waited long.
    my $http1 = new_api(url => 'http1_url', keepalive_requests => 2, delay => 300);
    is(batch($http1, 80, connect_timeout => '1s'), '200 t {}: 80', 'behind other connections: all canceled');
    cmp_ok(connections($http1), '>=', 40, 'on connections for two requests each');
};

subtest 'connections that end in the middle' => sub {
    my $api = new_api(keepalive_requests => 20, delay => 5);
    is(batch($api, 1000), '200 t {}: 1000', 'GOAWAY after each 20 requests: all canceled');
    cmp_ok(connections($api), '>=', 50, 'on many connections');
    my $http1 = new_api(url => 'http1_url', keepalive_requests => 10, delay => 5);
    is(batch($http1, 400), '200 t {}: 400', 'HTTP/1.1, closed after each 10 requests: all canceled');
};

subtest 'streams that are reset' => sub {
    my $api = new_api(delay => 5);
    # Not among those that made a connection: that one's end would be worth reporting.
    my @ids = split /\n/, $node->safe_psql('postgres', 'SELECT md5(i::text)::uuid FROM generate_series(401, 450) i');
    $api->fault(message => \@ids, kind => 'reset', times => 1);
    is(batch($api, 600), '200 t {}: 600', 'all canceled');
    my $received = 0;
    $received += $api->received(message => $_) for @ids;
    is($received, 1 + @ids, 'after a second request');
};

done_testing();
