# A request can be taken back while it is queued. If its answer comes after that, a success is recorded, for
# it is the truth; any other answer is dropped, as is every answer for a deleted row.

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
my $done;    # a later message: when its outcome is recorded, those of the earlier ones are, too

sub ids { return map { $node->safe_psql('postgres', 'SELECT gen_random_uuid()') } 1 .. $_[0] }
sub take_back { $node->safe_psql('postgres', "UPDATE onesignal_message SET cancel = false WHERE message_id = '$_[0]'") }

my ($queued) = ids(1);
$node->safe_psql('postgres', "SELECT onesignal_cancel_pause('$app')");
Workers::request($node, 'postgres', $api, $queued);
take_back($queued);
is(Workers::state($node, 'postgres', $queued), 'scheduled', 'a queued request is taken back');
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
($done) = ids(1);
Workers::request($node, 'postgres', $api, $done);
Workers::wait_for($node, 'postgres', $done, 'canceled');
is($api->received(message => $queued), 0, 'and never sent');

# Taken back, deleted, or requested once more while the request is on the wire.
my ($success, $refused, $deleted, $again) = ids(4);
$api->fault(message => $success, hold => 1);
$api->fault(message => $refused, hold => 1, status => 400, body => '{"errors":["Notification has already been sent to all recipients"]}');
$api->fault(message => $deleted, hold => 1);
$api->fault(message => $again, hold => 1, status => 400, body => '{"errors":["too late"]}', times => 1);
Workers::request($node, 'postgres', $api, $success, $refused, $deleted, $again);
$api->wait_for_requests(1, message => $_) for $success, $refused, $deleted, $again;
take_back($_) for $success, $refused;
$node->safe_psql('postgres', "DELETE FROM onesignal_message WHERE message_id = '$deleted'");
take_back($again);
Workers::request($node, 'postgres', $api, ids(1));
$node->safe_psql('postgres', "UPDATE onesignal_message SET cancel = true WHERE message_id = '$again'");
$api->clear_faults;
ok(Workers::wait_for($node, 'postgres', $success, 'canceled'), 'a success after the take-back is recorded');
ok(Workers::wait_for($node, 'postgres', $again, 'canceled'), 'a refusal of an earlier request does not count for the present one');
is($api->received(message => $again), 2, 'which is sent by itself');
($done) = ids(1);
Workers::request($node, 'postgres', $api, $done);
Workers::wait_for($node, 'postgres', $done, 'canceled');
is(Workers::state($node, 'postgres', $refused), 'scheduled', 'any other answer after the take-back is dropped');
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE message_id = '$deleted'"), '0', 'and a deleted row stays deleted');

# Requested once more by another role, and so in another lane; and no other commit asks for a look.
$node->safe_psql('postgres', 'CREATE ROLE nurse; GRANT USAGE ON FOREIGN SERVER clinic TO nurse; GRANT SELECT, UPDATE (cancel) ON onesignal_message TO nurse');
my ($other) = ids(1);
$api->fault(message => $other, hold => 1, status => 400, body => '{"errors":["too late"]}', times => 1);
Workers::request($node, 'postgres', $api, $other);
$api->wait_for_requests(1, message => $other);
$node->safe_psql('postgres', "SET ROLE nurse; BEGIN; UPDATE onesignal_message SET cancel = false WHERE message_id = '$other';
    UPDATE onesignal_message SET cancel = true WHERE message_id = '$other'; COMMIT");
$api->clear_faults;
ok(Workers::wait_for($node, 'postgres', $other, 'canceled'), "another role's request of the same message is sent, too");
is($node->safe_psql('postgres', "SELECT requested_by FROM onesignal_message WHERE message_id = '$other'"), 'nurse', 'as its own');
# The first request canceled the message, but its answer does not say so; then the second one's refusal is checked.
$node->safe_psql('postgres', 'GRANT SELECT, INSERT, UPDATE ON onesignal_message TO nurse');
for my $how ('taken back', 'adopted')
{
    my $echo = $api->schedule;
    $api->fault(message => $echo, hold => 1, effect => 1, status => 500, times => 1);
    Workers::request($node, 'postgres', $api, $echo);
    $api->wait_for_requests(1, message => $echo);
    $node->safe_psql('postgres', "SELECT onesignal_cancel_pause('$app')");
    take_back($echo) if $how eq 'taken back';
    # As after the requester was dropped.
    $node->safe_psql('postgres', "SET session_replication_role = replica; UPDATE onesignal_message SET requested_by = 'gone' WHERE message_id = '$echo'") if $how eq 'adopted';
    $node->safe_psql('postgres', "SET ROLE nurse; UPDATE onesignal_message SET cancel = true WHERE message_id = '$echo'");
    $api->clear_faults;
    $api->fault(message => $echo, method => 'DELETE', status => 400, body => '{"errors":["too late"]}');
    $node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
    ok(Workers::wait_for($node, 'postgres', $echo, 'canceled'), "$how: what the first request canceled is canceled, though the next one is refused");
    is($node->safe_psql('postgres', "SELECT requested_by FROM onesignal_message WHERE message_id = '$echo'"), 'nurse', "$how: for the one who asked last");
}
unlike(slurp_file($node->logfile), qr/ERROR|WARNING|PANIC/, 'nobody complains');
$node->stop;
done_testing();
