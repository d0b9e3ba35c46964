# A statement that cancels one message after the other notices a rotated key within a second or so,
# and a REVOKE or DROP at once: nothing that decides on access is kept for as long as a statement runs.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;

my $api = StandIn->new;
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;

my $key_file = $node->data_dir . '/clinic.key';

sub write_key
{
    my ($key) = @_;
    open(my $file, '>', "$key_file.new") or die "$key_file: $!";
    print $file "$key\n";
    close $file;
    rename "$key_file.new", $key_file or die "$key_file: $!";
}

write_key($api->api_key);
$node->safe_psql('postgres', "CREATE EXTENSION onesignal_cancel; CREATE ROLE app LOGIN;\n"
    . $api->setup_sql('clinic', key_file => $key_file, grant => 'app'));

# Cancels messages that do not exist, and reports each status (or SQLSTATE) that differs from the last:
# 404 with the right key, 401 or 403 with a wrong one. Ends with an error.
my $loop = <<"SQL";
DO \$\$
DECLARE
    last text := '';
    now text;
BEGIN
    LOOP
        SELECT status INTO now FROM onesignal_cancel('@{[ $api->app_id ]}', gen_random_uuid());
        IF now IS DISTINCT FROM last THEN
            RAISE NOTICE 'status %', now;
        END IF;
        last := now;
        PERFORM pg_sleep(0.01);
    END LOOP;
END \$\$
SQL

my ($session, $seen, $timer);

sub begin_loop
{
    $seen = '';
    $timer = IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default);
    $session = IPC::Run::start([ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres') . ' user=app', '-c', $loop ],
        '<', \'', '>', \my $rows, '2>', \$seen, $timer);
}

sub wait_for
{
    my ($pattern, $name) = @_;
    # Without this the loop would outlive its test: it ends only by what is waited for.
    pump_until($session, $timer, \$seen, $pattern) or do { $session->kill_kill; die "$name: it did not" };
    pass($name);
    $seen = '';
}

begin_loop();
wait_for(qr/status 404/, 'the loop runs with the key in the file');
my $new = $api->rotate;
wait_for(qr/status 40[13]/, 'the old key is refused');
write_key($new);
wait_for(qr/status 404/, 'the new one is used without any SQL');

unlink $key_file;
wait_for(qr/58P01/, 'a removed file is an error');
$session->finish;

write_key($new);
begin_loop();
wait_for(qr/status 404/, 'the loop runs again');
$node->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN SERVER clinic FROM app');
wait_for(qr/42501/, 'a REVOKE ends it');
$session->finish;

$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER clinic TO app');
begin_loop();
wait_for(qr/status 404/, 'the loop runs again');
$node->safe_psql('postgres', 'DROP SERVER clinic CASCADE');
wait_for(qr/42704/, 'a DROP SERVER ends it');
$session->finish;

$node->stop;
done_testing();
