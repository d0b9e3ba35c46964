-- Columns from state on are the extension's: whole rows can be saved, restored, merged; and who adopts a request.
-- Whether the server preloads the library does not matter here.
SET client_min_messages = error;
-- a superuser whose name is known
CREATE ROLE regress_onesignal_admin SUPERUSER;
SET SESSION AUTHORIZATION regress_onesignal_admin;
CREATE EXTENSION onesignal_cancel;
SET client_min_messages = warning;
-- Nothing is to be delivered here.
SET onesignal_cancel.background_delivery = off;
\pset format unaligned
\pset footer off
\pset null null
\set app '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3'
\set other '00000000-0000-4000-8000-0000000000ff'

CREATE SERVER clinic FOREIGN DATA WRAPPER onesignal OPTIONS (app_id :'app');
CREATE USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (api_key 'os_v2_app_secret');
CREATE ROLE regress_onesignal_app;
CREATE ROLE regress_onesignal_owner;
GRANT USAGE ON FOREIGN SERVER clinic TO regress_onesignal_app;
GRANT SELECT, INSERT, UPDATE ON onesignal_message TO regress_onesignal_app;

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
CREATE VIEW rows AS
SELECT right(message_id::text, 3)::integer AS n, cancel, state, requested_by AS by,
    requested_at = now() AS asked_now, next_attempt_at = now() AS due_now,
    http_status AS status, errors, attempts AS tries, unanswered AS silent,
    COALESCE(first_attempt_at, last_attempt_at, finished_at) AS times, reason
FROM onesignal_message ORDER BY 1;
GRANT SELECT ON rows TO PUBLIC;
-- What delivery writes, as it does it: the trigger does not fire.
CREATE PROCEDURE delivered(n integer, came_to onesignal_message_state) LANGUAGE plpgsql AS $$
BEGIN
    SET LOCAL session_replication_role = replica;
    UPDATE onesignal_message SET state = came_to, http_status = 400, errors = '{no}', response = '{}',
        attempts = 3, first_attempt_at = '2026-01-01', last_attempt_at = '2026-01-02',
        next_attempt_at = NULL, finished_at = '2026-01-03'
    WHERE message_id = m(n);
    SET LOCAL session_replication_role = origin;
END $$;

