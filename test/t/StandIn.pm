# StandIn: a OneSignal of its own for a TAP test. It drives test/onesignal, whose README has the
# faults in full.
#
#   use FindBin;
#   use lib $FindBin::RealBin;
#   use StandIn;
#
#   my $api = StandIn->new;                      # started; ended with the test
#   $node->safe_psql('postgres', $api->setup_sql('clinic'));
#   my $id = $api->schedule;                     # a message due in an hour
#   $api->fault(message => $id, status => 503, times => 2);
#   ... SELECT * FROM onesignal_cancel(app_id, $id) ...
#   is($api->received(message => $id), 3);
#   is($api->state($id), 'canceled');
#
# StandIn->new(%options): what "start --help" lists, with underscores:
#   accept_any => 1              any message id of the first app is taken for a scheduled one
#   rate_limit => 150            requests a second; then 429
#   delay => 30                  milliseconds before every answer
#   keepalive_requests => 1000, keepalive_timeout => '75s',
#   http2_max_concurrent_streams => 100, workers => 1, app_id, api_key, port, memory,
#   log_buffer => 1, no_log => 1
#
# Where it is:
#   url  http1_url  ipv6_url ('' without IPv6)  plain_url  tls11_url  self_signed_url  expired_url
#   wrong_host_url  control_url  ca  app_id  api_key (the current one)  api_key_file  dir  pid
#   env('ONESIGNAL_URL')         any line of its env file
#
# Messages and apps:
#   schedule(%opts)              creates a message through the API and returns its id
#       send_after => time       seconds since 1970 or text; default: in an hour. undef: sent at once
#       app => app_id, key => api_key
#   preset(\@ids, %opts)         makes these ids scheduled, without the API; same options
#   state($id)                   'scheduled', 'canceled', 'sent' or 'unknown'
#   add_app(%opts)               -> { app_id, api_key }; app_id, api_key, rate_limit, retry_after, accept_any
#   accept_any($on, app => ...)  switches it at run time
#   repeat_status(400, app => ...)   what canceling a canceled message answers; 200 unless set
#   set_key($key, app => ...)    the only valid key from now on
#   rotate(app => ...)           the same with a new random key, which it returns
#   rate_limit($n, app => ..., retry_after => 1)     undef: no limit
#   view_limit($on, app => ...)  the limit of GET: 10 in 10 seconds; on unless switched off
#
# Faults, for the next requests:
#   fault(message => $id | [ids], app => ..., method => 'DELETE', times => N, one_in => N, ...)
#       without message and app: for every request
#       status => 503, body => '...', content_type => '...', headers => { Name => value or [values] }
#       body_bytes => "\xff"     a body that is not text
#       delay => ms              alone, or before any of the others
#       hold => 1                the same, but for as long as the fault is not cleared
#       kind => 'hang' | 'reset' | 'truncate' | 'flood' | 'drip' | 'echo'
#       what => 'nested' ...     a garbled body
#       effect => 1              the cancel takes effect, only its answer goes wrong
#     Those with times are used up in their order; one without follows, and replaces its like.
#   clear_faults()
#
# What it saw:
#   received(message => $id)     how many DELETEs for it arrived; without arguments: requests of any kind
#   counts()                     { received => N, answered => { DELETE => { 200 => N, hang => N } } }
#   requests(%where)             the log: a list of hashes, one a request that has ended, in that order, with all
#                                that were answered before the call:
#       time arrived took connection request protocol method uri app_id message_id status key ('right',
#       'wrong', 'missing') user_agent accept accept_encoding cookie content_length port tls tls_resumed
#       requests(method => 'DELETE', message_id => $id) returns those that match
#   wait_for_requests($n, %opts) waits until $n have arrived in all, or message => $id; dies after timeout => 180
#   max_in_flight()              the most requests that were open at one time, from the log
#   reset()                      forgets messages, counts, faults and the log; apps and keys stay
#
# An outage:
#   stop()  start_again()        same ports; messages, counts, faults and the log are kept
#
# What nginx cannot do:
#   my $raw = $api->raw_server(mode => 'endless_headers', tls => 0|1, %options);
#   $raw->port  $raw->url  $raw->connections  $raw->requests  $raw->stop
#   The modes are listed in test/onesignal/README.md.
#
# SQL:
#   setup_sql($server, %opts)    CREATE SERVER and CREATE USER MAPPING FOR PUBLIC
#       app => ..., key => ..., key_file => path instead of a key, url => ..., user => role instead
#       of PUBLIC, server_options => { rate_limit => 0 }; grant => role

package StandIn;

use strict;
use warnings;

