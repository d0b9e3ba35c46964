# libcurl keeps the CAs that it has read. When the file has another CA, or one less, that counts within seconds, in
# sessions and workers that have read it before.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Workers;

my $clinic = Clinic->new(accept_any => 1, conf => "onesignal_cancel.max_retries = 0\n");
my ($api, $node) = ($clinic->api, $clinic->node);
my ($app, $dir) = ($api->app_id, $api->dir);
my $bundle = "$dir/bundle.pem";
system_or_bail('openssl', 'req', '-x509', '-config', "$dir/tls/openssl.cnf", '-extensions', 'v3_ca', '-subj', '/CN=Another CA', '-newkey', 'ec',
    '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', "$dir/another.key", '-days', 30, '-out', "$dir/another.pem");

sub trust
{
    my ($ca) = @_;
    append_to_file("$bundle.new", slurp_file($ca));
    rename "$bundle.new", $bundle or die "$bundle: $!";
}

my $session = $node->background_psql('postgres');
sub called { return $session->query("SELECT status, array_to_string(errors, '') FROM onesignal_cancel('$app', gen_random_uuid())") }

# Until it says so, each time over a new connection; the last answer.
sub called_until
{
    my ($wanted) = @_;
    my $answer;
    for (1 .. 100)
    {
        $api->stop;
        $api->start_again;
        last if ($answer = called()) =~ $wanted;
        sleep 1;
    }
    return $answer;
}

trust("$dir/another.pem");
$node->safe_psql('postgres', "ALTER SERVER clinic OPTIONS (SET ca_file '$bundle')");
like(called(), qr/unable to get local issuer certificate/, 'a session does not know the CA');
my $id = $api->schedule;
Workers::request($node, 'postgres', $api, $id);
ok($node->poll_query_until('postgres', 'SELECT attempts > 0 FROM onesignal_message'), 'nor does the worker');
trust("$dir/ca.pem");
ok(Workers::wait_for($node, 'postgres', $id, 'canceled'), 'the worker hears of it');
is(called_until(qr/^200/), '200|', 'and so does the session');

trust("$dir/another.pem");
like(called_until(qr/certificate/), qr/unable to get local issuer certificate/, 'a CA that was taken out is trusted no longer');
$session->quit;
$node->stop;
done_testing();
