-- Who may cancel messages of which app, and with whose key.
--
-- Nothing listens on port 1 of this machine: what passes all checks has no
-- answer, and nothing leaves the machine.
-- CREATE EXTENSION warns where the library is not preloaded.
SET client_min_messages = error;
CREATE EXTENSION onesignal_cancel;
SET client_min_messages = warning;
-- Nothing leaves this machine on account of a test.
SET onesignal_cancel.background_delivery = off;
SET onesignal_cancel.max_retries = 0;
\pset format unaligned
\pset tuples_only on
\set app '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3'
\set message '9c7b1cd8-0d43-4d21-b5bd-6e6a17e4b3a1'

-- "no answer", or SQLSTATE and all that the caller is told
CREATE FUNCTION told(app_id uuid, message_id uuid) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result onesignal_cancel_result;
    message text;
    detail text;
    hint text;
BEGIN
    result := onesignal_cancel(app_id, message_id);
    IF result.status IS NULL AND NOT result.success AND cardinality(result.errors) = 1 THEN
        RETURN 'no answer';
    END IF;
    RETURN result;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(E'\n    ', SQLSTATE || ' ' || message, NULLIF(detail, ''), NULLIF(hint, ''));
END $$;

CREATE ROLE "regress_onesignal App";
CREATE ROLE regress_onesignal_group;
CREATE ROLE regress_onesignal_member IN ROLE regress_onesignal_group;

-- what the caller forgot
SELECT told(NULL, :'message');
SELECT told(:'app', NULL);
SELECT told(:'app', :'message');

-- USAGE, then a mapping, then a key
CREATE SERVER "My Clinic" FOREIGN DATA WRAPPER onesignal
    OPTIONS (app_id :'app', base_url 'http://127.0.0.1:1/');
SET ROLE "regress_onesignal App";
SELECT told(:'app', :'message');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER "My Clinic" TO "regress_onesignal App";
SET ROLE "regress_onesignal App";
SELECT told(:'app', :'message');
RESET ROLE;
CREATE USER MAPPING FOR PUBLIC SERVER "My Clinic";
SET ROLE "regress_onesignal App";
SELECT told(:'app', :'message');
RESET ROLE;
ALTER USER MAPPING FOR PUBLIC SERVER "My Clinic" OPTIONS (ADD api_key 'os_v2_app_secret');
SET ROLE "regress_onesignal App";
SELECT told(:'app', :'message');
SELECT told('00000000-0000-0000-0000-000000000000', :'message');
RESET ROLE;

-- a superuser needs no USAGE, a member has its group's
SELECT told(:'app', :'message');
SET ROLE regress_onesignal_member;
SELECT told(:'app', :'message');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER "My Clinic" TO regress_onesignal_group;
SET ROLE regress_onesignal_member;
SELECT told(:'app', :'message');
RESET ROLE;
REVOKE USAGE ON FOREIGN SERVER "My Clinic" FROM regress_onesignal_group;
SET ROLE regress_onesignal_member;
SELECT told(:'app', :'message');

-- the current user counts, not the one who logged in
RESET ROLE;
CREATE FUNCTION told_for_the_app(app_id uuid, message_id uuid) RETURNS text
LANGUAGE sql SECURITY DEFINER AS 'SELECT told($1, $2)';
ALTER FUNCTION told_for_the_app OWNER TO "regress_onesignal App";
SET ROLE regress_onesignal_member;
SELECT told_for_the_app(:'app', :'message');
RESET ROLE;

-- a role's own mapping wins over PUBLIC's, even when it has no key
CREATE USER MAPPING FOR "regress_onesignal App" SERVER "My Clinic";
SET ROLE "regress_onesignal App";
SELECT told(:'app', :'message');
RESET ROLE;
DROP USER MAPPING FOR "regress_onesignal App" SERVER "My Clinic";

-- a second server of the app: without USAGE or mapping it does not count
CREATE SERVER second FOREIGN DATA WRAPPER onesignal
    OPTIONS (app_id :'app', base_url 'http://127.0.0.1:1');
CREATE USER MAPPING FOR PUBLIC SERVER second OPTIONS (api_key 'os_v2_app_secret');
SET ROLE "regress_onesignal App";
SELECT told(:'app', :'message');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER second TO "regress_onesignal App";
SET ROLE "regress_onesignal App";
SELECT told(:'app', :'message');
RESET ROLE;
CREATE USER MAPPING FOR "regress_onesignal App" SERVER second;
SET ROLE "regress_onesignal App";
SELECT told(:'app', :'message');
RESET ROLE;
CREATE USER MAPPING FOR "regress_onesignal App" SERVER "My Clinic";
SET ROLE "regress_onesignal App";
SELECT told(:'app', :'message');
RESET ROLE;
DROP USER MAPPING FOR "regress_onesignal App" SERVER "My Clinic";
DROP SERVER second CASCADE;

