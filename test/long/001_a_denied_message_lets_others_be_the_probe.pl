# OneSignal denies one message, the one that is sent soonest, while it takes the same key for others. The
# lane pauses for its sake, but each probe is another row: the others go out, and it is refused in the end.
# Takes more than a minute, for there is one probe a minute.

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
my $node = Workers::start('main', conf => "log_statement = none\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
my ($denied, @others) = map { $node->safe_psql('postgres', 'SELECT gen_random_uuid()') } 1 .. 11;

$api->fault(message => $denied, status => 403, body => '{"errors":["not yours"]}');
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, send_after, cancel) VALUES ('$denied', '$app', now() + interval '1 h', true)");
ok($node->poll_query_until('postgres', 'SELECT circuit_until IS NOT NULL FROM onesignal_app'), 'a 403 pauses the lane');
$node->safe_psql('postgres', 'INSERT INTO onesignal_message (message_id, app_id, send_after, cancel) VALUES '
      . join(', ', map { "('$_', '$app', now() + interval '2 h', true)" } @others));
ok(Workers::wait_for($node, 'postgres', \@others, 'canceled'), 'the probe is another row, whose success lets the others go');
ok(Workers::wait_for($node, 'postgres', $denied, 'refused'), 'denied once more while the key is good for others, it is refused');
is($api->received(message => $denied), 2, 'after two attempts');
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'canceled'"), '10', 'and it alone');
$node->stop;
done_testing();
