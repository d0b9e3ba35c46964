# What each kind of answer makes of a queued row: tried again, refused, given up.

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
my $node = Workers::start('main', conf => "log_statement = none\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;

sub request
{
    my ($after, @fault) = @_;
    my $id = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
    $api->fault(message => $id, @fault) if @fault;
    $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel, send_after) VALUES ('$id', '$app', true, $after)");
    return $id;
}

sub column
{
    my ($column, $id) = @_;
    return $node->safe_psql('postgres', "SELECT $column FROM onesignal_message WHERE message_id = '$id'");
}

my $ahead = "now() + interval '1 day'";
my $soon = "now() + interval '30 s'";

# ---- at once ----

my $plain = request($ahead);
my $refused = request($ahead, status => 400, body => '{"errors":["Notification has already been sent to all recipients"]}');
my $false = request($ahead, status => 200, body => '{"success":false,"errors":[{"code":"x","title":"no"}]}');
my $gone = request("now() - interval '1 min'", status => 404, body => '{"errors":["Notification not found"]}');
ok(Workers::wait_for($node, 'postgres', $plain, 'canceled'), 'a success');
is(column("http_status, errors, response IS NULL, attempts, unanswered, finished_at IS NOT NULL, next_attempt_at IS NULL", $plain), '200|{}|t|1|f|t|t', 'with all that belongs to it');
ok(Workers::wait_for($node, 'postgres', [ $refused, $false, $gone ], 'refused'), 'what OneSignal refuses, a 404 with send_after past among it');
is(column('errors', $refused), '{"Notification has already been sent to all recipients"}', 'says so in its words');
is(column("response->'errors'->0->>'code', errors", $false), 'x|{"x: no"}', 'and keeps the answer');

# ---- after another try ----

my %again = (
    'a 503' => request($soon, status => 503, times => 1),
    'a 408' => request($soon, status => 408, times => 1),
    'a proxy\'s page with 400' => request($soon, status => 400, content_type => 'text/html', body => '<html>no</html>', times => 1),
    'a 204' => request($soon, status => 204, body => '', times => 1),
    'a redirect' => request($soon, status => 302, headers => { Location => 'https://127.0.0.1:1/' }, times => 1),
    'a 404 with send_after unknown' => request('NULL', status => 404, body => '{"errors":["Notification not found"]}', times => 1),
    'a 404 while send_after is ahead' => request($soon, status => 404, body => '{"errors":["Notification not found"]}', times => 1));
for my $what (sort keys %again)
{
    ok(Workers::wait_for($node, 'postgres', $again{$what}, 'canceled'), "$what is tried again");
}
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE attempts = 2"), scalar(keys %again), 'once each');

# ---- the longer it has, the longer it waits; never before Retry-After ----

my $late = request($ahead, status => 503, times => 1);
$api->fault(message => $late, hold => 1);    # so that the next attempt changes nothing yet
ok($node->poll_query_until('postgres', "SELECT attempts = 1 FROM onesignal_message WHERE message_id = '$late'"), 'a failed attempt');
is(column("next_attempt_at - last_attempt_at BETWEEN interval '1 s' AND interval '3 s'", $late), 't', 'waits one to two seconds at first');
$api->clear_faults;
ok(Workers::wait_for($node, 'postgres', $late, 'canceled'), 'and is canceled at last');
my $asked = request($soon, status => 503, headers => { 'Retry-After' => 4 }, times => 1);
ok(Workers::wait_for($node, 'postgres', $asked, 'canceled'), 'Retry-After');
my @times = map { $_->{time} } $api->requests(method => 'DELETE', message_id => $asked);
cmp_ok($times[1] - $times[0], '>=', 3.9, 'is waited for');

# ---- the message is to be sent sooner, while an attempt is on the wire ----

my $moved = $api->schedule;
$api->fault(message => $moved, status => 503, hold => 1);
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel, send_after, state, requested_by, requested_at, attempts)
    VALUES ('$moved', '" . $api->app_id . "', true, $ahead, 'pending', current_user, now(), 12)");
$api->wait_for_requests(1, message => $moved);
$node->safe_psql('postgres', "UPDATE onesignal_message SET send_after = now() + interval '10 min' WHERE message_id = '$moved'");
$api->clear_faults;
# It would wait for more than seven.
ok(Workers::wait_for($node, 'postgres', $moved, 'canceled'), 'the next attempt comes at once');
is(column('attempts', $moved), '14', 'and both count');

# ---- given up ----

# The second attempt comes after one to two seconds, the third after at least two more.
Workers::set($node, 'onesignal_cancel.retry_window', "'3s'");
my $hopeless = request("now() - interval '1 h'", status => 503);
my $patient = request($ahead, status => 503);
ok(Workers::wait_for($node, 'postgres', $hopeless, 'failed'), 'without a usable answer within retry_window a row is given up');
is(column('finished_at IS NOT NULL AND attempts >= 2', $hopeless), 't', 'after more than one attempt');
ok($node->poll_query_until('postgres', "SELECT attempts >= 3 FROM onesignal_message WHERE message_id = '$patient'"), 'send_after counts when it is later');
is(Workers::state($node, 'postgres', $patient), 'pending', 'so that one stays');
ok($node->wait_for_log(qr/LOG:  onesignal_cancel: giving up on message $hopeless of server "clinic" .*after \d+ attempts in \d+ s: /), 'the log has a line for it');
$api->clear_faults;
$node->safe_psql('postgres', "UPDATE onesignal_message SET cancel = true WHERE message_id = '$hopeless'");
ok(Workers::wait_for($node, 'postgres', [ $hopeless, $patient ], 'canceled'), 'asked for again, a failed one is delivered');

# Its last attempt is on the wire when its message is put off.
my $later = $api->schedule;
$api->fault(message => $later, status => 503, hold => 1);
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel, send_after, state, requested_by, requested_at, first_attempt_at, attempts)
    VALUES ('$later', '" . $api->app_id . "', true, now() - interval '1 h', 'pending', current_user, now() - interval '2 h', now() - interval '2 h', 3)");
$api->wait_for_requests(1, message => $later);
$node->safe_psql('postgres', "UPDATE onesignal_message SET send_after = now() + interval '1 day' WHERE message_id = '$later'");
$api->clear_faults;
ok(Workers::wait_for($node, 'postgres', $later, 'canceled'), 'a message that is put off meanwhile is not given up');
is(column('attempts', $later), '5', 'but tried again');
ok($node->poll_query_until('postgres', 'SELECT canceled_total, refused_total, failed_total FROM onesignal_app', (keys(%again) + 7) . '|3|1'), 'the totals are right');
$node->stop;
done_testing();
