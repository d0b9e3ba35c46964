# Clinic: a cluster with the extension, a stand-in for OneSignal, and what a test of direct calls asks of them.
#
#   my $clinic = Clinic->new(%options_of_StandIn, conf => 'lines for postgresql.conf');
#   my ($row) = $clinic->cancel($id, max_retries => 0);
#   answer_is($row, 'NULL f', qr/^Could not resolve host/, 'no such host');
#
# $clinic->api  $clinic->node
#   server(%opts)                one more server, with the stand-in's key; returns its app_id
#       url => ..., key => ..., app => app_id, server_options => { rate_limit => 0 }
#   servers({...}, {...})        the same for many
#   cancel($id | [ids], %opts)   calls onesignal_cancel for each in turn, in a session of its own; returns
#       rows { status, success, errors => [...], ms }, as SQL prints them (NULL is 'NULL')
#       app => app_id, db => name, before => 'SQL', and settings: timeout => '2s', max_retries => 0, ...
#   batch([ids], %opts)          the same by one onesignal_cancel_batch; rows have message_id, no ms
#   start_cancel, start_batch    begin it; rows($started) waits for its end
#   sql($text, %opts)            any SQL in such a session; its lines of output
#   failure($text, %opts)        (SQLSTATE, all that was said) of SQL that raises an error
#   uuid()                       a new one
#
# answer_is($row, 'status success', errors, name): errors is an array of texts, or a pattern for a single one.
#
# Peer->new(sub { my ($peer, $socket, $n) = @_; ... }): any server on loopback. The sub gets each connection, the
# n-th, in a process of its own.
#   $peer->port  $peer->url  $peer->note($text)  $peer->notes  $peer->connections
#   Peer::head($socket)          reads a request's head
#   Peer::relay($one, $other)    passes bytes both ways until either ends

package Clinic;

use strict;
use warnings;
use Exporter qw(import);
use JSON::PP ();
use PostgreSQL::Test::Cluster;
use StandIn;
use Test::More;

our @EXPORT = qw(answer_is);

my $JSON = JSON::PP->new->utf8->allow_nonref;

# As text whatever the row holds, errors as one line of JSON.
my $ROW = q{format('%s %s %s', coalesce(status::text, 'NULL'), coalesce(success::text, 'NULL'), coalesce(to_json(errors)::text, 'null'))};

