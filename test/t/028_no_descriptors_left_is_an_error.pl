# A server that may open few files says so instead of running into it: connections need some, and
# PostgreSQL is told beforehand. A refusal takes nothing, and the session goes on.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;

my $api = StandIn->new(accept_any => 1);
my $app = $api->app_id;
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "max_files_per_process = 64\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION onesignal_cancel;' . $api->setup_sql('clinic'));
my $call = "SELECT status FROM onesignal_cancel('$app', gen_random_uuid())";

my ($result, $stdout, $stderr) = $node->psql('postgres', "$call;\n" x 30 . 'SELECT 1', on_error_stop => 0,
    extra_params => [ '-v', 'VERBOSITY=verbose' ]);
is(scalar(() = $stderr =~ /ERROR:  53000: could not reserve file descriptors for HTTP connections/g), 30, 'an error each time');
like($stderr, qr/HINT:  Raise max_files_per_process/, 'that says what to do');
is($stdout, 1, 'and the session goes on');
is($api->received, 0, 'nothing was sent');

$node->adjust_conf('postgresql.conf', 'max_files_per_process', '200');
$node->restart;
is($node->safe_psql('postgres', $call), 200, 'with more it works');

done_testing();
