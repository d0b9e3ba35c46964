# Hostile: drives test/onesignal/hostile, whose README says what it answers.
#
#   my $hostile = Hostile->new(count => 2000);
#   $hostile->functions('h1');      onesignal_cancel, some sessions at a time, in databases of several encodings
#   $hostile->batches('h2');        onesignal_cancel_batch
#   $hostile->worker('h1');         rows of onesignal_message
#   $hostile->strays;               HTTP/1.1 answers that nobody asked for, before the next request
#   $hostile->handshakes;           TLS that breaks before a request
#   $hostile->proxies;              answers to CONNECT
#   $hostile->floods('h2');         what does not end by itself soon
#   $hostile->unharmed;             the server is the same as before, and nothing was raised or shown
#
# Each compares what an id came to with what the generator says that it must, and is one test that lists the ids
# that went wrong. An id in hand, "test/hostile --id ID" shows it again.
#
# options: count, seed, kind => NAME, ids => [...], timeout => ms, flood_seconds

package Hostile;

use strict;
use warnings;

use Clinic;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);
use Workers;

my $PROGRAM = StandIn::_program('hostile');
my @DATABASES = qw(postgres sql_ascii latin1 euc_jp);
my $SESSIONS = 4;

# No call lasts longer than so many seconds after the time when it should end.
my $GRACE = 2;

# What is promised of floods: tries, and seconds for one of them. A call has a limit of 300 ms; "end" is a worker's.
my %PROMISED = (call => [ 5, 0.45 ], end => [ 3, 1.5 ], stop => [ 3, 3 ]);

# After so many answers a session has all that it keeps.
my $WARM = 150;

sub new
{
    my ($class, %opts) = @_;
    my $self = bless { count => 2000, seed => int(time), timeout => 400, flood_seconds => 4, right => 0, wrong => 0, late => 0, files => 0, %opts }, $class;
    diag("hostile answers of seed $self->{seed}");
    # A sanitizer looks for leaks in each worker that ends: until then it counts as one.
    $self->{clinic} = Clinic->new(conf => "log_min_messages = info\nmax_worker_processes = 100\nrestart_after_crash = on\nonesignal_cancel.worker_idle_timeout = '20s'\n"
          . "onesignal_cancel.timeout = '$self->{timeout}ms'\nonesignal_cancel.connect_timeout = '5s'\n");
    $self->{dir} = $self->{clinic}->api->dir;
    $self->_start_generator;
    $self->_make_databases;
    $self->{started} = $self->_start_time;
    return $self;
}

sub _api { return $_[0]{clinic}->api }
sub _node { return $_[0]{clinic}->node }

sub _start_time
{
    my ($self) = @_;
    return $self->_node->safe_psql('postgres', "SELECT pg_postmaster_start_time(), (SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer')");
}

sub _start_generator
{
    my ($self) = @_;
    $self->{generator} = open(my $from, '-|', $PROGRAM, '--dir', $self->{dir}, '--seconds', $self->{flood_seconds}) // die "$PROGRAM: $!";
    while (defined(my $line = readline $from))
    {
        last if $line =~ /^ready/;
        $self->{url}{$1} = $2 if $line =~ /^(\w+) (\S+)$/;
    }
    die "$PROGRAM did not start\n" if !$self->{url}{handshake};
    $self->{from} = $from;
}

# In each one server for each of the generator's ways.
sub _make_databases
{
    my ($self) = @_;
    my %encodings = (sql_ascii => 'SQL_ASCII', latin1 => 'LATIN1', euc_jp => 'EUC_JP');
    $self->{app}{$_} = Clinic::uuid() for qw(h1 h2 plain handshake);
    for my $database (@DATABASES)
    {
        $self->_node->safe_psql('postgres', "CREATE DATABASE $database ENCODING '$encodings{$database}' TEMPLATE template0 LOCALE 'C'")
          if $encodings{$database};
        $self->_node->safe_psql($database, 'CREATE EXTENSION IF NOT EXISTS onesignal_cancel;'
              . join('', map { $self->_setup("hostile_$_", $self->{app}{$_}, $self->{url}{$_}) } sort keys %{ $self->{app} }));
    }
}

sub _setup
{
    my ($self, $name, $app, $url, %options) = @_;
    return $self->_api->setup_sql($name, app => $app, key => $self->_api->api_key, url => $url, server_options => { rate_limit => 0, %options });
}

# ---- ids and what must come of them ----

