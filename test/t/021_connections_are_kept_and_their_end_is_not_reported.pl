# Connections outlive calls, statements, transactions and errors, and a new one does without the CA
# file. One that the peer closed while it was idle, a GOAWAY, a refused or reset stream: sent again,
# not reported. Retries are off in here: what goes well does so without them.

use strict;
use warnings;
use File::Copy qw(copy);
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;

my $api = StandIn->new(accept_any => 1);
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "onesignal_cancel.max_retries = 0\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION onesignal_cancel');

# A new app with its server, at the URL
my $servers = 0;
sub new_app
{
    my ($url, %opts) = @_;
    my $app = $api->add_app(accept_any => 1)->{app_id};
    my $name = 'server_' . ++$servers;
    $node->safe_psql('postgres', $api->setup_sql($name, app => $app, url => $url, %opts));
    return $app;
}

# How many connections an app's requests came through
sub connections
{
    my ($app) = @_;
    my %seen = map { $_->{connection} => 1 } $api->requests(app_id => $app);
    return scalar keys %seen;
}

sub cancel_sql { my ($app, $what) = @_; return "SELECT " . ($what // 'status') . " FROM onesignal_cancel('$app', gen_random_uuid())" }

for ([ 'HTTP/2', $api->url ], [ 'HTTP/1.1', $api->http1_url ], [ 'plain', $api->plain_url ])
{
    my ($version, $url) = @$_;
    my $app = new_app($url);
    my $session = $node->background_psql('postgres', on_error_stop => 0);
    my $one = cancel_sql($app);
    is($session->query_safe($one), 200, "$version: a first call");
    is($session->query_safe("SELECT count(*) FROM generate_series(1, 20) i, onesignal_cancel('$app', md5('$app' || i)::uuid) WHERE success"),
        20, "$version: many in one statement");
    is($session->query_safe("BEGIN; $one; SAVEPOINT s; $one; ROLLBACK TO s; $one; ROLLBACK; $one"), "200\n200\n200\n200",
        "$version: in transactions");
    $session->query(cancel_sql($app, '1 / (status - 200)'));
    like($session->{stderr}, qr/division by zero/, "$version: an error after the call");
    $session->{stderr} = '';
    $session->query(cancel_sql('00000000-0000-4000-a000-000000000000'));
    like($session->{stderr}, qr/no server for OneSignal app/, "$version: an error in the call");
    $session->{stderr} = '';
    is($session->query_safe($one), 200, "$version: after both");
    # Of more than one, HTTP/1.1 would need more connections.
    my $many = $version eq 'HTTP/2' ? 50 : 1;
    is($session->query_safe("SELECT count(*) FROM onesignal_cancel_batch('$app', ARRAY(SELECT gen_random_uuid() FROM generate_series(1, $many))) WHERE success"),
        $many, "$version: a batch");
    if ($version eq 'HTTP/2')
    {
        # HTTP/1.1 has no way of taking a request back but closing.
        $api->fault(app => $app, kind => 'hang', times => 1);
        $session->query("SET statement_timeout = 200; $one; RESET statement_timeout");
        like($session->{stderr}, qr/canceling statement/, "$version: an interrupted call");
        $session->{stderr} = '';
        # On a slow machine it may not even have been sent.
        $api->clear_faults;
        is($session->query_safe($one), 200, "$version: and the next");
    }
    $session->quit;
    is(connections($app), 1, "$version: all through one connection");
}

subtest 'an idle connection ends' => sub {
    my $app = new_app($api->url);
    my $app1 = new_app($api->http1_url);
    my $session = $node->background_psql('postgres');
    my $both = cancel_sql($app) . ';' . cancel_sql($app1);
    is($session->query_safe($both), "200\n200", 'before');
    for my $round (1 .. 3)
    {
        $api->stop;
        $api->start_again;
        $api->reset;
        is($session->query_safe($both), "200\n200", "after restart $round");
        is(join(' ', map { $_->{request} } $api->requests), '1 1', 'sent once, as the first of a connection');
    }
    $session->quit;

    for my $tls (0, 1)
    {
        my $raw = $api->raw_server(mode => 'close_idle', tls => $tls);
        my $closing = new_app($raw->url);
        is($node->safe_psql('postgres', join ';', (cancel_sql($closing)) x 4), "200\n200\n200\n200",
            "a peer that closes after each answer, TLS $tls");
        is($raw->connections, 4, 'four connections');
    }
};

# Each of these serves one request of a connection well, and then does that. Some are libcurl's to
# send again: it counts over an easy handle's whole life how often it did, and gives up at five.
# After a broken frame libcurl 8 waits for something more to come, and here nothing does.
my $libcurl = $node->safe_psql('postgres', 'SELECT onesignal_cancel_version()');
for (
    [ 'GOAWAY', 'h2_goaway', 8 ],
    [ 'connection closed', 'h2_close', 3 ],
    [ 'connection reset', 'h2_rst', 8 ],
    [ 'stream reset', 'h2_reset', 3, times => 1 ],
    [ 'stream refused', 'h2_refuse', 3, times => 1 ],
    ([ 'broken frames', 'h2_bad_frame', 3 ]) x ($libcurl =~ m{libcurl/7\.}))
{
    my ($name, $mode, $calls, %options) = @$_;
    my $raw = $api->raw_server(mode => $mode, after => 1, %options);
    my $app = new_app($raw->url);
    is($node->safe_psql('postgres', join ';', (cancel_sql($app, 'status, success, errors')) x $calls),
        join("\n", ('200|t|{}') x $calls), $name);
    cmp_ok($raw->requests, '>', $calls, "$name: some were sent twice");
}

# libcurl sends it again by itself, and would keep the words for the first connection's end.
for (
    [ 'is closed', 'close_after_request', 0, qr/^\{"(?:Server returned nothing \(no headers, no data\)|Empty reply from server)"\}$/ ],
    [ 'does not finish its handshake', 'silent', 1, qr/^\{"(?:Timeout was reached|SSL connection timeout|.*time[d -]*out.*)"\}$/i ],
    [ 'fails in its handshake', 'garbage', 1, qr/^\{".*SSL.*"\}$/ ])
{
    my ($name, $later, $tls, $words) = @$_;
    my $raw = $api->raw_server(mode => 'rst_second', later => $later, tls => $tls);
    my $one = cancel_sql(new_app($raw->url), 'errors');
    my ($first, $second) = split /\n/, $node->safe_psql('postgres', "SET onesignal_cancel.connect_timeout = '1s'; $one; $one");
    is($first, '{}', "reset, and the next connection $name: before");
    like($second, $words, "reset, and the next connection $name: the words are the last one's");
    is($raw->connections, 2, "reset, and the next connection $name: two in all");
}

# libcurl then takes connections that wait for an answer for ones that others may share, and gives answers to the wrong ones.
# Newer versions refuse a status line that claims another version.
for ([ 'a status line that claims HTTP/2', 'status IS NOT NULL', mode => 'claims_http2' ],
    [ 'the same over TLS', 'status IS NOT NULL', mode => 'claims_http2', tls => 1 ],
    [ 'servers with HTTP/1.1 and HTTP/2 behind one address', 'true', mode => 'echo_id', later => 'h2_answer', tls => 1 ])
{
    my ($name, $counts, @options) = @$_;
    my $raw = $api->raw_server(@options);
    my $app = new_app($raw->url);
    $node->safe_psql('postgres', cancel_sql($app));
    is($node->safe_psql('postgres', <<SQL), "60|0", $name);
SELECT count(*), count(*) FILTER (WHERE $counts AND (status IS DISTINCT FROM 200 OR success = (errors = ARRAY[message_id::text])))
FROM onesignal_cancel_batch('$app', ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 60)));
SQL
}

