# A refusal after an attempt without an answer is checked by View message: what that attempt canceled is recorded as
# canceled, what it did not as refused, and what cannot be checked as refused with a hint.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $HINT = 'an earlier attempt had no answer and may have canceled it';
my $SENT = '{"errors":["Notification has already been sent to all recipients"]}';
my $api = StandIn->new;
my $node = Workers::start('main', conf => "log_statement = none\n");
Workers::add_app($node, 'postgres', $api);

sub row { my ($id, $columns) = @_; return $node->safe_psql('postgres', "SELECT $columns FROM onesignal_message WHERE message_id = '$id'") }

# The first DELETE takes effect, but its answer is lost; from then on OneSignal refuses.
sub lose_answer
{
    my ($id, %opts) = @_;
    $api->fault(message => $id, method => 'DELETE', kind => 'reset', effect => $opts{effect}, times => 1);
    $api->fault(message => $id, method => 'DELETE', status => $opts{status} // 400, body => $opts{body} // $SENT);
}

my ($confirmed, $refused, $soft) = map { $api->schedule } 1 .. 3;
lose_answer($confirmed, effect => 1);
lose_answer($refused);
lose_answer($soft, effect => 1, status => 200, body => '{"success":false,"errors":["too late"]}');
Workers::request($node, 'postgres', $api, $confirmed, $refused, $soft);
ok(Workers::wait_for($node, 'postgres', [ $confirmed, $soft ], 'canceled'), 'what the first attempt canceled is canceled');
ok(Workers::wait_for($node, 'postgres', $refused, 'refused'), 'what it did not is refused');
# A request that was reset may have been sent again within the same attempt.
is(row($confirmed, 'unanswered, errors'), 't|{}', 'the row of the first tells how it went');
unlike(row($refused, 'errors'), qr/\Q$HINT\E/, 'a refusal that was checked needs no hint');
is(scalar($api->requests(method => 'GET', message_id => $confirmed)), 1, 'one look was enough');

# An answer that is not lost is believed.
my $plain = $api->schedule;
$api->fault(message => $plain, method => 'DELETE', status => 400, body => $SENT);
Workers::request($node, 'postgres', $api, $plain);
ok(Workers::wait_for($node, 'postgres', $plain, 'refused'), 'a plain refusal is a refusal');
is(scalar($api->requests(method => 'GET', message_id => $plain)), 0, 'and nobody looks');

# View message says no more than "later", and then how it is.
my $later = $api->schedule;
lose_answer($later, effect => 1);
$api->fault(message => $later, method => 'GET', status => 429, headers => { 'Retry-After' => 1 }, times => 1);
$api->fault(message => $later, method => 'GET', status => 503, times => 1);
Workers::request($node, 'postgres', $api, $later);
ok(Workers::wait_for($node, 'postgres', $later, 'canceled'), 'it is asked again after 429 and 503');
is($node->safe_psql('postgres', 'SELECT circuit_until IS NULL FROM onesignal_app'), 't', 'which pauses nothing else');

# A gateway that lost OneSignal's answer says so with an answer of its own.
my $gateway = $api->schedule;
$api->fault(message => $gateway, method => 'DELETE', status => 504, body => '<html>Gateway Time-out</html>', effect => 1, times => 1);
$api->fault(message => $gateway, method => 'DELETE', status => 400, body => $SENT);
Workers::request($node, 'postgres', $api, $gateway);
ok(Workers::wait_for($node, 'postgres', $gateway, 'canceled'), 'a refusal after a gateway\'s 504 is checked');

# What is not OneSignal's answer says nothing of the message.
my ($page, $lost_page, $rejected) = map { $api->schedule } 1 .. 3;
lose_answer($_, effect => 1) for $page, $lost_page, $rejected;
$api->fault(message => $page, method => 'GET', status => 200, body => '<html>Welcome</html>');
$api->fault(message => $lost_page, method => 'GET', status => 404, body => '<html>Not Found</html>');
$api->fault(message => $rejected, method => 'GET', status => 403, body => '{"errors":["Access denied"]}');
Workers::request($node, 'postgres', $api, $page, $lost_page, $rejected);
ok(Workers::wait_for($node, 'postgres', [ $page, $lost_page ], 'refused'), 'a page in place of an answer ends the check');
like(row($page, 'errors'), qr/\Q$HINT\E/, 'with the hint');
like(row($lost_page, 'errors'), qr/\Q$HINT\E/, 'also when its status is 404');
ok($node->poll_query_until('postgres', "SELECT state = 'pending' AND http_status = 400 AND next_attempt_at > now() + interval '20 s' FROM onesignal_message WHERE message_id = '$rejected'"),
    'with a key that may not ask, the request stays pending');

# A connection that was refused did not leave this machine.
my $unreached = $api->schedule;
$api->fault(message => $unreached, method => 'DELETE', status => 400, body => $SENT);
$api->stop;
Workers::request($node, 'postgres', $api, $unreached);
ok($node->poll_query_until('postgres', "SELECT attempts > 0 FROM onesignal_message WHERE message_id = '$unreached'"), 'nobody is there');
$api->start_again;
ok(Workers::wait_for($node, 'postgres', $unreached, 'refused'), 'then it is refused');
is(row($unreached, 'unanswered'), 'f', 'no attempt before had left this machine');
is(scalar($api->requests(method => 'GET', message_id => $unreached)), 0, 'so nobody looks');

# A row that is deleted and inserted again knows nothing of the attempt that was on the wire.
my $again = $api->schedule;
$api->repeat_status(400);
$api->fault(message => $again, method => 'DELETE', status => 504, body => '<html>Gateway Time-out</html>', effect => 1, hold => 1);
Workers::request($node, 'postgres', $api, $again);
$api->wait_for_requests(1, message => $again);
$node->safe_psql('postgres', "DELETE FROM onesignal_message WHERE message_id = '$again'");
Workers::request($node, 'postgres', $api, $again);
$api->clear_faults;
ok(Workers::wait_for($node, 'postgres', $again, 'canceled'), 'what a row before this one canceled is canceled');
is(row($again, 'unanswered'), 'f', 'whose own attempt had an answer');

# A 404 with an unknown send_after is tried for a minute first: OneSignal may not know the message yet.
my $early = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
Workers::request($node, 'postgres', $api, $early);
ok($node->poll_query_until('postgres', "SELECT http_status = 404 AND state = 'pending' FROM onesignal_message WHERE message_id = '$early'"), 'a 404 is tried again');
$api->preset([ $early ], send_after => time + 3600);
ok(Workers::wait_for($node, 'postgres', $early, 'canceled'), 'until OneSignal knows the message');

# ---- more in doubt than View message answers in ten minutes ----

my $COUNT = 700;
$node->safe_psql('postgres', "SELECT onesignal_cancel_pause('" . $api->app_id . "'); TRUNCATE onesignal_message;"
      . "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '" . $api->app_id . "', true FROM generate_series(1, $COUNT)");
$node->stop('immediate');
$node->start;
$api->fault(method => 'DELETE', status => 400, body => $SENT);
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '0'); SELECT onesignal_cancel_resume('" . $api->app_id . "')");
ok($node->poll_query_until('postgres', "SELECT count(*) >= $COUNT - 620 FROM onesignal_message WHERE state = 'pending' AND http_status = 400 AND next_attempt_at > now() + interval '8 min'"),
    'those that would wait too long for their check stay pending');
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE array_to_string(errors, '') LIKE '%may have canceled%'"), '0', 'none is refused unchecked');
$node->stop;
done_testing();
