-- The companion table: what setting cancel does, and who may set what.
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
\set app '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3'
\set other '00000000-0000-4000-8000-0000000000ff'

CREATE SERVER clinic FOREIGN DATA WRAPPER onesignal OPTIONS (app_id :'app');
CREATE USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (api_key 'os_v2_app_secret');
CREATE ROLE regress_onesignal_owner;
CREATE ROLE regress_onesignal_app;
CREATE ROLE regress_onesignal_all;
GRANT USAGE ON FOREIGN SERVER clinic TO regress_onesignal_app, regress_onesignal_all;
GRANT SELECT, INSERT (message_id, app_id, send_after, cancel, reason),
    UPDATE (send_after, cancel, reason) ON onesignal_message TO regress_onesignal_app;
GRANT ALL ON onesignal_message TO regress_onesignal_all;

-- "n rows", or SQLSTATE and all that the caller is told
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

-- Message n: easy to tell apart.
CREATE FUNCTION m(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid $$;

-- All that matters of the rows; times only as far as they are those of this transaction.
CREATE VIEW rows AS
SELECT right(message_id::text, 3)::integer AS n, cancel, state, requested_by AS by,
    requested_at = now() AS asked_now, next_attempt_at = now() AS due_now,
    http_status AS status, errors, response, attempts AS tries, unanswered AS silent,
    COALESCE(first_attempt_at, last_attempt_at, finished_at) AS times, reason
FROM onesignal_message ORDER BY 1;
GRANT SELECT ON rows TO PUBLIC;

-- What delivery writes, as it does it: the trigger does not fire.
CREATE PROCEDURE delivered(n integer, came_to onesignal_message_state) LANGUAGE plpgsql AS $$
BEGIN
    SET LOCAL session_replication_role = replica;
    UPDATE onesignal_message SET state = came_to, http_status = 400, errors = '{no}', response = '{}',
        attempts = 3, unanswered = true, first_attempt_at = '2026-01-01', last_attempt_at = '2026-01-02',
        next_attempt_at = NULL, finished_at = '2026-01-03'
    WHERE message_id = m(n);
    SET LOCAL session_replication_role = origin;
END $$;

-- Inserted for later, or requested at once; requested_by is whoever does it.
BEGIN;
INSERT INTO onesignal_message (message_id, app_id, send_after) VALUES (m(1), :'app', '2030-01-01');
SET LOCAL ROLE regress_onesignal_app;
INSERT INTO onesignal_message (message_id, app_id, cancel, reason) VALUES (m(2), :'app', true, 'moved away');
RESET ROLE;
SELECT * FROM rows;
SELECT created_at = now() AS created_now, send_after FROM onesignal_message WHERE message_id = m(1);
COMMIT;

-- scheduled -> pending
BEGIN;
SET LOCAL ROLE regress_onesignal_app;
UPDATE onesignal_message SET cancel = true WHERE message_id = m(1);
SELECT * FROM rows;
COMMIT;

-- On a pending row setting it again changes nothing, whoever does it.
BEGIN;
UPDATE onesignal_message SET cancel = true, reason = 'nightly';
SELECT * FROM rows;
ROLLBACK;

-- pending -> scheduled: taken back, and nothing is left of the request
BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE onesignal_message SET attempts = 2, unanswered = true, http_status = 503, errors = '{busy}',
    first_attempt_at = now(), last_attempt_at = now() WHERE message_id = m(1);
SET LOCAL session_replication_role = origin;
UPDATE onesignal_message SET cancel = false WHERE message_id = m(1);
SELECT * FROM rows WHERE n = 1;
UPDATE onesignal_message SET cancel = true WHERE message_id = m(1);
SELECT * FROM rows WHERE n = 1;
ROLLBACK;

-- refused: setting it again does nothing, taking it back returns to scheduled
BEGIN;
CALL delivered(1, 'refused');
UPDATE onesignal_message SET cancel = true WHERE message_id = m(1);
SELECT * FROM rows WHERE n = 1;
UPDATE onesignal_message SET cancel = false WHERE message_id = m(1);
SELECT * FROM rows WHERE n = 1;
UPDATE onesignal_message SET cancel = true WHERE message_id = m(1);
SELECT * FROM rows WHERE n = 1;
ROLLBACK;

-- failed: naming the column is a new request, though the value is the same
BEGIN;
CALL delivered(1, 'failed');
UPDATE onesignal_message SET reason = 'still' WHERE message_id = m(1);
SELECT * FROM rows WHERE n = 1;
UPDATE onesignal_message SET cancel = true WHERE message_id = m(1);
SELECT * FROM rows WHERE n = 1;
CALL delivered(1, 'failed');
UPDATE onesignal_message SET cancel = false WHERE message_id = m(1);
SELECT * FROM rows WHERE n = 1;
ROLLBACK;

-- canceled: for good
BEGIN;
CALL delivered(1, 'canceled');
UPDATE onesignal_message SET cancel = true WHERE message_id = m(1);
SELECT * FROM rows WHERE n = 1;
SELECT told(format('UPDATE onesignal_message SET cancel = false WHERE message_id = %L', m(1)));
-- unless it was taken back before the answer came: then nothing is asked for
UPDATE onesignal_message SET cancel = false WHERE message_id = m(2);
CALL delivered(2, 'canceled');
UPDATE onesignal_message SET cancel = false WHERE message_id = m(2);
SELECT n, cancel, state FROM rows WHERE n = 2;
ROLLBACK;

-- A pending row whose send_after changes is due at once; others are not concerned.
BEGIN;
SET LOCAL session_replication_role = replica;
UPDATE onesignal_message SET next_attempt_at = 'infinity';
SET LOCAL session_replication_role = origin;
UPDATE onesignal_message SET send_after = send_after, reason = 'same';
SELECT n, state, due_now FROM rows;
UPDATE onesignal_message SET send_after = '2029-01-01', cancel = true WHERE message_id = m(1);
SELECT n, state, due_now, asked_now FROM rows;
ROLLBACK;

-- Who may: USAGE and a user mapping to request, to take back, to reschedule.
BEGIN;
INSERT INTO onesignal_message (message_id, app_id) VALUES (m(3), :'app');
REVOKE USAGE ON FOREIGN SERVER clinic FROM regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id) VALUES (%L, %L)', m(4), :'other'));
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (%L, %L, true)', m(5), :'app'));
SELECT told(format('UPDATE onesignal_message SET cancel = true WHERE message_id = %L', m(3)));
SELECT told(format('UPDATE onesignal_message SET cancel = true WHERE message_id = %L', m(4)));
SELECT told(format('UPDATE onesignal_message SET cancel = false WHERE message_id = %L', m(1)));
SELECT told(format('UPDATE onesignal_message SET send_after = now() WHERE message_id = %L', m(1)));
SELECT told(format('UPDATE onesignal_message SET send_after = now() WHERE message_id = %L', m(3)));
SELECT told('UPDATE onesignal_message SET reason = ''mine''');
SELECT told(format('UPDATE onesignal_message SET cancel = true WHERE message_id = %L', m(1)));
ROLLBACK;

