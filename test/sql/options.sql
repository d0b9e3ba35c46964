-- What the options of servers and user mappings may say, and who may set them.
-- CREATE EXTENSION warns where the library is not preloaded.
SET client_min_messages = error;
CREATE EXTENSION onesignal_cancel;
SET client_min_messages = warning;
-- Nothing leaves this machine on account of a test.
SET onesignal_cancel.background_delivery = off;
\pset format unaligned
\pset tuples_only on

-- SQLSTATE and all that the caller is told
CREATE FUNCTION told(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    message text;
    detail text;
    hint text;
BEGIN
    EXECUTE statement;
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(E'\n    ', SQLSTATE || ' ' || message, NULLIF(detail, ''), NULLIF(hint, ''));
END $$;

CREATE FUNCTION told_of_server(options text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    answer text := told(format('CREATE SERVER trial FOREIGN DATA WRAPPER onesignal %s', options));
BEGIN
    DROP SERVER IF EXISTS trial;
    RETURN answer;
END $$;

CREATE FUNCTION told_of_mapping(options text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    answer text := told(format('CREATE USER MAPPING FOR PUBLIC SERVER clinic %s', options));
BEGIN
    DROP USER MAPPING IF EXISTS FOR PUBLIC SERVER clinic;
    RETURN answer;
END $$;

-- of a server that is fine otherwise
CREATE FUNCTION told_of_option(name text, value text) RETURNS text LANGUAGE sql AS $$
    SELECT told_of_server(format('OPTIONS (app_id ''5e605fcd-de88-4b0a-a5eb-5c18b84d52f3'', %I %L)', name, value))
$$;

CREATE SERVER clinic FOREIGN DATA WRAPPER onesignal OPTIONS (app_id '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3');

-- unknown options: the valid ones are named, the value is not
SELECT told('ALTER FOREIGN DATA WRAPPER onesignal OPTIONS (ADD app_id ''x'')');
SELECT told_of_option('apikey', 'os_v2_app_secret');
SELECT told_of_option('api_key', 'os_v2_app_secret');
SELECT told_of_mapping('OPTIONS (apikey ''os_v2_app_secret'')');
SELECT told_of_mapping('OPTIONS (app_id ''os_v2_app_secret'')');
SELECT told_of_mapping('OPTIONS ("API_KEY" ''os_v2_app_secret'')');

-- no foreign tables, with or without options
SELECT told('CREATE FOREIGN TABLE t (a int) SERVER clinic');
SELECT told('CREATE FOREIGN TABLE t (a int) SERVER clinic OPTIONS (app_id ''x'')');

-- app_id: what PostgreSQL reads as a uuid
SELECT told_of_server('');
SELECT told_of_server('OPTIONS (rate_limit ''1'')');
SELECT told('ALTER SERVER clinic OPTIONS (DROP app_id)');
SELECT format('%-42s ', '"' || app_id || '"') || told_of_server(format('OPTIONS (app_id %L)', app_id))
FROM unnest(ARRAY[
    '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3',
    '5E605FCDDE884B0AA5EB5C18B84D52F3',
    '{5e605fcd-de884b0a-a5eb-5c18-b84d-52f3}',
    '00000000-0000-0000-0000-000000000000',
    '',
    'clinic',
    '5e605fcd-de88-4b0a-a5eb-5c18b84d52f',
    '5e605fcd-de88-4b0a-a5eb-5c18b84d52f30',
    '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3-',
    '5e605fcd-de88-4b0a-a5eb-5c18b84d52g3',
    '5e6-05fcd-de88-4b0a-a5eb-5c18b84d52f3',
    '5e-605fcd-de88-4b0a-a5eb-5c18b84d52f3',
    '5e605fcd--de88-4b0a-a5eb-5c18b84d52f3',
    ' 5e605fcd-de88-4b0a-a5eb-5c18b84d52f3',
    '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3 ',
    '{5e605fcd-de88-4b0a-a5eb-5c18b84d52f3',
    '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3}'
]) AS app_id;

-- rate_limit
SELECT format('%-12s ', '"' || rate || '"') || told_of_option('rate_limit', rate)
FROM unnest(ARRAY[
    '0', '150', '6000', '0.5', '1e3', '+2', '0.001', '1000000', '.5',
    '', '-1', 'nan', 'inf', '0x10', '1e999', '1e-300', '0.0009', '1000001', '1 ', ' 1', '1/s', '1.2.3', 'e', '1,5'
]) AS rate;

-- base_url: https, or http to a loopback address; nothing hidden in it
SELECT format('%-45s ', '"' || url || '"') || told_of_option('base_url', url)
FROM unnest(ARRAY[
    'https://api.onesignal.com',
    'https://api.onesignal.com/',
    'https://eu.example.com:8443/onesignal/',
    'HTTPS://API.ONESIGNAL.COM',
    'https://[2001:db8::1]:8443',
    'http://127.0.0.1:8080',
    'http://127.200.0.1',
    'http://[::1]:8080/',
    'http://[0:0:0:0:0:0:0:1]',
    'http://localhost:1',
    'http://LocalHost',
    -- these are loopback to libcurl, which is what connects
    'http://127.1',
    'http://0177.0.0.1',
    'http://2130706433'
]) AS url;
SELECT format('%-45s ', '"' || url || '"') || told_of_option('base_url', url)
FROM unnest(ARRAY[
    '',
    'api.onesignal.com',
    'https://',
    'https://:443',
    'https://a:99999',
    '/etc/passwd',
    'file:///etc/passwd',
    'ftp://127.0.0.1',
    'http://api.onesignal.com',
    'http://127.0.0.1.example.com',
    'http://127.0.0.1%2eexample.com',
    'http://localhost.example.com',
    'http://localhost.',
    'http://notlocalhost',
    'http://126.0.0.1',
    'http://128.0.0.1',
    'http://0.0.0.0',
    'http://127.0.0.256',
    'http://[::]',
    'http://[::2]',
    'http://[::ffff:127.0.0.1]',
    'http://user@127.0.0.1',
    'https://user:password@example.com',
    'https://@example.com',
    'http://127.0.0.1@example.com',
    'http://127.0.0.1\@example.com',
    'http://127.0.0.1:80#@example.com',
    'https://example.com?',
    'https://example.com/?a=b',
    'https://example.com#',
    'https://example.com/ ',
    'https://exam ple.com',
    E'https://example.com\n',
    E'https://example.com/\x7f',
    E'https://ex\xc3\xa4mple.com'
]) AS url;
-- why differs between versions of libcurl
SELECT left(told_of_option('base_url', 'http://127.0.0.1%40example.com'), 5);

-- ca_file and proxy
SELECT format('%-22s ', '"' || path || '"') || told_of_option('ca_file', path)
FROM unnest(ARRAY['/etc/ssl/ca.pem', '/with blank/ca.pem', '', 'ca.pem', '../ca.pem', E'/etc\n/ca', E'/etc/\x7f']) AS path;
SELECT format('%-45s ', '"' || url || '"') || told_of_option('proxy', url)
FROM unnest(ARRAY[
    'http://proxy.example.com:3128',
    'https://proxy.example.com:3129/',
    'socks5://127.0.0.1:1080',
    'socks5h://proxy.example.com:1080',
    '',
    'proxy.example.com:3128',
    'socks4://proxy.example.com',
    'socks4a://proxy.example.com',
    'http://user:password@proxy.example.com',
    'http://proxy.example.com?x',
    E'http://proxy.example.com\r\nX: y'
]) AS url;
SELECT format('%-24s ', '"' || url || '"') || told_of_server(format('OPTIONS (app_id %L, base_url %L, proxy %L)',
    '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3', url, 'http://127.0.0.1:3128'))
FROM unnest(ARRAY['https://127.0.0.1', 'http://127.0.0.1', 'HTTP://127.0.0.1:8080']) AS url;

-- api_key and api_key_file
SELECT told_of_mapping('');
SELECT told_of_mapping('OPTIONS (api_key ''os_v2_app_abc'')');
SELECT told_of_mapping(format('OPTIONS (api_key %L)', repeat('k', 4096)));
SELECT told_of_mapping('OPTIONS (api_key_file ''/etc/postgresql/clinic.key'')');
SELECT told_of_mapping(format('OPTIONS (api_key %L)', key))
FROM unnest(ARRAY['', 'os_v2_app_secret ', 'os v2', E'os_v2\r\nX-Secret: 1', E'os_v2\x7f', E'os_v2\xc3\xa4', repeat('k', 4097)]) AS key;
SELECT told_of_mapping(format('OPTIONS (api_key_file %L)', path))
FROM unnest(ARRAY['', 'clinic.key', './clinic.key', '~/clinic.key', E'/etc/clinic.key\n']) AS path;
SELECT told_of_mapping('OPTIONS (api_key ''os_v2_app_secret'', api_key_file ''/etc/postgresql/clinic.key'')');
CREATE USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (api_key 'os_v2_app_abc');
SELECT told('ALTER USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (ADD api_key_file ''/etc/clinic.key'')');
SELECT told('ALTER USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (DROP api_key, ADD api_key_file ''/etc/clinic.key'')');
DROP USER MAPPING FOR PUBLIC SERVER clinic;

-- Who may set what.  The list is judged as it will be stored: beside an option
-- that a role may not set, it may not alter anything.
CREATE ROLE regress_onesignal_owner;
CREATE ROLE regress_onesignal_reader IN ROLE pg_read_server_files;
GRANT USAGE ON FOREIGN DATA WRAPPER onesignal TO regress_onesignal_owner;
SET ROLE regress_onesignal_owner;
SELECT told_of_option('rate_limit', '5');
SELECT told_of_option('base_url', 'https://example.com');
SELECT told_of_option('ca_file', '/etc/ca.pem');
SELECT told_of_option('proxy', 'http://proxy.example.com');
CREATE SERVER own FOREIGN DATA WRAPPER onesignal OPTIONS (app_id '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3');
RESET ROLE;
ALTER SERVER own OPTIONS (ADD proxy 'http://proxy.example.com');
SET ROLE regress_onesignal_owner;
SELECT told('ALTER SERVER own OPTIONS (ADD rate_limit ''5'')');
SELECT told('ALTER SERVER own OPTIONS (DROP proxy, ADD rate_limit ''5'')');
SELECT told('CREATE USER MAPPING FOR PUBLIC SERVER own OPTIONS (api_key_file ''/etc/clinic.key'')');
SELECT told('CREATE USER MAPPING FOR PUBLIC SERVER own OPTIONS (api_key ''os_v2_app_abc'')');
RESET ROLE;
ALTER USER MAPPING FOR PUBLIC SERVER own OPTIONS (DROP api_key, ADD api_key_file '/etc/clinic.key');
SET ROLE regress_onesignal_owner;
SELECT told('ALTER USER MAPPING FOR PUBLIC SERVER own OPTIONS (SET api_key_file ''/etc/other.key'')');
SELECT told('ALTER USER MAPPING FOR PUBLIC SERVER own OPTIONS (DROP api_key_file, ADD api_key ''os_v2_app_abc'')');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER own TO regress_onesignal_reader;
SET ROLE regress_onesignal_reader;
SELECT told('CREATE USER MAPPING FOR CURRENT_USER SERVER own OPTIONS (api_key_file ''/etc/clinic.key'')');
RESET ROLE;

-- called from SQL, with lists that no statement makes
SELECT told(format('SELECT onesignal_cancel_fdw_validator(%L, %L::regclass)', list, catalog))
FROM (VALUES
    ('{}', 'pg_user_mapping'),
    ('{api_key}', 'pg_user_mapping'),
    ('{api_key=a,api_key=b}', 'pg_user_mapping'),
    ('{=}', 'pg_user_mapping'),
    ('{NULL}', 'pg_user_mapping'),
    ('{a=b}', 'pg_class'),
    (NULL, 'pg_foreign_server')) AS call (list, catalog);
SET ROLE regress_onesignal_reader;
SELECT told('SELECT onesignal_cancel_fdw_validator(''{}'', 1417)');
RESET ROLE;

DROP SERVER clinic, own CASCADE;
DROP FUNCTION told_of_option, told_of_mapping, told_of_server, told;
DROP EXTENSION onesignal_cancel;
DROP ROLE regress_onesignal_owner, regress_onesignal_reader;
