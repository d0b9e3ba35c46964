# PostgreSQL tells a session of changes of a table whenever it looks into the catalogs, and then makes what it knows of
# the table anew. Here that happens while the extension looks at the table's triggers: another session holds pg_proc,
# in which the names of their functions are, and lets go of it after it has changed the table.

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
my $node = Workers::start('main', conf => "onesignal_cancel.background_delivery = off\nautovacuum = off\nrestart_after_crash = off\n");
Workers::add_app($node, 'postgres', $api);

# What is freed is the sooner taken again the more of the sizes of it there are.
for my $count (1 .. 12)
{
    $node->safe_psql('postgres', <<"SQL");
CREATE FUNCTION other$count() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER other$count BEFORE INSERT ON onesignal_message FOR EACH ROW EXECUTE FUNCTION other$count();
ALTER TABLE onesignal_message DISABLE TRIGGER other$count;
SQL
    my $deliverer = $node->background_psql('postgres');
    my $pid = $deliverer->query_safe('SELECT pg_backend_pid()');
    my $id = $api->schedule;
    # All that delivery needs of pg_proc is known then, but for the triggers' functions, which it looks at when there are rows.
    $deliverer->query_safe('CALL onesignal_cancel_deliver()');
    Workers::request($node, 'postgres', $api, $id);
    my $other = $node->background_psql('postgres');
    # It has to know all that it will need while nobody can look into pg_proc.
    my $waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $pid AND relation = 'pg_proc'::regclass";
    my $change = 'ALTER TABLE onesignal_message SET (fillfactor = ' . (50 + $count) . ')';
    $other->query_safe("$waits; BEGIN; $change; ROLLBACK; BEGIN; LOCK TABLE pg_proc; $waits");
    $deliverer->{stdin} .= "CALL onesignal_cancel_deliver();\n\\echo delivered\n";
    $deliverer->{run}->pump_nb;
    my $waiting = 0;
    for (1 .. 100 * $PostgreSQL::Test::Utils::timeout_default)
    {
        last if $waiting = $other->query_safe($waits);
        select undef, undef, undef, 0.01;
    }
    is($waiting, '1', "$count other triggers: delivery looks at them");
    $other->query_safe("$change; COMMIT");
    $deliverer->{run}->pump until $deliverer->{stdout} =~ /delivered/ || !$deliverer->{run}->pumpable;
    like($deliverer->{stdout}, qr/delivered/, 'and goes on');
    is(Workers::state($node, 'postgres', $id), 'canceled', 'with the message');
    $_->quit for $other, $deliverer;
}
$node->stop;
done_testing();