sub _generate
{
    my ($self, @arguments) = @_;
    open my $from, '-|', $PROGRAM, '--key', $self->_api->api_key, @arguments or die "$PROGRAM: $!";
    chomp(my @lines = readline $from);
    return @lines;
}

sub ids
{
    my ($self, $protocol, %opts) = @_;
    return grep { /^[89a-f]/i == ($protocol eq 'h2') } @{ $self->{ids} } if $self->{ids};
    return $self->_generate('--ids', $protocol, '--seed', $self->{seed}, '--count', $opts{count} // $self->{count},
        $opts{floods} ? '--floods' : (), $opts{kind} // $self->{kind} ? ('--kind', $opts{kind} // $self->{kind}) : ());
}

# What each must come to.
sub oracle
{
    my ($self, @ids) = @_;
    my $file = $self->_file("ids");
    append_to_file($file, join('', map { "$_\n" } @ids));
    open my $from, '-|', 'sh', '-c', 'exec "$0" --key "$1" --explain <"$2"', $PROGRAM, $self->_api->api_key, $file or die "$PROGRAM: $!";
    my %explained;
    while (my $line = readline $from)
    {
        chomp $line;
        my ($id, $kind, $reach, $outcomes, $words) = split /\t/, $line, 5;
        my @outcomes = map { my ($status, $success, $state, $errors) = split / /, $_, 4; { status => $status, success => $success, state => $state, errors => qr/^(?:$errors)$/s } } split / \|\| /, $outcomes;
        $explained{$id} = { kind => $kind, reach => $reach, outcomes => \@outcomes, text => $outcomes, words => $words };
    }
    return \%explained;
}

my $NULL = { status => 'NULL', success => 'f', state => 'pending', errors => qr/./ };

# What is wrong with a row (status, success, number of errors, the longest, errors; perhaps state), or ''.
sub _fault
{
    my ($self, $row, $explained, @or) = @_;
    my $errors = $row->{errors};
    my $success = substr $row->{success}, 0, 1;
    return 'shows the key' if index($errors, $self->_api->api_key) >= 0;
    return 'more than 8 errors' if $row->{count} > 8;
    return 'an error of more than 1 kB' if $row->{longest} > 1024;
    return 'a control character' if $errors =~ /(?<!\\)(?:\\\\)*\\(?:u00[01]|[bfnrt])|\x7f/;
    return 'a character is cut' if !utf8::decode(my $copy = $errors);
    return "took $row->{ms} ms" if !$row->{together} && !$ENV{SANITIZE} && $row->{ms} > $self->{timeout} + 1000 * $GRACE;
    # What an earlier attempt may have done is not the generator's.
    my $has_hint = $errors =~ s/,?"an earlier attempt [^"]*"//;
    # The end of a connection behind an answer without a length may have cut it: it is tried again either way.
    push @or, $NULL if $explained->{kind} =~ /^(?:goaway|chunked)/ && !grep { $_->{state} ne 'pending' } @{ $explained->{outcomes} };
    # AddressSanitizer makes much of reading many small pieces.
    push @or, { %$NULL, errors => qr/the peer kept sending/ } if $ENV{SANITIZE};
    for my $outcome (@{ $explained->{outcomes} }, @or)
    {
        return '' if $row->{status} eq $outcome->{status} && $success eq $outcome->{success} && ($errors =~ $outcome->{errors} || ($has_hint && $row->{count} == 8))
          && (!defined $row->{state} || $row->{state} eq $outcome->{state});
    }
    return 'another outcome';
}

sub _report
{
    my ($self, $how, $id, $explained, $what) = @_;
    $self->{wrong}++;
    return "$id $explained->{kind}, $how: $what\n    answer: $explained->{words}\n  expected: $explained->{text}";
}

sub _conclude
{
    my ($self, $name, $tried, @wrong) = @_;
    $self->{right} += $tried - @wrong;
    ok(!@wrong, "$name: $tried answers") or diag(join "\n", @wrong > 60 ? (@wrong[ 0 .. 59 ], '... and ' . (@wrong - 60) . ' more') : @wrong);
}

# ---- sessions ----

sub _file { my ($self, $name) = @_; return "$self->{dir}/" . ++$self->{files} . "_$name" }