use File::Basename qw(dirname);
use File::Path qw(make_path);
use File::Spec;
use File::Temp ();
use HTTP::Tiny;
use IPC::Run ();
use JSON::PP ();
use MIME::Base64 qw(encode_base64);
use Scalar::Util qw(weaken);
BEGIN { require Servers if $INC{'PostgreSQL/Test/Cluster.pm'} }
use Time::HiRes ();

my $PROGRAMS = File::Spec->catdir(dirname(File::Spec->rel2abs(__FILE__)), '..', 'onesignal');
my $TIMEOUT = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 180;
my $JSON = JSON::PP->new->utf8->canonical;
my @running;

# An interrupted test must come to its END, too.
$SIG{$_} ||= sub { exit 1 } for qw(INT TERM);

sub new
{
    my ($class, %options) = @_;
    my $base = $ENV{TESTDATADIR} || ($ENV{TESTDIR} ? "$ENV{TESTDIR}/tmp_check" : 'tmp_check');
    make_path($base);
    # Left behind, as the servers' logs are, for whoever looks into a failure.
    my $dir = File::Temp::tempdir('onesignal_XXXX', DIR => File::Spec->rel2abs($base));
    my @arguments;
    for my $name (sort keys %options)
    {
        next if !defined $options{$name};
        my $flag = '--' . ($name =~ tr/_/-/r);
        if ($name =~ /^(?:accept_any|log_buffer|no_log)$/) { push @arguments, $flag if $options{$name} }
        else { push @arguments, $flag, $options{$name} }
    }
    my $self = bless { dir => $dir, owner => $$, raw => [] }, $class;
    push @running, $self;
    weaken($running[-1]);
    # The plain listener is on loopback: no proxy may stand in between.
    $self->{http} = HTTP::Tiny->new(timeout => $TIMEOUT, http_proxy => undef, https_proxy => undef, proxy => undef);
    $self->_start($dir, @arguments);
    $self->{api_key} = $self->env('ONESIGNAL_API_KEY');
    $self->{keys} = { $self->app_id => $self->{api_key} };
    return $self;
}

sub _start
{
    my ($self, @arguments) = @_;
    $self->{up} = 1;
    # Files, not pipes: the daemon inherits them, and a pipe would never reach its end.
    my $said = "$self->{dir}/start.out";
    IPC::Run::run([ $^X, "$PROGRAMS/start", @arguments ], '<', File::Spec->devnull, '>', $said, '2>&1')
      or die "could not start the stand-in:\n" . _slurp($said);
    my %env = map { /^(\w+)='(.*)'$/ ? ($1 => $2) : () } split /\n/, _slurp("$self->{dir}/env");
    $self->{env} = \%env;
}

sub _slurp
{
    my ($file) = @_;
    open(my $handle, '<', $file) or return '';
    local $/;
    return scalar(<$handle>) // '';
}

# The path of one of the programs beside "start"
sub _program { my ($name) = @_; return "$PROGRAMS/$name" }

sub env { my ($self, $name) = @_; return $self->{env}{$name} }
sub url { return $_[0]->env('ONESIGNAL_URL') }
sub http1_url { return $_[0]->env('ONESIGNAL_URL_HTTP1') }
sub ipv6_url { return $_[0]->env('ONESIGNAL_URL_IPV6') }
sub plain_url { return $_[0]->env('ONESIGNAL_URL_PLAIN') }
sub tls11_url { return $_[0]->env('ONESIGNAL_URL_TLS11') }
sub self_signed_url { return $_[0]->env('ONESIGNAL_URL_SELF_SIGNED') }
sub expired_url { return $_[0]->env('ONESIGNAL_URL_EXPIRED') }
sub wrong_host_url { return $_[0]->env('ONESIGNAL_URL_WRONG_HOST') }
sub control_url { return $_[0]->env('ONESIGNAL_CONTROL') }
sub ca { return $_[0]->env('ONESIGNAL_CA') }
sub app_id { return $_[0]->env('ONESIGNAL_APP_ID') }
sub api_key { return $_[0]{keys}{ $_[0]->app_id } }
sub api_key_file { return $_[0]->env('ONESIGNAL_API_KEY_FILE') }
sub pid { return $_[0]->env('ONESIGNAL_PID') }
sub dir { return $_[0]{dir} }

sub _control
{
    my ($self, $method, $call, $content) = @_;
    my $answer = $self->{http}->request($method, $self->control_url . "/$call",
        defined $content ? { content => $JSON->encode($content) } : {});
    die "stand-in: $method $call: $answer->{status} $answer->{content}\n" if !$answer->{success};
    return $JSON->decode($answer->{content});
}

