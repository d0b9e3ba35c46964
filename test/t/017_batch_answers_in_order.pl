# A batch: a row for each element in the array's order, and what one answer means for all others.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Test::More;

my $clinic = Clinic->new;
my $api = $clinic->api;

# Unpaced, with nobody else's requests, and any message is taken for a scheduled one.
sub new_app { return $clinic->server(app => $api->add_app(accept_any => 1, api_key => $api->api_key)->{app_id}, server_options => { rate_limit => 0 }) }
sub ids { my ($n) = @_; return map { $clinic->uuid } 1 .. $n }
sub requests { my ($app) = @_; my @sorted = sort { $a->{time} <=> $b->{time} } $api->requests(app_id => $app); return @sorted }
sub ids_are { my ($rows, $ids, $name) = @_; is_deeply([ map { $_->{message_id} } @$rows ], $ids, $name) }

my $app = new_app();

subtest 'order' => sub {
    my @ids = ids(120);
    $api->fault(message => $ids[$_], delay => 300 - 10 * $_) for 0 .. 29;
    my @rows = $clinic->batch([ @ids, @ids[ 5, 5, 0 ] ], app => $app);
    ids_are(\@rows, [ @ids, @ids[ 5, 5, 0 ] ], 'of the array, whichever was answered first');
    is(scalar(grep { "$_->{status} $_->{success}" eq '200 true' } @rows), 123, 'success');
    is($api->received(message => $ids[5]), 3, 'an id that is there three times is sent three times');
    is($api->received(message => $ids[6]), 1, 'any other once');
};

subtest 'mixed outcomes' => sub {
    my @expected = (
        [ {}, '200 t', [] ],
        [ { status => 400 }, '400 f', ['Notification has already been sent to all recipients'] ],
        [ { status => 404 }, '404 f', ['Notification not found'] ],
        [ { status => 503, body => '' }, '503 f', ['HTTP 503 with an empty body'] ],
        [ { status => 302, headers => { Location => 'https://x.example/' } }, '302 f', ['HTTP 302 redirects to host "x.example", which is not followed'] ],
        [ { kind => 'hang' }, 'NULL f', ['no answer within 3000 ms'] ],
        [ { status => 429, headers => { 'Retry-After' => 0 } }, '429 f', ['API rate limit exceeded'] ],
        [ { body => '{"success":true,"errors":["a","b"]}' }, '200 t', [ 'a', 'b' ] ],
        [ { what => 'half' }, '200 f', ['unexpected answer: HTTP 200 with {"success":tr'] ],
        [ { kind => 'flood' }, 'NULL f', ['the answer is larger than 64 kB'] ],
        [ {}, '200 t', [] ]);
    my @ids = ids(scalar @expected);
    $api->fault(message => $ids[$_], %{ $expected[$_][0] }) for grep { %{ $expected[$_][0] } } 0 .. $#ids;
    my @rows = $clinic->batch(\@ids, app => $app, max_retries => 0, timeout => '3s');
    ids_are(\@rows, \@ids, 'in order');
    answer_is($rows[$_], @{ $expected[$_] }[ 1, 2 ], "row $_") for 0 .. $#rows;
};

