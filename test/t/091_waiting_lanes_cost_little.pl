# Thousands of apps that wait cost the worker a few kB each, and a paused app's row nothing at all.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $WAITING = 3000;
my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main', conf => "log_statement = none\nonesignal_cancel.worker_idle_timeout = '10min'\n");
Workers::add_app($node, 'postgres', $api);

sub private_kb
{
    my $pid = Workers::worker($node, 'postgres');
    return slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+)/m ? $1 : die "no worker $pid";
}

# Its buffers and plans are made.
my $first = $api->schedule;
Workers::request($node, 'postgres', $api, $first);
ok(Workers::wait_for($node, 'postgres', $first, 'canceled'), 'a worker is at work');
my $before = private_kb();

# Each app has a server, a key, a row, and a pause.
$node->safe_psql('postgres', <<SQL);
DO \$\$
DECLARE app uuid;
BEGIN
    FOR i IN 1 .. $WAITING LOOP
        app := gen_random_uuid();
        EXECUTE format('CREATE SERVER waits_%s FOREIGN DATA WRAPPER onesignal OPTIONS (app_id %L, base_url %L)', i, app, 'https://localhost:1');
        EXECUTE format('CREATE USER MAPPING FOR PUBLIC SERVER waits_%s OPTIONS (api_key %L)', i, 'os_v2_app_waits');
        PERFORM onesignal_cancel_pause(app);
        INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (gen_random_uuid(), app, true);
    END LOOP;
END \$\$;
SQL
# A message that is delivered after the worker has seen them all.
my @ids = map { $api->schedule } 1 .. 3;
for my $id (@ids)
{
    Workers::request($node, 'postgres', $api, $id);
    ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'a message beside them is canceled');
}
my $grown = private_kb() - $before;
# The catalogs' caches have grown for that many servers, too.
note("$grown kB for $WAITING waiting lanes");
cmp_ok($grown / $WAITING, '<=', 4, 'at most 4 kB for each lane that waits');
is($node->safe_psql('postgres', "SELECT count(*), sum(attempts) FROM onesignal_message WHERE state = 'pending'"), "$WAITING|0", 'which wait untouched');
$node->stop('immediate');
done_testing();
