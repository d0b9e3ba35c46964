# Databases whose encoding is not UTF-8: what they cannot hold is lost, but nothing else.

use strict;
use warnings;
use utf8;
use FindBin;
use lib $FindBin::RealBin;
use Clinic;
use Test::More;

my $clinic = Clinic->new;
my $api = $clinic->api;
$clinic->node->safe_psql('postgres', "CREATE DATABASE $_ ENCODING '$_' LOCALE 'C' TEMPLATE template0") for qw(latin1 sql_ascii euc_jp);
$clinic->node->safe_psql($_, 'CREATE EXTENSION onesignal_cancel;' . $api->setup_sql('clinic')) for qw(latin1 sql_ascii euc_jp);

sub fault { my ($status, $body) = @_; return { status => $status, body => $body } }

# [ body's texts as they are sent, and as each database shows them ]; a missing one is as sent.
my @texts = (
    [ 'plain' ],
    [ 'café', latin1 => 'café' ],
    [ 'caf\\u00e9', map { $_ => 'café' } qw(utf8 latin1 sql_ascii euc_jp) ],
    [ '予約', latin1 => '??' ],
    [ '\\u4e88\\u7d04', latin1 => '??', map { $_ => '予約' } qw(utf8 sql_ascii euc_jp) ],
    [ 'ﾖﾔｸ', latin1 => '???' ],
    [ 'é 😀', latin1 => 'é ?', euc_jp => 'é ?' ],
    [ '\\ud83d\\ude00', utf8 => '😀', latin1 => '?', sql_ascii => '😀', euc_jp => '?' ],
    [ 'a\\u0000b', map { $_ => 'a?b' } qw(utf8 latin1 sql_ascii euc_jp) ],
    [ '\\ud83d\\u4e88', latin1 => '??', map { $_ => '?予' } qw(utf8 sql_ascii euc_jp) ],
    [ '\\ud83d!', map { $_ => '?!' } qw(utf8 latin1 sql_ascii euc_jp) ],
    [ "a\x{9b}31m", utf8 => 'a\\xC2\\x9B31m', latin1 => 'a\\x9B31m', sql_ascii => 'a\\xC2\\x9B31m', euc_jp => 'a?31m' ],
);

for my $db (qw(utf8 latin1 sql_ascii euc_jp))
{
    subtest $db => sub {
        my $shown = sub { my ($sent, %as) = @{ $_[0] }; return $as{$db} // $sent };
        my @cases = (
            (map { [ "refused: $_->[0]", fault(400, qq({"errors":["$_->[0]"]})), '400 f', [ $shown->($_) ] ] } @texts),
            (map { [ "canceled: $_->[0]", fault(200, qq({"success":true,"errors":[{"code":"c","title":"$_->[0]"}],"$_->[0]":"$_->[0]"})), '200 t', [ 'c: ' . $shown->($_) ] ] } @texts),
            [ 'a page', fault(502, 'Café'), '502 f', [ 'HTTP 502 with Café' ] ],
            [ 'a page in Japanese', fault(502, '予約'), '502 f', [ $db eq 'latin1' ? 'HTTP 502 with \\xE4\\xBA\\x88\\xE7\\xB4\\x84' : 'HTTP 502 with 予約' ] ],
            [ 'text and other bytes', { status => 502, body_bytes => "caf\xc3\xa9 \xff" }, '502 f', ['HTTP 502 with café \\xFF'] ],
            [ 'a page, cut between characters', fault(502, '予' x 2000), '502 f', [ 'HTTP 502 with ' . ({ latin1 => '\\xE4\\xBA\\x88' x 16 . '\\xE4\\xBA', euc_jp => '予' x 100 }->{$db} // '予' x 66) ] ],
            [ 'no text', { status => 502, body_bytes => "\xff\xe9" }, '502 f', ['HTTP 502 with \\xFF\\xE9'] ],
            [ 'cut between characters', fault(400, '{"errors":["x' . '予' x 2000 . '"]}'), '400 f',
                [ 'x' . ({ utf8 => '予' x 341, latin1 => '?' x 1023, euc_jp => '予' x 511 }->{$db} // '予' x 341) ] ],
        );
        my @ids = map { $api->schedule } @cases;
        $api->fault(message => $ids[$_], %{ $cases[$_][1] }) for 0 .. $#cases;
        my @rows = $clinic->cancel(\@ids, max_retries => 0, db => $db eq 'utf8' ? 'postgres' : $db);
        answer_is($rows[$_], @{ $cases[$_] }[ 2, 3 ], $cases[$_][0]) for 0 .. $#cases;
    };
}

# Where PostgreSQL numbers the encodings apart from LATIN1 to LATIN10; in WIN1251 that byte is a character.
for ([ iso_8859_5 => 'a\\x9B31m' ], [ win1251 => 'a?31m' ])
{
    my ($db, $shown) = @$_;
    $clinic->node->safe_psql('postgres', "CREATE DATABASE $db ENCODING '$db' LOCALE 'C' TEMPLATE template0");
    $clinic->node->safe_psql($db, 'CREATE EXTENSION onesignal_cancel;' . $api->setup_sql('clinic'));
    my $id = $api->schedule;
    $api->fault(message => $id, %{ fault(400, qq({"errors":["a\x{9b}31m"]})) });
    answer_is($clinic->cancel([$id], max_retries => 0, db => $db), '400 f', [$shown], "$db: a control character");
}

done_testing();
