# api_key_file: rotated without SQL it is used within a second; whatever else is found in its place is
# an error that neither hangs nor quotes it. test/sql/access.sql has what a file may contain.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use StandIn;
use Test::More;
use Time::HiRes qw(sleep time);

my $api = StandIn->new(accept_any => 1);
my $app = $api->app_id;
my $dir = PostgreSQL::Test::Utils::tempdir();
my $file = "$dir/clinic.key";
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION onesignal_cancel; CREATE ROLE app LOGIN;'
    . $api->setup_sql('clinic', key_file => $file, grant => 'app'));

sub write_file
{
    my ($content, $name) = @_;
    $name //= $file;
    open my $handle, '>', "$name.new" or die "$name: $!";
    binmode $handle;
    print $handle $content;
    close $handle;
    rename "$name.new", $name or die "$name: $!";
}

sub remove { unlink $file or rmdir $file }

my $session = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'app', '-v', 'VERBOSITY=verbose' ]);

# What an open session of the application's gets: a status, or SQLSTATE and message
sub outcome
{
    $session->{stderr} = '';
    my $got = $session->query("SELECT status FROM onesignal_cancel('$app', gen_random_uuid())");
    ($got) = $session->{stderr} =~ /ERROR:  (\w{5}: [^\n]*)/ if $session->{stderr} ne '';
    $session->{stderr} = '';
    return $got;
}

sub problem { my ($reason) = @_; return qq(58P01: could not read the API key file of the user mapping for PUBLIC on server "clinic": $reason) }

is(outcome(), problem('No such file or directory'), 'not there yet');
write_file($api->api_key . "\n");
is(outcome(), 200, 'there, and used at once');

# Rotation: the old key is dead the moment that the new one is there. The best of a few tries, for the
# machine may be busy.
my $best;
for (1 .. 5)
{
    is(outcome(), 200, 'the old key is in use');
    my $since = time;
    write_file($api->rotate . "\n");
    my $got;
    sleep 0.02 while ($got = outcome()) == 403 && time < $since + 60;
    is($got, 200, 'the new one is, with no SQL');
    my $took = time - $since;
    $best = $took if !defined $best || $took < $best;
    last if $best < 1.1;
}
cmp_ok($best, '<', 1.1, 'within a second');

# What else may be in its place, by [ name, how it gets there, what is said ]; 200: all is well. Only
# the first has to wait until the good key is read again: a failure is not remembered.
my $key = $api->api_key;
for (
    [ 'gone', sub { }, problem('No such file or directory') ],
    [ 'unreadable', sub { write_file("$key\n"); chmod 0000, $file }, problem('Permission denied') ],
    [ 'a directory', sub { mkdir $file }, problem('not a regular file') ],
    [ 'a FIFO', sub { POSIX::mkfifo($file, 0600) }, problem('not a regular file') ],
    [ 'a socket', sub { require IO::Socket::UNIX; IO::Socket::UNIX->new(Local => $file, Listen => 1) or die $! }, problem('No such device or address') ],
    [ 'a device', sub { symlink '/dev/zero', $file }, problem('not a regular file') ],
    [ 'a terminal', sub { symlink '/dev/tty', $file }, problem('No such device or address') ],
    [ 'a symbolic link to itself', sub { symlink $file, $file }, problem('Too many levels of symbolic links') ],
    [ '5 kB', sub { write_file('k' x 5000) }, problem('larger than 4 kB') ],
    [ 'a sparse terabyte', sub { write_file($key); truncate $file, 1 << 40 }, problem('larger than 4 kB') ],
    [ 'empty', sub { write_file('') }, problem('it must contain exactly one line of printable ASCII without spaces') ],
    [ 'binary', sub { write_file(join '', map { chr } 0 .. 255) }, problem('it must contain exactly one line of printable ASCII without spaces') ],
    [ 'two lines', sub { write_file("$key\nX-Injected: $key\n") }, problem('it must contain exactly one line of printable ASCII without spaces') ],
    [ 'repaired, by a symbolic link, as mounted secrets are', sub { write_file("$key\n", "$file.real"); symlink "$file.real", $file }, 200 ],
    [ 'ends as on Windows', sub { write_file("$key\r\n") }, 200 ])
{
    my ($name, $make, $expected) = @$_;
    remove();
    my $kept = $make->();
    my $until = time + 60;
    my $got;
    sleep 0.05 while ($got = outcome()) ne $expected && time < $until;
    is($got, $expected, $name);
}

my $log = slurp_file($node->logfile);
unlike($log, qr/\Q$key\E/, 'no key in the log');
unlike($log, qr/X-Injected/, 'nothing else of a file');
like($log, qr/DETAIL:  The file is "\Q$file\E"/, 'which says where the file is');

$session->quit;
done_testing();
