# A standby is quiet: it has no launcher, no worker and refuses to deliver. Promoted, it delivers what
# was pending, without any commit.

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
my $primary = Workers::start('primary', preload => 1, init => { allows_streaming => 1 });
Workers::add_app($primary, 'postgres', $api);
$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;

# Requested, but kept by the primary until it is gone.
Workers::set($primary, 'onesignal_cancel.background_delivery', 'off');
Workers::wait_for_no_worker($primary);
my @ids = map { $api->schedule } 1 .. 20;
Workers::request($primary, 'postgres', $api, @ids);
$primary->wait_for_catchup($standby);

is($standby->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'pending'"), '20', 'the standby has the requests');
is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'onesignal_cancel%'"), '0', 'and nobody who delivers them');
is($standby->safe_psql('postgres', 'SELECT delivery FROM onesignal_cancel_status'), 'standby', 'which the status says');
my ($ret, $out, $err) = $standby->psql('postgres', 'CALL onesignal_cancel_deliver()');
isnt($ret, 0, 'CALL is refused there');
like($err, qr/during recovery/, 'because it is a standby');
is($api->counts->{answered}{DELETE}, undef, 'nothing was sent');

$primary->stop('immediate');
$standby->promote;
ok(Workers::wait_for($standby, 'postgres', \@ids, 'canceled'), 'promoted, it delivers them');
is(scalar(grep { $api->state($_) ne 'canceled' } @ids), 0, 'at OneSignal, too');
like(Workers::launcher($standby), qr/^\d+$/, 'and has a launcher');
ok(Workers::wait_for_no_worker($standby), 'the worker leaves');
$standby->stop;
done_testing();
