# Nothing tells of a database that ALTER DATABASE ... ALLOW_CONNECTIONS opens again. So the launcher, which starts nothing in
# a closed one, looks at it once a minute: what fell due there meanwhile is delivered, and what waited there at the server's start.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../t";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main', preload => 1, conf => "onesignal_cancel.worker_idle_timeout = 0\n");
my ($due, $waited) = map { $api->schedule } 1 .. 2;
$node->safe_psql('postgres', 'CREATE DATABASE clinic');
Workers::add_app($node, 'clinic', $api);
ok(Workers::wait_for_no_worker($node), 'no worker is there');

# A worker that is there would spend a short wait itself, in a closed database, too.
$api->fault(status => 503, headers => { 'Retry-After' => 15 }, times => 1);
Workers::request($node, 'clinic', $api, $due);
ok($node->poll_query_until('clinic', "SELECT attempts = 1 FROM onesignal_message WHERE message_id = '$due'"), 'a cancel is tried, and will be tried again');
my $at = $node->safe_psql('clinic', 'SELECT next_attempt_at FROM onesignal_message');
ok(Workers::wait_for_no_worker($node), 'the worker leaves');
$node->safe_psql('postgres', 'ALTER DATABASE clinic ALLOW_CONNECTIONS false');
# The launcher says when it was last awake.
ok($node->poll_query_until('postgres', "SELECT state_change > '$at' FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel launcher' AND state = 'idle'"),
    'its time comes while the database is closed');
is($api->received(message => $due), 1, 'nothing is sent then');
$node->safe_psql('postgres', 'ALTER DATABASE clinic ALLOW_CONNECTIONS true');
ok($node->poll_query_until('clinic', "SELECT state = 'canceled' FROM onesignal_message"), 'it is delivered when the database is open again');

$node->safe_psql('clinic', 'SET onesignal_cancel.background_delivery = off; ' . Workers::insert_sql($api, $waited));
$node->safe_psql('postgres', 'ALTER DATABASE clinic ALLOW_CONNECTIONS false');
$node->restart;
Workers::wait_for_launcher($node);
is($api->received(message => $waited), 0, 'nothing is sent from a database that is closed at the start');
$node->safe_psql('postgres', 'ALTER DATABASE clinic ALLOW_CONNECTIONS true');
ok($node->poll_query_until('clinic', "SELECT count(*) = 2 FROM onesignal_message WHERE state = 'canceled'"), 'it is delivered when the database is open');
$node->stop;
done_testing();
