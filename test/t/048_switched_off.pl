# enabled = off: nothing leaves the server, requests succeed and wait. background_delivery = off: no
# worker, CALL delivers.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $api = StandIn->new(accept_any => 1);
my @ids = map { $api->schedule } 1 .. 4;
my $sent = sub { return scalar grep { $_->{method} eq 'DELETE' } $api->requests };

# ---- enabled = off, preloaded: even the launcher is quiet ----

my $node = Workers::start('main', preload => 1, conf => "onesignal_cancel.enabled = off\n");
Workers::add_app($node, 'postgres', $api);
Workers::request($node, 'postgres', $api, $ids[0]);
is(Workers::state($node, 'postgres', $ids[0]), 'pending', 'off: a request succeeds and waits');
my ($ret, $out, $err) = $node->psql('postgres', 'CALL onesignal_cancel_deliver()', extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/ERROR:  55000: /, 'off: CALL raises 55000');
$node->restart;
Workers::wait_for_launcher($node);
is(Workers::starts($node), 0, 'off: no worker, after a restart neither');
is($sent->(), 0, 'off: nothing was sent');

Workers::set($node, 'onesignal_cancel.enabled', 'on');
ok(Workers::wait_for($node, 'postgres', $ids[0], 'canceled'), 'switched on by a reload, what waited is delivered');

# ---- off again in the middle of a drain ----

$api->fault(method => 'DELETE', delay => 200);
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '"
      . $api->app_id . "', true FROM generate_series(1, 3000)");
ok($node->poll_query_until('postgres', "SELECT count(*) > 10 FROM onesignal_message WHERE state = 'canceled'"), 'a drain is on its way');
Workers::set($node, 'onesignal_cancel.enabled', 'off');
ok(Workers::wait_for_no_worker($node), 'a running worker stops at reload');
my $left = $node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'pending'");
cmp_ok($left, '>', 0, 'before it is through');
# The first question is answered after all that has arrived.
my (undef, $before, $started) = ($api->received, $api->received, Workers::starts($node));
Workers::request($node, 'postgres', $api, $ids[2]);
($ret, $out, $err) = $node->psql('postgres', 'CALL onesignal_cancel_deliver()', extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/ERROR:  55000: /, 'off: after another request CALL raises 55000');
is(Workers::starts($node), $started, 'and no worker is started');
is($api->received, $before, 'nor is anything sent any more');
$api->clear_faults;
Workers::set($node, 'onesignal_cancel.enabled', 'on');
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled'", '0'), 'on again, it goes on');

# A worker has the bootstrap superuser's rights, but not the settings of that role.
ok(Workers::wait_for_no_worker($node), 'the worker leaves');
$node->safe_psql('postgres', 'CREATE ROLE boss SUPERUSER LOGIN; ALTER ROLE CURRENT_USER SET onesignal_cancel.background_delivery = off');
my $of_boss = $api->schedule;
$node->safe_psql('postgres', Workers::insert_sql($api, $of_boss), extra_params => [ '-U', 'boss' ]);
ok(Workers::wait_for($node, 'postgres', $of_boss, 'canceled'), 'ALTER ROLE of the bootstrap superuser does not stop the worker');
$node->safe_psql('postgres', 'ALTER ROLE CURRENT_USER RESET onesignal_cancel.background_delivery');

# A CALL is stopped as well.
ok(Workers::wait_for_no_worker($node), 'the worker leaves');
my ($in, $said, $error) = ('', '', '');
my $call = IPC::Run::start([ 'psql', '-X', '-d', $node->connstr('postgres'), '-c', "CALL onesignal_cancel_deliver('1 hour')" ],
    '<', \$in, '>', \$said, '2>', \$error);
ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND objsubid = 1 AND granted", '1'), 'a CALL delivers for an hour');
Workers::set($node, 'onesignal_cancel.enabled', 'off');
$call->finish;
like($error, qr/switched off/, 'until it is switched off');
Workers::set($node, 'onesignal_cancel.enabled', 'on');

# ---- background_delivery = off, for one database ----

ok(Workers::wait_for_no_worker($node), 'no worker is left');
$node->safe_psql('postgres', 'ALTER DATABASE postgres SET onesignal_cancel.background_delivery = off');
Workers::request($node, 'postgres', $api, $ids[1]);
$node->restart;
for (1 .. 1000) { last if Workers::starts($node, 'postgres'); select undef, undef, undef, 0.05 }
ok(Workers::wait_for_no_worker($node), 'the worker that the launcher sends leaves');
is(Workers::state($node, 'postgres', $ids[1]), 'pending', 'without background delivery a request waits, after a restart too');
$node->safe_psql('postgres', 'CALL onesignal_cancel_deliver()');
is(Workers::state($node, 'postgres', $ids[1]), 'canceled', 'CALL delivers it');
$node->stop;

# ---- a copy made by CREATE DATABASE ... TEMPLATE, as the README says ----

$node = Workers::start('template', preload => 1);
Workers::add_app($node, 'postgres', $api);
$node->safe_psql('postgres', "ALTER DATABASE postgres SET onesignal_cancel.background_delivery = off");
my $pending = $api->schedule;
Workers::request($node, 'postgres', $api, $pending);
($ret, $out, $err) = $node->psql('template1', 'ALTER DATABASE postgres SET onesignal_cancel.enabled = off');
like($err, qr/parameter "onesignal_cancel.enabled" cannot be changed now/, 'enabled is for the whole server');
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres ALLOW_CONNECTIONS false');
$node->safe_psql('template1', 'ALTER DATABASE copy SET onesignal_cancel.background_delivery = off; ALTER DATABASE copy ALLOW_CONNECTIONS true');
$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET onesignal_cancel.background_delivery');
$node->safe_psql('copy', 'DROP USER MAPPING FOR PUBLIC SERVER clinic');
$node->restart;
my $other = $api->schedule;
Workers::request($node, 'postgres', $api, $other);
ok(Workers::wait_for($node, 'postgres', [ $pending, $other ], 'canceled'), 'production delivers');
$node->safe_psql('copy', "UPDATE onesignal_message SET reason = 'looked at'; CALL onesignal_cancel_deliver()");
is(Workers::state($node, 'copy', $pending), 'pending', 'and the copy does not');
($ret, $out, $err) = $node->psql('copy', "SELECT onesignal_cancel('" . $api->app_id . "', '$pending')");
like($err, qr/ERROR:  .*user mapping/, 'nor by a direct call');
is($api->received(message => $pending), 1, 'it was sent once');
is(Workers::worker($node, 'copy'), '', 'no worker is in the copy');
$node->stop;
done_testing();
