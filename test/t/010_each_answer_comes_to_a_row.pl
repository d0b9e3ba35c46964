# What each answer of OneSignal, or of something in between, comes to: the table in the README.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Test::More;

my $clinic = Clinic->new;
my $api = $clinic->api;

# Each case is [ name, fault, outcome, errors ]; all of them go through one session.
sub all_are
{
    my (@cases) = @_;
    my @ids = map { $api->schedule } @cases;
    $api->fault(message => $ids[$_], %{ $cases[$_][1] }) for 0 .. $#cases;
    my @rows = $clinic->cancel(\@ids, max_retries => 0);
    answer_is($rows[$_], @{ $cases[$_] }[ 2, 3 ], $cases[$_][0]) for 0 .. $#cases;
}

sub body { my ($status, $body) = @_; return { status => $status, body => $body } }
sub page { return { status => $_[0], content_type => 'text/html', body => "<html>\r\n  <h1>$_[0]</h1>\n\n</html>\n" } }

subtest 'the message itself' => sub {
    my $id = $api->schedule;
    my $sent = $api->schedule(send_after => undef);
    my @rows = $clinic->cancel([ $id, $id, $sent, $clinic->uuid ], max_retries => 0);
    answer_is($rows[0], '200 t', [], 'scheduled');
    is($api->state($id), 'canceled', 'it will not be sent');
    answer_is($rows[1], '200 t', [], 'canceled before');
    answer_is($rows[2], '400 f', ['Notification has already been sent to all recipients'], 'sent before');
    answer_is($rows[3], '404 f', ['Notification not found'], 'unknown');
    is($api->received, 6, 'one request each');
};

