# Outcomes are kept while others have their rows locked. Thousands of those, of several apps, keep no other app waiting.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use PostgreSQL::Test::Utils;
use Test::More;
use Workers;

my $clinic = Clinic->new(accept_any => 1, no_log => 1, conf => "onesignal_cancel.enabled = off\n");
my ($api, $node) = ($clinic->api, $clinic->node);
my @apps = map { $api->add_app(accept_any => 1) } 1 .. 5;
for my $n (0 .. $#apps)
{
    my ($app, $key) = @{ $apps[$n] }{qw(app_id api_key)};
    $node->safe_psql('postgres', $api->setup_sql("busy$n", app => $app, key => $key, server_options => { rate_limit => 0 })
          . "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$app', true FROM generate_series(1, 4500)");
}
my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; SELECT count(*) FROM (SELECT FROM onesignal_message FOR UPDATE) AS locked');
Workers::set($node, 'onesignal_cancel.enabled', 'on');
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$apps[0]{app_id}')");

# Until no more are begun.
my ($before, $received) = (0, 10_000);
$api->wait_for_requests($received);
while ($received > $before)
{
    sleep 2;
    ($before, $received) = ($received, $api->received);
}
note("$received outcomes are kept");
my $id = $api->schedule;
Workers::request($node, 'postgres', $api, $id);
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'another app is served while all of those are locked');
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'canceled'"), '1', 'which they still are');
$locker->query_safe('COMMIT');
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'pending'", '0'), 'then all is recorded');
$locker->quit;
$node->stop;
done_testing();