-- ---- each column ----
INSERT INTO onesignal_message (message_id, app_id, send_after) VALUES (m(1), :'app', '2030-01-01');
INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (m(2), :'app', true);
CREATE FUNCTION kept(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    before text;
    after text;
BEGIN
    SELECT string_agg(r::text, ' ' ORDER BY message_id) INTO before FROM onesignal_message r;
    statement := told(statement);
    SELECT string_agg(r::text, ' ' ORDER BY message_id) INTO after FROM onesignal_message r;
    RETURN statement || CASE WHEN before = after THEN ', nothing changed' ELSE ', changed' END;
END $$;
CREATE TABLE written (c text, v text);
INSERT INTO written VALUES ('state', 'refused'), ('http_status', '200'), ('errors', '{}'), ('response', '{}'),
    ('attempts', '-1'), ('unanswered', 'true'), ('requested_by', 'somebody'), ('requested_at', 'yesterday'),
    ('first_attempt_at', 'now'), ('last_attempt_at', 'now'), ('next_attempt_at', 'infinity'),
    ('finished_at', 'now'), ('created_at', 'yesterday');
GRANT SELECT ON written TO PUBLIC;
SELECT c AS "column", kept(format('UPDATE onesignal_message SET %I = %L', c, v)) AS "by the owner" FROM written;
SELECT kept('UPDATE onesignal_message SET state = NULL, attempts = NULL, unanswered = NULL, created_at = NULL');
SET ROLE regress_onesignal_app;
SELECT c AS "column", kept(format('UPDATE onesignal_message SET %I = %L', c, v)) AS "by an application" FROM written;
SELECT kept('UPDATE onesignal_message SET state = state, requested_by = requested_by, errors = errors, created_at = created_at, cancel = cancel');

-- One NOTICE a statement, where something differs; and an INSERT by an application has the defaults.
BEGIN;
SET LOCAL client_min_messages = notice;
UPDATE onesignal_message SET attempts = 7, requested_at = now() + interval '1 day';
UPDATE onesignal_message SET attempts = attempts, state = state;
INSERT INTO onesignal_message (message_id, app_id, state, requested_by, created_at)
    VALUES (m(20), :'app', 'canceled', 'somebody', 'yesterday'), (m(21), :'app', 'refused', NULL, DEFAULT);
SET LOCAL client_min_messages = warning;
INSERT INTO onesignal_message (message_id, app_id, cancel, state, attempts, unanswered, created_at)
    VALUES (m(22), :'app', true, NULL, NULL, NULL, NULL), (m(23), :'app', true, 'pending', 9, true, now());
SELECT * FROM rows WHERE n >= 20;
SELECT count(*) FROM onesignal_message WHERE created_at = now();
ROLLBACK;
RESET ROLE;

-- ---- whole rows ----

-- A request, and a save of the whole row, in one transaction
BEGIN;
INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (m(20), :'app', true);
UPDATE onesignal_message SET cancel = true, state = 'scheduled', reason = 'note' WHERE message_id = m(20);
SELECT * FROM rows WHERE n = 20;
ROLLBACK;

-- Saved by somebody whose copy is old or new: no request is lost, and nothing that has an outcome is sent again.
CREATE TABLE copies AS SELECT ''::text AS name, * FROM onesignal_message LIMIT 0;
GRANT ALL ON copies TO PUBLIC;
CREATE FUNCTION save(of_copy text, wish boolean DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
    SELECT told(format('UPDATE onesignal_message m SET message_id = c.message_id, app_id = c.app_id, send_after = c.send_after,
        cancel = COALESCE(%L, c.cancel), reason = %L, state = c.state, http_status = c.http_status, errors = c.errors, response = c.response,
        attempts = c.attempts, unanswered = c.unanswered, requested_by = c.requested_by, requested_at = c.requested_at,
        first_attempt_at = c.first_attempt_at, last_attempt_at = c.last_attempt_at, next_attempt_at = c.next_attempt_at,
        finished_at = c.finished_at, created_at = c.created_at
        FROM copies c WHERE m.message_id = c.message_id AND c.name = %L', wish, 'saved ' || of_copy, of_copy)) $$;
CREATE FUNCTION copied(name text) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO copies SELECT name, * FROM onesignal_message WHERE message_id = m(20) $$;
CREATE FUNCTION row_20() RETURNS text LANGUAGE sql AS
    $$ SELECT concat_ws(' ', cancel, state, by, status, tries, reason) FROM rows WHERE n = 20 $$;
\pset tuples_only on
BEGIN;
INSERT INTO onesignal_message (message_id, app_id) VALUES (m(20), :'app');
SELECT copied('scheduled');
SET LOCAL ROLE regress_onesignal_app;
UPDATE onesignal_message SET cancel = true WHERE message_id = m(20);
RESET ROLE;
SELECT copied('pending');
SELECT save('scheduled'), row_20();
SELECT save('pending'), row_20();
-- who read it as pending, and sets cancel to false, takes it back
SELECT save('pending', false), row_20();
-- who read it as scheduled, and sets cancel to true, requests it
SELECT save('scheduled', true), row_20();
CALL delivered(20, 'canceled');
SELECT copied('canceled');
SELECT save('scheduled'), row_20();
SELECT save('pending'), row_20();
SELECT save('canceled'), row_20();
SELECT save('scheduled', true), row_20();
-- a confirmed cancel cannot be withdrawn
SELECT save('pending', false), row_20();
SELECT save('canceled', false), row_20();
CALL delivered(20, 'refused');
SELECT save('scheduled'), row_20();
SELECT save('pending'), row_20();
SELECT save('pending', false), row_20();
UPDATE onesignal_message SET cancel = true WHERE message_id = m(20);
CALL delivered(20, 'failed');
SELECT save('scheduled'), row_20();
-- as any UPDATE that sets cancel of a failed row to true
SELECT save('pending'), row_20();
ROLLBACK;
-- the same by an application
BEGIN;
SET LOCAL ROLE regress_onesignal_app;
INSERT INTO onesignal_message (message_id, app_id) VALUES (m(20), :'app');
SELECT copied('scheduled');
UPDATE onesignal_message SET cancel = true WHERE message_id = m(20);
SELECT copied('pending');
SELECT save('scheduled'), row_20();
SELECT save('pending'), row_20();
RESET ROLE;
CALL delivered(20, 'canceled');
SET LOCAL ROLE regress_onesignal_app;
SELECT save('scheduled'), row_20();
SELECT save('pending'), row_20();
ROLLBACK;

-- Upserts that write every column
CREATE FUNCTION upsert(of_copy text) RETURNS text LANGUAGE sql AS $$
    SELECT told(format('INSERT INTO onesignal_message SELECT c.message_id, c.app_id, c.send_after, c.cancel, %L,
        c.state, c.http_status, c.errors, c.response, c.attempts, c.unanswered, c.requested_by, c.requested_at,
        c.first_attempt_at, c.last_attempt_at, c.next_attempt_at, c.finished_at, c.created_at FROM copies c WHERE c.name = %L
        ON CONFLICT (message_id, app_id) DO UPDATE SET send_after = EXCLUDED.send_after,
        cancel = EXCLUDED.cancel, reason = EXCLUDED.reason, state = EXCLUDED.state, http_status = EXCLUDED.http_status,
        errors = EXCLUDED.errors, response = EXCLUDED.response, attempts = EXCLUDED.attempts,
        unanswered = EXCLUDED.unanswered, requested_by = EXCLUDED.requested_by, requested_at = EXCLUDED.requested_at,
        first_attempt_at = EXCLUDED.first_attempt_at, last_attempt_at = EXCLUDED.last_attempt_at,
        next_attempt_at = EXCLUDED.next_attempt_at, finished_at = EXCLUDED.finished_at, created_at = EXCLUDED.created_at',
        'upserted ' || of_copy, of_copy)) $$;
BEGIN;
SET LOCAL ROLE regress_onesignal_app;
INSERT INTO onesignal_message (message_id, app_id) VALUES (m(20), :'app');
SELECT copied('scheduled');
UPDATE onesignal_message SET cancel = true WHERE message_id = m(20);
SELECT copied('pending');
SELECT upsert('scheduled'), row_20();
SELECT upsert('pending'), row_20();
RESET ROLE;
CALL delivered(20, 'canceled');
SELECT copied('canceled');
SELECT upsert('scheduled'), row_20();
SELECT upsert('pending'), row_20();
SELECT upsert('canceled'), row_20();
SET LOCAL ROLE regress_onesignal_app;
SELECT upsert('scheduled'), row_20();
SELECT upsert('pending'), row_20();
SELECT upsert('canceled'), row_20();
ROLLBACK;
\pset tuples_only off

-- ---- restores: only members of the table's owner, and only an INSERT ----
BEGIN;
ALTER TABLE onesignal_message OWNER TO regress_onesignal_owner;
CREATE ROLE regress_onesignal_member IN ROLE regress_onesignal_owner;
GRANT USAGE ON FOREIGN SERVER clinic TO regress_onesignal_member;
SET LOCAL ROLE regress_onesignal_member;
INSERT INTO onesignal_message (message_id, app_id, cancel, state, requested_by, requested_at, next_attempt_at, attempts)
    VALUES (m(30), :'other', true, 'pending', 'somebody', '2020-01-01', '2020-01-02', 4);
INSERT INTO onesignal_message (message_id, app_id, cancel, state, finished_at, created_at)
    VALUES (m(31), :'other', true, 'canceled', '2020-01-01', '2019-01-01');
-- what delivery needs is filled in
INSERT INTO onesignal_message (message_id, app_id, cancel, state) VALUES (m(32), :'other', true, 'pending');
-- no state of its own: a request like any other
INSERT INTO onesignal_message (message_id, app_id, cancel, created_at) VALUES (m(33), :'app', true, '2019-01-01');
SELECT kept('UPDATE onesignal_message SET state = ''failed'', attempts = 0 WHERE message_id = m(31)');
SELECT * FROM rows WHERE n >= 30;
SELECT right(message_id::text, 2) AS n FROM onesignal_message WHERE created_at = '2019-01-01' ORDER BY 1;
ROLLBACK;

-- A pending row always says who requested it, and when, whoever wrote it.
BEGIN;
SET LOCAL session_replication_role = replica;
SELECT split_part(told(statement), E'\n', 1) AS told FROM (VALUES
    ('UPDATE onesignal_message SET requested_by = NULL WHERE state = ''pending'''),
    ('UPDATE onesignal_message SET requested_at = NULL WHERE state = ''pending''')) AS t (statement);
ROLLBACK;

-- ---- MERGE: all of its actions look as if they named cancel, so only a change counts ----
BEGIN;
CALL delivered(2, 'failed');
MERGE INTO onesignal_message m USING (SELECT m(2) AS id) s ON m.message_id = s.id
    WHEN MATCHED AND m.state = 'canceled' THEN UPDATE SET cancel = true
    WHEN MATCHED THEN UPDATE SET reason = 'merged';
SELECT n, cancel, state, reason FROM rows WHERE n = 2;
DO $$ BEGIN
    MERGE INTO onesignal_message m USING (SELECT m(2) AS id) s ON m.message_id = s.id
        WHEN MATCHED THEN UPDATE SET cancel = true, reason = 'merged in a function';
END $$;
SELECT n, cancel, state, reason FROM rows WHERE n = 2;
MERGE INTO onesignal_message m USING (SELECT m(2) AS id) s ON m.message_id = s.id
    WHEN MATCHED THEN UPDATE SET cancel = false;
SELECT n, cancel, state FROM rows WHERE n = 2;
MERGE INTO onesignal_message m USING (SELECT m(n) AS id FROM generate_series(2, 30, 28) n) s ON m.message_id = s.id
    WHEN MATCHED THEN UPDATE SET cancel = true
    WHEN NOT MATCHED THEN INSERT (message_id, app_id, cancel) VALUES (s.id, '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3', true);
SELECT n, cancel, state FROM rows WHERE n IN (2, 30);
-- an UPDATE beside it, in a trigger or in a WITH, is an UPDATE
CALL delivered(2, 'failed');
CREATE TABLE other (id integer);
INSERT INTO other VALUES (1);
CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN UPDATE onesignal_message SET cancel = true WHERE message_id = m(2); RETURN NEW; END $$;
CREATE TRIGGER again BEFORE UPDATE ON other FOR EACH ROW EXECUTE FUNCTION again();
MERGE INTO other o USING (SELECT 1 AS id) s ON o.id = s.id WHEN MATCHED THEN UPDATE SET id = 2;
SELECT n, state FROM rows WHERE n = 2;
CALL delivered(2, 'failed');
DROP TRIGGER again ON other;
WITH again AS (UPDATE onesignal_message SET cancel = true WHERE message_id = m(2))
    MERGE INTO other o USING (SELECT 2 AS id) s ON o.id = s.id WHEN MATCHED THEN UPDATE SET id = 3;
SELECT n, state FROM rows WHERE n = 2;
-- so is one in a function that a MERGE into the table calls
CALL delivered(2, 'failed');
CREATE FUNCTION ask() RETURNS uuid LANGUAGE plpgsql AS
    $$ BEGIN UPDATE onesignal_message SET cancel = true WHERE message_id = m(2); RETURN m(1); END $$;
MERGE INTO onesignal_message m USING (SELECT ask() AS id) s ON m.message_id = s.id
    WHEN MATCHED THEN UPDATE SET reason = 'merged';
SELECT n, state FROM rows WHERE n <= 2;
ROLLBACK;

-- also in a session's first statement, when nothing of the library is loaded yet
CALL delivered(2, 'failed');
\c -
SET SESSION AUTHORIZATION regress_onesignal_admin;
MERGE INTO onesignal_message m USING (SELECT m(2) AS id) s ON m.message_id = s.id
    WHEN MATCHED AND m.state = 'canceled' THEN UPDATE SET cancel = true
    WHEN MATCHED THEN UPDATE SET reason = 'merged';
SET onesignal_cancel.background_delivery = off;
SET client_min_messages = warning;
SELECT n, cancel, state, reason FROM rows WHERE n = 2;

-- ---- a pending request whose requester can no longer cancel is adopted ----
BEGIN;
CREATE ROLE regress_onesignal_gone;
GRANT SELECT, INSERT, UPDATE ON onesignal_message TO regress_onesignal_gone;
GRANT USAGE ON FOREIGN SERVER clinic TO regress_onesignal_gone;
SET LOCAL ROLE regress_onesignal_gone;
INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT m(n), :'app', true FROM generate_series(20, 26) n;
RESET ROLE;
SET LOCAL session_replication_role = replica;
UPDATE onesignal_message SET requested_at = '2026-01-01', next_attempt_at = 'infinity', attempts = 5, unanswered = true,
    http_status = 503, errors = '{busy}', first_attempt_at = '2026-01-01' WHERE message_id >= m(20);
SET LOCAL session_replication_role = origin;
-- he still can: nothing changes
SET LOCAL ROLE regress_onesignal_app;
UPDATE onesignal_message SET cancel = true WHERE message_id = m(20);
SELECT onesignal_cancel_enqueue(:'app', m(20));
SELECT * FROM rows WHERE n = 20;
RESET ROLE;
-- no USAGE; cancel is not named, so nobody asks
REVOKE USAGE ON FOREIGN SERVER clinic FROM regress_onesignal_gone;
SET LOCAL ROLE regress_onesignal_app;
UPDATE onesignal_message SET reason = 'moved' WHERE message_id = m(20);
SELECT n, by FROM rows WHERE n = 20;
-- now it is named
UPDATE onesignal_message SET cancel = true WHERE message_id = m(20);
SELECT onesignal_cancel_enqueue(:'app', m(21));
SELECT * FROM rows WHERE n IN (20, 21);
RESET ROLE;
-- by a role that cannot cancel either: it stays, or is told why
CREATE ROLE regress_onesignal_other;
GRANT SELECT, INSERT, UPDATE ON onesignal_message TO regress_onesignal_other;
SET LOCAL ROLE regress_onesignal_other;
UPDATE onesignal_message SET cancel = true WHERE message_id = m(22);
SELECT told(format('SELECT onesignal_cancel_enqueue(%L, %L)', :'app', m(22)));
RESET ROLE;
SELECT n, by FROM rows WHERE n = 22;
-- no mapping
GRANT USAGE ON FOREIGN SERVER clinic TO regress_onesignal_gone;
DROP USER MAPPING FOR PUBLIC SERVER clinic;
CREATE USER MAPPING FOR regress_onesignal_app SERVER clinic OPTIONS (api_key 'os_v2_app_secret');
SET LOCAL ROLE regress_onesignal_app;
UPDATE onesignal_message SET cancel = true WHERE message_id = m(22);
RESET ROLE;
CREATE USER MAPPING FOR PUBLIC SERVER clinic OPTIONS (api_key 'os_v2_app_secret');
-- renamed; then dropped
ALTER ROLE regress_onesignal_gone RENAME TO regress_onesignal_went;
SET LOCAL ROLE regress_onesignal_app;
UPDATE onesignal_message SET cancel = true WHERE message_id IN (m(23), m(24));
RESET ROLE;
DROP OWNED BY regress_onesignal_went;
DROP ROLE regress_onesignal_went;
SET LOCAL ROLE regress_onesignal_app;
SELECT onesignal_cancel_enqueue(:'app', m(25));
-- a MERGE that changes nothing does not ask; a save of the whole row does
MERGE INTO onesignal_message m USING (SELECT m(26) AS id) s ON m.message_id = s.id
    WHEN MATCHED THEN UPDATE SET cancel = true;
SELECT n, by FROM rows WHERE n = 26;
UPDATE onesignal_message SET cancel = true, state = 'pending', attempts = 5, reason = 'saved' WHERE message_id = m(26);
RESET ROLE;
SELECT n, state, by, asked_now, due_now, tries, silent, times FROM rows WHERE n >= 20;
ROLLBACK;

-- An upsert of the whole row takes back what a fresh copy of it takes back.
BEGIN;
SET LOCAL ROLE regress_onesignal_app;
INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (m(30), :'app', true);
SET LOCAL client_min_messages = error;
INSERT INTO onesignal_message (message_id, app_id, cancel, state, requested_by) VALUES (m(30), :'app', false, 'pending', 'regress_onesignal_app')
    ON CONFLICT (message_id, app_id) DO UPDATE SET cancel = excluded.cancel, state = excluded.state, requested_by = excluded.requested_by;
SELECT state FROM onesignal_message WHERE message_id = m(30);
INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (m(30), :'app', true)
    ON CONFLICT (message_id, app_id) DO UPDATE SET cancel = excluded.cancel;
INSERT INTO onesignal_message (message_id, app_id, cancel, state) VALUES (m(30), :'app', false, 'scheduled')
    ON CONFLICT (message_id, app_id) DO UPDATE SET cancel = excluded.cancel, state = excluded.state;
SELECT state FROM onesignal_message WHERE message_id = m(30);
ROLLBACK;

-- Other copies, read before somebody changed the row
BEGIN;
INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (m(30), :'app', true);
-- one whose columns the database fills: the request stays
SET LOCAL client_min_messages = notice;
UPDATE onesignal_message SET cancel = false, state = NULL, attempts = NULL, created_at = NULL, reason = 'x' WHERE message_id = m(30);
SET LOCAL client_min_messages = warning;
SELECT n, cancel, state, reason FROM rows WHERE n = 30;
-- an upsert that leaves the state out takes the request back
SET LOCAL client_min_messages = notice;
INSERT INTO onesignal_message (message_id, app_id, send_after) VALUES (m(30), :'app', '2030-01-01')
    ON CONFLICT (message_id, app_id) DO UPDATE SET cancel = false;
SELECT n, cancel, state, silent FROM rows WHERE n = 30;
-- one that was read as pending, saved after the take-back: it stays taken back
UPDATE onesignal_message SET cancel = true, state = 'pending', reason = 'y' WHERE message_id = m(30);
SET LOCAL client_min_messages = warning;
INSERT INTO onesignal_message (message_id, app_id, cancel, state) VALUES (m(30), :'app', true, 'pending')
    ON CONFLICT (message_id, app_id) DO UPDATE SET cancel = excluded.cancel, state = excluded.state;
SELECT n, cancel, state, reason FROM rows WHERE n = 30;
-- one whose columns the database fills requests it
UPDATE onesignal_message SET cancel = true, state = NULL WHERE message_id = m(30);
SELECT n, cancel, state, reason FROM rows WHERE n = 30;
ROLLBACK;

-- Whoever takes a pending request back, or adopts it, cannot know what became of it: a later refusal is checked.
BEGIN;
CREATE ROLE regress_onesignal_gone;
INSERT INTO onesignal_message (message_id, app_id, cancel) SELECT m(n), :'app', true FROM generate_series(30, 32) n;
SELECT n, state, silent FROM rows WHERE n >= 30;
UPDATE onesignal_message SET cancel = false WHERE message_id = m(30);
UPDATE onesignal_message SET cancel = true WHERE message_id = m(30);
SET LOCAL session_replication_role = replica;
UPDATE onesignal_message SET requested_by = 'regress_onesignal_gone' WHERE message_id = m(31);
SET LOCAL session_replication_role = origin;
UPDATE onesignal_message SET cancel = true WHERE message_id = m(31);
CALL delivered(32, 'refused');
UPDATE onesignal_message SET cancel = false WHERE message_id = m(32);
SELECT n, state, by, silent FROM rows WHERE n >= 30;
ROLLBACK;

-- No request is lost in silence: in replica mode, where our trigger does not fire, and where another one swallows it.
BEGIN;
SET LOCAL session_replication_role = replica;
SELECT told(format('SELECT onesignal_cancel_enqueue(%L, %L)', :'app', m(31)));
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id, cancel) VALUES (%L, %L, true)', m(31), :'app')) ~ '^23514';
ROLLBACK;
-- Nobody else can forge a request there, such as by a subscription with run_as_owner.
BEGIN;
SET LOCAL session_replication_role = replica;
SET LOCAL ROLE regress_onesignal_app;
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id, cancel, state, requested_by, requested_at)
    VALUES (%L, %L, true, ''pending'', ''regress_onesignal_admin'', now())', m(33), :'app'));
ROLLBACK;
BEGIN;
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER aaa BEFORE INSERT ON onesignal_message FOR EACH ROW EXECUTE FUNCTION swallow();
SELECT told(format('SELECT onesignal_cancel_enqueue(%L, %L)', :'app', m(31)));
ROLLBACK;

-- While the owner has our trigger disabled, as pg_restore does, he alone may write: others could forge requests.
BEGIN;
ALTER TABLE onesignal_message OWNER TO regress_onesignal_owner;
ALTER TABLE onesignal_app OWNER TO regress_onesignal_owner;
ALTER TABLE onesignal_message DISABLE TRIGGER ALL;
CREATE ROLE regress_onesignal_member IN ROLE regress_onesignal_owner;
SET LOCAL ROLE regress_onesignal_app;
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id, cancel, state, requested_by, requested_at)
    VALUES (%L, %L, true, ''pending'', ''regress_onesignal_admin'', now())', m(33), :'app'));
SELECT told('UPDATE onesignal_message SET requested_by = ''regress_onesignal_admin''') ~ '^55000';
SET LOCAL ROLE regress_onesignal_member;
SELECT told(format('INSERT INTO onesignal_message (message_id, app_id, cancel, state, requested_by, requested_at)
    VALUES (%L, %L, true, ''pending'', ''regress_onesignal_admin'', now())', m(33), :'app'));
ROLLBACK;

-- Nobody locks the table through its guard.
BEGIN;
SELECT onesignal_message_guard();
SELECT count(*) AS locks FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 'onesignal_message'::regclass;
ROLLBACK;

DROP VIEW rows;
DROP TABLE copies, written;
DROP PROCEDURE delivered;
DROP FUNCTION told, m, kept, save, copied, row_20, upsert;
SET client_min_messages = error;
DROP EXTENSION onesignal_cancel CASCADE;
DROP ROLE regress_onesignal_owner, regress_onesignal_app;
RESET SESSION AUTHORIZATION;
DROP ROLE regress_onesignal_admin;