-- The right is looked at in each statement, also in one that was prepared.
BEGIN;
INSERT INTO onesignal_message (message_id, app_id) SELECT m(n), :'app' FROM generate_series(10, 12) n;
PREPARE request AS UPDATE onesignal_message SET cancel = true WHERE message_id = $1;
SET LOCAL ROLE regress_onesignal_app;
EXECUTE request(m(10));
RESET ROLE;
REVOKE USAGE ON FOREIGN SERVER clinic FROM regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SAVEPOINT s;
EXECUTE request(m(11));
ROLLBACK TO s;
RESET ROLE;
SELECT n, state, by FROM rows WHERE n >= 10;
ROLLBACK;
DEALLOCATE request;

-- Several apps, and roles, in one statement.
BEGIN;
CREATE SERVER second FOREIGN DATA WRAPPER onesignal OPTIONS (app_id :'other');
CREATE USER MAPPING FOR PUBLIC SERVER second OPTIONS (api_key 'os_v2_app_secret');
INSERT INTO onesignal_message (message_id, app_id)
    SELECT m(n), CASE WHEN n % 2 = 0 THEN :'app' ELSE :'other' END::uuid FROM generate_series(10, 15) n;
SET LOCAL ROLE regress_onesignal_app;
SELECT told('UPDATE onesignal_message SET cancel = true');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER second TO regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SELECT told('UPDATE onesignal_message SET cancel = true');
RESET ROLE;
SELECT count(*), state, by FROM rows WHERE n >= 10 GROUP BY state, by;
ROLLBACK;

