# A statement that is rejected for its options is not logged: it may hold a key, under whatever name.

use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "log_statement = none\nlog_error_verbosity = verbose\n");
$node->start;
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION onesignal_cancel;
CREATE ROLE owner LOGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER onesignal TO owner;
CREATE SERVER clinic FOREIGN DATA WRAPPER onesignal OPTIONS (app_id '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3');
GRANT USAGE ON FOREIGN SERVER clinic TO owner;
CREATE USER MAPPING FOR PUBLIC SERVER clinic;
SQL

my %rejected = (
    'a misspelled option' => q{CREATE USER MAPPING FOR owner SERVER clinic OPTIONS (apikey 'SECRET')},
    'a key that is none' => q{CREATE USER MAPPING FOR owner SERVER clinic OPTIONS (api_key 'SECRET key')},
    'both options' => q{CREATE USER MAPPING FOR owner SERVER clinic OPTIONS (api_key 'SECRET', api_key_file '/k')},
    'a key as the path' => q{ALTER USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (ADD api_key_file 'SECRET')},
    'a key of a server' => q{ALTER SERVER clinic OPTIONS (ADD api_key 'SECRET')},
    'a key as the app' => q{CREATE SERVER s FOREIGN DATA WRAPPER onesignal OPTIONS (app_id 'SECRET')},
    'a server without app' => q{CREATE SERVER s FOREIGN DATA WRAPPER onesignal OPTIONS (rate_limit '1') /* SECRET */},
    'a password in a URL' => q{ALTER SERVER clinic OPTIONS (ADD base_url 'https://user:SECRET@example.com')},
    'a foreign table' => q{CREATE FOREIGN TABLE t (a int) SERVER clinic OPTIONS (api_key 'SECRET')},
    'a file without privilege' =>
      q{SET ROLE owner; CREATE USER MAPPING FOR owner SERVER clinic OPTIONS (api_key_file '/SECRET')},
    'a statement in a block' =>
      q{DO 'BEGIN CREATE USER MAPPING FOR owner SERVER clinic OPTIONS (api_key ''SECRET key''); END'},
);

for my $what (sort keys %rejected)
{
    my $offset = -s $node->logfile;
    my ($status, undef, $error) = $node->psql('postgres', $rejected{$what});
    my $log = slurp_file($node->logfile, $offset);
    ok($status != 0, "$what is rejected");
    like($log, qr/ERROR:  \w{5}: (?:invalid|option|permission|foreign-data wrapper)/, "$what: the error is in the log");
    unlike($log, qr/SECRET/, "$what: the statement is not");
    # psql quotes a statement of its own accord only for an error with a position.
    unlike($error =~ s/^(?:CONTEXT|SQL statement).*//mrs, qr/SECRET/, "$what: the caller is not told the value");
}

my $offset = -s $node->logfile;
$node->psql('postgres', q{SELECT 1 / 0 AS "SECRET"});
like(slurp_file($node->logfile, $offset), qr/SECRET/, 'the log would show it');

$node->stop;
done_testing();
