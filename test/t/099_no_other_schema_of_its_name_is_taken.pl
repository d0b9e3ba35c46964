# Delivery names its tables in SQL, with their schema. Whoever owns that schema, as a database's owner owns "public", can
# rename it and put another one in its place while a statement waits for a lock: what is there must not run as the tables' owner.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

my $api = StandIn->new(accept_any => 1);
my $node = Workers::start('main');
$node->safe_psql('postgres', 'CREATE ROLE mallory LOGIN');
$node->safe_psql('postgres', 'CREATE DATABASE clinic OWNER mallory');
Workers::add_app($node, 'clinic', $api);
my $app = $api->app_id;
my $id = $node->safe_psql('clinic', 'SELECT gen_random_uuid()');

sub mallory { return $node->background_psql('clinic', on_error_stop => 0, extra_params => [ '-U', 'mallory' ]) }
my ($reader, $vacuum, $owner) = map { mallory() } 1 .. 3;

$owner->query_safe(<<SQL);
CREATE SCHEMA decoy;
CREATE FUNCTION decoy.become() RETURNS timestamptz LANGUAGE plpgsql AS \$\$
BEGIN
    RAISE LOG 'code of mallory runs as %', current_user;
    ALTER ROLE mallory SUPERUSER;
    RETURN NULL;
END \$\$;
CREATE VIEW decoy.onesignal_app AS SELECT '$app'::uuid AS app_id, decoy.become() AS paused_until, NULL::timestamptz AS resumed_at,
    NULL::timestamptz AS circuit_until, ''::name AS circuit_role, NULL::timestamptz AS pace_at, NULL::float8 AS pace;
SQL

# Whoever may use the schema can hold a weak lock, and the database's owner may vacuum: together they hold up all others.
$reader->query_safe('BEGIN; PREPARE reading AS SELECT * FROM public.onesignal_app;');
$vacuum->query_until(qr/begun/, "\\echo begun\nVACUUM FULL public.onesignal_app;\n");
ok($node->poll_query_until('clinic', "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"), 'a VACUUM FULL waits');
Workers::request($node, 'clinic', $api, $id);
ok($node->poll_query_until('clinic', "SELECT count(*) = 1 FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE NOT granted AND backend_type = 'onesignal_cancel worker'"), 'the worker waits behind it');
$owner->query_safe('BEGIN; ALTER SCHEMA public RENAME TO was_public; ALTER SCHEMA decoy RENAME TO public; COMMIT;');
$reader->query_safe('COMMIT');
ok($node->poll_query_until('clinic', "SELECT state = 'canceled' FROM was_public.onesignal_message"), 'the message is canceled');
unlike(slurp_file($node->logfile), qr/LOG:  code of mallory runs as/, 'nothing of the other schema is run');
is($node->safe_psql('clinic', "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'"), 'f', 'the owner of the schema is no superuser');
$_->quit for $reader, $vacuum, $owner;

# Somebody's statement may begin as delivery's do: the end of a transaction that failed can look at no catalog.
$node->psql('postgres', <<'SQL', on_error_stop => 0, stdout => \my $goes_on);
LOAD 'onesignal_cancel';
BEGIN;
SELECT 1 / 0;
/* statement of onesignal_cancel */ ROLLBACK;
SELECT 'it goes on';
SQL
is($goes_on, 'it goes on', 'a ROLLBACK that begins as statements of delivery do');
$node->stop;
done_testing();