# It comes later than a new connection may take to be made.
{
    my $raw = $api->raw_server(mode => 'h2_late_reset', after => 1, times => 1);
    my $one = cancel_sql(new_app($raw->url), 'coalesce(status, 0), errors');
    is($node->safe_psql('postgres', "SET onesignal_cancel.connect_timeout = '1s'; $one; $one"), "200|{}\n200|{}", 'stream reset late');
    is($raw->requests, 3, 'one was sent twice');
}

# Its peer's machine, or a proxy, goes on acknowledging what is sent, but nobody behind it answers.
subtest 'a connection on which nothing is answered any more' => sub {
    my $raw = $api->raw_server(mode => 'h2_hang', after => 1);
    my $session = $node->background_psql('postgres');
    my $one = cancel_sql(new_app($raw->url), 'coalesce(status, 0), errors');
    is($session->query_safe("SET onesignal_cancel.timeout = '2s'; $one"), '200|{}', 'before');
    is($session->query_safe($one), '0|{"no answer within 2000 ms"}', 'a request without an answer');
    is($session->query_safe($one), '200|{}', 'the next one has another connection');
    is($raw->connections, 2, 'two in all');

    # The first that is late cuts it off for those that are late with it.
    my $together = $api->raw_server(mode => 'h2_hang', after => 1);
    my $many = new_app($together->url, server_options => { rate_limit => 0 });
    $session->query_safe("SET onesignal_cancel.timeout = '4s'; SET onesignal_cancel.connect_timeout = '3s'; SELECT onesignal_cancel('$many', gen_random_uuid())");
    is($session->query_safe("SELECT count(*) FROM onesignal_cancel_batch('$many', ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 20))) WHERE errors[1] LIKE 'Connection timed%'"),
        '0', 'and they say that there was no answer');

    # While others go on using it, nobody would ever be the last to leave it.
    my $busy = $api->raw_server(mode => 'h2_hang', after => 1);
    my $app = new_app($busy->url, server_options => { rate_limit => 10 });
    $session->query_safe("SELECT count(*) FROM onesignal_cancel_batch('$app', ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 50)))");
    cmp_ok($busy->connections, '>', 1, 'a busy one is left, too');
    $session->quit;
};

# libcurl 8.22 keeps none.
subtest 'the CA store is parsed once' => sub {
    plan skip_all => 'this libcurl parses it for each connection' if $libcurl =~ m{libcurl/8\.22\.};
    my $ca = PostgreSQL::Test::Utils::tempdir() . '/ca.pem';
    copy($api->ca, $ca) or die $!;
    my $app = new_app($api->url, server_options => { ca_file => $ca });
    my $session = $node->background_psql('postgres');
    is($session->query_safe(cancel_sql($app)), 200, 'with the file');
    unlink $ca or die $!;
    is($node->safe_psql('postgres', cancel_sql($app, 'coalesce(status, 0)')), 0, 'a new session needs the file');
    $api->stop;
    $api->start_again;
    is($session->query_safe(cancel_sql($app)), 200, 'this one does not');
    is(connections($app), 2, 'for a new connection');
    $session->quit;
};

done_testing();
