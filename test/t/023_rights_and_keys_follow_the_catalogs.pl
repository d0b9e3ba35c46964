# Three roles: an administrator who may create servers, an application with USAGE, a stranger. Who may
# cancel, and with which key, is what the catalogs say at that moment, in sessions too that were open
# before it changed. The stand-in tells which key arrived. test/sql/access.sql has the messages.

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
$node->append_conf('postgresql.conf', "onesignal_cancel.max_retries = 0\n");
my $proxy = $api->raw_server(mode => 'answer');
{
    local $ENV{http_proxy} = $proxy->url;
    $node->start;
}
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sql(<<'SQL');
CREATE EXTENSION onesignal_cancel;
CREATE ROLE admin LOGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER onesignal TO admin;
CREATE ROLE app LOGIN;
CREATE ROLE stranger LOGIN;
CREATE ROLE clerks;
SQL

# One session a role, open all the time
my %session = map { $_ => $node->background_psql('postgres', on_error_stop => 0,
        extra_params => [ '-U', $_, '-v', 'VERBOSITY=verbose' ]) } qw(admin app stranger);

# What a role's session says: rows, or SQLSTATE and message
sub say_as
{
    my ($role, $sql) = @_;
    my $session = $session{$role};
    $session->{stderr} = '';
    my $got = $session->query($sql);
    my @errors = map { s/^psql:[^:]*:\d+: //r } $session->{stderr} =~ /(?:ERROR|FATAL):  (\w{5}: [^\n]*)/g;
    $session->{stderr} = '';
    return join "\n", @errors, grep { $_ ne '' } $got;
}

# "200 with key right": what came of a call, and which key the stand-in saw
sub outcome
{
    my ($role, $sql) = @_;
    my $seen = $api->received;
    my $got = say_as($role, $sql // "SELECT status FROM onesignal_cancel('$app', gen_random_uuid())");
    return $got if $api->received == $seen;
    return "$got, key " . ($api->requests)[-1]{key};
}

my ($WELL, $WRONG) = ('200, key right', '403, key wrong');
my $NO_SERVER = qq(42704: no server for OneSignal app "$app");
my $NO_USAGE = '42501: permission denied for foreign server clinic';

my $options = "(app_id '$app', base_url '" . $api->url . "', ca_file '" . $api->ca . "')";
my $right = "OPTIONS (api_key '" . $api->api_key . "')";
my $wrong = "OPTIONS (api_key 'os_v2_app_wrong')";

# Step by step: what is done by a superuser in another session, and what the three get then
for (
    [ 'nothing is there', 'SELECT', ($NO_SERVER) x 3 ],
    [ 'a server', "CREATE SERVER clinic FOREIGN DATA WRAPPER onesignal OPTIONS $options", ($NO_USAGE) x 3 ],
    [ 'USAGE for one', 'GRANT USAGE ON FOREIGN SERVER clinic TO app', $NO_USAGE,
        '42704: no user mapping for role "app" or PUBLIC on server "clinic"', $NO_USAGE ],
    [ "an owner has USAGE", 'ALTER SERVER clinic OWNER TO admin', '42704: no user mapping for role "admin" or PUBLIC on server "clinic"',
        '42704: no user mapping for role "app" or PUBLIC on server "clinic"', $NO_USAGE ],
    [ 'a mapping for PUBLIC', "CREATE USER MAPPING FOR PUBLIC SERVER clinic $right", $WELL, $WELL, $NO_USAGE ],
    [ 'one of its own', "CREATE USER MAPPING FOR app SERVER clinic $wrong", $WELL, $WRONG, $NO_USAGE ],
    [ 'which changes', "ALTER USER MAPPING FOR app SERVER clinic OPTIONS (SET api_key '" . $api->api_key . "')", $WELL, $WELL, $NO_USAGE ],
    [ 'is emptied', 'ALTER USER MAPPING FOR app SERVER clinic OPTIONS (DROP api_key)', $WELL,
        '42704: user mapping for role "app" on server "clinic" has no valid API key', $NO_USAGE ],
    [ 'and dropped', 'DROP USER MAPPING FOR app SERVER clinic', $WELL, $WELL, $NO_USAGE ],
    [ 'USAGE revoked', 'REVOKE USAGE ON FOREIGN SERVER clinic FROM app', $WELL, $NO_USAGE, $NO_USAGE ],
    [ 'USAGE for a group', 'GRANT USAGE ON FOREIGN SERVER clinic TO clerks; GRANT clerks TO app', $WELL, $WELL, $NO_USAGE ],
    [ 'which it leaves', 'REVOKE clerks FROM app', $WELL, $NO_USAGE, $NO_USAGE ],
    [ 'USAGE for everybody', 'GRANT USAGE ON FOREIGN SERVER clinic TO PUBLIC', $WELL, $WELL, $WELL ],
    [ 'another address', "ALTER SERVER clinic OPTIONS (SET base_url '" . $api->self_signed_url . "')", '', '', '' ],
    [ 'the right one again', "ALTER SERVER clinic OPTIONS (SET base_url '" . $api->http1_url . "')", $WELL, $WELL, $WELL ],
    [ 'another app', "ALTER SERVER clinic OPTIONS (SET app_id '00000000-0000-4000-a000-000000000000')", ($NO_SERVER) x 3 ],
    [ 'the right one again', "ALTER SERVER clinic OPTIONS (SET app_id '$app')", $WELL, $WELL, $WELL ],
    [ 'a second server', "CREATE SERVER second FOREIGN DATA WRAPPER onesignal OPTIONS $options;
            CREATE USER MAPPING FOR PUBLIC SERVER second $wrong; GRANT USAGE ON FOREIGN SERVER second TO app",
        $WELL, qq(42710: more than one server for OneSignal app "$app" has a user mapping for PUBLIC: "clinic", "second"), $WELL ],
    [ "the role's own decides", "CREATE USER MAPPING FOR app SERVER second $wrong", $WELL, $WRONG, $WELL ],
    [ 'the first goes', 'DROP SERVER clinic CASCADE', '42501: permission denied for foreign server second', $WRONG,
        '42501: permission denied for foreign server second' ],
    [ 'the wrapper goes', 'SET client_min_messages = error; DROP FOREIGN DATA WRAPPER onesignal CASCADE; SELECT', ($NO_SERVER) x 3 ])
{
    my ($name, $change, %expected);
    ($name, $change, @expected{qw(admin app stranger)}) = @$_;
    my ($result, undef, $stderr) = $node->psql('postgres', $change);
    # The extension owns the wrapper, which therefore stays.
    next if $name eq 'the wrapper goes' && like($stderr, qr/cannot drop foreign-data wrapper onesignal because extension/, $name);
    is($result, 0, "$name: done") or diag($stderr);
    is(outcome($_), $expected{$_}, "$name: $_") for qw(admin app stranger);
}
sql('DROP SERVER second CASCADE');

subtest 'within a transaction' => sub {
    sql($api->setup_sql('clinic', grant => 'app'));
    my $call = "SELECT status FROM onesignal_cancel('$app', gen_random_uuid())";
    is(outcome('app', "BEGIN; $call"), $WELL, 'begun');
    sql('REVOKE USAGE ON FOREIGN SERVER clinic FROM app');
    is(outcome('app', $call), $NO_USAGE, 'a REVOKE takes effect');
    say_as('app', 'ROLLBACK');
    sql('GRANT USAGE ON FOREIGN SERVER clinic TO app');
    is(outcome('app', $call), $WELL, 'and so does a GRANT');
    # Within one statement: the second call comes after what the first has waited for.
    say_as('app', 'CREATE TEMP TABLE calls AS SELECT generate_series(1, 200) AS i');
    $api->fault(app => $app, delay => 50);
    my $seen = $api->received;
    my $psql = $session{app};
    $psql->query_until(qr/begun/, "\\echo begun\nSELECT count(*) FROM calls, LATERAL onesignal_cancel('$app', md5(i::text)::uuid);\n");
    $api->wait_for_requests($seen + 2);
    sql('REVOKE USAGE ON FOREIGN SERVER clinic FROM app');
    is(say_as('app', ''), $NO_USAGE, 'in the middle of a statement');
    $api->clear_faults;
    sql('DROP SERVER clinic CASCADE');
};

subtest 'the current user counts' => sub {
    sql("CREATE SERVER clinic FOREIGN DATA WRAPPER onesignal OPTIONS $options;
        CREATE USER MAPPING FOR app SERVER clinic $right;
        CREATE USER MAPPING FOR stranger SERVER clinic $wrong;
        GRANT USAGE ON FOREIGN SERVER clinic TO app, stranger;
        GRANT app TO stranger;
        CREATE FUNCTION cancel_for_me(id uuid) RETURNS integer LANGUAGE sql SECURITY DEFINER
            AS \$\$ SELECT status FROM public.onesignal_cancel('$app', id) \$\$;
        ALTER FUNCTION cancel_for_me OWNER TO app;
        CREATE FUNCTION cancel_as_i_am(id uuid) RETURNS integer LANGUAGE sql
            AS \$\$ SELECT status FROM public.onesignal_cancel('$app', id) \$\$;
        ALTER FUNCTION cancel_as_i_am OWNER TO app");
    is(outcome('stranger'), $WRONG, 'a member uses its own key, not its group\'s');
    is(outcome('stranger', 'SELECT cancel_for_me(gen_random_uuid())'), $WELL, 'SECURITY DEFINER: the owner\'s');
    is(outcome('stranger', 'SELECT cancel_as_i_am(gen_random_uuid())'), $WRONG, 'SECURITY INVOKER: the caller\'s');
    is(outcome('stranger', "SET ROLE app; SELECT status FROM onesignal_cancel('$app', gen_random_uuid()); RESET ROLE"), $WELL, 'SET ROLE');
    is(outcome('stranger'), $WRONG, 'and RESET ROLE');
    sql('DROP USER MAPPING FOR stranger SERVER clinic');
    is(outcome('stranger'), '42704: no user mapping for role "stranger" or PUBLIC on server "clinic"', 'a group\'s mapping is not its members\'');
};

subtest 'a role that is dropped' => sub {
    sql('CREATE ROLE leaver LOGIN; GRANT USAGE ON FOREIGN SERVER clinic TO PUBLIC; CREATE USER MAPPING FOR PUBLIC SERVER clinic ' . $right);
    $session{leaver} = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'leaver', '-v', 'VERBOSITY=verbose' ]);
    is(outcome('leaver'), $WELL, 'before');
    sql('DROP ROLE leaver');
    like(outcome('leaver'), qr/^42501: role with OID \d+ does not exist$/, 'after');
};

# Only superusers say where requests, and keys with them, go.
subtest 'a request cannot be redirected' => sub {
    my $denied = sub { my ($option) = @_; return qq(42501: permission denied to set option "$option") };
    my %values = (base_url => 'https://evil.example', ca_file => '/tmp/ca.pem', proxy => 'http://evil.example:3128');
    sql('ALTER SERVER clinic OWNER TO admin');
    for my $option (sort keys %values)
    {
        is(say_as('admin', "CREATE SERVER mine FOREIGN DATA WRAPPER onesignal OPTIONS (app_id '$app', $option '$values{$option}')"),
            $denied->($option), "CREATE SERVER with $option");
        # Refused for what stays, too: the first of these options is named.
        my $has = $option ne 'proxy';
        is(say_as('admin', "ALTER SERVER clinic OPTIONS (" . ($has ? 'SET' : 'ADD') . " $option '$values{$option}')"),
            $denied->('base_url'), "an owner sets $option");
        is(say_as('admin', "ALTER SERVER clinic OPTIONS (DROP $option)"), $denied->($option eq 'base_url' ? 'ca_file' : 'base_url'),
            "an owner drops $option") if $has;
    }
    is(say_as('admin', "ALTER SERVER clinic OPTIONS (SET app_id '00000000-0000-4000-a000-000000000000')"), $denied->('base_url'),
        'an owner sends another app there');
    is(outcome('app'), $WELL, 'all is as it was');
    like(say_as('app', "ALTER SERVER clinic OPTIONS (SET base_url 'https://evil.example')"), qr/^42501: must be owner/, 'USAGE is not ownership');
    like(say_as('app', 'ALTER SERVER clinic OWNER TO app'), qr/^42501: must be owner/, 'nor leads there');

    # Nor by the environment, where the request would be readable on its way
    sql("ALTER SERVER clinic OPTIONS (SET base_url '" . $api->plain_url . "')");
    is(outcome('app'), $WELL, 'plain HTTP to a loopback address');
    is($proxy->connections, 0, 'does not go through a proxy that the environment names');

    # An owner may: a server of its own for the app, and then only with a key of its own.
    is(say_as('admin', "CREATE SERVER mine FOREIGN DATA WRAPPER onesignal OPTIONS (app_id '$app');
        ALTER SERVER mine OPTIONS (ADD rate_limit '10');
        CREATE USER MAPPING FOR admin SERVER mine"), '', 'a server of its own');
    is(say_as('admin', "ALTER USER MAPPING FOR admin SERVER mine OPTIONS (ADD api_key_file '" . $api->api_key_file . "')"),
        $denied->('api_key_file'), 'but no file of the server\'s as a key');
    is(outcome('admin'), '42704: user mapping for role "admin" on server "mine" has no valid API key', 'nor another server\'s key');
};

$_->quit for grep { defined } @session{qw(admin app stranger leaver)};
done_testing();
