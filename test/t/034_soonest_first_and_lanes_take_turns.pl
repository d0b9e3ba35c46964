# Within an app what is sent soonest is canceled first, NULL before all, also when it was requested last;
# a long lane holds up no other app, and a paused one nobody.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main');
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
my $other = $api->add_app(accept_any => 1);
my $paused = $api->add_app(accept_any => 1);
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '50');"
      . $api->setup_sql('other', app => $other->{app_id}, key => $other->{api_key})
      . $api->setup_sql('paused', app => $paused->{app_id}, key => $paused->{api_key})
      . "SELECT onesignal_cancel_pause('$paused->{app_id}', reason => 'test')");

sub many
{
    my ($app_id, $count, $after) = @_;
    return 'INSERT INTO onesignal_message (message_id, app_id, send_after, cancel) '
      . "SELECT gen_random_uuid(), '$app_id', $after, true FROM generate_series(1, $count) i;";
}

# In an order that is not that of send_after.
$node->safe_psql('postgres', 'SELECT onesignal_cancel_pause(\'' . $app . '\');' . many($app, 100, "now() + (i * 37 % 100) * interval '1 min' + interval '1 h'") . many($app, 5, 'NULL'));
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled'", '0'), 'all are delivered');
# Responses over one connection may be recorded out of order by a place or so: the order of sending is by attempt.
is($node->safe_psql('postgres', <<SQL), 't', 'soonest first');
SELECT bool_and(place >= previous) FROM (
    SELECT last_attempt_at AS place, lag(last_attempt_at) OVER (ORDER BY send_after NULLS FIRST, last_attempt_at) AS previous
    FROM onesignal_message) x WHERE previous IS NOT NULL
SQL

# A long lane, slowed by its pace; then one row that is sent sooner, another app's, and a paused app's.
$node->safe_psql('postgres', many($app, 4000, "now() + interval '2 h'"));
$node->poll_query_until('postgres', "SELECT count(*) > 120 FROM onesignal_message WHERE state = 'canceled'");
my ($urgent, $others, $waits) = map { $node->safe_psql('postgres', 'SELECT gen_random_uuid()') } 1 .. 3;
# Tried twice, it goes back to the head of the lane, which is far from its end.
$api->fault(message => $urgent, status => 503, times => 1);
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, send_after, cancel) VALUES "
      . "('$urgent', '$app', now() + interval '1 min', true), ('$others', '$other->{app_id}', now() + interval '3 h', true), ('$waits', '$paused->{app_id}', now(), true)");
ok(Workers::wait_for($node, 'postgres', [ $urgent, $others ], 'canceled'), 'what is sent sooner, and another app');
cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE app_id = '$app' AND (state = 'pending' OR finished_at > (SELECT max(finished_at) FROM onesignal_message WHERE message_id IN ('$urgent', '$others')))"), '>', 1000, 'do not wait for the long lane');
is($api->received(message => $waits), 0, 'the paused app sends nothing');
is($node->safe_psql('postgres', "SELECT paused_reason FROM onesignal_cancel_status WHERE app_id = '$paused->{app_id}'"), 'test', 'and says why');
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (SET rate_limit '0')");
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'pending'", '1'), 'a faster pace takes effect at once');
# So does that of a server which takes the place of another.
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (SET rate_limit '1');" . many($app, 2000, 'NULL'));
ok($node->poll_query_until('postgres', "SELECT pace = 1 FROM onesignal_app WHERE app_id = '$app'"), 'a slow pace');
$node->safe_psql('postgres', 'DROP SERVER clinic CASCADE;' . $api->setup_sql('clinic', server_options => { rate_limit => 0 }));
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'pending'", '1'), 'another server states the pace when the one before is gone');
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$paused->{app_id}')");
ok(Workers::wait_for($node, 'postgres', $waits, 'canceled'), 'resumed, the paused app delivers');

# Room for one request, which an app with many rows has, and an answer that takes longer than rows are kept in memory:
# each of the others has its turn before the app has another.
Workers::set($node, 'onesignal_cancel.max_in_flight', 1);
for my $delay (700, 100)
{
    $api->clear_faults;
    $api->fault(method => 'DELETE', delay => $delay);
    $node->safe_psql('postgres', many($app, 2000, 'NULL'));
    for my $round (1 .. 2)
    {
        my $sent = $api->received;
        $api->wait_for_requests($sent + 1);
        my @ids = split /\n/, $node->safe_psql('postgres', 'SELECT gen_random_uuid() FROM generate_series(1, 2)');
        my $committed = $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES ('$ids[0]', '$other->{app_id}', true), ('$ids[1]', '$paused->{app_id}', true);\nSELECT clock_timestamp()");
        ok(Workers::wait_for($node, 'postgres', \@ids, 'canceled'), "room for one, round $round: other apps are delivered");
        my $before = $node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message a WHERE a.app_id = '$app' AND a.last_attempt_at BETWEEN '$committed' AND (SELECT max(last_attempt_at) FROM onesignal_message WHERE message_id IN ('$ids[0]', '$ids[1]'))");
        cmp_ok($before, '<=', 5, 'in their turns');
    }
}
$api->clear_faults;
$node->stop;
done_testing();
