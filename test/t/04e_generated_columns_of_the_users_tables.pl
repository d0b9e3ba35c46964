# The users' trigger takes a stored generated column for what it is. A virtual one, which is the default from PostgreSQL
# 18 on, has no value when triggers fire: that is an error, for a message without an id would be none.

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
my @kinds = ('STORED', $node->safe_psql('postgres', "SELECT current_setting('server_version_num')::int >= 180000") eq 't' ? 'VIRTUAL' : ());
for my $kind (@kinds)
{
    my $id = $api->schedule;
    $node->safe_psql('postgres', <<"SQL");
CREATE TABLE appointment_$kind (data jsonb, reminder_id text GENERATED ALWAYS AS (data->>'reminder') $kind);
CREATE TRIGGER cancel AFTER DELETE ON appointment_$kind FOR EACH ROW EXECUTE FUNCTION onesignal_cancel_trigger('reminder_id', 'clinic');
INSERT INTO appointment_$kind VALUES ('{"reminder": "$id"}');
SQL
    my ($failed, undef, $error) = $node->psql('postgres', "\\set VERBOSITY sqlstate\nDELETE FROM appointment_$kind");
    if ($kind eq 'STORED')
    {
        is($failed, 0, 'a stored column is read');
        is(Workers::state($node, 'postgres', $id), 'pending', 'and its message requested');
    }
    else
    {
        like($error, qr/0A000/, 'a virtual column is an error');
        is($node->safe_psql('postgres', "SELECT count(*) FROM appointment_$kind"), '1', 'and the row stays');
    }
}
$node->stop;
done_testing();
