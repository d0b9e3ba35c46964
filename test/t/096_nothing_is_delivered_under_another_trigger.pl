# TRIGGER on the table allows to replace the extension's trigger. While another one is there, nothing is delivered,
# and the log and the status say why; when it is put back, everything is.

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
my $node = Workers::start('main', conf => "log_statement = none\nonesignal_cancel.background_delivery = off\n");
Workers::add_app($node, 'postgres', $api);
my @ids = map { $node->safe_psql('postgres', 'SELECT gen_random_uuid()') } 1 .. 5;
Workers::request($node, 'postgres', $api, @ids[ 0 .. 3 ]);
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE mallory;
GRANT TRIGGER ON onesignal_message TO mallory;
CREATE SCHEMA mallory AUTHORIZATION mallory;
SET ROLE mallory;
CREATE FUNCTION mallory.forge() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.requested_by = ''postgres''; RETURN NEW; END';
CREATE OR REPLACE TRIGGER zz_onesignal_message BEFORE INSERT OR UPDATE ON onesignal_message FOR EACH ROW EXECUTE FUNCTION mallory.forge();
SQL

$node->safe_psql('postgres', 'CALL onesignal_cancel_deliver()');
is($api->received, 0, 'nothing is sent by CALL');
my ($ret, $out, $err) = $node->psql('postgres', Workers::insert_sql($api, $ids[4]));
isnt($ret, 0, 'nothing can be requested either');

Workers::set($node, 'onesignal_cancel.background_delivery', 'on');
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('" . $api->app_id . "')");
$node->wait_for_log(qr/LOG:  onesignal_cancel: pausing app .* for role "postgres": trigger "zz_onesignal_message" of table "onesignal_message" is not the extension's own/);
ok($node->poll_query_until('postgres', "SELECT paused_reason ~ 'zz_onesignal_message' FROM onesignal_cancel_status WHERE pending > 0"), 'the log and the status say why');
ok(Workers::wait_for_no_worker($node), 'no worker stays for it');
is($api->received, 0, 'nothing is sent by a worker');
my @lines = slurp_file($node->logfile) =~ /pausing app .*: trigger/g;
cmp_ok(scalar(@lines), '<=', 2, 'one line for each deliverer');

$node->safe_psql('postgres', 'CREATE OR REPLACE TRIGGER zz_onesignal_message BEFORE INSERT OR UPDATE ON onesignal_message FOR EACH ROW EXECUTE FUNCTION onesignal_message_change()');
Workers::request($node, 'postgres', $api, $ids[4]);
ok(Workers::wait_for($node, 'postgres', \@ids, 'canceled'), 'when it is put back, everything is delivered');
$node->stop;
done_testing();
