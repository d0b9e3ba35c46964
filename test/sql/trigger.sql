-- onesignal_cancel_trigger() on the application's own tables.
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
CREATE SERVER second FOREIGN DATA WRAPPER onesignal OPTIONS (app_id :'other');
CREATE USER MAPPING FOR PUBLIC SERVER second OPTIONS (api_key 'os_v2_app_secret');
CREATE ROLE regress_onesignal_app;
GRANT USAGE ON FOREIGN SERVER clinic TO regress_onesignal_app;

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
SELECT right(message_id::text, 3)::integer AS n, right(app_id::text, 2) AS app, state,
    requested_by AS by, send_after AT TIME ZONE 'UTC' AS send_after
FROM onesignal_message ORDER BY 1;

-- The README's case: a canceled appointment, and a deleted one.
CREATE TABLE appointments (id integer PRIMARY KEY, status text DEFAULT 'booked', reminder_id uuid, starts timestamptz);
CREATE TRIGGER canceled AFTER UPDATE OF status ON appointments FOR EACH ROW
    WHEN (NEW.status = 'canceled' AND OLD.status <> 'canceled')
    EXECUTE FUNCTION onesignal_cancel_trigger('reminder_id', 'clinic');
CREATE TRIGGER deleted AFTER DELETE ON appointments FOR EACH ROW
    EXECUTE FUNCTION onesignal_cancel_trigger('reminder_id', 'clinic', 'starts');
INSERT INTO appointments (id, reminder_id, starts) SELECT n, m(n), '2030-01-01 00:00Z' FROM generate_series(1, 5) n;
INSERT INTO appointments (id) VALUES (6), (7);

-- The message that the row had, though the same UPDATE takes it away.
BEGIN;
UPDATE appointments SET starts = starts + interval '1 hour' WHERE id = 5;
UPDATE appointments SET status = 'canceled' WHERE id = 1;
UPDATE appointments SET status = 'canceled', reminder_id = NULL WHERE id = 2;
UPDATE appointments SET status = 'canceled', reminder_id = m(33) WHERE id = 3;
DELETE FROM appointments WHERE id = 4;
-- where it had none: the one that it has now; NULL is no message
UPDATE appointments SET status = 'canceled', reminder_id = m(66) WHERE id = 6;
UPDATE appointments SET status = 'canceled' WHERE id = 7;
DELETE FROM appointments WHERE id = 7;
SELECT * FROM rows;
ROLLBACK;
SELECT * FROM rows;

-- As the current user: table grants and the app's server decide.
BEGIN;
GRANT SELECT, UPDATE ON appointments TO regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SELECT told('UPDATE appointments SET status = ''canceled'' WHERE id = 1');
RESET ROLE;
GRANT SELECT, UPDATE ON onesignal_message TO regress_onesignal_app;
GRANT INSERT (message_id, app_id, send_after) ON onesignal_message TO regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SELECT split_part(told('UPDATE appointments SET status = ''canceled'' WHERE id = 1'), E'\n', 1) AS told;
RESET ROLE;
REVOKE ALL ON onesignal_message FROM regress_onesignal_app;
-- by columns is enough
GRANT SELECT (message_id, app_id, send_after, reason), INSERT (message_id, app_id, send_after, cancel, reason),
    UPDATE (send_after, cancel, reason) ON onesignal_message TO regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SELECT told('UPDATE appointments SET status = ''canceled'' WHERE id = 1');
RESET ROLE;
REVOKE USAGE ON FOREIGN SERVER clinic FROM regress_onesignal_app;
SET LOCAL ROLE regress_onesignal_app;
SELECT told('UPDATE appointments SET status = ''canceled'' WHERE id = 2');
RESET ROLE;
SELECT * FROM rows;
ROLLBACK;

-- A savepoint takes its requests back, and only those.
BEGIN;
DELETE FROM appointments WHERE id = 1;
SAVEPOINT s;
DELETE FROM appointments WHERE id = 2;
ROLLBACK TO s;
DELETE FROM appointments WHERE id = 3;
SELECT n FROM rows;
ROLLBACK;

-- INSERT: a row that arrives canceled
BEGIN;
CREATE TRIGGER arrived AFTER INSERT ON appointments FOR EACH ROW
    WHEN (NEW.status = 'canceled') EXECUTE FUNCTION onesignal_cancel_trigger('reminder_id', 'clinic');
