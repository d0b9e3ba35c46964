# While somebody commits all the time, each scan finds all lanes anew; when many rows are to be read before those that
# are due, all lanes have their turn all the same.

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
my $node = Workers::start('main', conf => "log_statement = none\nonesignal_cancel.worker_idle_timeout = '10min'\nfsync = off\n");
my $added = $api->add_app(accept_any => 1);
Workers::add_app($node, 'postgres', $api);

# In the order of a scan: an app for which somebody commits, some with many rows that are not due, and the last one
my ($busy, $last) = sort $api->app_id, $added->{app_id};
my @between = map { substr($busy, 0, 24) . sprintf 'ffffffff%04d', $_ } 1 .. 30;
my $number = 0;
$node->safe_psql('postgres', $api->setup_sql('added', app => $added->{app_id}, key => $added->{api_key})
  . join '', map { $api->setup_sql('between' . ++$number, app => $_, key => 'key') } @between);
my $list = join ', ', map { "('$_'::uuid)" } @between;
$node->safe_psql('postgres', <<SQL);
INSERT INTO onesignal_message (message_id, app_id, send_after, cancel, state, requested_by, requested_at, next_attempt_at)
    SELECT gen_random_uuid(), app_id, now() + interval '2 h', true, 'pending', current_user, now(), now() + interval '1 h' FROM (VALUES $list) AS v (app_id), generate_series(1, 8000);
SQL
my $commits = Workers::commit_all_the_time($node, $busy, 0.0005);
my $id = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES ('$id', '$last', true)");
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'the last app has its turn');
$commits->{run}->kill_kill;
$node->stop('immediate');
done_testing();
