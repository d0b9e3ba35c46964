# While outcomes cannot be recorded, few requests are sent, the status and the log say why, and other apps go on;
# when they can be recorded again, everything is.

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
my $node = Workers::start('main', conf => "log_statement = none\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
my $other = $api->add_app(accept_any => 1);
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '0');" . $api->setup_sql('other', app => $other->{app_id}, key => $other->{api_key}));

# From now on no outcome of $app can be recorded. The rest is SQL to run after that.
sub fail_recording
{
    my ($message, $sqlstate, $rest, $again) = @_;
    my $catch = $again ? 'EXCEPTION WHEN OTHERS THEN RAISE;' : '';
    $node->safe_psql('postgres', <<SQL);
CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
    IF NEW.app_id = '$app' AND NEW.state <> 'pending' THEN
        RAISE EXCEPTION '$message' USING ERRCODE = '$sqlstate';
    END IF;
    RETURN NEW;
    $catch
END \$\$;
CREATE TRIGGER aa_full_disk BEFORE UPDATE ON onesignal_message FOR EACH ROW EXECUTE FUNCTION full_disk();
ALTER TABLE onesignal_message ENABLE ALWAYS TRIGGER aa_full_disk;
$rest
SQL
}

# As a full disk does, and for one app alone.
my $began = time;
fail_recording('could not extend file: No space left on device', '53100', <<SQL);
INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT gen_random_uuid(), '$app', true FROM generate_series(1, 3000);
SQL
ok($node->poll_query_until('postgres', "SELECT last_error ~ 'could not record outcomes: could not extend file' FROM onesignal_cancel_status WHERE app_id = '$app'"), 'the status says why');
$node->wait_for_log(qr/LOG:  onesignal_cancel: could not record outcomes: could not extend file.* of server "clinic"/);

# One request a second may begin. Whoever comes directly after it has its rows read long before the next one may, and
# has that turn all the same.
for my $round (1 .. 3)
{
    my $id = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
    my $sent = $api->received;
    $api->wait_for_requests($sent + 1);
    my $committed = $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES ('$id', '$other->{app_id}', true);\nSELECT extract(epoch FROM clock_timestamp())");
    ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), "round $round: another app is not held up");
    my ($own) = $api->requests(message_id => $id);
    my @between = grep { $_->{arrived} > $committed && $_->{arrived} < $own->{arrived} } $api->requests;
    cmp_ok(scalar @between, '<=', 4, 'but has the next turn');
}
cmp_ok($api->received, '<=', 90 + time - $began, 'few requests are sent meanwhile');
my @lines = slurp_file($node->logfile) =~ /could not record outcomes/g;
is(scalar(@lines), 1, 'and the log does not repeat itself');
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE app_id = '$app' AND state = 'pending'"), '3000', 'no row is lost');

$node->safe_psql('postgres', 'DROP TRIGGER aa_full_disk ON onesignal_message');
ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled'", '0'), 'when they can be recorded, all are');
is($node->safe_psql('postgres', 'SELECT max(attempts) FROM onesignal_message'), '1', 'nothing was sent twice for it');

# A trigger that fails for one app's rows with the SQLSTATE of a missing table, a cancel or a shutdown stops no other.
# One that a trigger has caught and raised again has parts of it in the trigger's memory.
for ('42P01', '3F000', '57014', '57P01', '25006', '22012 again')
{
    my ($sqlstate, $again) = split / /;
    my ($bad, $good) = map { $node->safe_psql('postgres', 'SELECT gen_random_uuid()') } 1 .. 2;
    fail_recording("raised with $sqlstate", $sqlstate, <<SQL, $again);
INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES ('$bad', '$app', true), ('$good', '$other->{app_id}', true);
SQL
    ok(Workers::wait_for($node, 'postgres', $good, 'canceled'), "$sqlstate: another app is not held up");
    ok($node->poll_query_until('postgres', "SELECT last_error ~ 'could not record outcomes: raised with $sqlstate' FROM onesignal_cancel_status WHERE app_id = '$app'"), "$sqlstate: the status says why");
    $node->safe_psql('postgres', 'DROP TRIGGER aa_full_disk ON onesignal_message');
    ok(Workers::wait_for($node, 'postgres', $bad, 'canceled'), "$sqlstate: and its own row is recorded in the end");
}
unlike(slurp_file($node->logfile), qr/ERROR:  raised with/, 'no worker ended');

# A real cancel is one: it ends CALL while its outcomes are being recorded.
my $held = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
Workers::wait_for_no_worker($node);
my ($ret, $out, $err) = $node->psql('postgres', <<SQL);
CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_cancel_backend(pg_backend_pid()); PERFORM pg_sleep(1); RETURN NEW; END';
CREATE TRIGGER aa_full_disk BEFORE UPDATE ON onesignal_message FOR EACH ROW EXECUTE FUNCTION full_disk();
ALTER TABLE onesignal_message ENABLE ALWAYS TRIGGER aa_full_disk;
SET onesignal_cancel.background_delivery = off;
INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES ('$held', '$app', true);
CALL onesignal_cancel_deliver();
SQL
like($err, qr/ERROR:  canceling statement due to user request/, 'a cancel of CALL ends it');
$node->safe_psql('postgres', 'DROP TRIGGER aa_full_disk ON onesignal_message');
$node->stop;
done_testing();
