# A key is where the user mapping says, and nowhere else: not in the server's log at its most talkative,
# in no message to a client, no view, no file of the cluster; and who may only use an app cannot get at it.
#
# log_statement is none, as it is by default. A key that is typed in SQL and accepted is where SQL's texts
# and the catalogs are, as any password is; so here all but one are in files or refused.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;

my $TYPED = 'os_v2_app_typedtypedtypedtyped';
my $WRONG = 'os_v2_app_wrongwrongwrongwrong';

my $api = StandIn->new(accept_any => 1);
my $key = $api->api_key;
my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/wrong", "$WRONG\n");
append_to_file("$dir/bad", "$key\n$key\n");

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', <<CONF);
log_min_messages = debug5
log_error_verbosity = verbose
log_statement = none
log_connections = on
log_disconnections = on
onesignal_cancel.max_retries = 1
onesignal_cancel.timeout = 400ms
onesignal_cancel.connect_timeout = 200ms
CONF
$node->start;

# All that clients were told
my $told = '';
sub ask
{
    my ($sql, %opts) = @_;
    my ($stdout, $stderr) = ('', '');
    $node->psql('postgres', $sql, stdout => \$stdout, stderr => \$stderr, on_error_stop => 0,
        extra_params => [ '-v', 'VERBOSITY=verbose', '-U', $opts{role} // $ENV{USER} // getpwuid($<) ]);
    $told .= "$stdout\n$stderr\n" if !$opts{untold};
    return "$stdout\n$stderr";
}

ask('CREATE EXTENSION onesignal_cancel; CREATE ROLE app LOGIN; CREATE ROLE owner LOGIN; CREATE ROLE mapped LOGIN;
    GRANT USAGE ON FOREIGN DATA WRAPPER onesignal TO owner; GRANT CREATE ON SCHEMA public TO app');

# A server of a new app, that the role "app" may use; returns the app
my $servers = 0;
sub new_app
{
    my ($url, %opts) = @_;
    my $app = $api->add_app(api_key => $key, accept_any => 1)->{app_id};
    ask($api->setup_sql('server_' . ++$servers, app => $app, url => $url, key_file => $opts{key_file} // $api->api_key_file, grant => 'app'));
    return $app;
}
sub call { my ($app) = @_; return "SELECT * FROM onesignal_cancel('$app', gen_random_uuid())" }

# For what is to be answered, or to be interrupted before it is given up: the machine may be busy.
my $PATIENTLY = "SET onesignal_cancel.timeout = '60s'; SET onesignal_cancel.connect_timeout = '60s'; ";

subtest 'a mapping that is refused' => sub {
    my $app = $api->app_id;
    ask("CREATE SERVER clinic FOREIGN DATA WRAPPER onesignal OPTIONS (app_id '$app')");
    my @refused = (
        (map { "CREATE USER MAPPING FOR PUBLIC SERVER clinic OPTIONS ($_)" }
            "api_key '$TYPED', api_key_file '/x'", "api_key '$TYPED', unknown 'x'", "api_key ' $TYPED'", "api_key E'$TYPED\\n'",
            "api_key_file '$TYPED'", "app_id '$TYPED'"),
        (map { "CREATE SERVER other FOREIGN DATA WRAPPER onesignal OPTIONS ($_)" }
            "app_id '$TYPED'", (map { "app_id '$app', $_" } "api_key '$TYPED'", "base_url 'https://$TYPED\@localhost'",
                "rate_limit '$TYPED'", "proxy '$TYPED'")),
        "ALTER SERVER clinic OPTIONS (ADD api_key '$TYPED')",
        "ALTER FOREIGN DATA WRAPPER onesignal OPTIONS (ADD api_key '$TYPED')");
    is(scalar(() = ask(join ";\n", @refused) =~ /^.*ERROR:  /mg), @refused, 'each of them');
    # The client, who has typed it, is told the context as well. At this level PostgreSQL 18 itself logs where it
    # looks for the library, with its context: not the second time.
    is(scalar(() = ask(join(";\n", "SELECT onesignal_cancel_fdw_validator(ARRAY['app_id=$app'], 'pg_foreign_server'::regclass)", map { "DO \$do\$ BEGIN EXECUTE \$sql\$$_\$sql\$; END \$do\$" } @refused), untold => 1) =~ /^.*ERROR:  /mg), @refused,
        'in a DO block, too');
    ask('ALTER SERVER clinic OWNER TO owner');
    like(ask($refused[0], role => 'owner'), qr/ERROR:  42501/, 'by an owner without rights on files');
    ask('DROP SERVER clinic');
};

subtest 'calls that fail' => sub {
    my $app = new_app($api->url);
    like(ask($PATIENTLY . call($app), role => 'app'), qr/^200\|t\|/m, 'one that does not');
    for my $fault ({ status => 403 }, { status => 404 }, { status => 429, headers => { 'Retry-After' => 0 } }, { status => 503, body => 'no' }, { kind => 'hang' },
        { kind => 'reset' }, { kind => 'truncate' }, { kind => 'echo' }, { kind => 'echo', status => 503 }, { kind => 'echo', status => 200 },
        { status => 302, headers => { Location => "https://localhost/$key" } }, { status => 400, body => qq({"errors":["$key","\\u006f${\ substr $key, 1}"]}) },
        { status => 400, body => qq({"errors":{"code":"$key","title":"$key"}}) }, { status => 500, body => "x$key" x 100 })
    {
        $api->fault(app => $app, %$fault);
        like(ask(call($app), role => 'app'), qr/^\d*\|[ft]\|/m, join ' ', %$fault);
        $api->clear_faults;
    }
    for my $mode (qw(no_accept close rst garbage endless_headers not_http truncate))
    {
        like(ask(call(new_app($api->raw_server(mode => $mode)->url)), role => 'app'), qr/^\|f\|/m, $mode);
    }
    like(ask($PATIENTLY . call(new_app($api->raw_server(mode => 'echo_status')->url)), role => 'app'), qr/^502\|f\|/m, 'a status line with the key');
    like(ask(call(new_app($api->self_signed_url)), role => 'app'), qr/^\|f\|/m, 'a certificate that nobody signed');
    like(ask(call(new_app('https://nowhere.invalid')), role => 'app'), qr/^\|f\|/m, 'a name that is not known');
    like(ask($PATIENTLY . call(new_app($api->url, key_file => "$dir/wrong")), role => 'app'), qr/^403\|f\|/m, 'a wrong key');
    like(ask(call(new_app($api->url, key_file => "$dir/$_")), role => 'app'), qr/ERROR:  58P01/, "key file: $_") for qw(bad missing);

    $api->fault(app => $app, kind => 'hang');
    like(ask($PATIENTLY . 'SET statement_timeout = 100; ' . call($app), role => 'app'), qr/57014/, 'an interrupted call');
    like(ask("${PATIENTLY}SET statement_timeout = 300; SELECT * FROM onesignal_cancel_batch('$app', array_fill(gen_random_uuid(), '{100}'))",
            role => 'app'), qr/57014/, 'an interrupted batch');
};

subtest 'views, while calls are under way' => sub {
    my $app = new_app($api->url);
    $api->fault(app => $app, kind => 'hang');
    my $received = $api->received;
    my @sessions = map { $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'app' ]) } 1 .. 2;
    $_->query_safe($PATIENTLY =~ s/; $//r) for @sessions;
    my $pid = $sessions[0]->query_safe('SELECT pg_backend_pid()');
    $sessions[0]->query_until(qr/begun/, "\\echo begun\n" . call($app) . ";\n");
    $sessions[1]->query_until(qr/begun/, "\\echo begun\nSELECT * FROM onesignal_cancel_batch('$app', array_fill(gen_random_uuid(), '{100}'));\n");
    $api->wait_for_requests($received + 101);
    my @views = ('pg_stat_activity', 'pg_settings', 'pg_foreign_server', 'pg_user_mappings', 'pg_locks', 'pg_prepared_statements', 'pg_cursors',
        'pg_backend_memory_contexts', 'information_schema.foreign_server_options', 'information_schema.user_mapping_options', 'pg_db_role_setting');
    for my $role (getpwuid($<) . '', 'app', 'owner')
    {
        my $seen = ask(join(';', map { "SELECT v::text FROM $_ v" } @views), role => $role, untold => 1);
        like($seen, qr/server_1/, "as $role: something to see");
        unlike($seen, qr/\Q$key\E|\Q$WRONG\E|\Q$TYPED\E/, "as $role: but no key");
    }
    like(ask('SELECT query FROM pg_stat_activity'), qr/^SELECT \* FROM onesignal_cancel\('\Q$app\E', gen_random_uuid\(\)\)/m, 'the calls were there');
    ask("SELECT pg_log_backend_memory_contexts($pid)");
    $node->wait_for_log(qr/Grand total: \d+ bytes in \d+ blocks/);
    ask("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'app'");
    $_->{run}->finish for @sessions;
    $api->clear_faults;
};

subtest 'a role that has only USAGE' => sub {
    my $app = new_app($api->url);
    # One key in SQL, for the role "mapped": from here on the log may not be looked at for it.
    ask("CREATE USER MAPPING FOR mapped SERVER server_$servers OPTIONS (api_key 'os_v2_app_stored');
        GRANT USAGE ON FOREIGN SERVER server_$servers TO mapped");
    my $stored = qr/os_v2_app_stored/;
    my $tried = ask(join(";\n",
        'SELECT * FROM pg_user_mapping', 'SELECT * FROM pg_user_mappings', 'SELECT * FROM information_schema.user_mapping_options',
        "SELECT pg_read_file('" . $api->api_key_file . "')", "SELECT pg_read_binary_file('" . $api->api_key_file . "')",
        "SELECT lo_import('" . $api->api_key_file . "')", "COPY pg_temp.x FROM '" . $api->api_key_file . "'",
        "SELECT onesignal_cancel_fdw_validator(ARRAY['api_key=x'], 'pg_user_mapping'::regclass)",
        "CREATE USER MAPPING FOR app SERVER server_$servers OPTIONS (api_key_file '" . $api->api_key_file . "')",
        'SET ROLE mapped', 'SET ROLE owner'), role => 'app');
    is(scalar(() = $tried =~ /^.*ERROR:  42/mg), 9, 'is refused nearly all that it tries');
    unlike($tried, qr/\Q$key\E|$stored/, 'and sees no key');
    like(ask('SELECT umoptions FROM pg_user_mappings', role => 'mapped', untold => 1), $stored, 'a mapped role sees its own, as everywhere');
    # A mapping of its own, empty or not, shows nobody else's.
    like(ask("CREATE USER MAPPING FOR app SERVER server_$servers; " . call($app), role => 'app'),
        qr/42704: user mapping for role "app" on server "\w+" has no valid API key/, 'its own mapping brings no other key');
    ask("CREATE SERVER mine FOREIGN DATA WRAPPER onesignal OPTIONS (app_id '$app')", role => 'owner');
    unlike(ask(call($app) . '; SELECT * FROM pg_user_mappings', role => 'owner'), qr/\Q$key\E|$stored/, 'nor does a server of its own');
};

my $log = slurp_file($node->logfile);
for ([ 'in use', $key ], [ 'wrong', $WRONG ], [ 'typed and refused', $TYPED ])
{
    my ($name, $secret) = @$_;
    # Half of a key is a secret, too.
    my $half = substr $secret, 0, length($secret) / 2;
    is(scalar(() = $told =~ /\Q$half\E/g), 0, "no client was told the key: $name");
    is(scalar(() = $log =~ /\Q$half\E/g), 0, "the log has no key: $name");
}
cmp_ok(scalar(() = $log =~ /DEBUG:  /g), '>', 1000, 'although it has a lot');
cmp_ok(scalar(() = $log =~ /ERROR:  /g), '>', 20, 'and errors');
like($log, qr/STATEMENT:  SELECT \* FROM onesignal_cancel/, 'with their statements');

$node->stop;
my $found = qx{grep -rlaF -e '$key' -e '$WRONG' -e '$TYPED' '${\ $node->data_dir}'};
is($found, '', 'no file of the cluster has one');
isnt(qx{grep -rlaF os_v2_app_stored '${\ $node->data_dir}'}, '', 'but for the one that SQL stored');

done_testing();
