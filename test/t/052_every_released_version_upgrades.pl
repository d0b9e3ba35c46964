# A database with rows pending, from each released version to this one: nothing of it is lost, and the extension is then
# what a new installation has. A released version is one whose install script is there beside this version's.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;
use Workers;

# Everything that belongs to the extension, as its catalogs define it.
my $OBJECTS = <<'SQL';
SELECT pg_describe_object(d.classid, d.objid, 0) || E'\t' || coalesce(
    (SELECT pg_get_functiondef(oid) || coalesce(proacl::text, '') FROM pg_proc WHERE d.classid = 'pg_proc'::regclass AND oid = d.objid),
    (SELECT coalesce(relacl::text, '') || coalesce(pg_get_viewdef(oid), '')
            || coalesce((SELECT string_agg(format('%s %s %s %s', attname, format_type(atttypid, atttypmod), attnotnull,
                            (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum)), ', ' ORDER BY attnum)
                     FROM pg_attribute WHERE attrelid = r.oid AND attnum > 0 AND NOT attisdropped), '')
            || coalesce((SELECT string_agg(pg_get_constraintdef(oid), ', ' ORDER BY conname) FROM pg_constraint WHERE conrelid = r.oid), '')
            || coalesce((SELECT string_agg(pg_get_indexdef(indexrelid), ', ' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = r.oid), '')
            || coalesce((SELECT string_agg(pg_get_triggerdef(oid), ', ' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = r.oid), '')
     FROM pg_class r WHERE d.classid = 'pg_class'::regclass AND oid = d.objid),
    (SELECT string_agg(enumlabel, ' ' ORDER BY enumsortorder) FROM pg_enum WHERE d.classid = 'pg_type'::regclass AND enumtypid = d.objid),
    '') || E'\t' || coalesce(obj_description(d.objid, d.classid::regclass::name), '')
FROM pg_depend AS d JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
WHERE e.extname = 'onesignal_cancel' ORDER BY 1
SQL

my $api = StandIn->new;
my $node = Workers::start('main');
my $pairs = $node->safe_psql('postgres', 'SELECT v.version, a.default_version FROM pg_available_extension_versions AS v'
      . ' JOIN pg_available_extensions AS a USING (name) WHERE v.name = \'onesignal_cancel\' ORDER BY 1');
note($pairs);
# From this version to itself there is no upgrade, but all that follows holds.
for (split /\n/, $pairs)
{
    my ($from, $to) = split /\|/;
    my $database = "from_$from";
    my ($asked, $kept) = map { $api->schedule } 1 .. 2;
    $node->safe_psql('postgres', qq(CREATE DATABASE "$database"));
    $node->safe_psql($database, "SET log_min_messages = error; CREATE EXTENSION onesignal_cancel VERSION '$from';\n" . $api->setup_sql('clinic'));
    $node->append_conf('postgresql.conf', 'onesignal_cancel.background_delivery = off');
    $node->reload;
    $node->safe_psql($database, Workers::insert_sql($api, $asked) . "INSERT INTO onesignal_message (message_id, app_id) VALUES ('$kept', '" . $api->app_id . "')");
    my $rows = $node->safe_psql($database, 'SELECT * FROM onesignal_message ORDER BY message_id');
    $node->safe_psql($database, "ALTER EXTENSION onesignal_cancel UPDATE TO '$to'");
    is($node->safe_psql($database, 'SELECT * FROM onesignal_message ORDER BY message_id'), $rows, "$from: the rows are what they were");
    $node->safe_psql('postgres', 'CREATE DATABASE anew');
    $node->safe_psql('anew', 'SET log_min_messages = error; CREATE EXTENSION onesignal_cancel');
    is($node->safe_psql($database, $OBJECTS), $node->safe_psql('anew', $OBJECTS), 'the objects are those of a new installation');
    $node->safe_psql($database, 'CALL onesignal_cancel_deliver()');
    is(Workers::state($node, $database, $asked), 'canceled', 'what was pending is delivered');
    is(Workers::state($node, $database, $kept), 'scheduled', 'and what was not stays');
    $node->safe_psql('postgres', qq(DROP DATABASE anew; DROP DATABASE "$database"));
}
$node->stop;
done_testing();
