# Every block of code in README.md, in its order, as a new user pastes it: on a fresh cluster, with the stand-in.
#
#	```sql					run by psql as a superuser; any error or warning fails
#	```sh					run by bash
#	```python				run by python3; left out where there is no psycopg2
#	```						after one of these: what it shows, once it does (a delivery may still run)
#	```conf					appended to postgresql.conf, and the server is restarted
#	<!-- database: name -->	on the line before a block: it runs there, and not in clinic
#	<!-- not run: why -->	on the line before a block: it is left out
#
# What the README cannot know is put in: where the stand-in and the server are, and a folder for the key file. The
# reference must name what the extension has, the messages in "Troubleshooting" must be the ones of the sources, and links
# must lead somewhere.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;

my $root = "$FindBin::RealBin/../..";
my $readme = slurp_file("$root/README.md");
my ($app) = $readme =~ /app_id '([-0-9a-f]{36})'/;
my $api = StandIn->new(accept_any => 1, app_id => $app);
my $node = PostgreSQL::Test::Cluster->new('readme');
$node->init;
my ($socket, $port) = ($node->host, $node->port);
# pg_cron is what the README takes for granted.
my $has_cron = !$ENV{NO_PG_CRON};
$node->append_conf('postgresql.conf', "max_prepared_transactions = 5\n");
$node->append_conf('postgresql.conf', <<CONF) if $has_cron;
shared_preload_libraries = 'pg_cron'
cron.database_name = 'clinic'
cron.host = '$socket'
CONF
$node->start;
$node->safe_psql('postgres', "CREATE DATABASE $_") for 'clinic', $readme =~ /^<!-- database: (\w+) -->$/mg;
$node->safe_psql('clinic', 'CREATE EXTENSION pg_cron') if $has_cron;

my $key_file = PostgreSQL::Test::Utils::tempdir() . '/clinic.key';
PostgreSQL::Test::Utils::append_to_file($key_file, $api->api_key . "\n");
chmod 0600, $key_file or BAIL_OUT("$key_file: $!");

# What the programs of a user find in their surroundings.
@ENV{qw(PGHOST PGPORT ONESIGNAL_API_KEY CURL_CA_BUNDLE SSL_CERT_FILE)} = ($socket, $port, $api->api_key, $api->ca, $api->ca);
delete @ENV{grep { /^(?:https?|all)_proxy$/i } keys %ENV};

