# An app that hangs, or cannot be reached, costs a handful of requests and holds up no other app.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Frames;
use IO::Socket::IP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

# It closes each connection after one answer: who is delivered meanwhile needs a new one.
my $api = StandIn->new(accept_any => 1, keepalive_requests => 1);
# Longer than any wait in here: whatever is delivered in time has not waited for a request that hangs.
my $node = Workers::start('main', conf => "log_statement = none\nonesignal_cancel.timeout = '10min'\nonesignal_cancel.connect_timeout = '10min'\n");
$node->safe_psql('postgres', "CREATE EXTENSION onesignal_cancel;\n" . $api->setup_sql('clinic') . $api->setup_sql('clinic_http1', app => $api->add_app(accept_any => 1)->{app_id}, url => $api->http1_url));
my $B = $api->app_id;
my $http1 = $node->safe_psql('postgres', "SELECT option_value FROM pg_foreign_server, pg_options_to_table(srvoptions) WHERE srvname = 'clinic_http1' AND option_name = 'app_id'");

sub uuid { return join '-', map { sprintf '%0*x', $_, rand 16**$_ } 8, 4, 4, 4, 12 }

# The kernel completes each handshake and takes each request; nobody ever reads it.
sub silent_host { return IO::Socket::IP->new(LocalAddr => '127.0.0.1', LocalPort => 0, Proto => 'tcp', Listen => 1024) // die $@ }

# The ids of apps at these URLs
sub add_servers
{
    my ($name, @urls) = @_;
    my @added = map { uuid() } @urls;
    $node->safe_psql('postgres', join '', map { $api->setup_sql("${name}_$_", app => $added[$_], key => 'os_v2_app_hangs', url => $urls[$_]) } 0 .. $#urls);
    return @added;
}

sub request
{
    my ($app, $count) = @_;
    $node->safe_psql('postgres', 'INSERT INTO onesignal_message (message_id, app_id, cancel) '
          . "SELECT gen_random_uuid(), '$app', true FROM generate_series(1, $count)");
}

# What others do is under way when the message of a healthy app is requested.
sub delivers
{
    my ($app, $name) = @_;
    my $id = uuid();
    $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES ('$id', '$app', true)");
    ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), $name);
    cmp_ok($node->safe_psql('postgres', "SELECT extract(epoch FROM finished_at - requested_at) FROM onesignal_message WHERE message_id = '$id'"),
        '<', 30, 'within the time that a commit and a request take');
}

# Requests that wait on connections which a host took and does not read.
sub waiting
{
    my (@hosts) = @_;
    my $requests = 0;
    for my $host (@hosts)
    {
        $host->blocking(0);
        while (my $socket = $host->accept)
        {
            push @{ ${*$host}{taken} }, $socket;
            $socket->blocking(0);
        }
        for my $socket (@{ ${*$host}{taken} })
        {
            sysread $socket, my $bytes, 65536;
            $requests += () = ($bytes // '') =~ /^DELETE /mg;
        }
    }
    return $requests;
}

my $silent = silent_host();
my ($A) = add_servers('hangs', 'http://127.0.0.1:' . $silent->sockport);
request($A, 5000);
delivers($B, 'beside an app that accepts and never answers');
delivers($http1, 'and over HTTP/1.1');
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE app_id = '$A' AND state = 'pending' AND attempts = 0"), '5000', 'all of its own wait');

# A full queue makes the kernel drop every SYN.
my $swallows = $api->raw_server(mode => 'no_accept');
request(add_servers('swallows', $swallows->url), 40);
delivers($B, 'beside an app whose host swallows SYNs');

my @hosts = map { silent_host() } 1 .. 40;
my @apps = add_servers('hang', map { 'http://127.0.0.1:' . $_->sockport } @hosts);
$node->safe_psql('postgres', join '', map { "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$_', true FROM generate_series(1, 100);" } @apps);
delivers($B, 'beside forty more that hang');
delivers($http1, 'and over HTTP/1.1, which needs connections');

# Over TLS and HTTP/1.1 each request has a connection of its own, and there are only so many of these.
my @tls_hosts = map { Frames->new($api, 'h1', 'h') } 1 .. 40;
@apps = add_servers('hang_tls', map { $_->url } @tls_hosts);
$node->safe_psql('postgres', join '', map { "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$_', true FROM generate_series(1, 100);" } @apps);
delivers($B, 'beside forty that hang over TLS and HTTP/1.1');
delivers($http1, 'and over HTTP/1.1, which needs connections');

my $new = $api->add_app(accept_any => 1);
$node->safe_psql('postgres', $api->setup_sql('new', app => $new->{app_id}, key => $new->{api_key}, url => $api->http1_url));
delivers($new->{app_id}, 'an app that is new has its turn, too');
cmp_ok(waiting($silent), '<=', 25, 'the app that hangs was sent a handful of requests');
$node->stop('immediate');

# The same with time running out: an outage costs no more than that, probes included.
$node = Workers::start('outage', conf => "log_statement = none\nonesignal_cancel.timeout = '2s'\n");
$node->safe_psql('postgres', "CREATE EXTENSION onesignal_cancel;\n" . $api->setup_sql('clinic'));
my $down = silent_host();
($A) = add_servers('hangs', 'http://127.0.0.1:' . $down->sockport);
request($A, 5000);
ok($node->poll_query_until('postgres', "SELECT circuit_until IS NOT NULL FROM onesignal_app WHERE app_id = '$A'"), 'an app that does not answer is paused');
my $most = $node->safe_psql('postgres', "SELECT sum(attempts) FROM onesignal_message WHERE app_id = '$A'");
cmp_ok($most, '<=', 21, 'when its first requests have had no answer');
$node->stop('immediate');

# An app that answered well and then hangs keeps no other from the wire.
$api = StandIn->new(accept_any => 1);
$B = $api->app_id;
$node = Workers::start('mid', conf => "log_statement = none\nonesignal_cancel.timeout = '10min'\n");
$node->safe_psql('postgres', "CREATE EXTENSION onesignal_cancel;\n" . $api->setup_sql('clinic'));
my $other = $api->add_app(accept_any => 1);
$node->safe_psql('postgres', $api->setup_sql('other', app => $other->{app_id}, key => $other->{api_key}, server_options => { rate_limit => 0 }));
request($other->{app_id}, 3000);
ok($node->poll_query_until('postgres', "SELECT count(*) > 1000 FROM onesignal_message WHERE state = 'canceled'"), 'an app is answered');
$api->fault(app => $other->{app_id}, kind => 'hang');
request($other->{app_id}, 3000);
delivers($B, 'then it hangs, with many requests on the wire, and another app goes on');
$node->stop('immediate');
done_testing();
