# What the owner of a database may set with ALTER DATABASE neither ends the worker nor changes what it
# records.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $api = StandIn->new;
my $node = Workers::start('main');
$node->safe_psql('postgres', 'CREATE ROLE owner LOGIN; CREATE DATABASE app OWNER owner');
Workers::add_app($node, 'app', $api);

my %setting = (
    array_nulls => 'off', backslash_quote => 'on', bytea_output => 'escape', client_encoding => 'LATIN1',
    client_min_messages => 'error', cursor_tuple_fraction => '0', DateStyle => "'SQL, DMY'", default_transaction_deferrable => 'on',
    default_transaction_isolation => 'serializable', default_transaction_read_only => 'on', enable_indexscan => 'off',
    enable_nestloop => 'off', enable_sort => 'off', escape_string_warning => 'off', exit_on_error => 'on',
    extra_float_digits => '-15', idle_in_transaction_session_timeout => '1', idle_session_timeout => '1',
    IntervalStyle => 'iso_8601', lock_timeout => '1', quote_all_identifiers => 'on', random_page_cost => '1e10',
    row_security => 'off', search_path => "''", standard_conforming_strings => 'off', statement_timeout => '1',
    synchronous_commit => 'off', TimeZone => "'Asia/Kathmandu'", transform_null_equals => 'on', work_mem => '64',
    xmloption => 'document',
);
# PostgreSQL 19 has standard strings alone.
delete @setting{qw(escape_string_warning standard_conforming_strings)} if $node->pg_version->major >= 19;
$node->safe_psql('postgres', "ALTER DATABASE app SET $_ = $setting{$_}", extra_params => [ '-U', 'owner' ]) for sort keys %setting;

# Only the sessions of this test override some of them.
$ENV{PGOPTIONS} = join ' ', map { "-c $_" } 'search_path=public', map { "$_=0" }
  qw(statement_timeout lock_timeout idle_session_timeout idle_in_transaction_session_timeout default_transaction_read_only exit_on_error);

# A row that cannot be written is an error that the deliverer catches.
my ($unwritable, @ids) = map { $api->schedule(send_after => time + 3600 + $_) } 1 .. 5;
$node->safe_psql('app', "ALTER TABLE onesignal_message ADD CHECK (state <> 'canceled' OR message_id <> '$unwritable')");
$api->fault(message => $ids[0], status => 400, body => q({"errors":["a \\\\ \"b\" 'c' NULL", "NULL"]}));
Workers::request($node, 'app', $api, $unwritable, @ids);

ok(Workers::wait_for($node, 'app', [ @ids[ 1 .. 3 ] ], 'canceled'), 'what can be recorded is');
ok(Workers::wait_for($node, 'app', $ids[0], 'refused'), 'a refusal, too');
is($node->safe_psql('app', "SELECT errors[1] || '|' || errors[2] FROM onesignal_message WHERE message_id = '$ids[0]'"),
    q(a \\ "b" 'c' NULL|NULL), 'and why, as it came');
like(Workers::worker($node, 'app'), qr/^\d+$/, 'the worker is still there');
my $log = slurp_file($node->logfile);
like($log, qr/violates check constraint/, 'though a row could not be written');
unlike($log, qr/PANIC|FATAL|exited with exit code 1/, 'and nothing ended it');

# The same for CALL, in a session that has exit_on_error.
$node->safe_psql('app', 'ALTER DATABASE app SET onesignal_cancel.background_delivery = off');
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . Workers::worker($node, 'app') . ')');
ok(Workers::wait_for_no_worker($node), 'the worker ends');
$ENV{PGOPTIONS} =~ s/exit_on_error=0/exit_on_error=1/;
my $sent = $api->received(message => $unwritable);
is($node->safe_psql('app', "CALL onesignal_cancel_deliver();\nSELECT state FROM onesignal_message WHERE message_id = '$unwritable'"), 'pending', 'a CALL goes on as well');
cmp_ok($api->received(message => $unwritable), '>', $sent, 'though it could not write the row either');

# The launcher has the settings of the server: so it would wait for a snapshot until others end.
$ENV{PGOPTIONS} =~ s/exit_on_error=1/exit_on_error=0/;
$node->safe_psql('app', 'ALTER DATABASE app RESET onesignal_cancel.background_delivery');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'onesignal_cancel'\nlock_timeout = 1\n"
      . "default_transaction_isolation = 'serializable'\ndefault_transaction_read_only = on\ndefault_transaction_deferrable = on\n");
$node->restart;
my $there = "FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker' AND datname = 'app'";
ok($node->poll_query_until('postgres', "SELECT count(*) $there", 1), 'the launcher starts a worker');
my $other = $node->background_psql('postgres');
$other->query_safe('BEGIN ISOLATION LEVEL SERIALIZABLE, READ WRITE; SELECT count(*) FROM pg_class');
my $worker = Workers::worker($node, 'app');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
ok($node->poll_query_until('postgres', "SELECT count(*) $there AND pid <> $worker", 1), 'and another one, while a transaction is open');
$other->quit;
$node->stop;
done_testing();