-- The role may change in the midst of a statement.
BEGIN;
INSERT INTO onesignal_message (message_id, app_id) SELECT m(n), :'app' FROM generate_series(10, 12) n;
CREATE FUNCTION become(role text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('role', role, true) $$;
UPDATE onesignal_message SET cancel = true,
    reason = become(CASE message_id WHEN m(11) THEN 'regress_onesignal_all' ELSE 'regress_onesignal_app' END)
WHERE message_id >= m(10);
RESET ROLE;
SELECT n, state, by FROM rows WHERE n >= 10;
UPDATE onesignal_message SET cancel = false WHERE message_id >= m(10);
REVOKE USAGE ON FOREIGN SERVER clinic FROM regress_onesignal_app;
SELECT split_part(told($$UPDATE onesignal_message SET cancel = true,
    reason = become(CASE message_id WHEN m(10) THEN 'regress_onesignal_all' ELSE 'regress_onesignal_app' END)
    WHERE message_id >= m(10)$$), E'\n', 1) AS told;
ROLLBACK;

-- A definer's function requests in the definer's name.
BEGIN;
CREATE FUNCTION cancel_it() RETURNS void LANGUAGE sql SECURITY DEFINER
    AS $$ UPDATE onesignal_message SET cancel = true WHERE message_id = m(3) $$;
ALTER FUNCTION cancel_it() OWNER TO regress_onesignal_app;
INSERT INTO onesignal_message (message_id, app_id) VALUES (m(3), :'app');
SELECT cancel_it();
SELECT n, state, by FROM rows WHERE n = 3;
ROLLBACK;

-- Keys are immutable, for everybody.
SELECT told(format('UPDATE onesignal_message SET message_id = %L WHERE message_id = %L', m(9), m(1)));
SELECT told(format('UPDATE onesignal_message SET app_id = %L', :'other'));
SELECT told('UPDATE onesignal_message SET app_id = app_id, message_id = message_id');

-- COPY, as a dump is restored, and as an application loads
BEGIN;
COPY onesignal_message (message_id, app_id, cancel, state, requested_by, requested_at, next_attempt_at, finished_at) FROM stdin;
00000000-0000-4000-8000-000000000040	00000000-0000-4000-8000-0000000000ff	t	pending	somebody	2020-01-01	2020-01-01	\N
00000000-0000-4000-8000-000000000041	00000000-0000-4000-8000-0000000000ff	t	canceled	somebody	2020-01-01	\N	2020-01-01
00000000-0000-4000-8000-000000000042	00000000-0000-4000-8000-0000000000ff	f	scheduled	\N	\N	\N	\N
\.
SET LOCAL ROLE regress_onesignal_app;
COPY onesignal_message (message_id, app_id, cancel) FROM stdin;
00000000-0000-4000-8000-000000000043	5e605fcd-de88-4b0a-a5eb-5c18b84d52f3	t
00000000-0000-4000-8000-000000000044	5e605fcd-de88-4b0a-a5eb-5c18b84d52f3	f
\.
SELECT * FROM rows WHERE n >= 40;
ROLLBACK;

-- Upserts
BEGIN;
SET LOCAL ROLE regress_onesignal_app;
INSERT INTO onesignal_message (message_id, app_id, send_after) VALUES (m(50), :'app', '2030-01-01');
INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (m(50), :'app', true), (m(51), :'app', true), (m(1), :'app', true)
    ON CONFLICT (message_id, app_id) DO UPDATE SET cancel = EXCLUDED.cancel;
INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (m(50), :'app', true) ON CONFLICT DO NOTHING;
SELECT * FROM rows WHERE n >= 50 OR n = 1;
ROLLBACK;

-- onesignal_cancel_enqueue: the same with one call
BEGIN;
SET LOCAL ROLE regress_onesignal_app;
SET LOCAL search_path = pg_catalog, pg_temp;
SELECT public.onesignal_cancel_enqueue(:'app', public.m(60));
SELECT public.onesignal_cancel_enqueue(:'app', public.m(61), '2030-01-01 00:00Z', 'no longer needed');
SELECT public.onesignal_cancel_enqueue(:'app', public.m(61));
SELECT public.onesignal_cancel_enqueue(:'app', public.m(61), reason => 'twice');
RESET search_path;
SELECT n, cancel, state, by, asked_now, due_now, reason FROM rows WHERE n >= 60;
SELECT send_after AT TIME ZONE 'UTC' AS send_after FROM onesignal_message WHERE message_id = m(61);
SELECT told(format('SELECT onesignal_cancel_enqueue(NULL, %L)', m(62)));
SELECT told(format('SELECT onesignal_cancel_enqueue(%L, NULL)', :'app'));
SELECT told(format('SELECT onesignal_cancel_enqueue(%L, %L)', :'other', m(62)));
RESET ROLE;
REVOKE SELECT ON onesignal_message FROM regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SELECT told(format('SELECT onesignal_cancel_enqueue(%L, %L)', :'app', m(62)));
ROLLBACK;

-- Row security governs them.
BEGIN;
ALTER TABLE onesignal_message ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON onesignal_message TO regress_onesignal_app USING (reason = 'mine');
SET LOCAL ROLE regress_onesignal_app;
SELECT told(format('SELECT onesignal_cancel_enqueue(%L, %L)', :'app', m(63)));
SELECT told(format('SELECT onesignal_cancel_enqueue(%L, %L, reason => ''mine'')', :'app', m(63)));
SELECT told('UPDATE onesignal_message SET cancel = false');
ROLLBACK;

-- A prepared statement of ours finds an extension that was dropped and made again elsewhere.
BEGIN;
DROP VIEW rows;
DROP PROCEDURE delivered;
DROP EXTENSION onesignal_cancel CASCADE;
CREATE SCHEMA "else Where@";
SET client_min_messages = error;
CREATE EXTENSION onesignal_cancel SCHEMA "else Where@";
SET client_min_messages = warning;
CREATE SERVER clinic FOREIGN DATA WRAPPER onesignal OPTIONS (app_id :'app');
CREATE USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (api_key 'os_v2_app_secret');
SELECT "else Where@".onesignal_cancel_enqueue(:'app', m(70));
ALTER SCHEMA "else Where@" RENAME TO somewhere;
SELECT somewhere.onesignal_cancel_enqueue(:'app', m(71));
SELECT right(message_id::text, 3)::integer AS n, state FROM somewhere.onesignal_message ORDER BY 1;
-- A role without USAGE on the schema is told what to grant.
CREATE TABLE appointment AS SELECT m(73) AS reminder;
CREATE TRIGGER cancel_reminder AFTER DELETE ON appointment FOR EACH ROW
    EXECUTE FUNCTION somewhere.onesignal_cancel_trigger('reminder', 'clinic');
GRANT ALL ON appointment TO regress_onesignal_app;
GRANT USAGE ON FOREIGN SERVER clinic TO regress_onesignal_app;
GRANT SELECT, INSERT, UPDATE ON somewhere.onesignal_message TO regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SELECT told('DELETE FROM appointment');
RESET ROLE;
GRANT USAGE ON SCHEMA somewhere TO regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SELECT told('DELETE FROM appointment');
RESET ROLE;
ROLLBACK;
SELECT onesignal_cancel_enqueue(:'app', m(72));
SELECT n, state FROM rows;

-- GRANT ALL includes TRIGGER. A trigger after ours could say who requested; one before
-- can only do what its caller may.
GRANT CREATE ON SCHEMA public TO regress_onesignal_all;
SET ROLE regress_onesignal_all;
CREATE FUNCTION forge() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.requested_by := 'regress_onesignal_admin'; RETURN NEW; END $$;
CREATE TRIGGER a_forge BEFORE INSERT OR UPDATE ON onesignal_message FOR EACH ROW EXECUTE FUNCTION forge();
BEGIN;
INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (m(80), :'app', true);
UPDATE onesignal_message SET cancel = false WHERE message_id = m(1);
SELECT n, state, by FROM rows WHERE n IN (1, 80);
ROLLBACK;
RESET ROLE;
DROP TRIGGER a_forge ON onesignal_message;
SET ROLE regress_onesignal_all;
CREATE TRIGGER zzz_forge BEFORE INSERT ON onesignal_message FOR EACH ROW EXECUTE FUNCTION forge();
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (%L, %L, true)', m(80), :'app'));
SELECT told('UPDATE onesignal_message SET cancel = true');
RESET ROLE;
-- whatever it is: its maker could make another one of it in the middle of a statement
ALTER TABLE onesignal_message DISABLE TRIGGER zzz_forge;
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id) VALUES (%L, %L)', m(80), :'app'));
DROP TRIGGER zzz_forge ON onesignal_message;
CREATE TRIGGER zzz_after AFTER INSERT ON onesignal_message FOR EACH ROW EXECUTE FUNCTION forge();
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (%L, %L, true)', m(81), :'app'));
DROP TRIGGER zzz_after ON onesignal_message;
CREATE TRIGGER yyy_after AFTER INSERT ON onesignal_message FOR EACH ROW EXECUTE FUNCTION forge();
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (%L, %L, true)', m(81), :'app'));
SELECT n, state, by FROM rows WHERE n >= 80;
DROP TRIGGER yyy_after ON onesignal_message;
-- in its place: nothing can be written or requested until the owner has put ours back
SET ROLE regress_onesignal_all;
CREATE OR REPLACE TRIGGER zz_onesignal_message BEFORE INSERT OR UPDATE ON onesignal_message FOR EACH ROW EXECUTE FUNCTION forge();
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id, cancel, state, requested_by, requested_at)
    VALUES (%L, %L, true, ''pending'', ''regress_onesignal_admin'', now())', m(82), :'app'));
