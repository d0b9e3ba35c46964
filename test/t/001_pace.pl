# Pace, circuits and backoff: pure functions of time, tried by a program of their own
# (test/unit/pace.c), which needs no server and prints TAP.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use Test::More;
use Text::ParseWords qw(shellwords);

my $top = abs_path(dirname(__FILE__) . '/../..');
my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
my $dir = ($ENV{TESTDIR} || $top) . '/tmp_check';
my $program = "$dir/pace";

sub pg_config
{
	my ($what) = @_;
	chomp(my $value = qx{'$pg_config' --$what});
	die "$pg_config --$what failed" if $?;
	return $value;
}

my @compile = (
	shellwords($ENV{CC} || pg_config('cc')), qw(-g -Wall -Wextra -Werror),
	'-isystem', pg_config('includedir-server'), shellwords(pg_config('cppflags')),
	"-I$top/src", '-o', $program, "$top/test/unit/pace.c", "$top/src/pace.c", '-lm');

mkdir $dir unless -d $dir;
note("@compile");
unless (is(system(@compile), 0, 'it compiles without a server'))
{
	done_testing();
	exit 1;
}

open my $out, '-|', $program or die "could not run $program: $!";
my ($planned, $seen) = (0, 0);
while (my $line = <$out>)
{
	chomp $line;
	if ($line =~ /^(not )?ok \d+ - (.*)/)
	{
		$seen++;
		ok(!$1, $2);
	}
	elsif ($line =~ /^1\.\.(\d+)$/)
	{
		$planned = $1;
	}
	else
	{
		diag($line);
	}
}
close $out;
is($?, 0, 'it ends well');
ok($seen > 0 && $seen == $planned, 'and having run all its tests');

done_testing();
