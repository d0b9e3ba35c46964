# A row's address (ctid) is unique only within its table. Where a table inherits from onesignal_message, such as an archive
# of old rows, neither delivery nor a purge may take a row of one table for the row of the other that has the same address.

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
my $node = Workers::start('main', conf => "onesignal_cancel.background_delivery = off\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
my ($due, $busy, @others) = map { $api->schedule } 1 .. 5;

# Five rows in each, so with the same addresses.
Workers::request($node, 'postgres', $api, @others, $due, $busy);
$node->safe_psql('postgres', <<SQL);
CREATE TABLE archive () INHERITS (onesignal_message);
INSERT INTO archive (message_id, app_id, cancel, state, http_status, errors, attempts, finished_at)
    SELECT gen_random_uuid(), '$app', true, 'canceled', 200, '{}', 1, now() - interval '1 year' FROM generate_series(1, 5);
SQL
my $SAME = 'SELECT count(*) FROM ONLY onesignal_message m JOIN archive a ON a.ctid = m.ctid';
is($node->safe_psql('postgres', $SAME), 5, 'the rows of two tables have the same addresses');
$node->safe_psql('postgres', "INSERT INTO archive (message_id, app_id, cancel, state, requested_by, requested_at) VALUES (gen_random_uuid(), '$app', true, 'pending', 'postgres', now())");
is($node->safe_psql('postgres', 'SELECT pending FROM onesignal_cancel_status'), 5, 'the status counts those of one');
my $ARCHIVE = 'SELECT ctid, a.* FROM archive a ORDER BY ctid';
my $archive = $node->safe_psql('postgres', $ARCHIVE);

is($node->safe_psql('postgres', "CALL onesignal_cancel_purge('90 days')"), 0, 'a purge finds nothing');
is($node->safe_psql('postgres', 'SELECT count(*) FROM ONLY onesignal_message'), 5, 'and deletes no pending row');
is($node->safe_psql('postgres', $ARCHIVE), $archive, 'nor one of the archive');

$api->fault(message => $busy, status => 503);
$node->safe_psql('postgres', 'CALL onesignal_cancel_deliver()');
is(Workers::state($node, 'postgres', $due), 'canceled', 'a message is canceled');
is(Workers::state($node, 'postgres', $busy), 'pending', 'another has to be tried again');
is($node->safe_psql('postgres', $ARCHIVE), $archive, 'the archive is as it was');

# Without a key nothing can be attempted, and what waits is given up.
$node->safe_psql('postgres', 'DROP USER MAPPING FOR PUBLIC SERVER clinic');
Workers::set($node, 'onesignal_cancel.retry_window', "'1s'");
my $until = time + $PostgreSQL::Test::Utils::timeout_default;
$node->safe_psql('postgres', 'CALL onesignal_cancel_deliver(\'1s\')') while Workers::state($node, 'postgres', $busy) ne 'failed' && time < $until;
is(Workers::state($node, 'postgres', $busy), 'failed', 'a message is given up');
is($node->safe_psql('postgres', $ARCHIVE), $archive, 'when messages are given up, too');

$node->stop;
done_testing();
