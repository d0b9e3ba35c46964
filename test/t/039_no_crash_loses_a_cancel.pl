# kill -9 of the worker and of the postmaster in the middle of a drain, several times: each committed request
# arrives at the stand-in, none of a transaction that rolled back does, and every row ends canceled.

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

# Fewer are held than an app may have on the wire at first.
my ($ROWS, $HELD) = (4000, 10);
my $api = StandIn->new(accept_any => 1, delay => 40);
# fsync stays on, as a crash of the server process alone needs no more than the kernel's memory; and full recovery.
my $node = Workers::start('main', preload => 1, conf => "log_statement = none\nrestart_after_crash = on\nonesignal_cancel.max_in_flight = 50\n");
Workers::add_app($node, 'postgres', $api);
my $app = $api->app_id;
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '0'); CREATE TABLE rolled_back (id uuid)");

# Those that go first hang until they are let go, so that the drain cannot end before its crash.
sub request_many
{
    my @held = split /\n/, $node->safe_psql('postgres', "SELECT gen_random_uuid() FROM generate_series(1, $HELD)");
    $api->fault(message => \@held, kind => 'hang');
    $node->safe_psql('postgres', "INSERT INTO onesignal_message (message_id, app_id, send_after, cancel)
        SELECT id, '$app'::uuid, now() + interval '1 h', true FROM unnest('{@{[ join ',', @held ]}}'::uuid[]) id
        UNION ALL SELECT gen_random_uuid(), '$app', now() + interval '2 h', true FROM generate_series(1, $ROWS - $HELD)");
    # The same in transactions that end otherwise; their ids are kept by another session.
    my @lost = split /\n/, $node->safe_psql('postgres', 'SELECT gen_random_uuid() FROM generate_series(1, 20)');
    $node->safe_psql('postgres', 'INSERT INTO rolled_back VALUES ' . join(', ', map { "('$_')" } @lost));
    $node->psql('postgres', 'BEGIN; ' . Workers::insert_sql($api, @lost) . ' ROLLBACK');
}

my $PENDING = "SELECT count(*) FROM onesignal_message WHERE state = 'pending'";

# Some are done and some are not.
sub wait_for_middle { return $node->poll_query_until('postgres', "SELECT count(*) <= $ROWS - 200 FROM onesignal_message WHERE state = 'pending'") }

# After a crash of the server psql fails for a while, and poll_query_until() takes that for "not yet".
for my $crash ('worker', 'postmaster', 'worker', 'postmaster')
{
    request_many();
    wait_for_middle();
    my $pid = $crash eq 'worker' ? Workers::worker($node, 'postgres') : slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/ && $1;
    my $before = $node->safe_psql('postgres', $PENDING);
    $api->clear_faults;    # those that hang do so until their connection ends
    if ($crash eq 'worker')
    {
        Workers::kill9($node, $pid) if $pid;
        cmp_ok($before, '>', 0, "killed a $crash with work left");
    }
    else
    {
        Workers::crash($node);
        cmp_ok($before, '>', 0, "killed a $crash with work left");
    }
    ok($node->poll_query_until('postgres', $PENDING, '0'), "all is delivered after the crash of the $crash, and nobody has to ask for it");
}

is($node->safe_psql('postgres', "SELECT count(*), count(DISTINCT message_id) FROM onesignal_message WHERE state = 'canceled'"), join('|', ($ROWS * 4) x 2), 'each row is canceled');
my %received;
$received{ $_->{message_id} }++ for $api->requests(method => 'DELETE');
my @wanted = split /\n/, $node->safe_psql('postgres', 'SELECT message_id FROM onesignal_message');
my @lost = split /\n/, $node->safe_psql('postgres', 'SELECT id FROM rolled_back');
is(scalar(grep { !$received{$_} } @wanted), 0, 'each has arrived');
is(scalar(grep { $received{$_} } @lost), 0, 'none of those that rolled back has');
my $twice = grep { $received{$_} > 1 } @wanted;
# What was on the wire, or answered and not recorded, at each of four crashes.
cmp_ok($twice, '<=', 4 * 600, "few ($twice) were asked for twice");
$node->stop;
done_testing();
