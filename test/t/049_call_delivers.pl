# CALL onesignal_cancel_deliver(): what it delivers, where it refuses, and what it leaves behind.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(time);
use Workers;

my $api = StandIn->new;
my $node = Workers::start('main', conf => "onesignal_cancel.background_delivery = off\n");
Workers::add_app($node, 'postgres', $api);
my $LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND objsubid = 1";

sub new_request
{
    my $id = $api->schedule;
    Workers::request($node, 'postgres', $api, $id);
    return $id;
}

sub call_in_background
{
    my ($sql) = @_;
    my %call = (out => '', err => '');
    $call{run} = IPC::Run::start([ 'psql', '-X', '-d', $node->connstr('postgres'), '-v', 'VERBOSITY=verbose', '-c', $sql ],
        '<', \undef, '>', \$call{out}, '2>', \$call{err});
    return \%call;
}

# ---- what is due now ----

my $id = new_request();
my $began = time;
is($node->safe_psql('postgres', 'CALL onesignal_cancel_deliver()'), '', 'CALL with nothing else');
is(Workers::state($node, 'postgres', $id), 'canceled', 'delivers what is due');
cmp_ok(time - $began, '<', 60, 'and comes back');
is($node->safe_psql('postgres', $LOCKS), '0', 'without the lock');

# ---- where it refuses ----

for ([ 'BEGIN; CALL onesignal_cancel_deliver(); COMMIT;', 'a transaction block' ],
    [ 'SELECT 1; CALL onesignal_cancel_deliver();', 'a command of two statements' ],
    [ 'DO $$ BEGIN CALL onesignal_cancel_deliver(); EXCEPTION WHEN division_by_zero THEN NULL; END $$', 'a block with EXCEPTION' ])
{
    my ($sql, $where) = @$_;
    my $call = call_in_background($sql);
    $call->{run}->finish;
    like($call->{err}, qr/ERROR:  2D000: .*HINT:  /s, "it refuses in $where, with a hint");
}
$node->safe_psql('postgres', 'DO $$ BEGIN CALL onesignal_cancel_deliver(); END $$');
pass('a DO that commits may call it');
my $call = call_in_background("CALL onesignal_cancel_deliver('-1 s')");
$call->{run}->finish;
like($call->{err}, qr/ERROR:  22023: /, 'no negative duration');
$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN');
my ($ret, $out, $err) = $node->psql('postgres', 'CALL onesignal_cancel_deliver()', extra_params => [ '-U', 'nobody' ]);
like($err, qr/permission denied for procedure/, 'not for everybody');

# ---- with a duration ----

$call = call_in_background("CALL onesignal_cancel_deliver('1 hour')");
ok($node->poll_query_until('postgres', "$LOCKS AND granted", '1'), 'a CALL with a duration has the lock');
$id = new_request();
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'and delivers what is requested meanwhile');

# ---- one deliverer ----

($ret, $out, $err) = $node->psql('postgres', 'CALL onesignal_cancel_deliver()');
is($ret, 0, 'another CALL succeeds');
like($err, qr/NOTICE:  nothing to do: session \d+ is already delivering in this database/, 'with a notice, and delivers nothing');
ok($node->poll_query_until('postgres', "SELECT xact_start IS NULL OR backend_xmin IS NULL FROM pg_stat_activity WHERE query LIKE 'CALL%1 hour%' AND pid <> pg_backend_pid()"),
    'meanwhile the first one holds back no VACUUM');

# ---- whatever becomes of a purge, the next CALL works with the caller's own rights ----

$node->safe_psql('postgres', "CREATE ROLE app; GRANT EXECUTE ON PROCEDURE onesignal_cancel_deliver TO app; CREATE TABLE refers (message_id uuid, app_id uuid, FOREIGN KEY (message_id, app_id) REFERENCES onesignal_message)");
my $fails = "SET statement_timeout = '500ms';\nCALL onesignal_cancel_purge('90 days');\nRESET statement_timeout;\nSET ROLE app;\nCALL onesignal_cancel_deliver();\nSELECT current_user;\nRESET ROLE;\nSELECT current_user = session_user;";
($ret, $out, $err) = $node->psql('postgres', $fails =~ s/500ms/10min/r, on_error_stop => 0);
like($err, qr/cannot purge .*NOTICE:  nothing to do/s, 'a purge fails after it has become the owner, and a CALL has nothing to do');
is($out, "app\nt", 'as its caller');
$node->safe_psql('postgres', 'DROP TABLE refers');
my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE onesignal_message IN ACCESS EXCLUSIVE MODE');
($ret, $out, $err) = $node->psql('postgres', $fails, on_error_stop => 0);
like($err, qr/statement timeout.*NOTICE:  nothing to do/s, 'a purge fails while it waits for the table, and a CALL has nothing to do');
is($out, "app\nt", 'as its caller, too');
$locker->quit;

$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL%1 hour%' AND pid <> pg_backend_pid()");
$call->{run}->finish;
$began = time;
$call = call_in_background("CALL onesignal_cancel_deliver('2 s')");
$call->{run}->finish;
cmp_ok(time - $began, '>', 1.9, 'the duration is used');
is($call->{err}, '', 'without a word');
is($node->safe_psql('postgres', $LOCKS), '0', 'the lock is released');