-- what a transaction changed counts at once, and no longer after its rollback
SELECT told(:'app', :'message');
BEGIN;
ALTER SERVER "My Clinic" OPTIONS (SET app_id '00000000-0000-0000-0000-000000000000');
SELECT told(:'app', :'message');
SELECT told('00000000-0000-0000-0000-000000000000', :'message');
SAVEPOINT s;
DROP USER MAPPING FOR PUBLIC SERVER "My Clinic";
SET LOCAL ROLE "regress_onesignal App";
SELECT told('00000000-0000-0000-0000-000000000000', :'message');
ROLLBACK TO s;
SELECT told('00000000-0000-0000-0000-000000000000', :'message');
ROLLBACK;
SELECT told(:'app', :'message');

-- key files: one line, whatever ends it
SELECT current_setting('data_directory') || '/regress_onesignal.key' AS path \gset
CREATE FUNCTION write_file(path text, content bytea) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    object oid := lo_from_bytea(0, content);
BEGIN
    PERFORM lo_export(object, path);
    PERFORM lo_unlink(object);
END $$;
CREATE FUNCTION told_of_file(content bytea) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    path text := current_setting('data_directory') || '/regress_onesignal.key';
BEGIN
    PERFORM write_file(path, content);
    -- forgets the last one
    ALTER USER MAPPING FOR PUBLIC SERVER "My Clinic" OPTIONS (SET api_key_file '/nonexistent');
    EXECUTE format('ALTER USER MAPPING FOR PUBLIC SERVER "My Clinic" OPTIONS (SET api_key_file %L)', path);
    RETURN replace(told('5e605fcd-de88-4b0a-a5eb-5c18b84d52f3', '9c7b1cd8-0d43-4d21-b5bd-6e6a17e4b3a1'), path, 'PATH');
END $$;
ALTER USER MAPPING FOR PUBLIC SERVER "My Clinic" OPTIONS (DROP api_key, ADD api_key_file :'path');
SELECT description || ': ' || told_of_file(content)
FROM (VALUES
    ('a key', 'os_v2_app_secret'),
    ('newline', E'os_v2_app_secret\\012'),
    ('newlines', E'os_v2_app_secret\\015\\012\\012'),
    ('4 kB', repeat('k', 4096)::bytea),
    ('nothing', ''),
    ('only a newline', E'\\012'),
    ('a blank', 'os_v2_app_secret '),
    ('two lines', E'os_v2_app_secret\\012X-Secret: 1'),
    ('a zero byte', E'os_v2_app_secret\\000'),
    ('not ASCII', E'os_v2_app_secret\\303\\244'),
    ('more than 4 kB', repeat('k', 4097)::bytea)
) AS file (description, content);
-- a key that was replaced is noticed within a second, a repair at once
SELECT write_file(:'path', 'os_v2_app_secret');
SELECT told(:'app', :'message');
SELECT write_file(:'path', 'no key');
SELECT pg_sleep(1);
SELECT replace(told(:'app', :'message'), :'path', 'PATH');
SELECT write_file(:'path', 'os_v2_app_secret');
SELECT told(:'app', :'message');
SELECT format('cat >/dev/null; rm "%s"', :'path') AS remove \gset
SELECT format('cat >/dev/null; mkfifo "%s"', :'path') AS make_fifo \gset
COPY (SELECT 1) TO PROGRAM :'remove';
SELECT pg_sleep(1);
SELECT replace(told(:'app', :'message'), :'path', 'PATH');
-- one that nobody writes to would be waited for without end
COPY (SELECT 1) TO PROGRAM :'make_fifo';
SELECT replace(told(:'app', :'message'), :'path', 'PATH');
COPY (SELECT 1) TO PROGRAM :'remove';
ALTER USER MAPPING FOR PUBLIC SERVER "My Clinic" OPTIONS (SET api_key_file '/nonexistent/onesignal.key');
SELECT told(:'app', :'message');
ALTER USER MAPPING FOR PUBLIC SERVER "My Clinic" OPTIONS (SET api_key_file '/dev/null');
SELECT told(:'app', :'message');
-- where it is, is for those who may read it
SET ROLE "regress_onesignal App";
SELECT told(:'app', :'message');
RESET ROLE;
GRANT pg_read_server_files TO "regress_onesignal App";
SET ROLE "regress_onesignal App";
SELECT told(:'app', :'message');
RESET ROLE;

-- options that were set while the wrapper had no validator
SET client_min_messages = error;
ALTER FOREIGN DATA WRAPPER onesignal NO VALIDATOR;
SET client_min_messages = warning;
ALTER USER MAPPING FOR PUBLIC SERVER "My Clinic" OPTIONS (DROP api_key_file, ADD api_key E'os_v2_app_secret\r\nHost: example.com');
SELECT told(:'app', :'message');
ALTER SERVER "My Clinic" OPTIONS (SET base_url 'http://example.com');
SELECT told(:'app', :'message');
ALTER SERVER "My Clinic" OPTIONS (SET app_id 'clinic');
SELECT told(:'app', :'message');

DROP SERVER "My Clinic" CASCADE;
DROP FUNCTION told_for_the_app, told_of_file, write_file, told;
DROP EXTENSION onesignal_cancel;
DROP ROLE regress_onesignal_member, regress_onesignal_group, "regress_onesignal App";
