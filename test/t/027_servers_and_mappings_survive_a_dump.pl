# What pg_dump writes can be restored and works. A dump by somebody who may not see the keys has user
# mappings without: those are accepted, and an error only when they are used.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;

my $api = StandIn->new(accept_any => 1);
my $other = $api->add_app(accept_any => 1);
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;
$node->safe_psql('postgres', 'CREATE ROLE dumper LOGIN IN ROLE pg_read_all_data; CREATE ROLE app LOGIN; CREATE SCHEMA tools; GRANT USAGE ON SCHEMA tools TO app; CREATE EXTENSION onesignal_cancel SCHEMA tools;'
    . $api->setup_sql('clinic', key_file => $api->api_key_file, grant => 'app', server_options => { rate_limit => '12.5' })
    . $api->setup_sql('pharmacy', app => $other->{app_id}, grant => 'app'));
my $options = "SELECT srvname, srvoptions FROM pg_foreign_server ORDER BY 1";
my $dumped = $node->safe_psql('postgres', $options);

# A copy of the database, made by that role's dump
sub copy
{
    my ($name, $role) = @_;
    my $file = PostgreSQL::Test::Utils::tempdir() . "/$name.sql";
    $node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-U', $role, '-f', $file ], "$name: pg_dump");
    $node->safe_psql('postgres', "CREATE DATABASE $name");
    $node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($name), '-f', $file ], "$name: restored");
    return slurp_file($file);
}

sub outcome
{
    my ($database, $app) = @_;
    my (undef, $stdout, $stderr) = $node->psql($database, "SELECT status FROM tools.onesignal_cancel('$app', gen_random_uuid())",
        extra_params => [ '-v', 'VERBOSITY=verbose', '-U', 'app' ]);
    return $stderr =~ /ERROR:  (\w{5}: [^\n]*)/ ? $1 : $stdout;
}

my $dump = copy('by_superuser', scalar getpwuid($<));
is($node->safe_psql('by_superuser', $options), $dumped, 'by a superuser: the servers');
is(outcome('by_superuser', $api->app_id), 200, 'by a superuser: with a key file');
is(outcome('by_superuser', $other->{app_id}), 200, 'by a superuser: with a key');
unlike($dump, qr/\Q${\ $api->api_key}\E/, 'a key file\'s content is not dumped');
like($dump, qr/\Q$other->{api_key}\E/, 'a key in SQL is, as any password of a user mapping');

$dump = copy('by_dumper', 'dumper');
is($node->safe_psql('by_dumper', $options), $dumped, 'by another: the servers');
like($dump, qr/^CREATE USER MAPPING FOR public SERVER clinic;$/mi, 'by another: an empty mapping');
unlike($dump, qr/\Q$other->{api_key}\E|api_key/, 'by another: no key');
is(outcome('by_dumper', $api->app_id), '42704: user mapping for PUBLIC on server "clinic" has no valid API key', 'which is an error when it is used');
$node->safe_psql('by_dumper', "ALTER USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (ADD api_key_file '" . $api->api_key_file . "')");
is(outcome('by_dumper', $api->app_id), 200, 'until the key is there');

$node->safe_psql('by_dumper', 'DROP SERVER clinic CASCADE; DROP SERVER pharmacy CASCADE; DROP EXTENSION onesignal_cancel');
pass('and all of it can be dropped');

done_testing();