sub new
{
    my ($class, %options) = @_;
    # Keys are in statements here.
    my $conf = "log_statement = none\n" . (delete $options{conf} // '');
    my $self = bless { api => StandIn->new(%options), servers => 0, sessions => 0 }, $class;
    $self->{node} = PostgreSQL::Test::Cluster->new('clinic');
    $self->{node}->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
    $self->{node}->append_conf('postgresql.conf', $conf);
    $self->{node}->start;
    $self->{node}->safe_psql('postgres', 'CREATE EXTENSION onesignal_cancel;' . $self->{api}->setup_sql('clinic'));
    return $self;
}

sub api { return $_[0]{api} }
sub node { return $_[0]{node} }
sub uuid { return join '-', map { sprintf '%0*x', $_, rand 16**$_ } 8, 4, 4, 4, 12 }

sub servers
{
    my ($self, @servers) = @_;
    my ($sql, @apps) = ('');
    for (@servers)
    {
        push @apps, $_->{app} // uuid();
        $sql .= $self->{api}->setup_sql('server_' . ++$self->{servers}, key => $self->{api}->api_key, %$_, app => $apps[-1]);
    }
    $self->{node}->safe_psql('postgres', $sql);
    return @apps;
}

sub server { my ($self, %opts) = @_; return ($self->servers(\%opts))[0] }

sub _start
{
    my ($self, $sql, %opts) = @_;
    my ($db, $before) = (delete $opts{db} // 'postgres', delete $opts{before} // '');
    my $file = $self->{api}->dir . '/session' . ++$self->{sessions};
    open my $script, '>', $file or die "$file: $!";
    print $script "SET client_encoding = 'UTF8';\n" if $db !~ /ascii/;
    print $script "SET onesignal_cancel.$_ = '$opts{$_}';\n" for sort keys %opts;
    print $script "$before\n$sql\n";
    close $script;
    # Not IPC::Run, which takes longer than all of psql.
    open my $from, '-|', 'sh', '-c', 'exec 2>"$0.err"; exec "$@"', $file,
      $self->{node}->installed_command('psql'), '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose',
      '-d', $self->{node}->connstr($db), '-f', $file
      or die "psql: $!";
    return { from => $from, file => $file };
}

sub _finish
{
    my ($started) = @_;
    my @lines = readline $started->{from};
    chomp @lines;
    my $well = close $started->{from};
    return $well, StandIn::_slurp("$started->{file}.err"), @lines;
}

sub rows
{
    my ($self, $started) = @_;
    my ($well, $said, @lines) = _finish($started);
    die "psql: $said" if !$well;
    my @rows;
    for (@lines)
    {
        my ($first, $status, $success, $errors) = split / /, $_, 4;
        push @rows, { $started->{first} => $first, status => $status, success => $success, errors => $JSON->decode($errors) };
    }
    return @rows;
}

sub start_cancel
{
    my ($self, $ids, %opts) = @_;
    my $app = delete $opts{app} // $self->{api}->app_id;
    my $sql = '';
    for my $id (ref $ids ? @$ids : $ids)
    {
        $sql .= "SELECT clock_timestamp() AS begun \\gset\n"
          . "SELECT format('%s %s', round(extract(epoch FROM clock_timestamp() - :'begun'::timestamptz) * 1000), $ROW) FROM onesignal_cancel('$app', '$id');\n";
    }
    return { %{ $self->_start($sql, %opts) }, first => 'ms' };
}

sub start_batch
{
    my ($self, $ids, %opts) = @_;
    my $app = delete $opts{app} // $self->{api}->app_id;
    my $sql = "SELECT format('%s %s', message_id, $ROW) FROM onesignal_cancel_batch('$app', '{" . join(',', @$ids) . "}');";
    return { %{ $self->_start($sql, %opts) }, first => 'message_id' };
}

sub cancel { my ($self, @call) = @_; return $self->rows($self->start_cancel(@call)) }
sub batch { my ($self, @call) = @_; return $self->rows($self->start_batch(@call)) }

sub sql
{
    my ($self, $sql, %opts) = @_;
    my ($well, $said, @lines) = _finish($self->_start($sql, %opts));
    die "psql: $said" if !$well;
    return @lines;
}

sub failure
{
    my ($self, $sql, %opts) = @_;
    my ($well, $said) = _finish($self->_start($sql, %opts));
    return ($said =~ /ERROR:  (\w{5}):/ ? $1 : 'no error', $said);
}

sub answer_is
{
    my ($row, $outcome, $errors, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    # From PostgreSQL 17 on its logging dies of a wide character.
    $name =~ s/([^ -~])/sprintf '\\x{%x}', ord $1/ge;
    my $got = defined $row ? "$row->{status} " . substr($row->{success}, 0, 1) : 'no row';
    my @got = defined $row ? @{ $row->{errors} } : ();
    if (ref $errors eq 'ARRAY')
    {
        is_deeply([ $got, @got ], [ $outcome, @$errors ], $name);
    }
    else
    {
        ok($got eq $outcome && @got == 1 && $got[0] =~ $errors, $name)
          or diag("expected: $outcome $errors\n     got: $got ", explain(\@got));
    }
}

package Peer;

use strict;
use warnings;
use Fcntl qw(:flock);
use IO::Handle;
use IO::Select;
use IO::Socket::IP;
use POSIX ();

my $made = 0;

sub new
{
    my ($class, $serve) = @_;
    my $listener = IO::Socket::IP->new(LocalAddr => '127.0.0.1', LocalPort => 0, Proto => 'tcp', Listen => 64)
      or die "could not listen: $@";
    my $log = "$PostgreSQL::Test::Utils::tmp_check/peer_" . $$ . '_' . ++$made;
    open my $handle, '>>', $log or die "$log: $!";
    $handle->autoflush(1);
    my $self = bless { port => $listener->sockport, log => $log, handle => $handle, owner => $$ }, $class;
    $self->{pid} = fork // die "fork: $!";
    # One group, so that no connection's process outlives this one; made on both sides, as either may be first.
    setpgrp $self->{pid}, 0;
    return $self if $self->{pid};

    $SIG{CHLD} = 'IGNORE';
    for (my $n = 1; ; $n++)
    {
        my $socket = $listener->accept or next;
        $self->note("connection $n");
        my $child = fork // POSIX::_exit(1);
        next if $child;
        close $listener;
        binmode $socket;
        eval { $serve->($self, $socket, $n) };
        POSIX::_exit(0);
    }
}

sub port { return $_[0]{port} }
sub url { return "http://127.0.0.1:$_[0]{port}" }
sub connections { my ($self) = @_; return scalar grep { /^connection / } $self->_lines }
sub notes { my ($self) = @_; return grep { !/^connection \d+$/ } $self->_lines }

sub _lines
{
    my ($self) = @_;
    return map { s/\\n/\n/gr } StandIn::_slurp($self->{log}) =~ /^(.*)\n/mg;
}

sub note
{
    my ($self, $text) = @_;
    $text =~ s/\n/\\n/g;
    flock $self->{handle}, LOCK_EX;
    print { $self->{handle} } "$text\n";
    flock $self->{handle}, LOCK_UN;
}

# Up to and with the empty line; what follows is not read. undef: the connection ended before.
sub head
{
    my ($socket) = @_;
    my $head = '';
    while ($head !~ /\r\n\r\n$/) { sysread($socket, $head, 1, length $head) or return }
    return $head;
}

sub relay
{
    my ($one, $other) = @_;
    my $both = IO::Select->new($one, $other);
    while (my @ready = $both->can_read)
    {
        for my $from (@ready)
        {
            sysread($from, my $bytes, 65536) or return;
            my $to = $from == $one ? $other : $one;
            print $to $bytes;
            $to->flush;
        }
    }
}

sub DESTROY
{
    my ($self) = @_;
    return if $$ != $self->{owner} || !$self->{pid};
    local $?;
    kill KILL => -$self->{pid};
    waitpid delete $self->{pid}, 0;
    unlink $self->{log};
}

1;