SELECT told('UPDATE onesignal_message SET reason = reason') = told('UPDATE onesignal_message SET cancel = true') AS "the same";
SELECT split_part(told(format('SELECT onesignal_cancel_enqueue(%L, %L)', :'app', m(82))), E'\n', 1) AS told;
SELECT told('CREATE OR REPLACE TRIGGER zz_onesignal_message BEFORE INSERT OR UPDATE ON onesignal_message FOR EACH ROW '
    'EXECUTE FUNCTION onesignal_message_change()');
RESET ROLE;
-- ours, but not always
CREATE FUNCTION replaced(clauses text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'CREATE OR REPLACE TRIGGER zz_onesignal_message ' || clauses || ' EXECUTE FUNCTION onesignal_message_change()';
    RETURN split_part(told(format('INSERT INTO onesignal_message (message_id, app_id) VALUES (%L, %L)',
        m(83), '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3')), E'\n', 1);
END $$;
SELECT replaced('BEFORE INSERT ON onesignal_message FOR EACH ROW');
SELECT replaced('BEFORE INSERT OR UPDATE OF send_after ON onesignal_message FOR EACH ROW');
SELECT replaced('BEFORE INSERT OR UPDATE ON onesignal_message FOR EACH ROW WHEN (NEW.app_id IS NULL)');
SELECT replaced('BEFORE INSERT OR UPDATE ON onesignal_message FOR EACH ROW');
DROP FUNCTION replaced;
-- the owner may disable it, and write rows then, but nothing is requested
ALTER TABLE onesignal_message DISABLE TRIGGER zz_onesignal_message;
SELECT told(format('SELECT onesignal_cancel_enqueue(%L, %L)', :'app', m(84)));
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id) VALUES (%L, %L)', m(84), :'app'));
ALTER TABLE onesignal_message ENABLE REPLICA TRIGGER zz_onesignal_message;
SELECT split_part(told(format('SELECT onesignal_cancel_enqueue(%L, %L)', :'app', m(84))), E'\n', 1) AS told;
-- always: then it keeps its hands off what delivery writes
ALTER TABLE onesignal_message ENABLE ALWAYS TRIGGER zz_onesignal_message;
SELECT told(format('SELECT onesignal_cancel_enqueue(%L, %L)', :'app', m(84)));
CALL delivered(84, 'canceled');
SELECT n, state, by FROM rows WHERE n = 84;
ALTER TABLE onesignal_message ENABLE TRIGGER zz_onesignal_message;
DROP FUNCTION forge;