subtest 'HTTP 200' => sub {
    all_are(
        [ 'success', body(200, '{"success":true}'), '200 t', [] ],
        [ 'success among other things', body(200, qq( {"id": 7,\n"success" : true, "errors": [] }\n)), '200 t', [] ],
        [ 'success, as text', body(200, '{"success":"true"}'), '200 t', [] ],
        [ 'success as plain text says', { %{ body(200, '{"success":true}') }, content_type => 'text/plain' }, '200 t', [] ],
        [ 'success and errors', body(200, '{"success":true,"errors":["a","b"]}'), '200 t', [ 'a', 'b' ] ],
        [ 'success and errors as objects', body(200, '{"success":true,"errors":[{"code":"x","title":"y"}]}'), '200 t', ['x: y'] ],
        [ 'no success', body(200, '{"success":false}'), '200 f', [] ],
        [ 'no success, as text', body(200, '{"success":"false","errors":"why"}'), '200 f', ['why'] ],
        [ 'no success, and why', body(200, '{"success":false,"errors":["too late"]}'), '200 f', ['too late'] ],
        map { [ "success is $_", body(200, qq({"success":$_,"errors":["not shown"]})), '200 f', ["unexpected answer: HTTP 200 with {\"success\":$_,\"errors\":[\"not shown\"]}"] ] }
          qw(null 1 "TRUE" "true\u0020" [true] {"success":true}));
    all_are(
        map { [ "not its object: $_->[0]", body(200, $_->[1]), '200 f', [ 'unexpected answer: HTTP 200 with ' . ($_->[2] // $_->[1]) ] ] }
          [ 'object', '{}' ], [ 'array', '[{"success":true}]' ], [ 'true', 'true' ], [ 'text', '"success"' ], [ 'null', 'null' ],
          [ 'nothing', '', 'an empty body' ], [ 'blanks', " \r\n\t", 'an empty body' ],
          [ 'a page', "<html>\n\n <p>OK</p>\r\n</html>", '<html> <p>OK</p> </html>' ],
          [ 'more than JSON', '{"success":true}{"success":true}' ]);
};

subtest 'other 2xx' => sub {
    all_are(
        (map { [ "status $_", body($_, '{"success":true}'), "$_ f", ["unexpected answer: HTTP $_ with {\"success\":true}"] ] } 201, 202, 203, 206, 226, 299),
        [ 'status 204', { status => 204 }, '204 f', ['unexpected answer: HTTP 204 with an empty body'] ]);
};

subtest '3xx' => sub {
    my $elsewhere = Peer->new(sub { });
    my $to = sub { my ($status, $location) = @_; return { status => $status, headers => { Location => $location } } };
    my $says = sub { my ($status, $host) = @_; return ["HTTP $status redirects to host \"$host\", which is not followed"] };
    all_are(
        (map { [ "status $_", $to->($_, $elsewhere->url . '/notifications/1'), "$_ f", $says->($_, '127.0.0.1') ] } 300 .. 303, 305, 307, 308),
        [ 'https', $to->(302, 'https://evil.example:8443/?app_id=1'), '302 f', $says->(302, 'evil.example') ],
        [ 'without a scheme', $to->(302, '//evil.example/'), '302 f', $says->(302, 'evil.example') ],
        [ 'a path', $to->(302, '/login'), '302 f', $says->(302, 'localhost') ],
        [ 'IPv6', $to->(302, 'http://[::1]:1/'), '302 f', $says->(302, '[::1]') ],
        [ 'another protocol', $to->(302, 'ftp://evil.example/x'), '302 f', $says->(302, 'evil.example') ],
        [ 'no host at all', $to->(302, 'http://'), '302 f', ['HTTP 302 redirects nowhere'] ],
        [ 'no location', body(302, '{"errors":["moved"]}'), '302 f', ['HTTP 302 redirects nowhere'] ],
        [ 'not modified', { status => 304 }, '304 f', ['HTTP 304 redirects nowhere'] ],
        [ 'a body that says success', { %{ $to->(307, $elsewhere->url) }, body => '{"success":true}' }, '307 f', $says->(307, '127.0.0.1') ]);
    is($elsewhere->connections, 0, 'and nobody went there');
};

subtest '4xx' => sub {
    all_are(
        (map { [ "$_ with errors", body($_, '{"errors":["no"]}'), "$_ f", ['no'] ] } 400, 402, 404, 405, 409, 410, 413, 418, 422, 451, 499),
        [ 'success true counts for nothing', body(400, '{"success":true,"errors":["no"]}'), '400 f', ['no'] ],
        [ 'errors, but none', body(400, '{"errors":[]}'), '400 f', [] ],
        [ '404 from a proxy', page(404), '404 f', ['unexpected answer: HTTP 404 with <html> <h1>404</h1> </html>'] ],
        [ 'empty', body(400, ''), '400 f', ['unexpected answer: HTTP 400 with an empty body'] ],
        [ 'no errors', body(400, '{"error":"no"}'), '400 f', ['unexpected answer: HTTP 400 with {"error":"no"}'] ],
        [ 'errors are null', body(400, '{"errors":null}'), '400 f', ['unexpected answer: HTTP 400 with {"errors":null}'] ],
        [ 'not an object', body(400, '["errors"]'), '400 f', ['unexpected answer: HTTP 400 with ["errors"]'] ]);
};

subtest '401 and 403' => sub {
    all_are(
        map {
            [ "$_ with errors", body($_, '{"errors":["Access denied."],"reference":["https://x"]}'), "$_ f", ['Access denied.'] ],
              [ "$_ with {} as plain text", { status => $_, body => '{}', content_type => 'text/plain' }, "$_ f", ["HTTP $_ with {}"] ],
              [ "$_ with nothing", body($_, ''), "$_ f", ["HTTP $_ with an empty body"] ],
              [ "$_ with a page", page($_), "$_ f", ["HTTP $_ with <html> <h1>$_</h1> </html>"] ]
        } 401, 403);
    my ($row) = $clinic->cancel($api->schedule, app => $clinic->server(key => 'os_v2_app_wrong', app => $api->add_app->{app_id}));
    answer_is($row, '403 f', qr/^Access denied\. .*valid API key/, 'a wrong key');
};

subtest '408, 429 and 5xx' => sub {
    all_are(
        map {
            [ "$_ with errors", body($_, '{"errors":["later"]}'), "$_ f", ['later'] ],
              [ "$_ with no errors", body($_, '{"errors":[]}'), "$_ f", ["HTTP $_ with {\"errors\":[]}"] ],
              [ "$_ with nothing", body($_, ''), "$_ f", ["HTTP $_ with an empty body"] ],
              [ "$_ with a page", page($_), "$_ f", ["HTTP $_ with <html> <h1>$_</h1> </html>"] ],
              [ "$_ with success", body($_, '{"success":true}'), "$_ f", ["HTTP $_ with {\"success\":true}"] ]
        } 408, 429, 500, 502, 503, 504, 520, 599);
};

subtest 'the shapes of errors' => sub {
    my $errors = sub { my ($name, $json, @expected) = @_; return [ $name, body(400, qq({"errors":$json})), '400 f', \@expected ] };
    all_are(
        $errors->('texts', '["one","two"]', 'one', 'two'),
        $errors->('objects', '[{"code":"c1","title":"t1"},{"title":"t2","code":"c2","meta":{}}]', 'c1: t1', 'c2: t2'),
        $errors->('texts and objects', '["one",{"code":"c","title":"t"}]', 'one', 'c: t'),
        $errors->('a single text', '"just this"', 'just this'),
        $errors->('a single object', '{"code":"c","title":"t"}', 'c: t'),
        $errors->('another object', '{"invalid_ids":["x"]}', '{"invalid_ids": ["x"]}'),
        $errors->('an empty object', '{}', '{}'),
        $errors->('code alone', '[{"code":"c"}]', '{"code": "c"}'),
        $errors->('title alone', '[{"title":"t"}]', '{"title": "t"}'),
        $errors->('a code that is no text', '[{"code":7,"title":"t"}]', '{"code": 7, "title": "t"}'),
        $errors->('numbers', '[1,-2.50,1e3]', '1', '-2.50', '1000'),
        $errors->('a single number', '42', '42'),
        $errors->('truths', '[true,false]', 'true', 'false'),
        $errors->('a single truth', 'false', 'false'),
        $errors->('nulls', '[null,null]', 'null', 'null'),
        $errors->('arrays', '[["a"],[]]', '["a"]', '[]'),
        $errors->('an empty text', '[""]', ''),
        $errors->('quotes', '["say \"no\" \\\\ {a,b}"]', 'say "no" \\ {a,b}'));
};

subtest 'one line of a page' => sub {
    my $long = join ' ', map { "word$_" } 1 .. 100;
    all_are(
        [ 'its beginning', body(502, "\n\n $long"), '502 f', [ 'HTTP 502 with ' . substr($long, 0, 200) ] ],
        [ 'cut between characters', body(502, "\x{e9}" x 300), '502 f', [ 'HTTP 502 with ' . "\x{e9}" x 100 ] ]);
};

done_testing();
