# The deliverer rests after reading, four times as long as that took. When a lock has held the reading up, it does not
# rest for that: what is committed meanwhile, and from then on, goes out at once.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(sleep time);
use Workers;

my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main', preload => 1, conf => "log_statement = none\n");
Workers::add_app($node, 'postgres', $api);
my $commits = Workers::commit_all_the_time($node, $api->app_id, 0.2);

# What an ALTER TABLE in a transaction that is left open does.
my $lock = $node->background_psql('postgres');
$lock->query_safe('BEGIN; LOCK TABLE onesignal_app IN ACCESS EXCLUSIVE MODE');
sleep 10;
$lock->query_safe('COMMIT');
$lock->quit;

my $id = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
my $began = time;
Workers::request($node, 'postgres', $api, $id);
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'it is delivered');
# It would be 40.
cmp_ok(time - $began, '<', 30, 'and soon');
$commits->{run}->kill_kill;
$node->stop;
done_testing();
