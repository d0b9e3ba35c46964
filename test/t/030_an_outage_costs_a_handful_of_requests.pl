# While OneSignal is down, a queue of thousands costs it a handful of requests and no row its attempts;
# when it is back, everything goes out by itself.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $ROWS = 3000;
my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main', conf => "log_statement = none\n");
Workers::add_app($node, 'postgres', $api);
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (ADD rate_limit '0')");

sub request_many
{
    $node->safe_psql('postgres', 'INSERT INTO onesignal_message (message_id, app_id, cancel) '
          . "SELECT gen_random_uuid(), '" . $api->app_id . "', true FROM generate_series(1, $ROWS)");
}

sub all_canceled
{
    return $node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled'", '0');
}

my $PAUSED = 'SELECT circuit_until IS NOT NULL FROM onesignal_app';

# It answers, but with 503: what was in flight when that became known, and probes.
$api->fault(status => 503, body => 'down');
request_many();
ok($node->poll_query_until('postgres', $PAUSED), '503s pause the app');
# Until what was in flight then has arrived, was answered and recorded: twice, as more may have been on its way.
my $before = 0;
for (my $same = 0; $same < 2;)
{
    my $received = $api->received;
    my $attempts = $node->safe_psql('postgres', 'SELECT sum(attempts) FROM onesignal_message');
    $same = $attempts == $received && $received == $before ? $same + 1 : 0;
    $before = $received;
}
cmp_ok($before, '<', 900, 'no more than what was in flight has been sent');
ok($node->poll_query_until('postgres', 'SELECT sum(attempts) >= ' . ($before + 2) . ' FROM onesignal_message'), 'probes follow');
my @probes = (sort { $a->{arrived} <=> $b->{arrived} } $api->requests(method => 'DELETE'))[ $before - 1 .. $before + 1 ];
my @early = grep { $probes[$_]{arrived} < $probes[ $_ - 1 ]{time} + 0.9 } 1 .. $#probes;
is(scalar(@early), 0, 'one at a time, not before a second after the last answer');
is($node->safe_psql('postgres', 'SELECT sum(attempts) < 910 FROM onesignal_message'),
    't', 'rows spend no attempts on a paused app');
is($node->safe_psql('postgres', "SELECT count(*) FROM onesignal_message WHERE state <> 'pending'"), '0', 'and none is given up');
like($node->safe_psql('postgres', 'SELECT paused_reason FROM onesignal_cancel_status WHERE pending > 0'), qr/503/, 'the status says why');
$api->clear_faults;
ok(all_canceled(), 'everything goes out when it is back');
ok($node->poll_query_until('postgres', $PAUSED, 'f'), 'and the app is no longer paused');

# It is not there at all.
$api->stop;
request_many();
ok($node->poll_query_until('postgres', $PAUSED), 'no answers pause the app');
like($node->safe_psql('postgres', 'SELECT circuit_reason FROM onesignal_app'), qr/no answer/, 'which says so');
$api->start_again;
ok(all_canceled(), 'everything goes out when it is reachable again');

my $log = slurp_file($node->logfile);
my @pauses = $log =~ /onesignal_cancel: pausing server "clinic" \(app/g;
my @resumes = $log =~ /onesignal_cancel: resuming server "clinic" \(app/g;
is(scalar(@pauses), 2, 'one line in the log for each pause');
is(scalar(@resumes), 2, 'and one for each end of it');
$node->stop;
done_testing();