sub _app { my ($self, %opts) = @_; return $opts{app} // $self->app_id }

sub schedule
{
    my ($self, %opts) = @_;
    my $app = $self->_app(%opts);
    $opts{send_after} = time + 3600 if !exists $opts{send_after};
    my $answer = $self->{http}->post($self->plain_url . '/notifications', {
        headers => { Authorization => 'Key ' . ($opts{key} // $self->{keys}{$app}), 'Content-Type' => 'application/json' },
        content => $JSON->encode({ app_id => $app, send_after => $opts{send_after}, contents => { en => 'Your appointment is tomorrow' } }) });
    die "stand-in: could not schedule: $answer->{status} $answer->{content}\n" if !$answer->{success};
    return $JSON->decode($answer->{content})->{id};
}

sub preset
{
    my ($self, $ids, %opts) = @_;
    $self->_control(POST => 'message', { app_id => $self->_app(%opts), message_ids => $ids, send_after => $opts{send_after} });
}

sub state { my ($self, $id) = @_; return $self->_control(GET => "message?message_id=$id")->{state} }

sub add_app
{
    my ($self, %opts) = @_;
    $opts{accept_any} = $opts{accept_any} ? JSON::PP::true : JSON::PP::false;
    $opts{rate_limit} += 0 if defined $opts{rate_limit};
    my $app = $self->_control(POST => 'app', \%opts);
    $self->{keys}{ $app->{app_id} } = $app->{api_key};
    return $app;
}

sub accept_any
{
    my ($self, $on, %opts) = @_;
    $self->_control(POST => 'accept_any', { app_id => $self->_app(%opts), accept_any => $on ? JSON::PP::true : JSON::PP::false });
}

sub repeat_status
{
    my ($self, $status, %opts) = @_;
    $self->_control(POST => 'repeat', { app_id => $self->_app(%opts), status => $status });
}

sub set_key
{
    my ($self, $key, %opts) = @_;
    my $app = $self->_app(%opts);
    $self->_control(POST => 'key', { app_id => $app, api_key => $key });
    $self->{keys}{$app} = $key;
    return $key;
}

sub rotate
{
    my ($self, %opts) = @_;
    return $self->set_key('os_v2_app_' . join('', map { ('a' .. 'z', 2 .. 7)[ rand 32 ] } 1 .. 64), %opts);
}

sub rate_limit
{
    my ($self, $n, %opts) = @_;
    $self->_control(POST => 'rate_limit', { app_id => $self->_app(%opts), rate_limit => $n, retry_after => $opts{retry_after} });
}

sub view_limit
{
    my ($self, $on, %opts) = @_;
    $self->_control(POST => 'view_limit', { app_id => $self->_app(%opts), view_limit => $on ? JSON::PP::true : JSON::PP::false });
}

sub fault
{
    my ($self, %fault) = @_;
    $fault{body_base64} = encode_base64(delete $fault{body_bytes}, '') if defined $fault{body_bytes};
    for my $field (qw(effect hold)) { $fault{$field} = JSON::PP::true if $fault{$field} }
    return $self->_control(POST => 'fault', \%fault)->{fault};
}

sub clear_faults { my ($self) = @_; $self->_control(DELETE => 'faults') }

sub received
{
    my ($self, %opts) = @_;
    return $self->_control(GET => 'received' . ($opts{message} ? "?message_id=$opts{message}" : ''))->{received};
}

sub counts { my ($self) = @_; return $self->_control(GET => 'counts') }

# nginx writes the line of a request after its answer. This waits for the lines of all answers.
sub _wait_for_log
{
    my ($self) = @_;
    return if !$self->{up} || !-e "$self->{dir}/requests.log";
    my $counts = $self->counts->{answered};
    my $answered = 0;
    for my $statuses (values %$counts) { $answered += $statuses->{$_} for grep { /^\d+$/ } keys %$statuses }
    my $until = Time::HiRes::time() + 10;
    my $logged;
    while (($logged = () = _slurp("$self->{dir}/requests.log") =~ /"answered":"1".*\n/g) + ($self->{unlogged} // 0) < $answered)
    {
        # An nginx that was stopped may have taken some with it.
        return $self->{unlogged} = $answered - $logged if Time::HiRes::time() > $until;
        Time::HiRes::sleep(0.01);
    }
}

sub requests
{
    my ($self, %where) = @_;
    $self->_wait_for_log;
    my @found;
    # The last line may be half written.
    for my $line (_slurp("$self->{dir}/requests.log") =~ /^(.*)\n/mg)
    {
        my $request = $JSON->decode($line);
        push @found, $request if !grep { $request->{$_} ne $where{$_} } keys %where;
    }
    return @found;
}

sub wait_for_requests
{
    my ($self, $n, %opts) = @_;
    my $until = Time::HiRes::time() + ($opts{timeout} // $TIMEOUT);
    while ((my $seen = $self->received(%opts)) < $n)
    {
        die "stand-in: $seen of $n requests arrived in time\n" if Time::HiRes::time() > $until;
        Time::HiRes::sleep(0.02);
    }
    return 1;
}

sub max_in_flight
{
    my ($self, %where) = @_;
    # An end sorts before a start at the same millisecond.
    my @events = sort { $a->[0] <=> $b->[0] || $a->[1] <=> $b->[1] }
      map { ([ sprintf('%.3f', $_->{time} - $_->{took}), 1 ], [ $_->{time}, -1 ]) } $self->requests(%where);
    my ($now, $most) = (0, 0);
    for (@events) { $now += $_->[1]; $most = $now if $now > $most }
    return $most;
}

sub reset
{
    my ($self) = @_;
    $self->_wait_for_log;
    $self->_control(POST => 'reset');
    delete $self->{unlogged};
    truncate("$self->{dir}/requests.log", 0) if -e "$self->{dir}/requests.log";
}

sub stop { my ($self) = @_; return $self->_stop('--keep') }

sub _stop
{
    my ($self, @keep) = @_;
    return if !delete $self->{up};
    IPC::Run::run([ "$PROGRAMS/stop", @keep, $self->{dir} ], '<', File::Spec->devnull, '>', File::Spec->devnull)
      or die "could not stop the stand-in\n";
}

# While it was down another test's server may have got one of its ports: until that ends.
sub start_again
{
    my ($self) = @_;
    for (1 .. 100)
    {
        return if eval { $self->_start('--again', $self->{dir}); 1 };
        last if $@ !~ /a port is taken/;
        sleep 1;
    }
    die $@;
}

sub raw_server
{
    my ($self, %opts) = @_;
    my $raw = StandIn::Raw->new($self->{dir}, "$PROGRAMS/raw", %opts);
    push @{ $self->{raw} }, $raw;
    weaken($self->{raw}[-1]);
    return $raw;
}

sub _literal { my ($text) = @_; $text =~ s/'/''/g; return $text =~ s/\\/\\\\/g ? " E'$text'" : "'$text'" }

sub setup_sql
{
    my ($self, $server, %opts) = @_;
    my $app = $self->_app(%opts);
    my %server = (app_id => $app, base_url => $opts{url} // $self->url, ca_file => $self->ca, %{ $opts{server_options} // {} });
    my %mapping = defined $opts{key_file} ? (api_key_file => $opts{key_file}) : (api_key => $opts{key} // $self->{keys}{$app});
    my $options = sub { my (%o) = @_; join ', ', map { "$_ " . _literal($o{$_}) } grep { defined $o{$_} } sort keys %o };
    return "CREATE SERVER $server FOREIGN DATA WRAPPER onesignal OPTIONS (" . $options->(%server) . ");\n"
      . "CREATE USER MAPPING FOR " . ($opts{user} // 'PUBLIC') . " SERVER $server OPTIONS (" . $options->(%mapping) . ");\n"
      . ($opts{grant} ? "GRANT USAGE ON FOREIGN SERVER $server TO $opts{grant};\n" : '');
}

sub DESTROY
{
    my ($self) = @_;
    local ($?, $@, $!);
    return if $$ != $self->{owner};    # a forked child's copy
    $_->stop for grep { defined } @{ $self->{raw} };
    eval { $self->_stop; 1 } or warn $@;
}

# Before global destruction, in which the objects needed to stop may be gone already.
END
{
    local $?;
    $_->DESTROY for grep { defined && $_->{owner} == $$ } @running;
}

package StandIn::Raw;

use strict;
use warnings;

sub new
{
    my ($class, $dir, $program, %opts) = @_;
    my $mode = delete $opts{mode} // die 'mode is missing';
    my @arguments = ('--mode', $mode, '--dir', $dir);
    push @arguments, '--tls' if delete $opts{tls};
    push @arguments, '--' . (tr/_/-/r), $opts{$_} for sort keys %opts;
    my $self = bless { owner => $$ }, $class;
    $self->{pid} = open($self->{from}, '-|', $^X, $program, @arguments) // die "could not run $program: $!";
    my $line = readline($self->{from}) // '';
    ($self->{port}, $self->{log}, $self->{url}) = $line =~ /^(\d+)\t(.*)\t(.*)$/ or die "$program did not start\n";
    return $self;
}

sub port { return $_[0]{port} }
sub url { return $_[0]{url} }
sub _count { my ($self, $what) = @_; return scalar(() = StandIn::_slurp($self->{log}) =~ /^$what\b/mg) }
sub connections { return $_[0]->_count('connection') }
sub requests { return $_[0]->_count('request') }

sub stop
{
    my ($self) = @_;
    my $pid = delete $self->{pid} // return;
    local $?;
    kill TERM => $pid;
    close $self->{from};    # waits for it
}

sub DESTROY { my ($self) = @_; $self->stop if $$ == $self->{owner} }

1;
