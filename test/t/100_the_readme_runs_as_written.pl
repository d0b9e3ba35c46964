# Every block of code in README.md, in its order, as a new user pastes it: on a fresh cluster, with the stand-in.
#
#	```sql			run by psql as a superuser, in the database clinic; any error fails
#	```				after a block of SQL: what psql shows, once it does (a delivery may still run)
#	```conf			appended to postgresql.conf, and the server is restarted
#	```sh			run by bash
#	<!-- not run: why -->	on the line before a block: it is left out
#
# What the README cannot know is put in: where the stand-in is, and a folder for the key file.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;

my $readme = "$FindBin::RealBin/../../README.md";
my ($app) = slurp_file($readme) =~ /app_id '([-0-9a-f]{36})'/;
my $api = StandIn->new(accept_any => 1, app_id => $app);
my $node = PostgreSQL::Test::Cluster->new('readme');
$node->init;
my $socket = $node->host;
# pg_cron is what the README takes for granted.
$node->append_conf('postgresql.conf', <<CONF);
shared_preload_libraries = 'pg_cron'
cron.database_name = 'clinic'
cron.host = '$socket'
max_prepared_transactions = 5
CONF
$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE clinic');
$node->safe_psql('clinic', 'CREATE EXTENSION pg_cron');

my $folder = PostgreSQL::Test::Utils::tempdir();
my $key_file = "$folder/clinic.key";
PostgreSQL::Test::Utils::append_to_file($key_file, $api->api_key . "\n");
chmod 0600, $key_file or BAIL_OUT("$key_file: $!");

sub put_in
{
    my ($text) = @_;
    my ($url, $ca) = ($api->url, $api->ca);
    $text =~ s/FOREIGN DATA WRAPPER onesignal OPTIONS \(/$&base_url '$url', ca_file '$ca', /g;
    $text =~ s{/etc/postgresql/clinic\.key}{$key_file}g;
    return $text;
}

# { line, language, text, why: of one that is not run }
sub blocks
{
    my ($file) = @_;
    my (@blocks, $block, $why);
    open(my $from, '<', $file) or BAIL_OUT("$file: $!");
    while (my $line = <$from>)
    {
        if ($block && $line =~ /^```\s*$/) { push @blocks, $block; $block = undef }
        elsif ($block) { $block->{text} .= $line }
        elsif ($line =~ /^```(\w*)\s*$/) { $block = { line => $., language => $1, text => '', why => $why }; $why = undef }
        elsif ($line =~ /^<!-- not run: (.*) -->$/) { $why = $1 }
        elsif ($line =~ /\S/) { BAIL_OUT("README.md, line $.: no block follows \"not run\"") if $why }
    }
    BAIL_OUT('README.md: a block has no end') if $block;
    return @blocks;
}

sub shown
{
    my ($sql) = @_;
    # As psql shows it to a person.
    my ($in, $out, $err) = (put_in($sql), '', '');
    my $ok = IPC::Run::run([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-P', 'footer=off', '-d', $node->connstr('clinic') ], '<', \$in, '>', \$out, '2>', \$err);
    return ($ok, $out, $err);
}

sub tidy { my ($text) = @_; $text =~ s/[ \t]+$//mg; $text =~ s/\n+\z/\n/; return $text }

my $before;
for my $block (blocks($readme))
{
    my $name = "README.md, line $block->{line}";
    if (defined $block->{why})
    {
        note("$name: not run: $block->{why}");
    }
    elsif ($block->{language} eq 'sql')
    {
        my ($ok, undef, $err) = shown($block->{text});
        ok($ok, "$name runs") or diag($err);
        unlike($err, qr/WARNING/, "$name warns of nothing");
    }
    elsif ($block->{language} eq 'sh')
    {
        my ($out, $err) = ('', '');
        ok(IPC::Run::run([ 'bash', '-euo', 'pipefail', '-c', $block->{text} ], '>', \$out, '2>', \$err), "$name runs") or diag($err);
    }
    elsif ($block->{language} eq 'conf')
    {
        my $conf = $block->{text};
        # What was preloaded before stays so.
        $conf =~ s/shared_preload_libraries = '/$&pg_cron, /;
        $node->append_conf('postgresql.conf', $conf);
        $node->restart;
        pass("$name: the server starts with it");
    }
    elsif ($block->{language} eq '' && $before && $before->{language} eq 'sql')
    {
        my ($want, $is) = tidy($block->{text});
        for (1 .. $PostgreSQL::Test::Utils::timeout_default)
        {
            $is = tidy((shown($before->{text}))[1]);
            last if $is eq $want;
            select undef, undef, undef, 0.5;
        }
        is($is, $want, "$name is what is shown");
    }
    else
    {
        fail("$name: the test does not know what to do with it");
    }
    $before = $block;
}
$node->stop;
done_testing();
