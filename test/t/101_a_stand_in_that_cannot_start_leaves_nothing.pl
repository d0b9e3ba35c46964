# test/onesignal/start names what is missing, and takes away what it has made when it fails.

use strict;
use warnings;
use File::Basename qw(dirname);
use FindBin;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $programs = "$FindBin::RealBin/../onesignal";
my $folder = PostgreSQL::Test::Utils::tempdir();

# The end of start's message, and what is in the directory afterwards; "gone": the directory is not there.
sub fails
{
    my ($program, $dir, @options) = @_;
    my ($out, $err) = ('', '');
    ok(!IPC::Run::run([ $^X, $program, $dir, @options ], '<', \undef, '>', \$out, '2>', \$err), 'start fails');
    return ($err, -d $dir ? join(' ', sort map { s{.*/}{}r } glob("$dir/*")) : 'gone');
}

my ($said, $left) = fails("$programs/start", "$folder/new", '--memory', 'nonsense');
like($said, qr/^start: nginx failed:\n.*nonsense/, 'it says what nginx has said');
is($left, 'gone', 'a directory that it made is gone');

mkdir "$folder/mine" or BAIL_OUT($!);
PostgreSQL::Test::Utils::append_to_file("$folder/mine/note", "mine\n");
(undef, $left) = fails("$programs/start", "$folder/mine", '--memory', 'nonsense');
is($left, 'note', 'in a directory that was there only what was there is left');

{
    local $ENV{PATH} = '/nonexistent';
    local $ENV{NGINX} = '/bin/true';
    ($said, $left) = fails("$programs/start", "$folder/new");
    like($said, qr/^start: no openssl\. .*apt install openssl$/, 'it names the package that is missing');
    is($left, 'gone', 'nothing is left');
}

# As if lua-cjson were not installed.
system('cp', '-r', $programs, "$folder/programs") == 0 or BAIL_OUT('could not copy');
my $lua = slurp_file("$folder/programs/onesignal.lua");
$lua =~ s/local cjson = require "cjson"/error("module 'cjson' not found:")/ or BAIL_OUT('onesignal.lua does not begin as it should');
open(my $handle, '>', "$folder/programs/onesignal.lua") or BAIL_OUT($!);
print $handle $lua;
close $handle;
($said, $left) = fails("$folder/programs/start", "$folder/new");
like($said, qr/apt install lua-cjson$/, 'it names lua-cjson');
is($left, 'gone', 'nothing is left');

done_testing();
