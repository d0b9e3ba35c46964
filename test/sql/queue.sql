-- Pausing, purging and watching the queue, and who may.
-- CREATE EXTENSION warns where the library is not preloaded.
SET client_min_messages = error;
-- a superuser whose name is known
CREATE ROLE regress_onesignal_admin SUPERUSER;
SET SESSION AUTHORIZATION regress_onesignal_admin;
CREATE EXTENSION onesignal_cancel;
SET client_min_messages = warning;
-- Nothing is to be delivered here, by this session or a worker.
SET onesignal_cancel.background_delivery = off;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET onesignal_cancel.background_delivery = off', current_database()); END $$;
\pset format unaligned
\pset footer off
\pset null null
SELECT current_setting('shared_preload_libraries') ~ 'onesignal_cancel' AS preloaded \gset
\set app '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3'
\set other '00000000-0000-4000-8000-0000000000ff'

CREATE SERVER clinic FOREIGN DATA WRAPPER onesignal OPTIONS (app_id :'app');
CREATE USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (api_key 'os_v2_app_secret');
CREATE SERVER other FOREIGN DATA WRAPPER onesignal OPTIONS (app_id :'other');
CREATE ROLE regress_onesignal_owner;
CREATE ROLE regress_onesignal_app;
CREATE ROLE regress_onesignal_monitor IN ROLE pg_monitor;

