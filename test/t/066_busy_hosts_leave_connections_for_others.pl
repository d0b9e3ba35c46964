# Hosts that keep all of their connections busy do not keep another from its own.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Frames;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $api = StandIn->new(accept_any => 1);
# Longer than this test takes, however slow the machine.
my $node = Workers::start('main', conf => "onesignal_cancel.timeout = '1h'\nonesignal_cancel.connect_timeout = '1h'\n");
Workers::add_app($node, 'postgres', $api);
my $healthy = $api->app_id;
my $first_answers = 'w:' . hex_of(http1('{"success":true}')) . ' n h';
my @hanging = map { Frames->new($api, 'h1', $first_answers, 'h') } 1 .. 9;
my @apps = map { $node->safe_psql('postgres', 'SELECT gen_random_uuid()') } @hanging;
$node->safe_psql('postgres', join '', map { $api->setup_sql("hangs_$_", app => $apps[$_], key => $api->api_key, url => $hanging[$_]->url) } 0 .. $#hanging);

sub connections
{
    my ($port) = @_;
    return scalar grep { /^\s*\d+: \S+ 0100007F:@{[ sprintf '%04X', $port ]} 01 / } split /\n/, slurp_file('/proc/net/tcp');
}

# Newer versions of libcurl wait for a host's first answer before they open a second connection. One host after the other, so
# that none of them waits for another's connection.
for my $n (0 .. $#hanging)
{
    my $request = "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$apps[$n]', true FROM generate_series";
    $node->safe_psql('postgres', "$request(1, 1)");
    $node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE app_id = '$apps[$n]' AND state = 'canceled'", 1) or die;
    $node->safe_psql('postgres', "$request(1, 8)");
    my $until = time + $PostgreSQL::Test::Utils::timeout_default;
    select undef, undef, undef, 0.05 while connections($hanging[$n]->port) < 8 && time < $until;
    is(connections($hanging[$n]->port), 8, "host $n has its eight");
}
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$healthy', true FROM generate_series(1, 100)");
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE app_id = '$healthy' AND state = 'canceled'", 100), 'another host has its own');
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE app_id <> '$healthy' AND state = 'pending' AND attempts > 0"), 0, 'while all of the others wait');
$node->stop;

done_testing();
