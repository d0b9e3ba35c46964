# onesignal_cancel.enabled = off in postgresql.conf: no call sends anything, and nobody can override it
# in SQL; a reload decides. And a setting that does not exist is an error.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;

my $api = StandIn->new(accept_any => 1);
my $app = $api->app_id;
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "onesignal_cancel.enabled = off\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION onesignal_cancel; CREATE ROLE app LOGIN;' . $api->setup_sql('clinic', grant => 'app'));

my %session = map { $_ => $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=verbose', '-U', $_ ]) }
  'app', scalar getpwuid($<);
my ($superuser) = grep { $_ ne 'app' } keys %session;

# What a session says: rows, or SQLSTATE and message, and in list context all that was said
sub say_as
{
    my ($role, $sql) = @_;
    my $session = $session{$role};
    $session->{stderr} = '';
    my $got = $session->query($sql);
    my $said = $session->{stderr};
    $session->{stderr} = '';
    ($got) = $said =~ /ERROR:  (\w{5}: [^\n]*)/ if $said =~ /ERROR:/;
    return wantarray ? ($got, $said) : $got;
}

# A reload reaches a session before its next statement, but not at a moment that one could know.
sub switch
{
    my ($to) = @_;
    $node->adjust_conf('postgresql.conf', 'onesignal_cancel.enabled', $to);
    $node->reload;
    for my $role (keys %session)
    {
        my $got;
        for (1 .. 1000) { last if ($got = say_as($role, 'SHOW onesignal_cancel.enabled')) eq $to; select undef, undef, undef, 0.02 }
        is($got, $to, "reloaded: $role");
    }
}

my @calls = (
    "SELECT status FROM onesignal_cancel('$app', gen_random_uuid())",
    "SELECT status FROM onesignal_cancel_batch('$app', ARRAY[gen_random_uuid()])");
my $OFF = '55000: requests to OneSignal are switched off on this server';

sub all_off
{
    my ($name) = @_;
    my $received = $api->received;
    for my $role (sort keys %session)
    {
        is(say_as($role, $_), $OFF, "$name: $role") for @calls;
    }
    is($api->received, $received, "$name: nothing was sent");
}

sub all_on
{
    my ($name) = @_;
    for my $role (sort keys %session)
    {
        is(say_as($role, $_), 200, "$name: $role") for @calls;
    }
}

all_off('at the start');
my (undef, $said) = say_as('app', $calls[0]);
like($said, qr/HINT:  To switch them on, set onesignal_cancel.enabled = on in postgresql.conf and reload\./, 'and how to go on');

# Not in SQL, by anybody
for my $role (sort keys %session)
{
    is(say_as($role, $_), '55P02: parameter "onesignal_cancel.enabled" cannot be changed now', "$role: $_")
      for 'SET onesignal_cancel.enabled = on', "ALTER ROLE $role SET onesignal_cancel.enabled = on",
      $role eq 'app' ? () : 'ALTER DATABASE postgres SET onesignal_cancel.enabled = on';
}
{
    local $ENV{PGOPTIONS} = '-c onesignal_cancel.enabled=on';
    my ($result, undef, $stderr) = $node->psql('postgres', $calls[0], extra_params => [ '-v', 'VERBOSITY=verbose' ]);
    like($stderr, qr/$OFF|55P02/, 'PGOPTIONS');
}
all_off('after those attempts');

switch('on');
all_on('switched on');
switch('off');
all_off('switched off again');
switch('on');
all_on('and on');

# Names and values
is(say_as('app', 'SET onesignal_cancel.time_out = 1'), '42602: invalid configuration parameter name "onesignal_cancel.time_out"', 'a setting that is not there');
is(say_as('app', 'SET onesignal_cancel.max_in_flight = 1'), '42501: permission denied to set parameter "onesignal_cancel.max_in_flight"', 'one that is not for users');
for ([ timeout => 0 ], [ timeout => "'2h'" ], [ connect_timeout => 0 ], [ max_retries => -1 ], [ max_retries => 101 ])
{
    like(say_as('app', "SET onesignal_cancel.$_->[0] = $_->[1]"), qr/^22023: .* is outside the valid range/, "$_->[0] = $_->[1]");
}
is(say_as('app', "SET onesignal_cancel.timeout = '90s'; SHOW onesignal_cancel.timeout"), '90s', 'units');
{
    # Before the library is loaded, PostgreSQL cannot know; then it says so.
    local $ENV{PGOPTIONS} = '-c onesignal_cancel.time_out=1';
    my ($result, $stdout, $stderr) = $node->psql('postgres', "$calls[0]; SELECT count(*) FROM pg_settings WHERE name = 'onesignal_cancel.time_out'");
    like($stderr, qr/WARNING:  invalid configuration parameter name "onesignal_cancel.time_out", removing it/, 'one that came before the library');
    is($stdout, "200\n0", 'does no harm');
}

$_->quit for values %session;
done_testing();