-- A trigger before ours that sets cancel is heard, though the UPDATE does not name it.
CREATE FUNCTION past() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.cancel := NEW.reason = 'gone'; RETURN NEW; END $$;
CREATE TRIGGER past BEFORE UPDATE ON onesignal_message FOR EACH ROW EXECUTE FUNCTION past();
UPDATE onesignal_message SET reason = 'gone' WHERE message_id = m(80);
SELECT n, cancel, state FROM rows WHERE n = 80;
DROP TRIGGER past ON onesignal_message;
DROP FUNCTION past;

-- The state machine is of no other table, and of no altered one.
CREATE TABLE lookalike (LIKE onesignal_message);
CREATE TRIGGER t BEFORE INSERT ON lookalike FOR EACH ROW EXECUTE FUNCTION onesignal_message_change();
SELECT told(format('INSERT INTO lookalike (message_id, app_id) VALUES (%L, %L)', m(1), :'app'));
DROP TRIGGER t ON lookalike;
CREATE TRIGGER t AFTER INSERT ON lookalike FOR EACH ROW EXECUTE FUNCTION onesignal_message_change();
SELECT told(format('INSERT INTO lookalike (message_id, app_id, cancel, state, attempts, unanswered, created_at) '
    'VALUES (%L, %L, false, ''pending'', 0, false, now())', m(1), :'app'));
