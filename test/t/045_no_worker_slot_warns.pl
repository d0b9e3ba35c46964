# When all of max_worker_processes are in use, a commit succeeds with a warning that says so, once a
# minute a session; the request is delivered by a CALL, the next commit, or the launcher.

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

# ---- not preloaded: one slot, which PostgreSQL's own logical replication launcher takes ----

my $node = Workers::start('plain', conf => "max_worker_processes = 1\n");
my ($ret, $out, $err) = $node->psql('postgres', "CREATE EXTENSION onesignal_cancel;\n" . $api->setup_sql('clinic'));
is($ret, 0, 'the extension and a server can be created');

my @ids = map { $api->schedule } 1 .. 5;
my $insert = sub { Workers::insert_sql($api, @_) };
($ret, $out, $err) = $node->psql('postgres', $insert->($ids[0]) . "\n" . $insert->($ids[1]) . "\n" . $insert->($ids[2]),
    extra_params => [ '-v', 'VERBOSITY=verbose' ]);
is($ret, 0, 'commits succeed without a worker slot');
my $warnings = () = $err =~ /WARNING: /g;
is($warnings, 1, 'with one warning for several commits');
like($err, qr/WARNING:  53400: .*HINT:  .*max_worker_processes/s, 'which names max_worker_processes');
is(Workers::state($node, 'postgres', $ids[0]), 'pending', 'the requests are kept');
$node->safe_psql('postgres', 'CALL onesignal_cancel_deliver()');
ok(Workers::wait_for($node, 'postgres', [ @ids[ 0 .. 2 ] ], 'canceled'), 'and CALL delivers them');
unlike(slurp_file($node->logfile), qr/PANIC|FATAL/, 'nothing else happened');
$node->stop;

# ---- preloaded: a third slot, taken by one database, then free for the other ----

$node = Workers::start('preloaded', preload => 1, conf => "max_worker_processes = 3\nonesignal_cancel.worker_idle_timeout = '500ms'\n");
Workers::wait_for_no_worker($node);
$node->safe_psql('postgres', "CREATE DATABASE busy");
Workers::add_app($node, $_, $api) for 'busy', 'postgres';
Workers::wait_for_no_worker($node);
$api->fault(message => $ids[3], hold => 1);
Workers::request($node, 'busy', $api, $ids[3]);
ok(Workers::wait_for_worker($node, 'busy'), 'one database has the only worker slot');
($ret, $out, $err) = $node->psql('postgres', $insert->($ids[4]));
is($ret, 0, 'a commit in another one succeeds');
like($err, qr/WARNING: .*background worker/, 'with the warning');
$api->clear_faults;
ok(Workers::wait_for($node, 'postgres', $ids[4], 'canceled'), 'and the launcher has it delivered once there is a slot');
$node->stop;
done_testing();
