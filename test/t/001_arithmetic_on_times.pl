# Pace, circuits and backoff, pure functions of time, and the list of sockets: tried by programs of their own
# (test/unit), which need no server and print TAP.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use Test::More;
use Text::ParseWords qw(shellwords);

my $top = abs_path(dirname(__FILE__) . '/../..');
my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
my $dir = ($ENV{TESTDIR} || $top) . '/tmp_check';

sub pg_config
{
	my ($what) = @_;
	chomp(my $value = qx{'$pg_config' --$what});
	die "$pg_config --$what failed" if $?;
	return $value;
}

mkdir $dir unless -d $dir;

sub run_unit
{
	my ($name) = @_;
	my $program = "$dir/$name";
	my @compile = (
		shellwords($ENV{CC} || pg_config('cc')), qw(-g -Wall -Wextra -Werror),
		'-isystem', pg_config('includedir-server'), shellwords(pg_config('cppflags')),
		"-I$top/src", '-o', $program, "$top/test/unit/$name.c", "$top/src/$name.c", '-lm');

	note("@compile");
	is(system(@compile), 0, "$name compiles without a server") or return;
	open my $out, '-|', $program or die "could not run $program: $!";
	my ($planned, $seen) = (0, 0);
	while (my $line = <$out>)
	{
		chomp $line;
		if ($line =~ /^(not )?ok \d+ - (.*)/)
		{
			$seen++;
			ok(!$1, "$name: $2");
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
	is($?, 0, "$name ends well");
	ok($seen > 0 && $seen == $planned, 'and having run all its tests');
}

run_unit('pace');
run_unit('wire');
done_testing();