sub _psql
{
    my ($self, $database, $sql, %settings) = @_;
    my $file = $self->_file('session.sql');
    my %all = (max_retries => 0, timeout => "$self->{timeout}ms", %settings);
    append_to_file($file, join('', ($database eq 'sql_ascii' ? '' : "SET client_encoding = 'UTF8';\n"), (map { "SET onesignal_cancel.$_ = '$all{$_}';\n" } sort keys %all)) . $sql);
    my $pid = fork // die "fork: $!";
    if ($pid == 0)
    {
        open STDOUT, '>', "$file.out";
        open STDERR, '>', "$file.err";
        exec($self->_node->installed_command('psql'), '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $self->_node->connstr($database), '-f', $file) or POSIX::_exit(1);
    }
    return { pid => $pid, file => $file };
}

# (all went well, what it said, its lines)
sub _wait
{
    my ($session) = @_;
    local $?;
    waitpid $session->{pid}, 0;
    return ($? == 0, StandIn::_slurp("$session->{file}.err"), split /\n/, StandIn::_slurp("$session->{file}.out"));
}

my $ROW = q{format('%s %s %s %s %s %s', round(extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000), coalesce(status::text, 'NULL'), coalesce(success::text, 'NULL'), cardinality(errors), (SELECT coalesce(max(octet_length(e)), 0) FROM unnest(errors) e), to_json(errors))};
my $COST = q{SELECT 'cost ' || (regexp_match(pg_read_file('/proc/self/status'), 'RssAnon:\s+(\d+) kB'))[1] || ' ' || count(*) FROM pg_ls_dir('/proc/self/fd');} . "\n";

sub _row
{
    my ($line) = @_;
    my ($id, $ms, $status, $success, $count, $longest, $errors) = split / /, $line, 7;
    return { id => $id, ms => $ms, status => $status, success => $success, count => $count, longest => $longest, errors => $errors };
}

sub _call_sql { my ($app, $id) = @_; return "SELECT '$id ' || $ROW FROM onesignal_cancel('$app', '$id');\n" }

sub _server_is_back
{
    my ($self) = @_;
    for (1 .. 600)
    {
        return if !system($self->_node->installed_command('psql'), '-XAtqc', '', '-d', $self->_node->connstr('postgres'), '-o', '/dev/null');
        sleep 0.1;
    }
    die "the server is gone\n";
}

# Alone, with all the time it needs, in a session that has had no answers and in one that has: but a peer that hangs behind
# its answer does not read the second request. What is wrong, or ''.
sub _again
{
    my ($self, $app, $id, $explained, $database) = @_;
    my $session = $self->_psql($database // 'postgres', _call_sql($app, $id) x 2, timeout => '4s');
    my ($well, $said, @lines) = _wait($session);
    if (!$well)
    {
        $self->_server_is_back;
        return "ends the session: $said";
    }
    my @faults = map { $self->_fault({ %{ _row($_) }, together => 1 }, $explained) } @lines;
    return (grep { !$_ } @faults) ? '' : "$faults[-1]: $lines[-1]";
}

# A machine that stands still for a while is no fault, one of some tries in time will do. What is wrong, or ''.
sub _took_too_long
{
    my ($self, $sql, $database) = @_;
    my $ms;
    for (1 .. 5)
    {
        my ($well, $said, @lines) = _wait($self->_psql($database // 'postgres', $sql));
        return "ends the session: $said" if !$well;
        $ms = _row($lines[-1])->{ms};
        return '' if $ms <= $self->{timeout} + 1000 * $GRACE;
    }
    return "took $ms ms, again and again";
}

# The same as _fault(), for one who may have waited for the machine. sql: the call
sub _fault_of_call
{
    my ($self, $row, $explained, $sql, $database, @or) = @_;
    my $fault = $self->_fault($row, $explained, @or);
    return $fault if $fault !~ /^took/;
    return $self->_took_too_long($sql, $database) || $self->_fault({ %$row, together => 1 }, $explained, @or);
}

# Is it a row that is tried again anyway? A busy machine is late, and where one answer is cut or late on a connection
# that others share, libcurl ends those, too, or takes what it has of one for the whole, which is then no answer that
# decides anything. None of this is a fault if the id comes to what it should alone. Nor is it ours that libcurl 7.88, once
# in tens of thousands of answers on such a machine, takes the body of an HTTP/2 answer for its first header.
sub _decides_nothing
{
    my ($row) = @_;
    return $row->{success} !~ /^t/ && ($row->{state} // 'pending') eq 'pending' && ($row->{status} eq 'NULL' || $row->{errors} =~ /^\["(?:unexpected answer: |HTTP \d+ )/);
}

sub _check
{
    my ($self, $how, $row, $explained, $app, %opts) = @_;
    my $fault = $self->_fault_of_call($row, $explained, _call_sql($app, $row->{id}), $opts{database}, @{ $opts{or} // [] }) or return;
    my $got = join ' ', map { $row->{$_} // () } qw(status success state errors);
    if (_decides_nothing($row))
    {
        my $again = $self->_again($app, $row->{id}, $explained, $opts{database});
        if (!$again) { $self->{late}++; return }
        $got .= ", again: $again";
    }
    return $self->_report($how, $row->{id}, $explained, "$fault: " . substr $got, 0, 300);
}

# ---- the direct function ----

sub functions
{
    my ($self, $way, @ids) = @_;
    @ids = $self->ids($way eq 'h2' ? 'h2' : 'h1') if !@ids;
    my $explained = $self->oracle(@ids);
    my $app = $self->{app}{$way};
    my @parts = map { my $n = $_; [ map { $ids[$_] } grep { $_ % $SESSIONS == $n } 0 .. $#ids ] } 0 .. $SESSIONS - 1;
    my @wrong;
    # A crash ends them all: then each goes on behind the id that it was at.
    while (grep { @$_ } @parts)
    {
        my @sessions = map { $self->_psql($DATABASES[$_], $self->_function_sql($app, @{ $parts[$_] })) } 0 .. $#parts;
        my @suspects;
        for my $n (0 .. $#sessions)
        {
            my ($well, $said, @lines) = _wait($sessions[$n]);
            push @wrong, $self->_function_rows($way, $app, $explained, $DATABASES[$n], @lines);
            my $done = grep { !/^cost / } @lines;
            splice @{ $parts[$n] }, 0, $done;
            push @suspects, [ shift @{ $parts[$n] }, $said, $DATABASES[$n] ] if !$well && @{ $parts[$n] };
            push @wrong, $self->_growth("$way, $DATABASES[$n]", @lines) if $well;
        }
        push @wrong, $self->_convict($way, $app, $explained, @suspects);
    }
    $self->_conclude("function, $way", scalar @ids, @wrong);
}

sub _function_sql
{
    my ($self, $app, @ids) = @_;
    return join '', map { ($_ == $WARM ? $COST : '') . _call_sql($app, $ids[$_]) . ($_ == $#ids ? $COST : '') } 0 .. $#ids;
}

sub _function_rows
{
    my ($self, $way, $app, $explained, $database, @lines) = @_;
    my @rows = map { _row($_) } grep { !/^cost / } @lines;
    return map { $self->_check("function, $way, $database", $_, $explained->{ $_->{id} }, $app, database => $database) } @rows;
}

sub _growth
{
    my ($self, $who, @lines) = @_;
    my ($before, $after) = map { /^cost (\d+) (\d+)$/ ? { kb => $1, fds => $2 } : () } @lines;
    return if !$after || $ENV{SANITIZE};
    note("$who: $before->{kb} to $after->{kb} kB, $before->{fds} to $after->{fds} descriptors");
    return ($after->{kb} - $before->{kb} > 3072 ? "$who: grew from $before->{kb} to $after->{kb} kB" : (),
        $after->{fds} > $before->{fds} + 24 ? "$who: $before->{fds} descriptors, then $after->{fds}" : ());
}

# Which of them ended the sessions? Those that were not told that another did. If all were, each is tried alone.
sub _convict
{
    my ($self, $way, $app, $explained, @suspects) = @_;
    return if !@suspects;
    $self->_server_is_back;
    my @wrong = map { $self->_report("function, $way, $_->[2]", $_->[0], $explained->{ $_->[0] }, 'ends its session') }
      grep { $_->[1] !~ /crash of another server process/ } @suspects;
    for (@wrong ? () : @suspects)
    {
        my ($id, undef, $database) = @$_;
        my $again = $self->_again($app, $id, $explained->{$id}, $database);
        push @wrong, $self->_report("function, $way, $database", $id, $explained->{$id}, $again) if $again;
    }
    push @wrong, 'the sessions ended, but not again, at: ' . join(' ', map { $_->[0] } @suspects) if !@wrong;
    return @wrong;
}

# ---- batches ----

# Of each kind by itself: what concerns only itself; what ends its batch (401, 403, 429), which may come to any of its
# outcomes; what breaks connections, where others may go unanswered.
sub batches
{
    my ($self, $way) = @_;
    my @ids = $self->ids($way eq 'h2' ? 'h2' : 'h1');
    my $explained = $self->oracle(@ids);
    my %groups;
    for (@ids)
    {
        my $stops = grep { $_->{status} =~ /^4(?:01|03|29)$/ } @{ $explained->{$_}{outcomes} };
        push @{ $groups{ $stops ? 'stops' : $way eq 'h2' && $explained->{$_}{reach} eq 'connection' ? 'breaks' : 'alone' } }, $_;
    }
    my %sizes = (stops => 10, breaks => 20, alone => 50);
    my @batches;
    for my $group (sort keys %groups)
    {
        my @all = @{ $groups{$group} };
        while (my @some = splice @all, 0, $sizes{$group})
        {
            push @batches, { ids => \@some, or => $group eq 'stops' ? [ $NULL, map { @{ $explained->{$_}{outcomes} } } @some ] : $group eq 'breaks' ? [$NULL] : [] };
        }
    }
    $self->_conclude("batch, $way", scalar @ids, $self->_try_batches($way, $explained, @batches));
}

sub _try_batches
{
    my ($self, $way, $explained, @batches) = @_;
    my @wrong;
    while (my @now = splice @batches, 0, $SESSIONS * 5)
    {
        my @sessions;
        for my $n (0 .. $SESSIONS - 1)
        {
            my @mine = map { $now[$_] } grep { $_ % $SESSIONS == $n } 0 .. $#now;
            push @sessions, { batches => \@mine, %{ $self->_psql($DATABASES[$n], join '', map { $self->_batch_sql($way, @{ $_->{ids} }) } @mine) } } if @mine;
        }
        push @wrong, map { $self->_batch_rows($way, $explained, $_) } @sessions;
    }
    return @wrong;
}

sub _batch_sql
{
    my ($self, $way, @ids) = @_;
    return "SELECT message_id || ' ' || $ROW FROM onesignal_cancel_batch('$self->{app}{$way}', '{" . join(',', @ids) . "}');\n";
}

sub _batch_rows
{
    my ($self, $way, $explained, $session) = @_;
    my ($well, $said, @lines) = _wait($session);
    my %or = map { my $batch = $_; map { $_ => $batch->{or} } @{ $batch->{ids} } } @{ $session->{batches} };
    my @wrong = map { $self->_check("batch, $way", { %{ _row($_) }, together => 1 }, $explained->{ (split / /)[0] }, $self->{app}{$way}, or => $or{ (split / /)[0] }) } @lines;
    if (!$well)
    {
        $self->_server_is_back;
        my %seen = map { (split / /)[0] => 1 } @lines;
        my ($at) = grep { !$seen{ $_->{ids}[0] } } @{ $session->{batches} };
        push @wrong, "a batch ended: $said" . "  it was at: @{ $at->{ids} // [] }";
        $self->{wrong}++;
    }
    return @wrong;
}

# ---- the worker ----

# One app for each message of a round, so that none is paused on account of another.
sub worker
{
    my ($self, $way) = @_;
    my @ids = $self->ids($way eq 'h2' ? 'h2' : 'h1');
    my $explained = $self->oracle(@ids);
    my @alone = grep { $way ne 'h2' || $explained->{$_}{reach} eq 'itself' } @ids;
    my @breaking = grep { $way eq 'h2' && $explained->{$_}{reach} ne 'itself' } @ids;
    my $apps = $self->_apps($way, 250);
    my (@wrong, @costs);
    for (map { my $or_null = $_->[0]; my @all = @{ $_->[1] }; my @rounds; push @rounds, [ $or_null, splice @all, 0, 250 ] while @all; @rounds } [ 0, \@alone ], [ 1, \@breaking ])
    {
        my ($or_null, @round) = @$_;
        push @wrong, $self->_round($way, $explained, $or_null, $apps, @round);
        push @costs, $self->_worker_cost;
    }
    push @wrong, $self->_worker_growth($way, @costs);
    $self->_conclude("worker, $way", scalar @ids, @wrong);
}

sub _apps
{
    my ($self, $way, $count) = @_;
    return $self->{apps}{$way} if $self->{apps}{$way};
    my @apps = map { Clinic::uuid() } 1 .. $count;
    $self->_node->safe_psql('postgres', join '', map { $self->_setup("worker_${way}_$_", $apps[ $_ - 1 ], $self->{url}{$way}) } 1 .. $count);
    return $self->{apps}{$way} = \@apps;
}

sub _round
{
    my ($self, $way, $explained, $or_null, $apps, @ids) = @_;
    my $node = $self->_node;
    my %app = map { $ids[$_] => $apps->[$_] } 0 .. $#ids;
    $node->safe_psql('postgres', "SELECT count(onesignal_cancel_resume(app_id)) FROM onesignal_app;\n"
          . 'INSERT INTO onesignal_message (message_id, app_id, send_after, cancel) VALUES '
          . join(', ', map { "('$_', '$app{$_}', now() - interval '1 hour', true)" } @ids));
    my $tried = $node->poll_query_until('postgres', "SELECT count(*) FROM onesignal_message WHERE state = 'pending' AND attempts = 0", '0');
    my @lines = split /\n/, $node->safe_psql('postgres', "SELECT message_id || ' ' || state || ' ' || format('0 %s %s %s %s %s', coalesce(http_status::text, 'NULL'), state = 'canceled', cardinality(errors), (SELECT coalesce(max(octet_length(e)), 0) FROM unnest(errors) e), to_json(errors)) FROM onesignal_message WHERE attempts > 0");
    $node->safe_psql('postgres', 'DELETE FROM onesignal_message');
    my @wrong = map { my ($id, $state, $rest) = split / /, $_, 3; $self->_check("worker, $way", { %{ _row("$id $rest") }, state => $state }, $explained->{$id}, $app{$id}, or => $or_null ? [$NULL] : []) } @lines;
    push @wrong, 'worker, ' . $way . ': ' . (@ids - @lines) . ' rows were not tried, among ' . join(' ', @ids) if !$tried;
    return @wrong;
}

sub _worker_cost
{
    my ($self) = @_;
    my $pid = Workers::worker($self->_node, 'postgres') or return { pid => 0, kb => 0, fds => 0 };
    my ($kb) = StandIn::_slurp("/proc/$pid/status") =~ /RssAnon:\s+(\d+) kB/;
    my @fds = glob "/proc/$pid/fd/*";
    return { pid => $pid, kb => $kb // 0, fds => scalar @fds };
}

sub _worker_growth
{
    my ($self, $way, @costs) = @_;
    @costs = grep { $_->{pid} } @costs;
    return if @costs < 3 || $ENV{SANITIZE};
    my ($before, $after) = @costs[ 1, -1 ];
    note("worker, $way: $before->{kb} to $after->{kb} kB, $before->{fds} to $after->{fds} descriptors");
    return if $before->{pid} != $after->{pid};
    return ($after->{kb} - $before->{kb} > 6144 ? "worker, $way: grew from $before->{kb} to $after->{kb} kB" : (),
        $after->{fds} > $before->{fds} + 30 ? "worker, $way: $before->{fds} descriptors, then $after->{fds}" : ());
}

# ---- before there is a request, and a proxy ----

my $NO_ANSWER = { kind => 'handshake', words => 'a handshake that breaks', text => 'NULL', outcomes => [ { status => 'NULL', success => 'f', errors => qr/^\[".+"\]$/ } ] };

sub handshakes
{
    my ($self) = @_;
    my @ids = map { Clinic::uuid() } 1 .. 56;
    my ($well, $said, @lines) = _wait($self->_psql('postgres', join '', map { _call_sql($self->{app}{handshake}, $_) } @ids));
    my @wrong = map { my $fault = $self->_fault_of_call(_row($_), $NO_ANSWER, _call_sql($self->{app}{handshake}, _row($_)->{id})); $fault ? "$fault: $_" : () } @lines;
    push @wrong, $said if !$well;
    $self->_conclude('handshakes', scalar @ids, @wrong);
}

# Behind each answer, in one packet, there is another: the next request on that connection must not take it for its own.
sub strays
{
    my ($self) = @_;
    my @strays = $self->ids('h1', kind => 'two_answers', count => 60);
    my $explained = $self->oracle(@strays);
    # Those that end a batch are for sessions alone.
    my %sets = (function => \@strays, batch => [ grep { $explained->{$_}{text} !~ /^4(?:01|03|29) / } @strays ]);
    for my $through (sort keys %sets)
    {
        # A sound answer follows each.
        my @ids = map { ($_, '00000000-0000-0000-0000-' . sprintf '%012x', ++$self->{files}) } @{ $sets{$through} };
        $explained = $self->oracle(@ids);
        for my $way ($through eq 'batch' ? 'h1' : ('h1', 'plain'))
        {
            my $sql = $through eq 'batch' ? $self->_batch_sql($way, @ids) : join '', map { _call_sql($self->{app}{$way}, $_) } @ids;
            my ($well, $said, @lines) = _wait($self->_psql('postgres', $sql, timeout => '20s'));
            my @rows = map { { %{ _row($_) }, together => 1 } } @lines;
            my @wrong = map { $self->_check("stray, $through, $way", $_, $explained->{ $_->{id} }, $self->{app}{$way}) } @rows;
            push @wrong, $said if !$well || @rows != @ids;
            $self->_conclude("stray answers, $through, $way", scalar @ids, @wrong);
        }
    }
}

# The answer to CONNECT, whatever it is, is none to the request.
sub proxies
{
    my ($self, $count) = @_;
    my @ids = $self->ids('h1', count => $count);
    my $explained = $self->oracle(@ids);
    my ($well, $said, @lines) = _wait($self->_psql('postgres', join '', map { $self->_proxy_sql($_) . _call_sql($_, $_) } @ids));
    my @wrong = map { my $fault = $self->_fault_of_call(_row($_), $NO_ANSWER, _call_sql((_row($_)->{id}) x 2)); $fault ? $self->_report('proxy', _row($_)->{id}, $explained->{ _row($_)->{id} }, "$fault: $_") : () } @lines;
    push @wrong, "proxy: $said" if !$well;
    push @wrong, 'proxy: ' . scalar(@lines) . ' rows' if $well && @lines != @ids;
    $self->_conclude('proxy', scalar @ids, @wrong);
}

# The app's id is the message's: CONNECT names it as the host.
sub _proxy_sql
{
    my ($self, $id) = @_;
    return $self->_setup("\"proxy $id\"", $id, "https://$id.example", proxy => $self->{url}{proxy});
}

# ---- floods ----

sub floods
{
    my ($self, $way, $count) = @_;
    my @ids = $self->ids($way eq 'h2' ? 'h2' : 'h1', floods => 1, count => $count);
    my $explained = $self->oracle(@ids);
    my (@wrong, %took);
    for my $id (@ids)
    {
        my $before = '';
        my $app = $self->{app}{ $way eq 'proxy' ? 'h1' : $way };
        if ($way eq 'proxy') { $self->_node->safe_psql('postgres', $self->_proxy_sql($id)); $app = $id }
        for my $limit ('statement_timeout', 'timeout')
        {
            my ($took, $what) = $self->_best('call', sub { $self->_flood($app, $id, $limit) });
            push @{ $took{$limit} }, $took;
            push @wrong, $self->_report("$limit of 300 ms, $way", $id, $explained->{$id}, sprintf '%s after %.0f ms', $what, $took * 1000)
              if $what || $self->_takes_too_long('call', $took);
        }
    }
    for my $limit (sort keys %took)
    {
        my @sorted = sort { $a <=> $b } @{ $took{$limit} };
        diag(sprintf '%s, %s of 300 ms: median %.0f, 90%% %.0f, longest %.0f ms', $way, $limit, map { 1000 * $sorted[ $_ * $#sorted ] } 0.5, 0.9, 1);
    }
    $self->_conclude("floods, $way", 2 * @ids, @wrong);
}

sub _takes_too_long
{
    my ($self, $what, $took) = @_;
    return !$ENV{SANITIZE} && $took > $PROMISED{$what}[1];
}

# What the first try comes to that is in time, or else the last.
sub _best
{
    my ($self, $what, $try) = @_;
    my @came;
    for (1 .. $PROMISED{$what}[0])
    {
        @came = $try->();
        last if $came[1] || !$self->_takes_too_long($what, $came[0]);
    }
    return @came;
}

# (seconds, what was wrong)
sub _flood
{
    my ($self, $app, $id, $limit) = @_;
    my $timing = "SELECT extract(epoch FROM clock_timestamp() - :'begun'::timestamptz);\n";
    my $session = $self->_psql('postgres', "\\set ON_ERROR_STOP 0\n" . ($limit eq 'timeout' ? '' : "SET statement_timeout = '300ms';\n")
          . "SELECT clock_timestamp() AS begun \\gset\n" . _call_sql($app, $id) . "SET statement_timeout = 0;\n$timing",
        timeout => $limit eq 'timeout' ? '300ms' : '60s');
    my ($well, $said, @lines) = _wait($session);
    my $took = pop @lines;
    if (!$well || !defined $took || $took !~ /^[\d.]+$/)
    {
        $self->_server_is_back;
        return (0, "ends the session: $said");
    }
    return ($took, '') if $said =~ /canceling statement due to statement timeout/ && $limit ne 'timeout';
    return ($took, "raised: $said") if $said =~ /ERROR/;
    return ($took, @lines && $lines[0] =~ /^\S+ \d+ NULL false/ ? '' : "came to: @lines");
}

# A worker with floods delivers what others have, and goes at once when it is told to.
sub worker_with_floods
{
    my ($self, $way) = @_;
    my $node = $self->_node;
    my $api = $self->_api;
    my @ids = $self->ids($way, floods => 1, count => 40);
    my $apps = $self->_apps($way, 250);
    $node->safe_psql('postgres', 'INSERT INTO onesignal_message (message_id, app_id, send_after, cancel) VALUES '
          . join(', ', map { "('$ids[$_]', '$apps->[$_]', now() - interval '1 hour', true)" } 0 .. $#ids));
    my @took;
    for (1 .. 5)
    {
        my $id = $api->schedule;
        my $begun = time;
        Workers::request($node, 'postgres', $api, $id);
        Workers::wait_for($node, 'postgres', $id, 'canceled') or last;
        push @took, time - $begun;
    }
    is(scalar @took, 5, "worker, $way: others' messages are delivered while floods last");
    diag(sprintf "%s: others' messages took %s s", $way, join ' ', map { sprintf '%.1f', $_ } @took);
    my ($took) = $self->_best('end', sub { $self->_end_worker });
    ok(!$self->_takes_too_long('end', $took), "worker, $way: it goes when it is told to");
    diag(sprintf '%s: a worker ended after %.1f s', $way, $took);
    ($took) = $self->_best('stop', sub { $self->_stop });
    ok(!$self->_takes_too_long('stop', $took), "worker, $way: so does the server");
    diag(sprintf '%s: the server stopped after %.1f s', $way, $took);
    $node->safe_psql('postgres', 'DELETE FROM onesignal_message');
}

# Without preload nobody but a request replaces a worker that was ended. It begins with the rows that are flooded.
sub _wait_for_worker
{
    my ($self) = @_;
    Workers::request($self->_node, 'postgres', $self->_api, $self->_api->schedule);
    return Workers::wait_for_worker($self->_node, 'postgres');
}

# (seconds)
sub _end_worker
{
    my ($self) = @_;
    for (1 .. 20)
    {
        $self->_wait_for_worker or last;
        my ($ended, $took) = split /\|/, $self->_node->safe_psql('postgres', <<'SQL');
UPDATE onesignal_message SET send_after = send_after + interval '1 s' WHERE state = 'pending';
SELECT pg_sleep(0.3) AS floods_are_there \gset
SELECT clock_timestamp() AS begun, coalesce(pg_terminate_backend((SELECT pid FROM pg_stat_activity WHERE backend_type = 'onesignal_cancel worker' AND datname = 'postgres'), 60000)::text, '') AS ended \gset
SELECT :'ended', extract(epoch FROM clock_timestamp() - :'begun'::timestamptz);
SQL
        return $took if $ended eq 'true';
        # It was gone already.
        last if $ended ne '';
    }
    return 9999;
}

# (seconds)
sub _stop
{
    my ($self) = @_;
    my $node = $self->_node;
    $self->_wait_for_worker or return 9999;
    my $begun = time;
    $node->stop('fast');
    my $took = time - $begun;
    $node->start;
    $self->{started} = $self->_start_time;
    return $took;
}

# ---- afterwards ----

sub unharmed
{
    my ($self) = @_;
    my $log = StandIn::_slurp($self->_node->logfile);
    is($self->_start_time, $self->{started}, 'the server was not restarted');
    my @bad = grep { /terminated by signal|PANIC|reinitializ|ERROR:|stack smashing|corrupt/ && !/canceling statement due to statement timeout/ } split /\n/, $log;
    ok(!@bad, 'nothing was raised') or diag(join "\n", @bad > 20 ? @bad[ 0 .. 19 ] : @bad);
    is(index($log, $self->_api->api_key), -1, 'no key in the log');
    diag("$self->{right} answers came to what they should, $self->{wrong} did not; $self->{late} only when tried again");
}

sub stop
{
    my ($self) = @_;
    my $pid = delete $self->{generator} or return;
    local $?;
    kill TERM => $pid;
    close $self->{from};
}

sub DESTROY { my ($self) = @_; $self->stop }

1;
