# OneSignal counts creates and cancels of an app in one bucket. A mass cancel with the default pace finds
# what it is granted, finishes, and leaves a client that creates 20 messages a second its share.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use HTTP::Tiny;
use List::Util qw(max);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(time sleep);
use Workers;

my $ROWS = 2500;
my $api = StandIn->new(accept_any => 1, rate_limit => 150);
my $node = Workers::start('main', conf => "log_statement = none\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
my $http = HTTP::Tiny->new(http_proxy => undef, proxy => undef);

sub create
{
    my $answer = $http->post($api->plain_url . '/notifications', {
        headers => { 'Content-Type' => 'application/json', Authorization => 'Key ' . $api->api_key },
        content => qq({"app_id":"$app","send_after":"2099-01-01T00:00:00Z"}) });
    return $answer->{status};
}

$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$app', true FROM generate_series(1, $ROWS)");
my $began = time;
my ($session, %created, $left) = ($node->background_psql('postgres'));
my $next = $began;
do
{
    $created{create()}++ if time > $began + 2;
    create() if time <= $began + 2;
    $next += 0.05;
    sleep(max(0, $next - time));
    $left = $session->query_safe("SELECT count(*) FROM onesignal_message WHERE state = 'pending'") if !(keys %created) || rand() < 0.05;
} while ($left // 1) > 0 && time < $began + 170;
$session->quit;

is($left, 0, 'the mass cancel finishes');
my $took = time - $began;
my $all = ($created{200} // 0) + ($created{429} // 0);
note sprintf('%d cancels in %.1f s, %d of %d creates refused', $ROWS, $took, $created{429} // 0, $all);
cmp_ok($all, '>', 100, 'while messages are created');
cmp_ok($created{429} // 0, '<', $all * 0.05, 'of which fewer than one in twenty is refused');
my $cancels = grep { $_->{status} == 429 } $api->requests(method => 'DELETE');
cmp_ok($cancels, '<', $ROWS / 10, 'and few of the cancels');
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'canceled' AND attempts > 3"), '0', 'none was tried again and again');
$node->stop;
done_testing();
