# An outcome whose row somebody has locked is kept and recorded later; others are recorded meanwhile, and
# nothing is sent twice for it.

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
my ($locked, $free, $poison, $called, $beside) = map { $node->safe_psql('postgres', 'SELECT gen_random_uuid()') } 1 .. 5;

# Locked before the answer comes. Its neighbor's comes at the same time.
my $session = $node->background_psql('postgres');
$api->fault(message => [ $locked, $free ], hold => 1);
Workers::request($node, 'postgres', $api, $locked, $free);
$api->wait_for_requests(1, message => $_) for $locked, $free;
$session->query_safe("BEGIN; SELECT FROM onesignal_message WHERE message_id = '$locked' FOR UPDATE");
$api->clear_faults;
ok(Workers::wait_for($node, 'postgres', $free, 'canceled'), 'another outcome is recorded');
# When a later one is, too, that of the locked row has been tried for certain.
is(scalar($api->requests(message_id => $locked)), 1, 'the request of the locked row is answered');
my $later = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
Workers::request($node, 'postgres', $api, $later);
ok(Workers::wait_for($node, 'postgres', $later, 'canceled'), 'so is a later outcome');
is(Workers::state($node, 'postgres', $locked), 'pending', 'the locked row is as it was');
$session->query_safe('COMMIT');
ok(Workers::wait_for($node, 'postgres', $locked, 'canceled'), 'when the lock is gone, the outcome is recorded');
is($api->received(message => $locked), 1, 'without asking again');
unlike(slurp_file($node->logfile), qr/could not record/, 'and that is nothing to complain of');
$session->quit;

# A row that cannot be written at all keeps no other from it.
$node->safe_psql('postgres', "ALTER TABLE onesignal_message ADD CONSTRAINT poison CHECK (message_id <> '$poison' OR state <> 'canceled')");
my @others = map { $node->safe_psql('postgres', 'SELECT gen_random_uuid()') } 1 .. 5;
Workers::request($node, 'postgres', $api, $poison, @others);
ok(Workers::wait_for($node, 'postgres', \@others, 'canceled'), 'one row that cannot be written holds up nobody');
is(Workers::state($node, 'postgres', $poison), 'pending', 'and waits');
$node->safe_psql('postgres', 'ALTER TABLE onesignal_message DROP CONSTRAINT poison');
ok(Workers::wait_for($node, 'postgres', $poison, 'canceled'), 'until it can be');
is($api->received(message => $poison), 1, 'without being sent again');

# A CALL leaves the session's settings as they were, also when it ran into a lock.
Workers::set($node, 'onesignal_cancel.background_delivery', 'off');
Workers::wait_for_no_worker($node);
$api->fault(message => [ $called, $beside ], hold => 1);
Workers::request($node, 'postgres', $api, $called, $beside);
($session, my $caller) = map { $node->background_psql('postgres') } 1 .. 2;
$caller->query_safe("SET lock_timeout = '7s'");
$caller->query_until(qr/begun/, "\\echo begun\nCALL onesignal_cancel_deliver();\n");
$api->wait_for_requests(1, message => $_) for $called, $beside;
$session->query_safe("BEGIN; SELECT FROM onesignal_message WHERE message_id = '$called' FOR UPDATE");
$api->clear_faults;
ok(Workers::wait_for($node, 'postgres', $beside, 'canceled'), 'called by hand: another outcome is recorded');
$session->query_safe('COMMIT');
is($caller->query_safe('SHOW lock_timeout'), '7s', 'the caller has its own lock_timeout back');
is(Workers::state($node, 'postgres', $called), 'canceled', 'having recorded what was locked');

# A lock that stays does not keep a CALL from its end, and with it all others.
my ($stuck) = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
Workers::request($node, 'postgres', $api, $stuck);
$session->query_safe("BEGIN; SELECT FROM onesignal_message WHERE message_id = '$stuck' FOR UPDATE");
for my $call ("CALL onesignal_cancel_deliver('1 s')", 'CALL onesignal_cancel_deliver()')
{
    my $ret = $node->psql('postgres', $call, timeout => $PostgreSQL::Test::Utils::timeout_default, timed_out => \my $timed_out);
    ok(!$timed_out && $ret == 0, "$call ends");
}
my $before = $api->received(message => $stuck);
$caller->query_until(qr/begun/, "\\echo begun\nCALL onesignal_cancel_deliver('10 min');\n");
$api->wait_for_requests($before + 1, message => $stuck);
$node->poll_query_until('postgres', "SELECT clock_timestamp() > query_start + interval '8 s' FROM pg_stat_activity WHERE query LIKE 'CALL%10 min%' AND pid <> pg_backend_pid()");
is($api->received(message => $stuck), $before + 1, 'while its duration lasts it keeps the outcome');
is(Workers::state($node, 'postgres', $stuck), 'pending', 'and the row is still to be canceled');
$session->query_safe('COMMIT');
ok(Workers::wait_for($node, 'postgres', $stuck, 'canceled'), 'when the lock is gone, the outcome is recorded');
is($api->received(message => $stuck), $before + 1, 'without asking again');
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%10 min%' AND pid <> pg_backend_pid()");
$session->quit;
$caller->{run}->finish;
$node->stop;
done_testing();