INSERT INTO appointments VALUES (10, 'canceled', m(10)), (11, 'booked', m(11)), (12, 'canceled', NULL);
SELECT n FROM rows;
ROLLBACK;

-- The app: a uuid, else a column, else a server.
CREATE TABLE t (id integer, message uuid, app uuid, app_text text, clinic uuid, "Mixed Case" varchar(40));
INSERT INTO t VALUES (1, m(1), :'app', :'other', :'other', m(1)::text);
-- A trigger with these arguments: the request that a DELETE makes, or what is told.
CREATE FUNCTION try(VARIADIC arguments text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE 'CREATE TRIGGER x AFTER DELETE OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION onesignal_cancel_trigger('
        || (SELECT string_agg(quote_literal(a), ', ') FROM unnest(arguments) a) || ')';
    BEGIN
        result := told('DELETE FROM t');
        IF result = '1 rows' THEN
            SELECT concat_ws(' ', n, app, state, send_after) INTO result FROM rows;
        END IF;
        RAISE division_by_zero;
    EXCEPTION WHEN division_by_zero THEN
        DROP TRIGGER x ON t;
        RETURN result;
    END;
END $$;
SELECT try('message', :'app');
SELECT try('message', '{5E605FCDDE884B0AA5EB5C18B84D52F3}');
SELECT try('message', 'app');
SELECT try('message', 'app_text');
SELECT try('message', 'second');
-- a column before a server of that name
SELECT try('message', 'clinic');
SELECT try('Mixed Case', 'second');
-- none of these; and a server of somebody else's wrapper
SELECT try('message', 'nobody');
CREATE FOREIGN DATA WRAPPER regress_onesignal_other;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER regress_onesignal_other OPTIONS (app_id :'app');
SELECT try('message', 'elsewhere');
DROP FOREIGN DATA WRAPPER regress_onesignal_other CASCADE;
-- the row has a message, but no app: not to be forgotten silently
UPDATE t SET app = NULL, app_text = '5e605fcd';
SELECT try('message', 'app');
SELECT try('message', 'app_text');
UPDATE t SET app_text = ' ';
SELECT try('message', 'app_text');
-- a column that has a server's name says so
UPDATE t SET clinic = NULL;
SELECT try('message', 'clinic');
UPDATE t SET message = NULL;
SELECT try('message', 'app');

-- Columns: uuid or text, also by another name; not there, dropped, of another type.
CREATE DOMAIN onesignal_id AS text;
ALTER TABLE t ADD by_domain onesignal_id, ADD gone uuid, ADD number integer, ADD fixed char(40),
    ADD stamp timestamp, ADD day date, ADD stamptz timestamptz;
ALTER TABLE t DROP gone;
UPDATE t SET by_domain = m(2)::text, fixed = m(3)::text, number = 4,
    stamp = '2030-01-01 12:00', day = '2030-01-01', stamptz = '2030-01-01 00:00Z', message = m(1);
SELECT try('by_domain', 'second');
SELECT try('fixed', 'second');
SELECT try('gone', 'second');
SELECT try('nowhere', 'second');
SELECT try('number', 'second');
SELECT try('message', 'number');
SELECT try('ctid', 'second');
UPDATE t SET by_domain = 'none yet';
SELECT try('by_domain', 'second');
-- an empty or blank text is no message
UPDATE t SET by_domain = '';
SELECT try('by_domain', 'second');
UPDATE t SET by_domain = E' \t\n', fixed = '';
SELECT try('by_domain', 'second');
SELECT try('fixed', 'second');
-- a column of another type, or with no uuid in it, that has a server's name
ALTER TABLE t ADD second integer, ADD third text DEFAULT 'x';
ALTER SERVER clinic RENAME TO third;
SELECT try('message', 'second');
SELECT try('message', 'third');
ALTER SERVER third RENAME TO clinic;
ALTER TABLE t DROP second, DROP third;
SELECT try('message', 'second', 'stamptz');
SELECT try('message', 'second', 'stamp');
SELECT try('message', 'second', 'day');
SELECT try('message', 'second', 'number');
SELECT try('message', 'second', 'nowhere');
UPDATE t SET stamptz = NULL;
SELECT try('message', 'second', 'stamptz');
-- arguments
SELECT try('message');
SELECT try('message', 'second', 'day', 'more');

-- AFTER ... FOR EACH ROW only, and only as a trigger
CREATE TRIGGER x BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION onesignal_cancel_trigger('message', 'second');
SELECT told('DELETE FROM t');
DROP TRIGGER x ON t;
CREATE TRIGGER x AFTER DELETE ON t EXECUTE FUNCTION onesignal_cancel_trigger('message', 'second');
SELECT told('DELETE FROM t');
DROP TRIGGER x ON t;
CREATE TRIGGER x AFTER TRUNCATE ON t EXECUTE FUNCTION onesignal_cancel_trigger('message', 'second');
SELECT told('TRUNCATE t');
DROP TRIGGER x ON t;
SELECT told('SELECT onesignal_cancel_trigger()');

-- Partitions, in which the columns have other numbers
CREATE TABLE visits (id integer, reminder uuid, app uuid) PARTITION BY RANGE (id);
CREATE TABLE visits_1 PARTITION OF visits FOR VALUES FROM (1) TO (100);
CREATE TABLE visits_2 (app uuid, gone integer, other integer, reminder uuid, id integer);
ALTER TABLE visits_2 DROP gone, DROP other;
ALTER TABLE visits ATTACH PARTITION visits_2 FOR VALUES FROM (100) TO (200);
CREATE TRIGGER x AFTER UPDATE OR DELETE ON visits FOR EACH ROW EXECUTE FUNCTION onesignal_cancel_trigger('reminder', 'app');
INSERT INTO visits SELECT n, m(n), CASE WHEN n % 2 = 0 THEN :'app' ELSE :'other' END::uuid
    FROM (VALUES (1), (2), (101), (102)) AS t (n);
BEGIN;
UPDATE visits SET reminder = NULL WHERE id IN (1, 101);
DELETE FROM visits WHERE id IN (2, 102);
SELECT * FROM rows;
ROLLBACK;
-- a row that moves is deleted in one partition and inserted into another
BEGIN;
UPDATE visits SET id = 103 WHERE id = 1;
SELECT * FROM rows;
ROLLBACK;

-- Deferred, and on a view's base table by a cascade
BEGIN;
CREATE TABLE reminders (id integer REFERENCES appointments ON DELETE CASCADE, message uuid);
CREATE CONSTRAINT TRIGGER x AFTER DELETE ON reminders DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION onesignal_cancel_trigger('message', 'second');
INSERT INTO reminders VALUES (1, m(90)), (1, m(91));
DELETE FROM appointments WHERE id = 1;
SELECT n, app FROM rows;
SET CONSTRAINTS ALL IMMEDIATE;
SELECT n, app FROM rows;
ROLLBACK;

-- A cascade deletes as the owner of the table. From PostgreSQL 18 on its triggers work so, too.
BEGIN;
CREATE ROLE regress_onesignal_owner;
CREATE TABLE reminders (id integer REFERENCES appointments ON DELETE CASCADE, message uuid);
ALTER TABLE reminders OWNER TO regress_onesignal_owner;
CREATE TRIGGER x AFTER DELETE ON reminders FOR EACH ROW EXECUTE FUNCTION onesignal_cancel_trigger('message', 'clinic');
INSERT INTO reminders VALUES (6, m(90));
GRANT SELECT, DELETE ON appointments TO regress_onesignal_app;
GRANT SELECT, INSERT, UPDATE ON onesignal_message TO regress_onesignal_app, regress_onesignal_owner;
GRANT USAGE ON FOREIGN SERVER clinic TO regress_onesignal_owner;
SET LOCAL ROLE regress_onesignal_app;
DELETE FROM appointments WHERE id = 6;
RESET ROLE;
SELECT n, by = CASE WHEN current_setting('server_version_num')::integer < 180000 THEN 'regress_onesignal_app'
    ELSE 'regress_onesignal_owner' END AS by_whom_it_should_be
FROM rows;
ROLLBACK;

DROP VIEW rows;
DROP TABLE appointments, t, visits;
DROP FUNCTION told, m, try;
DROP DOMAIN onesignal_id;
SET client_min_messages = error;
DROP EXTENSION onesignal_cancel CASCADE;
DROP ROLE regress_onesignal_app;
RESET SESSION AUTHORIZATION;
DROP ROLE regress_onesignal_admin;
