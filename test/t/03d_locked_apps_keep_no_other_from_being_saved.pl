# However many apps' rows somebody has locked, what is known of the others is saved.

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
my @locked = map { $api->add_app(accept_any => 1) } 1 .. 12;
my $number = 0;
$node->safe_psql('postgres', join '', map { $api->setup_sql('locked' . $number++, app => $_->{app_id}, key => $_->{api_key}) } @locked);
my $request = 'INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), app_id, true FROM onesignal_app WHERE app_id';
my $list = join ', ', map { "'$_->{app_id}'" } @locked;
$node->safe_psql('postgres', "INSERT INTO onesignal_app (app_id) VALUES ('$app')" . join '', map { ", ('$_->{app_id}')" } @locked);

my $session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe("SELECT FROM onesignal_app WHERE app_id IN ($list) FOR UPDATE");
$node->safe_psql('postgres', "$request IN ($list)");
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'canceled'", '12'), 'messages of apps whose rows are locked are canceled');
$node->safe_psql('postgres', "$request = '$app'");
my $totals = 'SELECT sum(canceled_total) FROM onesignal_app WHERE app_id';
ok($node->poll_query_until('postgres', "$totals = '$app'", '1'), 'another app is saved');
is($node->safe_psql('postgres', "$totals IN ($list)"), '0', 'and they are not');
$session->query_safe('COMMIT');
ok($node->poll_query_until('postgres', "$totals IN ($list)", '12'), 'until the locks are gone');
$session->quit;
$node->stop;
done_testing();