CREATE FUNCTION told(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
    message text;
    detail text;
    hint text;
BEGIN
    EXECUTE statement;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n || ' rows';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(E'\n    ', SQLSTATE || ' ' || message, NULLIF(detail, ''), NULLIF(hint, ''));
END $$;

CREATE FUNCTION m(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid $$;

-- Nothing for PUBLIC
SET ROLE regress_onesignal_app;
SELECT told('SELECT * FROM onesignal_message');
SELECT told('SELECT * FROM onesignal_app');
SELECT told('SELECT * FROM onesignal_cancel_status');
SELECT told(format('SELECT onesignal_cancel_pause(%L)', :'app'));
SELECT told(format('SELECT onesignal_cancel_resume(%L)', :'app'));
CALL onesignal_cancel_purge('1 day');
CALL onesignal_cancel_deliver();
SELECT onesignal_cancel_preloaded() = :'preloaded' AS preloaded_is_right;
RESET ROLE;

-- ---- pause and resume ----
SELECT told('SELECT onesignal_cancel_pause(NULL)');
SELECT told(format('SELECT onesignal_cancel_pause(%L, NULL)', :'app'));
SELECT told(format('SELECT onesignal_cancel_pause(%L, now())', :'app'));
SELECT told('SELECT onesignal_cancel_resume(NULL)');
-- a mistyped app: one that has neither a server nor rows
SELECT told(format('SELECT onesignal_cancel_pause(%L)', m(1)));
SELECT told(format('SELECT onesignal_cancel_resume(%L)', m(1)));
BEGIN;
INSERT INTO onesignal_message (message_id, app_id) VALUES (m(1), m(1));
INSERT INTO onesignal_app (app_id) VALUES (m(2));
SELECT told(format('SELECT onesignal_cancel_pause(%L)', m(n))) FROM generate_series(1, 2) n;
SELECT told(format('SELECT onesignal_cancel_resume(%L)', m(n))) FROM generate_series(1, 2) n;
ROLLBACK;

-- whoever may call it needs no privilege on the table, and it is kept who did
BEGIN;
GRANT EXECUTE ON FUNCTION onesignal_cancel_pause, onesignal_cancel_resume TO regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SELECT onesignal_cancel_pause(:'app');
SELECT current_user, current_setting('search_path'), current_setting('session_replication_role');
RESET ROLE;
SELECT paused_until, pause_reason, paused_by FROM onesignal_app;
SELECT onesignal_cancel_pause(:'app', '2099-01-01 00:00Z', 'maintenance');
SELECT onesignal_cancel_pause(:'other', reason => 'another app');
SELECT paused_until AT TIME ZONE 'UTC' AS paused_until, pause_reason FROM onesignal_app ORDER BY pause_reason;
-- resume closes the circuit, too; and keeps all else
UPDATE onesignal_app SET circuit_until = now(), circuit_role = 'x', circuit_reason = 'y', pace = 3, last_error = 'z', canceled_total = 5;
SET LOCAL ROLE regress_onesignal_app;
SELECT onesignal_cancel_resume(:'app');
SELECT onesignal_cancel_resume(:'other');
RESET ROLE;
SELECT paused_until IS NULL AS resumed, pause_reason, paused_by, circuit_until IS NULL AS closed, circuit_role,
    circuit_reason, pace, last_error, canceled_total
FROM onesignal_app ORDER BY 1;
ROLLBACK;

-- A trigger that a grantee attached does not run with the owner's rights.
BEGIN;
GRANT ALL ON onesignal_app TO regress_onesignal_app;
GRANT CREATE ON SCHEMA public TO regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
CREATE FUNCTION climb() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE WARNING 'as %', current_user; RETURN NEW; END $$;
CREATE TRIGGER climb BEFORE INSERT OR UPDATE ON onesignal_app FOR EACH ROW EXECUTE FUNCTION climb();
RESET ROLE;
SELECT onesignal_cancel_pause(:'app');
SELECT onesignal_cancel_resume(:'app');
-- only what the owner wants so does
ALTER TABLE onesignal_app ENABLE ALWAYS TRIGGER climb;
SELECT onesignal_cancel_pause(:'app');
-- and an error in it leaves the caller who it was
CREATE OR REPLACE FUNCTION climb() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'as %, %', current_user, current_setting('search_path'); END $$;
GRANT EXECUTE ON FUNCTION onesignal_cancel_pause TO regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SELECT told(format('SELECT onesignal_cancel_pause(%L)', :'app'));
SELECT current_user, current_setting('search_path'), current_setting('session_replication_role');
ROLLBACK;

-- Under FORCE ROW LEVEL SECURITY the owner sees nothing, delivery everything.
BEGIN;
ALTER TABLE onesignal_message OWNER TO regress_onesignal_owner;
ALTER TABLE onesignal_app OWNER TO regress_onesignal_owner;
ALTER TABLE onesignal_app ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
SELECT onesignal_cancel_pause(:'app');
SELECT count(*) FROM onesignal_app;
ROLLBACK;

-- An owner who could not record what came of it does not even begin.
BEGIN;
ALTER TABLE onesignal_message OWNER TO regress_onesignal_owner;
SELECT told(format('SELECT onesignal_cancel_pause(%L)', :'app'));
ROLLBACK;

-- ---- status ----
SELECT app_id, server, delivery, pending, paused_until, pace, eta, last_error, canceled_total FROM onesignal_cancel_status;
BEGIN;
CREATE SERVER clinic_2 FOREIGN DATA WRAPPER onesignal OPTIONS (app_id :'app');
CREATE USER MAPPING FOR PUBLIC SERVER clinic_2 OPTIONS (api_key 'os_v2_app_secret');
-- pending of three apps, and a history that is not counted
SET LOCAL session_replication_role = replica;
INSERT INTO onesignal_message (message_id, app_id, send_after, cancel, state, requested_by, requested_at, next_attempt_at)
    SELECT m(n), CASE n % 3 WHEN 0 THEN :'app'::uuid WHEN 1 THEN :'other' ELSE m(1) END,
        CASE WHEN n > 10 THEN '2030-01-01 00:00Z'::timestamptz + n * interval '1 min' END, true,
        'pending', 'x', '2026-01-01 00:00Z'::timestamptz + n * interval '1 s', now()
    FROM generate_series(1, 300) n;
INSERT INTO onesignal_message (message_id, app_id, state)
    SELECT m(n), :'app', (enum_range(NULL::onesignal_message_state))[3 + n % 3] FROM generate_series(1001, 1200) n;
SET LOCAL session_replication_role = origin;
INSERT INTO onesignal_app (app_id, pace, last_error, last_error_at, canceled_total, refused_total, failed_total)
    VALUES (:'app', 4, 'oops', '2026-01-01 00:00Z', 67, 67, 66);
INSERT INTO onesignal_app (app_id, circuit_until, circuit_role, circuit_reason, pace)
    VALUES (:'other', '2098-01-01 00:00Z', 'nurse', 'wrong key', 50);
INSERT INTO onesignal_app (app_id) VALUES (m(9));
SELECT onesignal_cancel_pause(m(1), '2099-01-01 00:00Z', 'lunch');
-- a pause that is over
INSERT INTO onesignal_app (app_id, paused_until, pause_reason, pace) VALUES (m(2), '2020-01-01', 'long ago', 0);
SET LOCAL ROLE regress_onesignal_monitor;
SET LOCAL timezone = 'UTC';
SELECT right(app_id::text, 3) AS app, server, pending, oldest_request, next_send_after FROM onesignal_cancel_status ORDER BY 1;
SELECT right(app_id::text, 3) AS app, paused_until, paused_reason, paused_role, pace FROM onesignal_cancel_status ORDER BY 1;
SELECT right(app_id::text, 3) AS app, last_error, last_error_at, canceled_total, refused_total, failed_total
    FROM onesignal_cancel_status ORDER BY 1;
SELECT DISTINCT preloaded IN (true, false) AS preloaded FROM onesignal_cancel_status;
-- What happens to the pending ones now; without a worker at work nobody knows when they are done.
SELECT right(app_id::text, 3) AS app, delivery, eta FROM onesignal_cancel_status ORDER BY 1;
RESET ROLE;
-- Only requests of that role are paused; all of these are another's. Then they are the role's, and then all are paused.
UPDATE onesignal_app SET circuit_role = 'x' WHERE app_id = :'other';
SELECT right(app_id::text, 3) AS app, delivery FROM onesignal_cancel_status WHERE app_id = :'other';
UPDATE onesignal_app SET circuit_role = NULL WHERE app_id = :'other';
SELECT right(app_id::text, 3) AS app, delivery FROM onesignal_cancel_status WHERE app_id = :'other';
RESET ROLE;
-- a server whose option no validator has seen
ALTER FOREIGN DATA WRAPPER onesignal NO VALIDATOR;
CREATE SERVER broken FOREIGN DATA WRAPPER onesignal OPTIONS (app_id 'nonsense');
SELECT count(*) FROM onesignal_cancel_status;
ROLLBACK;

-- It reads no finished rows, however many: only the index on pending ones.
BEGIN;
INSERT INTO onesignal_message (message_id, app_id, state) SELECT m(n), :'app', 'canceled' FROM generate_series(1, 20000) n;
ANALYZE onesignal_message;
CREATE FUNCTION plan(statement text) RETURNS SETOF text LANGUAGE plpgsql AS
    $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (COSTS off) ' || statement; END $$;
SELECT DISTINCT (regexp_match(line, 'Scan.* on onesignal_message.*'))[1] AS scan
FROM plan('SELECT * FROM onesignal_cancel_status') AS line WHERE line ~ 'Scan.* on onesignal_message';
ROLLBACK;

-- ---- purge ----
SELECT told('CALL onesignal_cancel_purge(NULL)');
SELECT told(format('CALL onesignal_cancel_purge(%L)', age)) FROM (VALUES ('-1 day'), ('0'), ('90'), ('23:59:59')) AS t (age);
BEGIN;
CALL onesignal_cancel_purge('1 day');
ROLLBACK;
SELECT told('CALL onesignal_cancel_purge(''1 day'')');

-- What goes: finished that long ago; never requested, and send_after (or else created_at) is.
INSERT INTO onesignal_message (message_id, app_id, state, cancel, send_after, created_at, finished_at, requested_by)
SELECT m(n), :'app', state::onesignal_message_state, state <> 'scheduled', now() - send_after::interval,
    now() - created_at::interval, now() - finished_at::interval, 'x'
FROM (VALUES
    (1, 'canceled', NULL, '9 days', '8 days'), (2, 'canceled', NULL, '9 days', '6 days'),
    (3, 'refused', '-9 days', '9 days', '8 days'), (4, 'failed', NULL, '9 days', '8 days'),
    (5, 'scheduled', '8 days', '9 days', NULL), (6, 'scheduled', '6 days', '9 days', NULL),
    (7, 'scheduled', NULL, '8 days', NULL), (8, 'scheduled', NULL, '6 days', NULL),
    (9, 'pending', '99 days', '99 days', NULL)) AS t (n, state, send_after, created_at, finished_at);
CALL onesignal_cancel_purge('7 days');
SELECT right(message_id::text, 3)::integer AS n, state FROM onesignal_message ORDER BY 1;
CALL onesignal_cancel_purge('24 hours', 77);
SELECT right(message_id::text, 3)::integer AS n, state FROM onesignal_message ORDER BY 1;

-- More than one batch; from PL/pgSQL; and the caller stays who it is.
SET session_replication_role = replica;
INSERT INTO onesignal_message (message_id, app_id, state, finished_at, errors)
    SELECT m(n), :'app', 'canceled', '2020-01-01', ARRAY[repeat('x', 500)] FROM generate_series(100, 10099) n;
RESET session_replication_role;
GRANT EXECUTE ON PROCEDURE onesignal_cancel_purge TO regress_onesignal_app;
SET ROLE regress_onesignal_app;
DO $$
DECLARE
    purged bigint := 0;
BEGIN
    CALL onesignal_cancel_purge('1 day', purged);
    RAISE WARNING '% purged, as %, %, %', purged, current_user, current_setting('search_path'),
        current_setting('session_replication_role');
END $$;
RESET ROLE;
SELECT count(*), pg_relation_size('onesignal_message') / 8192 > 512 AS "many blocks" FROM onesignal_message;

-- By a caller whose transactions are of another kind
SET default_transaction_isolation = serializable;
CALL onesignal_cancel_purge('1 day');
RESET default_transaction_isolation;
SET default_transaction_read_only = on;
\set VERBOSITY terse
CALL onesignal_cancel_purge('1 day');
\set VERBOSITY default
RESET default_transaction_read_only;

-- A grantee's trigger does not fire; and whose foreign key it would break is told.
GRANT ALL ON onesignal_message TO regress_onesignal_app;
GRANT CREATE ON SCHEMA public TO regress_onesignal_app;
SET ROLE regress_onesignal_app;
CREATE FUNCTION climb() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE WARNING 'as %', current_user; RETURN OLD; END $$;
CREATE TRIGGER climb BEFORE DELETE ON onesignal_message FOR EACH ROW EXECUTE FUNCTION climb();
CREATE TABLE mine (message_id uuid, app_id uuid, FOREIGN KEY (message_id, app_id) REFERENCES onesignal_message ON DELETE CASCADE);
RESET ROLE;
INSERT INTO onesignal_message (message_id, app_id, state, finished_at) VALUES (m(20), :'app', 'canceled', '2020-01-01');
CALL onesignal_cancel_purge('1 day');
DROP TABLE mine;
CALL onesignal_cancel_purge('1 day');
SELECT right(message_id::text, 3)::integer AS n, state FROM onesignal_message ORDER BY 1;

-- What the owner made ENABLE ALWAYS does; an error in it leaves the caller who it was.
INSERT INTO onesignal_message (message_id, app_id, state, finished_at) VALUES (m(21), :'app', 'canceled', '2020-01-01');
ALTER TABLE onesignal_message ENABLE ALWAYS TRIGGER climb;
CREATE OR REPLACE FUNCTION climb() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'as %, %, %', current_user, current_setting('search_path'), current_setting('transaction_isolation'); END $$;
ALTER TABLE onesignal_message OWNER TO regress_onesignal_owner;
ALTER TABLE onesignal_app OWNER TO regress_onesignal_owner;
SET default_transaction_isolation = serializable;
SET ROLE regress_onesignal_app;
\set VERBOSITY terse
CALL onesignal_cancel_purge('1 day');
\set VERBOSITY default
SELECT current_user, current_setting('search_path'), current_setting('session_replication_role'),
    current_setting('enable_seqscan');
RESET ROLE;
RESET default_transaction_isolation;

DROP TRIGGER climb ON onesignal_message;
DROP FUNCTION climb, told, m;
REVOKE ALL ON SCHEMA public FROM regress_onesignal_app;
SET client_min_messages = error;
DROP EXTENSION onesignal_cancel CASCADE;
DROP ROLE regress_onesignal_owner, regress_onesignal_app, regress_onesignal_monitor;
RESET SESSION AUTHORIZATION;
DROP ROLE regress_onesignal_admin;