DROP TABLE lookalike;
BEGIN;
DROP VIEW rows;
ALTER TABLE onesignal_message ALTER attempts TYPE bigint;
SELECT told('UPDATE onesignal_message SET cancel = cancel');
ROLLBACK;
-- columns of the owner's own work
BEGIN;
ALTER TABLE onesignal_message ADD note text DEFAULT 'x', ADD dropped integer;
ALTER TABLE onesignal_message DROP dropped;
INSERT INTO onesignal_message (message_id, app_id, cancel, note) VALUES (m(90), :'app', true, 'mine');
INSERT INTO onesignal_message (message_id, app_id, cancel, note) VALUES (m(91), :'app', true, 'mine');
SELECT state, note FROM onesignal_message WHERE message_id IN (m(1), m(90)) ORDER BY message_id;
ROLLBACK;

-- NULLs are the constraints' business.
SELECT split_part(told(statement), E'\n', 1) AS told FROM (VALUES
    (format('INSERT INTO onesignal_message (message_id, cancel) VALUES (%L, true)', m(91))),
    (format('INSERT INTO onesignal_message (app_id, cancel) VALUES (%L, true)', :'app')),
    (format('INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (%L, %L, NULL)', m(91), :'app')),
    ('UPDATE onesignal_message SET cancel = NULL'),
    ('UPDATE onesignal_message SET state = NULL')) AS t (statement);

DROP VIEW rows;
DROP PROCEDURE delivered;
DROP FUNCTION told, m;
REVOKE ALL ON SCHEMA public FROM regress_onesignal_all;
SET client_min_messages = error;
DROP EXTENSION onesignal_cancel CASCADE;
DROP ROLE regress_onesignal_owner, regress_onesignal_app, regress_onesignal_all;
RESET SESSION AUTHORIZATION;
DROP ROLE regress_onesignal_admin;