subtest 'arrays of every kind' => sub {
    my $q = sub { join ',', map { "'$_'" } @_ };
    my @ids = ids(4);
    my $batch = sub { my ($array, $more) = @_; return [ $clinic->sql("SELECT message_id FROM onesignal_cancel_batch('$app', $array);") ] };
    is_deeply($batch->("'{}'"), [], 'an empty one');
    is_deeply($batch->("ARRAY[ARRAY[${\ $q->(@ids[0, 1])}],ARRAY[${\ $q->(@ids[2, 3])}]]::uuid[]"), \@ids, 'of two dimensions');
    is_deeply($batch->("'[7:8]={$ids[0],$ids[1]}'"), [ @ids[ 0, 1 ] ], 'that begins at 7');
    is_deeply($batch->("(ARRAY[${\ $q->(@ids[0, 1])},NULL]::uuid[])[1:2]"), [ @ids[ 0, 1 ] ], 'that had a NULL');
    is_deeply([ $clinic->sql("CREATE TEMP TABLE t AS SELECT array_agg(md5(i::text)::uuid ORDER BY i) a FROM generate_series(1, 2000) i;
          SELECT count(*), bool_and(success), bool_and(message_id = md5(n::text)::uuid) FROM t, onesignal_cancel_batch('$app', a) WITH ORDINALITY AS b(message_id, status, success, errors, n);") ],
        ['2000|t|t'], 'from a table');
    my ($before) = $api->received;
    is_deeply([ ($clinic->failure("SELECT * FROM onesignal_cancel_batch($_->[0]);"))[0] ], ['22004'], $_->[1])
      for [ "'$app', ARRAY[${\ $q->(@ids)},NULL]::uuid[]", 'a NULL element' ], [ "'$app', ARRAY[ARRAY['$ids[0]'],ARRAY[NULL]]::uuid[]", 'a NULL element in two dimensions' ],
      [ "'$app', NULL", 'no array' ], [ "NULL, ARRAY['$ids[0]']::uuid[]", 'no app' ];
    my (undef, $said) = $clinic->failure("SELECT * FROM onesignal_cancel_batch('$app', ARRAY['$ids[0]',NULL]::uuid[]);");
    like($said, qr/DETAIL:  Nothing was sent\.\s+HINT:  .*array_remove/, 'and what to do about it');
    (undef, $said) = $clinic->failure("SELECT * FROM onesignal_cancel_batch('$app', NULL);");
    like($said, qr/message_ids must not be null\s+HINT:  .*ARRAY\(SELECT/, 'and about no array');
    is($api->received, $before, 'nothing was sent');
};

# What takes seconds runs side by side.
my @later;
sub while_others_run
{
    my ($name, $ids, $settings, $look) = @_;
    my $own = new_app();
    my $session = $clinic->start_batch($ids, app => $own, %$settings);
    push @later, [ $name, sub { $look->($own, $clinic->rows($session)) } ];
}

for my $status (401, 403)
{
    my @ids = ids(40);
    $api->fault(message => $ids[2], status => $status, body => '{"errors":["Access denied."]}');
    while_others_run "a $status ends it", \@ids, { max_in_flight => 1 }, sub {
        my ($own, @rows) = @_;
        ids_are(\@rows, \@ids, 'a row each');
        answer_is($_, '200 t', [], 'before') for @rows[ 0, 1 ];
        is(scalar(grep { "$_->{status} $_->{success} @{$_->{errors}}" eq "$status false Access denied." } @rows[ 2 .. $#rows ]), 38, 'the others report the same');
        is(scalar requests($own), 3, 'and were not sent');
    };
}

{
    my @ids = ids(300);
    my $own = $clinic->server(app => $api->add_app->{app_id}, key => 'os_v2_app_wrong', server_options => { rate_limit => 0 });
    my $session = $clinic->start_batch(\@ids, app => $own, max_in_flight => 20);
    push @later, [ 'a wrong key', sub {
        my @rows = $clinic->rows($session);
        is(scalar(grep { $_->{status} == 403 && $_->{errors}[0] =~ /^Access denied/ } @rows), 300, 'everywhere');
        cmp_ok(scalar requests($own), '<=', 20, 'is tried by those that were on their way');
    } ];
}

{
    my @ids = ids(3);
    $api->fault(message => $ids[0], status => 503, headers => { 'Retry-After' => 10 });
    $api->fault(message => $ids[1], delay => 700);
    $api->fault(message => $ids[2], status => 403, delay => 200);
    while_others_run 'the end of those that wait or are on their way', \@ids, { max_in_flight => 3, max_retries => 5 }, sub {
        my ($own, @rows) = @_;
        answer_is($rows[0], '403 f', qr/^Access denied/, 'one that waits to be tried again');
        is($api->received(message => $ids[0]), 1, 'is not');
        answer_is($rows[1], '200 t', [], 'one that is on its way has its own answer');
    };
}

{
    my @ids = ids(8);
    $api->fault(message => $ids[2], status => 429, headers => { 'Retry-After' => 6 }, times => 1);
    while_others_run 'a 429 pauses all', \@ids, { max_in_flight => 1, max_retries => 1 }, sub {
        my ($own, @rows) = @_;
        is(join(' ', map { $_->{status} } @rows), '200 ' x 7 . '200', 'success in the end');
        my @requests = requests($own);
        is(scalar @requests, 9, 'one request more');
        is($requests[2]{status}, 429, 'the third was refused');
        cmp_ok($requests[3]{time} - $requests[2]{time}, '>=', 5.95, 'and the fourth waited');
        cmp_ok($requests[8]{time} - $requests[3]{time}, '<', 5.9, 'none of the others did');
    };
}

{
    my @ids = ids(6);
    $api->fault(message => $ids[2], status => 429, headers => { 'Retry-After' => 3 }, times => 1);
    while_others_run 'a 429 pauses the others though it is not tried again', \@ids, { max_in_flight => 1, max_retries => 0, timeout => '5s' }, sub {
        my ($own, @rows) = @_;
        is(join(' ', map { $_->{status} } @rows), '200 200 429 200 200 200', 'one is not canceled');
        my @requests = requests($own);
        cmp_ok($requests[3]{time} - $requests[2]{time}, '>=', 2.95, 'the next waited');
    };
}

{
    my @ids = ids(30);
    $api->fault(message => $ids[2], status => 429, headers => { 'Retry-After' => 600 });
    while_others_run 'a 429 that asks for more than the timeout ends it', \@ids, { max_in_flight => 1, max_retries => 5 }, sub {
        my ($own, @rows) = @_;
        is(join(' ', map { $_->{status} } @rows), '200 200' . ' 429' x 28, 'the others report the same');
        is(scalar requests($own), 3, 'and were not sent');
    };
}

{
    my @ids = ids(50);
    $api->fault(message => $ids[0], status => 503, times => 1);
    while_others_run 'one that is tried again holds up nobody', \@ids, { max_in_flight => 2, max_retries => 1 }, sub {
        my ($own, @rows) = @_;
        is(scalar(grep { $_->{status} == 200 } @rows), 50, 'success');
        my ($first, $second) = do { my @requests = requests($own); grep { $requests[$_]{message_id} eq $ids[0] } 0 .. $#requests };
        cmp_ok($first, '<=', 1, 'it was among the first');
        cmp_ok($second, '>', 5, 'others went before it was there again');
    };
}

{
    my @ids = ids(90);
    my $own = $clinic->server(app => $api->add_app(accept_any => 1, api_key => $api->api_key)->{app_id}, server_options => { rate_limit => 30 });
    my $session = $clinic->start_batch(\@ids, app => $own);
    push @later, [ 'rate_limit', sub {
        is(scalar(grep { $_->{status} == 200 } $clinic->rows($session)), 90, 'success');
        my @requests = requests($own);
        # Tokens that had gathered may go at once.
        cmp_ok($requests[-1]{time} - $requests[0]{time}, '>=', 1.5, '90 requests at 30 a second');
    } ];
}

subtest $_->[0] => $_->[1] for @later;

subtest 'a 429 that asks for more than one of the others has left' => sub {
    my $own = new_app();
    my @ids = ids(3);
    $api->fault(message => $ids[0], status => 503, times => 1);
    $api->fault(message => $ids[0], status => 503, delay => 500);
    $api->fault(message => $ids[1], delay => 800);
    $api->fault(message => $ids[2], status => 429, headers => { 'Retry-After' => 3 }, times => 1);
    my @rows = $clinic->batch(\@ids, app => $own, max_in_flight => 2, max_retries => 5, timeout => '3500ms');
    is("$rows[0]{status} $rows[1]{status}", '503 200', 'the last answer is reported, and no request begun that has no time left');
};

subtest '100,000' => sub {
    my $peak = q{SELECT (regexp_match(pg_read_file('/proc/self/status'), 'VmHWM:\s+(\d+) kB'))[1]};
    $peak = 'SELECT 0' if !-r '/proc/self/status';
    my $count = 100_000;
    my $own = new_app();
    my $batch = sub { my ($n) = @_; return "SELECT count(*), sum((success AND status = 200 AND errors = '{}')::int), sum((message_id = md5('x' || n)::uuid)::int)
          FROM onesignal_cancel_batch('$own', (SELECT array_agg(md5('x' || i)::uuid ORDER BY i) FROM generate_series(1, $n) i)) WITH ORDINALITY AS b(message_id, status, success, errors, n);" };
    my @said = $clinic->sql($batch->(1000) . "$peak;" . $batch->($count) . "$peak;");
    is($said[2], "$count|$count|$count", 'rows, successes, and ids where they should be');
    cmp_ok($said[3] - $said[1], '<', 65_536, 'kB that they take') if !$ENV{SANITIZE};
};

done_testing();
