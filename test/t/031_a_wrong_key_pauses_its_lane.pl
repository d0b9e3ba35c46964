# 401 and 403 pause what the role requested, and nobody else; a new key, by file or by SQL, resumes it
# within seconds, and no row is lost or given up on the way.

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
my $app = $api->app_id;
my $key_file = $node->basedir . '/clinic.key';

sub write_key
{
    my ($key) = @_;
    unlink $key_file;
    append_to_file($key_file, "$key\n");
}

write_key('os_v2_app_wrong');
$node->safe_psql('postgres', "CREATE EXTENSION onesignal_cancel;\n" . $api->setup_sql('clinic', key_file => $key_file) . <<SQL);
CREATE ROLE nurse; CREATE ROLE doctor;
GRANT USAGE ON FOREIGN SERVER clinic TO nurse, doctor;
GRANT SELECT, INSERT (message_id, app_id, send_after, cancel, reason), UPDATE (send_after, cancel, reason) ON onesignal_message TO nurse, doctor;
CREATE USER MAPPING FOR doctor SERVER clinic OPTIONS (api_key '@{[ $api->api_key ]}');
SQL

sub request_as
{
    my ($role, $count) = @_;
    $node->safe_psql('postgres', "SET ROLE $role; INSERT INTO onesignal_message (message_id, app_id, cancel) "
          . "SELECT gen_random_uuid(), '$app', true FROM generate_series(1, $count)");
}

sub left
{
    my ($role) = @_;
    return "SELECT count(*) FROM onesignal_message WHERE requested_by = '$role' AND state <> 'canceled'";
}

request_as('nurse', 500);
ok($node->poll_query_until('postgres', "SELECT circuit_role = 'nurse' FROM onesignal_app"), 'a wrong key pauses its lane');
my $wrong = grep { $_->{key} eq 'wrong' } $api->requests;
cmp_ok($wrong, '<', 200, 'long before all rows were tried');
request_as('doctor', 20);
ok($node->poll_query_until('postgres', left('doctor'), '0'), 'another role with a key of its own is not concerned');
is($node->safe_psql('postgres', "SELECT DISTINCT state FROM onesignal_message WHERE requested_by = 'nurse'"), 'pending', 'the rows wait');
like($node->safe_psql('postgres', "SELECT errors[1] FROM onesignal_message WHERE http_status = 403 LIMIT 1"), qr/Access denied/, 'and say what OneSignal said');

write_key($api->api_key);
ok($node->poll_query_until('postgres', left('nurse'), '0'), 'the right key in the file resumes it');
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'refused'"), '0', 'nothing was refused on account of the key');

# Rotated at OneSignal, then by SQL.
my $old = $api->api_key;
my $new = $api->rotate;
request_as('doctor', 50);
ok($node->poll_query_until('postgres', "SELECT circuit_role = 'doctor' FROM onesignal_app"), 'a key that was rotated pauses its lane');
$node->safe_psql('postgres', "ALTER USER MAPPING FOR doctor SERVER clinic OPTIONS (SET api_key '$new')");
ok($node->poll_query_until('postgres', left('doctor'), '0'), 'ALTER USER MAPPING resumes it');

# What is missing altogether.
write_key($new);
unlink $key_file;
request_as('nurse', 5);
ok($node->poll_query_until('postgres', "SELECT circuit_role = 'nurse' AND circuit_reason ~ 'key file' FROM onesignal_app"), 'a missing key file pauses, too');
write_key($new);
request_as('nurse', 1);
ok($node->poll_query_until('postgres', left('nurse'), '0'), 'until it is there when somebody requests more');
$node->safe_psql('postgres', "SELECT onesignal_cancel_pause('$app')");
request_as('nurse', 5);
$node->safe_psql('postgres', "DROP USER MAPPING FOR PUBLIC SERVER clinic; SELECT onesignal_cancel_resume('$app')");
ok($node->poll_query_until('postgres', "SELECT circuit_role = 'nurse' AND circuit_reason ~ 'no user mapping' FROM onesignal_app"), 'and so does a missing mapping');
$node->safe_psql('postgres', "CREATE USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (api_key_file '$key_file')");
ok($node->poll_query_until('postgres', left('nurse'), '0'), 'until there is one');

# One message that OneSignal denies while it takes the same key for others.
my @ids = ($node->safe_psql('postgres', 'SELECT gen_random_uuid()'));
# Late, so that the others' answers come before it.
$api->fault(message => $ids[0], status => 403, body => '{"errors":["not yours"]}', delay => 500);
$node->safe_psql('postgres', "SET ROLE nurse; INSERT INTO onesignal_message (message_id, app_id, cancel, send_after) VALUES ('$ids[0]', '$app', true, now() + interval '1 h')");
ok($node->poll_query_until('postgres', "SELECT http_status = 403 FROM onesignal_message WHERE message_id = '$ids[0]'"), 'a message that is denied waits first');
is(Workers::state($node, 'postgres', $ids[0]), 'pending', 'for the key may be to blame');
# Resumed by hand, it is tried again beside others, and after a while alone is to blame.
for my $try (1 .. 20)
{
    request_as('nurse', 1);
    $node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
    $node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE requested_by = 'nurse' AND state = 'pending' AND message_id <> '$ids[0]'", '0');
    last if Workers::state($node, 'postgres', $ids[0]) eq 'refused';
}
is(Workers::state($node, 'postgres', $ids[0]), 'refused', 'denied again while the key is good for others, it is refused');

# The same by CALL, whose runs forget the key in between: a pause lasts all the same, also in the next session.
$node->append_conf('postgresql.conf', 'onesignal_cancel.background_delivery = off');
$node->reload;
Workers::wait_for_no_worker($node);
$api->rotate;
request_as('doctor', 200);
sub resumed { my @found = slurp_file($node->logfile) =~ /resuming server "clinic" \(app/g; return scalar @found }
my $resumed = resumed();
$node->safe_psql('postgres', "CALL onesignal_cancel_deliver('5 s')");
is($node->safe_psql('postgres', 'SELECT circuit_role FROM onesignal_app'), 'doctor', 'a rejected key pauses a CALL');
my $sent = $api->received;
$node->safe_psql('postgres', "CALL onesignal_cancel_deliver('3 s')");
is(resumed(), $resumed, 'the same key does not resume it');
cmp_ok($api->received, '<=', $sent + 1, 'and the next session sends no more than a probe');

# Resumed by hand it goes on, also in a session that has forgotten the key in between.
my $session = $node->background_psql('postgres');
$session->query_safe("SELECT onesignal_cancel_resume('$app')");
$session->query_safe("CALL onesignal_cancel_deliver()");
is($node->safe_psql('postgres', 'SELECT circuit_role FROM onesignal_app'), 'doctor', 'rejected once more');
$node->safe_psql('postgres', "SELECT onesignal_cancel_resume('$app')");
$sent = $api->received;
$session->query_safe("CALL onesignal_cancel_deliver()");
cmp_ok($api->received, '>', $sent, 'resumed by hand, the session that saw the rejection tries again');
$session->quit;

my $log = slurp_file($node->logfile);
unlike($log, qr/\Q$old\E|os_v2_app_wrong/, 'no key is in the log');
$node->stop;
done_testing();
