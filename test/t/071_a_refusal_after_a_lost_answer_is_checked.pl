# An attempt may cancel a message and lose its answer; the next one is then refused. OneSignal is asked whether
# the message is canceled, so that the row says what happened.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Test::More;

my $clinic = Clinic->new;
my $api = $clinic->api;
my $http1 = $clinic->server(url => $api->http1_url, app => $api->add_app(api_key => $api->api_key)->{app_id});
my @apps = ([ 'HTTP/2', $api->app_id ], [ 'HTTP/1.1', $http1 ]);

# A message whose first attempt ends like this, and whose second gets this answer.
sub message
{
    my ($app, $lost, $refusal) = @_;
    my $id = $api->schedule(app => $app);
    $api->fault(message => $id, method => 'DELETE', times => 1, %$lost);
    $api->fault(message => $id, method => 'DELETE', %$refusal) if $refusal;
    return $id;
}

sub views { my ($id) = @_; return scalar $api->requests(method => 'GET', message_id => $id) }

my %refused = (status => 400, body => '{"errors":["too late"]}');
my @lost = map { { kind => $_, effect => 1 } } qw(reset truncate);
my @refusals = (
    [ '400', \%refused, '400 t' ],
    [ '404', { status => 404 }, '404 t' ],
    [ 'no success', { status => 200, body => '{"success":false}' }, '200 t' ]);

for (@apps)
{
    my ($name, $app) = @$_;
    $api->view_limit(0, app => $app);
    my @cases = map { my $lost = $_; map { [ $lost, @$_ ] } @refusals } @lost;

    for my $call (qw(cancel batch))
    {
        my @ids = map { message($app, @$_[ 0, 2 ]) } @cases;
        my @rows = $clinic->$call(\@ids, app => $app);
        for my $n (0 .. $#cases)
        {
            my ($lost, $what, undef, $outcome) = @{ $cases[$n] };
            answer_is($rows[$n], $outcome, [], "$name, $call: $lost->{kind}, then $what");
            is(views($ids[$n]), 1, 'asked once');
        }
    }

    my @ids = (
        message($app, { kind => 'reset' }, \%refused),
        message($app, { kind => 'reset', delay => 1 }, { status => 404 }),
        message($app, { status => 503 }, \%refused),
        message($app, { status => 503, effect => 1 }),
        message($app, { kind => 'reset', effect => 1 }),
        message($app, \%refused));
    my @rows = $clinic->cancel(\@ids, app => $app);
    answer_is($rows[0], '400 f', ['too late'], "$name: not canceled, and refused");
    answer_is($rows[1], '404 f', ['Notification not found'], 'not canceled, and not found');
    answer_is($rows[2], '400 f', ['too late'], 'refused after an answer');
    answer_is($rows[3], '200 t', [], 'canceled after an answer');
    answer_is($rows[4], '200 t', [], 'canceled after none');
    answer_is($rows[5], '400 f', ['too late'], 'refused at once');
    is_deeply([ map { views($_) } @ids ], [ 1, 1, 0, 0, 0, 0 ], 'asked where an answer was lost and the message refused');
}

# libcurl's kept connection is gone: the request is sent again within the same attempt.
{
    my $first = $api->schedule(app => $http1);
    my $id = message($http1, { kind => 'reset', effect => 1 }, \%refused);
    my (undef, $row) = $clinic->cancel([ $first, $id ], app => $http1, max_retries => 0);
    answer_is($row, '400 t', [], 'sent again on another connection');
}

my ($view) = $api->requests(method => 'GET');
is("$view->{key} $view->{uri}", "right /notifications/$view->{message_id}?app_id=$view->{app_id}", 'asked with the key, for the message');

done_testing();
