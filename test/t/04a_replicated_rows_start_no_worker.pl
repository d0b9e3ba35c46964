# Rows that logical replication applies start no worker on the subscriber, and are not sent twice.

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
my $publisher = Workers::start('publisher', init => { allows_streaming => 'logical' });
my $subscriber = Workers::start('subscriber');
Workers::add_app($_, 'postgres', $api) for $publisher, $subscriber;
Workers::wait_for_no_worker($_) for $publisher, $subscriber;
my $before = Workers::starts($subscriber);

$publisher->safe_psql('postgres', 'CREATE PUBLICATION messages FOR TABLE onesignal_message');
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION messages CONNECTION '" . $publisher->connstr . " dbname=postgres' PUBLICATION messages");
$subscriber->wait_for_subscription_sync($publisher, 'messages');

my @ids = map { $api->schedule } 1 .. 10;
Workers::request($publisher, 'postgres', $api, @ids);
ok(Workers::wait_for($publisher, 'postgres', \@ids, 'canceled'), 'the publisher delivers');
ok(Workers::wait_for($subscriber, 'postgres', \@ids, 'canceled'), 'the subscriber sees it');
is(Workers::starts($subscriber), $before, 'and has started no worker');
is(scalar(grep { $api->received(message => $_) != 1 } @ids), 0, 'each was sent once');
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION messages');
$_->stop for $subscriber, $publisher;
done_testing();