sub put_in
{
    my ($text) = @_;
    my ($url, $ca) = ($api->url, $api->ca);
    $text =~ s/FOREIGN DATA WRAPPER onesignal OPTIONS \(/$&base_url '$url', ca_file '$ca', /g;
    $text =~ s{https://api\.onesignal\.com}{$url}g;
    $text =~ s{/etc/postgresql/clinic\.key}{$key_file}g;
    $text =~ s{host 'cancels\.internal'}{host '$socket', port '$port'}g;
    return $text;
}

# { line, language, text, database, why: of one that is not run }
sub blocks
{
    my ($text) = @_;
    my (@blocks, $block, %next);
    my $number = 0;
    for my $line (split /^/, $text)
    {
        $number++;
        if ($block && $line =~ /^```\s*$/) { push @blocks, $block; $block = undef }
        elsif ($block) { $block->{text} .= $line }
        elsif ($line =~ /^```(\w*)\s*$/) { $block = { line => $number, language => $1, text => '', %next }; %next = () }
        elsif ($line =~ /^<!-- not run: (.*) -->$/) { $next{why} = $1 }
        elsif ($line =~ /^<!-- database: (\w+) -->$/) { $next{database} = $1 }
        elsif ($line =~ /\S/) { BAIL_OUT("README.md, line $number: no block follows the comment") if %next }
    }
    BAIL_OUT('README.md: a block has no end') if $block;
    return @blocks;
}

my %command = (
    # As psql shows it to a person.
    sql => sub { [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-P', 'footer=off', '-d', $_[0]->{database} // 'clinic' ] },
    sh => sub { [ 'bash', '-euo', 'pipefail' ] },
    python => sub { [ '/usr/bin/python3', '-' ] });

sub shown
{
    my ($block) = @_;
    my ($in, $out, $err) = (put_in($block->{text}), '', '');
    my $ok = IPC::Run::run($command{ $block->{language} }->($block), '<', \$in, '>', \$out, '2>', \$err);
    return ($ok, $out, $err);
}

sub can_run
{
    my ($block) = @_;
    return 0 if !$has_cron && $block->{text} =~ /\bcron\./;
    return $block->{language} ne 'python'
      || IPC::Run::run([ '/usr/bin/python3', '-c', 'import psycopg2' ], '>', \my $out, '2>', \my $err);
}

sub tidy { my ($text) = @_; $text =~ s/[ \t]+$//mg; $text =~ s/\n+\z/\n/; return $text }

sub run_block
{
    my ($name, $block, $before) = @_;
    if (defined $block->{why})
    {
        note("$name: not run: $block->{why}");
    }
    elsif ($command{ $block->{language} })
    {
      SKIP: {
            skip("$name: there is no psycopg2, or no pg_cron", 2) if !can_run($block);
            my ($ok, undef, $err) = shown($block);
            ok($ok, "$name runs") or diag($err);
            unlike($err, qr/WARNING/, "$name warns of nothing");
        }
    }
    elsif ($block->{language} eq 'conf')
    {
        my $conf = $block->{text};
        # What was preloaded before stays so.
        $conf =~ s/shared_preload_libraries = '/$&pg_cron, / if $has_cron;
        $node->append_conf('postgresql.conf', $conf);
        $node->restart;
        pass("$name: the server starts with it");
    }
    elsif ($block->{language} eq '' && $before && $command{ $before->{language} })
    {
        my ($want, $is) = tidy($block->{text});
        for (1 .. $PostgreSQL::Test::Utils::timeout_default)
        {
            $is = tidy((shown($before))[1]);
            last if $is eq $want;
            select undef, undef, undef, 0.5;
        }
        is($is, $want, "$name is what is shown");
    }
    else
    {
        fail("$name: the test does not know what to do with it");
    }
}

my $before;
for my $block (blocks($readme))
{
    run_block("README.md, line $block->{line}", $block, $before);
    $before = $block;
}

# What the programs above have scheduled and canceled, and what came through postgres_fdw.
$node->poll_query_until('clinic', "SELECT count(*) = 0 FROM onesignal_message WHERE state = 'pending'");
is($node->safe_psql('clinic', "SELECT count(*) FROM onesignal_message WHERE state <> 'canceled'"), '0', 'all that README.md cancels is canceled');
is($node->safe_psql('clinic', "SELECT requested_by FROM onesignal_message WHERE reason = 'from the hosted database'"), 'clinic_app',
    'a request comes from the hosted database');

# Its trigger for rescheduling, with an appointment whose first message is scheduled after it was stored.
my ($first, $second) = map { $node->safe_psql('clinic', 'SELECT gen_random_uuid()') } 1 .. 2;
my $requested = "SELECT string_agg(message_id::text, ' ') FROM onesignal_message WHERE message_id IN ('$first', '$second')";
$node->safe_psql('clinic', "INSERT INTO appointments (id, status) VALUES (1001, 'booked'); UPDATE appointments SET reminder_id = '$first' WHERE id = 1001");
is($node->safe_psql('clinic', $requested), '', 'storing the id of the first message cancels nothing');
$node->safe_psql('clinic', "UPDATE appointments SET reminder_id = '$second' WHERE id = 1001");
is($node->safe_psql('clinic', $requested), $first, 'storing the id of another cancels the first');
$node->safe_psql('clinic', 'UPDATE appointments SET reminder_id = NULL WHERE id = 1001');
$node->poll_query_until('clinic', "SELECT count(*) = 2 FROM onesignal_message WHERE message_id IN ('$first', '$second') AND state = 'canceled'")
    or fail('taking the id away cancels the second');

# The same with text that may be blank, and in upper case.
my ($upper, $next) = map { uc $node->safe_psql('clinic', 'SELECT gen_random_uuid()') } 1 .. 2;
$node->safe_psql('clinic', <<SQL);
CREATE TABLE texts (reminder_id text, remind_at timestamptz);
CREATE TRIGGER cancel_rescheduled AFTER UPDATE OF reminder_id ON texts
    FOR EACH ROW WHEN (OLD.reminder_id ~ '\\S' AND lower(OLD.reminder_id) IS DISTINCT FROM lower(NEW.reminder_id))
    EXECUTE FUNCTION onesignal_cancel_trigger('reminder_id', 'clinic', 'remind_at');
INSERT INTO texts VALUES (E' \\t\\n\\x0b\\f\\r');
UPDATE texts SET reminder_id = '$upper';
UPDATE texts SET reminder_id = lower('$upper');
UPDATE texts SET reminder_id = '$next';
SQL
is($node->safe_psql('clinic', "SELECT string_agg(message_id::text, ' ') FROM onesignal_message WHERE message_id IN ('$upper', '$next')"), lc $upper,
    'a blank, or another spelling, cancels nothing');

my $late = $node->safe_psql('clinic', 'SELECT gen_random_uuid()');
$node->safe_psql('clinic', "INSERT INTO appointments (id, status) VALUES (1002, 'booked'); UPDATE appointments SET status = 'canceled' WHERE id = 1002; "
      . "UPDATE appointments SET reminder_id = '$late' WHERE id = 1002");
$node->poll_query_until('clinic', "SELECT count(*) = 1 FROM onesignal_message WHERE message_id = '$late' AND state = 'canceled'")
    or fail('an id that comes after the appointment was canceled');
my @moved = map { $node->safe_psql('clinic', 'SELECT gen_random_uuid()') } 1 .. 3;
$node->safe_psql('clinic', "INSERT INTO appointments (id, status, reminder_id) VALUES (1003, 'booked', '$moved[0]'); UPDATE appointments SET status = 'canceled' WHERE id = 1003; "
      . "UPDATE appointments SET reminder_id = '$moved[1]' WHERE id = 1003; UPDATE appointments SET status = 'canceled', reminder_id = '$moved[2]' WHERE id = 1003");
$node->poll_query_until('clinic', "SELECT count(*) = 3 FROM onesignal_message WHERE message_id IN ('$moved[0]', '$moved[1]', '$moved[2]') AND state = 'canceled'")
    or fail('the id of another one that comes after the appointment was canceled');

my ($reference) = $readme =~ /^## Reference\n(.*?)^## /ms;
my @named = split /\n/, $node->safe_psql('clinic', <<'SQL');
SELECT attname FROM pg_attribute WHERE attrelid IN ('onesignal_message'::regclass, 'onesignal_app'::regclass, 'onesignal_cancel_status'::regclass)
    AND attnum > 0 AND NOT attisdropped
UNION SELECT proname FROM pg_proc p, pg_depend d, pg_extension e
    WHERE d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.refobjid = e.oid AND d.deptype = 'e' AND extname = 'onesignal_cancel'
UNION SELECT name FROM pg_settings WHERE name LIKE 'onesignal_cancel.%'
SQL
cmp_ok(scalar(@named), '>', 50, 'the extension has names');
is(join(' ', grep { $reference !~ /`[^`]*\b\Q$_\E\b[^`]*`/ } @named), '', 'the reference names every column, function and setting');

# "%s" of a source is "..." in README.md.
my $sources = join '', map { slurp_file($_) } glob("$root/src/*.c $root/src/*.h");
$sources =~ s/"\s*\n\s*"//g;
$sources =~ s/%[-0-9]*[a-z]/.../g;
$sources =~ s/\\"/"/g;
my ($messages) = $readme =~ /^### Messages of the extension\n(.*?)^### /ms;
my @messages = $messages =~ /^\| `([^`]*)` \|/mg;
cmp_ok(scalar(@messages), '>', 15, 'README.md has messages');
is(join("\n", grep { index($sources, $_) < 0 } @messages), '', 'its messages are those of the sources');

# GitHub's names for headings.
my %heading;
(my $prose = $readme) =~ s/^```.*?^```//msg;
for my $heading ($prose =~ /^#+ (.*)$/mg)
{
    (my $slug = lc $heading) =~ s/[^-\w ]//g;
    $heading{ $slug =~ tr/ /-/r } = 1;
}
is(join(' ', grep { !$heading{$_} } $prose =~ /\]\(#([^)]*)\)/g), '', 'every link within README.md leads to a heading');
is(join(' ', grep { !-e "$root/$_" } $prose =~ /\]\(([^#):]+)\)/g), '', 'every link to a file leads to one');

$node->stop;
done_testing();