# A worker waits for the CALL that delivers: what it comes too late for must not stay.
$node->safe_psql('postgres', 'ALTER DATABASE postgres SET onesignal_cancel.background_delivery = on');
$api->fault(method => 'DELETE', hold => 1);
$node->safe_psql('postgres', "SET onesignal_cancel.background_delivery = off;\n" . Workers::insert_sql($api, $id = $api->schedule));
$call = call_in_background('CALL onesignal_cancel_deliver()');
ok($node->poll_query_until('postgres', "$LOCKS AND granted", '1'), 'a CALL waits for an answer');
my $late = new_request();
ok($node->poll_query_until('postgres', "$LOCKS AND NOT granted", '1'), 'a worker waits for the CALL');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker' AND backend_xmin IS NOT NULL"),
    '0', 'holding back no VACUUM');
$api->clear_faults;
ok(Workers::wait_for($node, 'postgres', [ $id, $late ], 'canceled'), 'and between them all is delivered');
$call->{run}->finish;
$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET onesignal_cancel.background_delivery');
ok(Workers::wait_for_no_worker($node), 'the worker leaves');

# ---- paused ----

$api->accept_any(1);
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '20')");
$node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, cancel)
    SELECT gen_random_uuid(), '@{[ $api->app_id ]}', true FROM generate_series(1, 400)");
my $PENDING = "SELECT count(*) FROM onesignal_message WHERE state = 'pending'";
$call = call_in_background('CALL onesignal_cancel_deliver()');
ok($node->poll_query_until('postgres', "SELECT count(*) < 400 FROM onesignal_message WHERE state = 'pending'"), 'a CALL is at it');
$node->safe_psql('postgres', "SELECT onesignal_cancel_pause('@{[ $api->app_id ]}')");
$call->{run}->finish;
cmp_ok($node->safe_psql('postgres', $PENDING), '>', 0, 'a pause stops a CALL that has begun');
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('@{[ $api->app_id ]}'); ALTER SERVER clinic OPTIONS (DROP rate_limit); DELETE FROM onesignal_message WHERE state = 'pending'");
$api->accept_any(0);

# ---- interrupted ----

for my $function ('pg_cancel_backend', 'pg_terminate_backend')
{
    $id = $api->schedule;
    $api->fault(message => $id, kind => 'hang', times => 1);
    Workers::request($node, 'postgres', $api, $id);
    $call = call_in_background("CALL onesignal_cancel_deliver('1 hour')");
    $api->wait_for_requests(1, message => $id);
    $node->safe_psql('postgres', "SELECT $function(pid) FROM pg_locks WHERE locktype = 'object' AND objsubid = 1");
    $call->{run}->finish;
    like($call->{err}, $function eq 'pg_cancel_backend' ? qr/57014/ : qr/57P01/, "$function ends a CALL at once");
    is($node->safe_psql('postgres', $LOCKS), '0', 'and its lock');
    $node->safe_psql('postgres', 'CALL onesignal_cancel_deliver()');
    is(Workers::state($node, 'postgres', $id), 'canceled', 'what hung is delivered by the next');
}

# ---- with whose rights ----

# Somebody who may CALL and nothing else is nobody else before, during an error, and after.
$node->safe_psql('postgres', 'GRANT EXECUTE ON PROCEDURE onesignal_cancel_deliver TO nobody');
$id = new_request();
is($node->safe_psql('postgres', "CALL onesignal_cancel_deliver();\nSELECT current_user, current_setting('session_replication_role'), current_setting('search_path');",
        extra_params => [ '-U', 'nobody' ]),
    'nobody|origin|"$user", public', 'a caller keeps its own rights and settings');
is(Workers::state($node, 'postgres', $id), 'canceled', 'though it delivered with the owner\'s');
$id = $api->schedule;
$api->fault(message => $id, kind => 'hang', times => 1);
Workers::request($node, 'postgres', $api, $id);
is($node->safe_psql('postgres', "SET statement_timeout = '2s';\n\\set ON_ERROR_STOP off\nCALL onesignal_cancel_deliver();\nSELECT current_user, current_setting('session_replication_role');",
        extra_params => [ '-U', 'nobody' ], on_error_die => 0, on_error_stop => 0),
    'nobody|origin', 'also after an error');

# ---- an extension that is created again ----

$call = call_in_background("CALL onesignal_cancel_deliver('1 hour')");
ok($node->poll_query_until('postgres', "$LOCKS AND granted", '1'), 'a CALL delivers for an hour');
$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION onesignal_cancel CASCADE; CREATE EXTENSION onesignal_cancel; COMMIT; ' . $api->setup_sql('clinic'));
($ret, $out, $err) = $node->psql('postgres', 'CALL onesignal_cancel_deliver()');
like($err, qr/NOTICE:  nothing to do: session \d+ is already delivering/, 'it is still the only one');
$id = new_request();
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'and delivers from the new table');
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_locks WHERE locktype = 'object' AND objsubid = 1");
$call->{run}->finish;
unlike(slurp_file($node->logfile), qr/PANIC|you don't own a lock/, 'nothing odd is in the log');
$node->stop;
done_testing();
