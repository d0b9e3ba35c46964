# However others keep delivery busy, each role and each row has its turn.

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
my $node = Workers::start('main', conf => "log_statement = none\nonesignal_cancel.worker_idle_timeout = '10min'\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;

sub many
{
    my ($app_id, $count, $after) = @_;
    return 'INSERT INTO onesignal_message (message_id, app_id, send_after, cancel) '
      . "SELECT gen_random_uuid(), '$app_id', " . ($after // 'NULL') . ", true FROM generate_series(1, $count) i;";
}

# Roles that request for one app what is sent at the same time
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '50'); SELECT onesignal_cancel_pause('$app');");
for my $role (map { "role_$_" } 1 .. 4)
{
    $node->safe_psql('postgres', "CREATE ROLE $role; GRANT USAGE ON FOREIGN SERVER clinic TO $role; GRANT SELECT, INSERT ON onesignal_message TO $role; SET ROLE $role;" . many($app, 500));
}
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
ok($node->poll_query_until('postgres', "SELECT count(*) > 60 FROM onesignal_message WHERE state = 'canceled'"), 'four roles request for one app');
cmp_ok($node->safe_psql('postgres', "SELECT min(n) FROM (SELECT count(*) FILTER (WHERE state = 'canceled') AS n FROM onesignal_message GROUP BY requested_by) x"), '>', 5, 'and take turns');
$node->safe_psql('postgres', 'TRUNCATE onesignal_message');

# Rows that wait for their time are read before one that is due, while somebody commits all the time, and recording
# takes longer than reading, as on a slow disk.
my $added = $api->add_app(accept_any => 1);
my $other = $added->{app_id};
$node->safe_psql('postgres', $api->setup_sql('other', app => $other, key => $added->{api_key}, server_options => { rate_limit => 0 }));
$node->safe_psql('postgres', <<SQL);
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END \$\$;
CREATE TRIGGER aa_slow AFTER UPDATE ON onesignal_message EXECUTE FUNCTION slow();
ALTER TABLE onesignal_message ENABLE ALWAYS TRIGGER aa_slow;
ALTER SERVER clinic OPTIONS (SET rate_limit '0');
INSERT INTO onesignal_message (message_id, app_id, send_after, cancel, state, requested_by, requested_at, next_attempt_at)
    SELECT gen_random_uuid(), '$app', now() + interval '2 h', true, 'pending', current_user, now(), now() + interval '1 h' FROM generate_series(1, 30000);
SQL
my $commits = Workers::commit_all_the_time($node, $other, 0.005);
my $due = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, send_after, cancel) VALUES ('$due', '$app', now() + interval '3 h', true)");
ok(Workers::wait_for($node, 'postgres', $due, 'canceled'), 'a row behind those that wait is reached');
note($node->safe_psql('postgres', "SELECT finished_at - requested_at FROM onesignal_message WHERE message_id = '$due'"));
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'"), '1', 'although they do not stop');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'");
$node->stop('immediate');
done_testing();
