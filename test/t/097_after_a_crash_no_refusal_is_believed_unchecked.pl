# kill -9 of the worker and of the postmaster in the middle of a drain, against an OneSignal that refuses to cancel a
# message twice: what it has canceled is recorded as canceled, since each refusal of what may have been sent before the
# crash is checked.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Time::HiRes qw(sleep);
use Workers;

my $ROWS = 12;
my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main', preload => 1, conf => "log_statement = none\nrestart_after_crash = on\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
$api->repeat_status(400);
# Nothing can be recorded as long as this is there.
$node->safe_psql('postgres', "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no space''; END'");

for my $crash ('worker', 'postmaster')
{
    my $before = $api->received;
    $node->safe_psql('postgres', <<SQL);
CREATE TRIGGER aa_full_disk BEFORE UPDATE ON onesignal_message FOR EACH ROW WHEN (NEW.state <> 'pending') EXECUTE FUNCTION full_disk();
ALTER TABLE onesignal_message ENABLE ALWAYS TRIGGER aa_full_disk;
INSERT INTO onesignal_message (message_id, app_id, send_after, cancel) SELECT gen_random_uuid(), '$app', now() + interval '1 h', true FROM generate_series(1, $ROWS);
SQL
    $api->wait_for_requests($before + $ROWS);
    if ($crash eq 'postmaster') { Workers::crash($node) }
    elsif (my $pid = Workers::worker($node, 'postgres')) { Workers::kill9($node, $pid) }
    # After a crash of the server psql fails for a while, and poll_query_until() takes that for "not yet".
    ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'pending'", $ROWS), "all is pending after the crash of the $crash");
    $node->safe_psql('postgres', 'DROP TRIGGER aa_full_disk ON onesignal_message');
    ok($node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'pending'", '0'), 'then it is delivered');
    is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled'"), '0', 'and all is canceled, as it was');
}

my %refused = map { ($_->{message_id} => 1) } grep { $_->{status} == 400 } $api->requests(method => 'DELETE');
my %checked = map { ($_->{message_id} => 1) } $api->requests(method => 'GET');
is(scalar(keys %refused), 2 * $ROWS, 'all were refused at the second attempt');
is(scalar(grep { !$checked{$_} } keys %refused), 0, 'and each refusal was checked');
$node->stop;
done_testing();
