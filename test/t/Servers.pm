# Servers: makes PostgreSQL::Test::Cluster spend less. StandIn loads it after that one, and so each test has it.

package Servers;

use strict;
use warnings;

use Digest::MD5 qw(md5_hex);
use File::Path qw(rmtree);
use IO::Handle;
use IO::Select;
use IPC::Open2;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

# initdb takes a second of CPU, and there are eighty servers: all tests copy what its first run has made.
{
    no warnings 'redefine';
    my $run = \&PostgreSQL::Test::Utils::system_or_bail;
    *PostgreSQL::Test::Utils::system_or_bail = sub {
        my ($program, @arguments) = @_;
        my ($option) = grep { $arguments[$_] =~ /^(?:-D|--pgdata)$/ } 0 .. $#arguments;
        return $run->(@_) if $program ne 'initdb' || !defined $option;
        my $data = $arguments[ $option + 1 ];
        my $template = "$PostgreSQL::Test::Utils::tmp_check/initdb-" . md5_hex(join ' ', map { $_ eq $data ? '' : $_ } @arguments);
        if (!-d $template)
        {
            my $made = "$template.$$";
            $arguments[ $option + 1 ] = $made;
            $run->($program, @arguments);
            # Another test may have been quicker.
            rename $made, $template or rmtree($made);
        }
        return $run->('cp', '-a', $template, $data);
    };
}

# One psql asks again and again: starting one for each look took a quarter of the suite's CPU.  A server that ends
# closes the session; then another one is opened.
{
    no warnings 'redefine';
    my $with_psql_each_time = \&PostgreSQL::Test::Cluster::poll_query_until;
    *PostgreSQL::Test::Cluster::poll_query_until = sub {
        my ($node, $database, $query, $expected) = @_;
        return $with_psql_each_time->(@_) if !defined $query;
        $expected //= 't';
        my $until = time + $PostgreSQL::Test::Utils::timeout_default;
        my ($session, $said);
        while (time < $until)
        {
            $session //= _open_session($node, $database);
            $said = _ask($session, $query, $until);
            last if defined $said && $said eq $expected;
            $session = _close_session($session) if !defined $said;
            sleep 0.05;
        }
        _close_session($session) if $session;
        return 1 if ($said // '') eq $expected;
        diag("poll_query_until timed out with this query:\n$query\nexpecting:\n$expected\nlast output:\n" . ($said // '(none)'));
        return 0;
    };
}

sub _open_session
{
    my ($node, $database) = @_;
    local %ENV = $node->_get_env;
    my $pid = open2(my $from, my $to, 'sh', '-c', 'exec "$0" "$@" 2>&1', $node->installed_command('psql'), '-XAt', '-d', $node->connstr($database));
    $to->autoflush(1);
    return { pid => $pid, from => $from, to => $to };
}

# What the query prints, errors included; undef when the session has ended.
sub _ask
{
    my ($session, $query, $until) = @_;
    local $SIG{PIPE} = 'IGNORE';
    print { $session->{to} } "$query\n;\n\\echo that_is_all\n" or return undef;
    my $said = '';
    while ($said !~ s/that_is_all\n\z//)
    {
        if (!IO::Select->new($session->{from})->can_read($until - time > 0 ? $until - time : 0))
        {
            kill 'TERM', $session->{pid};
            return undef;
        }
        sysread($session->{from}, $said, 65536, length $said) or return undef;
    }
    chomp $said;
    return $said;
}

sub _close_session
{
    my ($session) = @_;
    local $SIG{PIPE} = 'IGNORE';
    local $?;
    close $session->{to};
    close $session->{from};
    waitpid $session->{pid}, 0;
    return undef;
}

1;
