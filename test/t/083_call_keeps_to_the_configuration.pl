# CALL onesignal_cancel_deliver() takes its settings from postgresql.conf and ALTER DATABASE, whatever
# the session or its role says; where it cannot record an outcome it sends nothing.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(sleep);
use Workers;

my $api = StandIn->new;

# What the row says after a CALL to a message that never answers: how long it was waited for.
sub waited
{
    my ($node, $before, @params) = @_;
    my $id = $api->schedule;
    $api->fault(message => $id, kind => 'hang');
    $node->safe_psql('postgres', Workers::insert_sql($api, $id));
    $node->safe_psql('postgres', "$before\nCALL onesignal_cancel_deliver();", @params);
    my $error = $node->safe_psql('postgres', "SELECT errors[1] FROM onesignal_message WHERE message_id = '$id'");
    $node->safe_psql('postgres', "DELETE FROM onesignal_message WHERE message_id = '$id'");
    return $error =~ /within (\d+) ms/ ? $1 : $error;
}

for my $preload (1, 0)
{
    my $how = $preload ? 'preloaded' : 'not preloaded';
    my $node = Workers::start($preload ? 'preloaded' : 'plain', preload => $preload,
        conf => "onesignal_cancel.background_delivery = off\nonesignal_cancel.timeout = '1100ms'\n");
    Workers::add_app($node, 'postgres', $api);
    $node->safe_psql('postgres', "CREATE ROLE boss SUPERUSER LOGIN; ALTER ROLE boss SET onesignal_cancel.timeout = '3100ms'");

    is(waited($node, ''), 1100, "$how: postgresql.conf");
    is(waited($node, "SET onesignal_cancel.timeout = '3200ms';"), 1100, "$how: SET changes nothing");
    is(waited($node, "SELECT onesignal_cancel_version();\nSET onesignal_cancel.timeout = '3200ms';\nRESET onesignal_cancel.timeout;"), 1100, "$how: nor does RESET");
    is(waited($node, "SELECT onesignal_cancel_version();\nALTER SYSTEM SET onesignal_cancel.timeout = '3400ms';\nALTER SYSTEM RESET onesignal_cancel.timeout;"),
        1100, "$how: nor does ALTER SYSTEM before a reload");
    is(waited($node, "SELECT onesignal_cancel_version();\nALTER SYSTEM SET onesignal_cancel.timeout = '3400ms';\nSELECT count(*) FROM pg_file_settings;"),
        1100, "$how: nor does pg_file_settings");
    $node->safe_psql('postgres', 'ALTER SYSTEM RESET onesignal_cancel.timeout');
    SKIP:
    {
        # Without preload PostgreSQL keeps one value of a setting that it does not know yet.
        skip "$how: the role's setting hides the file's", 2 if !$preload;
        is(waited($node, '', extra_params => [ '-U', 'boss' ]), 1100, "$how: nor does ALTER ROLE");
        is(waited($node, '', connstr => $node->connstr('postgres') . " options='-c onesignal_cancel.timeout=3300ms'"), 1100, "$how: nor do the client's options");
    }
    $node->safe_psql('postgres', "ALTER ROLE ALL SET onesignal_cancel.timeout = '1000ms'");
    is(waited($node, ''), 1000, "$how: ALTER ROLE ALL");
    $node->safe_psql('postgres', 'ALTER ROLE ALL RESET onesignal_cancel.timeout');
    $node->safe_psql('postgres', "ALTER DATABASE postgres SET onesignal_cancel.timeout = '900ms'");
    is(waited($node, ''), 900, "$how: ALTER DATABASE");
    is(waited($node, "SET onesignal_cancel.timeout = '3200ms';"), 900, "$how: SET changes nothing of that");

    # A session that goes on through a reload.
    my $session = $node->background_psql('postgres');
    $session->query_safe("LOAD 'onesignal_cancel'; SET onesignal_cancel.timeout = '3200ms'");
    my $reloaded = sub {
        my ($value) = @_;
        my $id = $api->schedule;
        $api->fault(message => $id, kind => 'hang');
        $node->safe_psql('postgres', Workers::insert_sql($api, $id));
        $session->query_safe('CALL onesignal_cancel_deliver()');
        my $error = $node->safe_psql('postgres', "SELECT errors[1] FROM onesignal_message WHERE message_id = '$id'; DELETE FROM onesignal_message");
        return $error =~ /within (\d+) ms/ ? $1 : $error;
    };
    is($reloaded->(), 900, "$how: a session that is there has it, too");
    my $loaded = $session->query_safe('SELECT pg_conf_load_time()');
    Workers::set($node, 'onesignal_cancel.timeout', "'1300ms'");
    sleep 0.05 while $session->query_safe('SELECT pg_conf_load_time()') eq $loaded;
    is($reloaded->(), 900, "$how: which a reload does not change");
    $session->quit;

    $node->safe_psql('postgres', 'ALTER DATABASE postgres RESET onesignal_cancel.timeout');
    $session = $node->background_psql('postgres');
    $session->query_safe("LOAD 'onesignal_cancel'; SET onesignal_cancel.timeout = '3200ms'");
    is($reloaded->(), 1300, "$how: without ALTER DATABASE the file's counts");
    $loaded = $session->query_safe('SELECT pg_conf_load_time()');
    Workers::set($node, 'onesignal_cancel.timeout', "'700ms'");
    sleep 0.05 while $session->query_safe('SELECT pg_conf_load_time()') eq $loaded;
    is($reloaded->(), 700, "$how: and a reload changes it");
    $session->quit;

    # ---- retry_window and max_in_flight ----

    # What a request comes to that had its first attempt an hour ago, and has no usable answer.
    my $given_up = sub {
        my ($before) = @_;
        my $id = $api->schedule;
        $api->fault(message => $id, status => 503);
        $node->safe_psql('postgres', Workers::insert_sql($api, $id) . "SET session_replication_role = replica;
            UPDATE onesignal_message SET first_attempt_at = now() - interval '1 hour', requested_at = now() - interval '1 hour'");
        $node->safe_psql('postgres', "$before\nCALL onesignal_cancel_deliver();");
        my $state = Workers::state($node, 'postgres', $id);
        $node->safe_psql('postgres', 'DELETE FROM onesignal_message; SELECT onesignal_cancel_resume(app_id) FROM onesignal_app');
        return $state;
    };
    is($given_up->(''), 'pending', "$how: retry_window is a day");
    is($given_up->("SET onesignal_cancel.retry_window = '1s';"), 'pending', "$how: SET does not shorten it");
    $node->safe_psql('postgres', "ALTER DATABASE postgres SET onesignal_cancel.retry_window = '30min'");
    is($given_up->(''), 'failed', "$how: ALTER DATABASE does");
    is($given_up->("SET onesignal_cancel.retry_window = '1d';"), 'failed', "$how: SET does not lengthen it");
    $node->safe_psql('postgres', 'ALTER DATABASE postgres RESET onesignal_cancel.retry_window');

    # How many requests of ten are on the wire together, once one has been answered.
    my $together = sub {
        my ($before) = @_;
        my ($first, @ids) = map { $api->schedule } 1 .. 11;
        my $sent = $api->received + 1;
        $api->fault(message => \@ids, hold => 1);
        $node->safe_psql('postgres', Workers::insert_sql($api, $first, @ids)
              . "UPDATE onesignal_message SET send_after = now() + interval '1 hour' WHERE message_id <> '$first'");
        my $caller = IPC::Run::start([ 'psql', '-XqAt', '-d', $node->connstr('postgres'), '-c', "$before;", '-c', 'CALL onesignal_cancel_deliver()' ]);
        $api->wait_for_requests($sent + 3);
        sleep 0.5;
        my $count = $api->received - $sent;
        $api->clear_faults;
        $caller->finish;
        $node->safe_psql('postgres', 'DELETE FROM onesignal_message');
        return $count;
    };
    # One that times out would make room for another.
    $node->safe_psql('postgres', "ALTER DATABASE postgres SET onesignal_cancel.max_in_flight = 3; ALTER DATABASE postgres SET onesignal_cancel.timeout = '10min'");
    is($together->(''), 3, "$how: max_in_flight of ALTER DATABASE");
    is($together->("SET onesignal_cancel.max_in_flight = 800"), 3, "$how: SET does not raise it");
    $node->safe_psql('postgres', 'ALTER DATABASE postgres RESET onesignal_cancel.max_in_flight; ALTER DATABASE postgres RESET onesignal_cancel.timeout');

    # ---- read-only ----

    my $id = $api->schedule;
    Workers::request($node, 'postgres', $api, $id);
    my ($ret, $out, $err) = $node->psql('postgres', "SET default_transaction_read_only = on;\nCALL onesignal_cancel_deliver();",
        extra_params => [ '-v', 'VERBOSITY=verbose' ]);
    like($err, qr/ERROR:  25006: /, "$how: a session that cannot write gets 25006");
    is($api->received(message => $id), 0, "$how: and sends nothing");
    is(Workers::state($node, 'postgres', $id), 'pending', "$how: the request waits");
    $node->safe_psql('postgres', 'CALL onesignal_cancel_deliver()');
    is(Workers::state($node, 'postgres', $id), 'canceled', "$how: for a session that can");
    $node->stop;
}
done_testing();
