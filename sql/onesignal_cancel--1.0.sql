-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION onesignal_cancel" to load this file. \quit

--
-- Apps and keys
--

CREATE FUNCTION onesignal_cancel_fdw_validator(options text[], catalog oid)
RETURNS void
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onesignal_cancel_fdw_validator';

COMMENT ON FUNCTION onesignal_cancel_fdw_validator(text[], oid) IS
'checks the options of servers and user mappings of foreign-data wrapper onesignal; PostgreSQL calls it';

CREATE FOREIGN DATA WRAPPER onesignal
NO HANDLER
VALIDATOR onesignal_cancel_fdw_validator;

COMMENT ON FOREIGN DATA WRAPPER onesignal IS
'holds OneSignal apps (servers: app_id, rate_limit, base_url, ca_file, proxy) and their keys (user mappings: api_key_file or api_key); it has no foreign tables';

--
-- Canceling now
--

CREATE TYPE onesignal_cancel_result AS (
    status integer,
    success boolean,
    errors text[]
);

COMMENT ON TYPE onesignal_cancel_result IS
'the result of canceling one message';
COMMENT ON COLUMN onesignal_cancel_result.status IS
'HTTP status of OneSignal''s answer to the last attempt; NULL: no answer';
COMMENT ON COLUMN onesignal_cancel_result.success IS
'true if the message is canceled and will not be sent; never NULL';
COMMENT ON COLUMN onesignal_cancel_result.errors IS
'OneSignal''s own words, or one line that says what went wrong; usually empty on success; never NULL';

-- Not strict: a NULL argument is the caller's mistake and raises an error.
-- Not parallel: each process would open connections of its own.
-- COST is high enough that a query tries its other conditions first, and low
-- enough that a few dozen calls do not have the statement compiled by JIT.
CREATE FUNCTION onesignal_cancel(app_id uuid, message_id uuid)
RETURNS onesignal_cancel_result
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
COST 1000
AS 'MODULE_PATHNAME', 'onesignal_cancel';

COMMENT ON FUNCTION onesignal_cancel(uuid, uuid) IS
'cancels a scheduled message now with one DELETE to OneSignal. A rollback does not undo it. Use it in FROM. When an attempt had no answer and the next one is refused, it asks OneSignal about the message: success is then true if the message is canceled. Errors: 22004 NULL argument; 42704 no server, user mapping or key; 42501 no USAGE; 42710 more than one server; 58P01 key file; 55000 onesignal_cancel.enabled is off; 53000 no file descriptors';

CREATE FUNCTION onesignal_cancel_batch(app_id uuid, message_ids uuid[])
RETURNS TABLE (message_id uuid, status integer, success boolean, errors text[])
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
COST 1000 ROWS 1000
AS 'MODULE_PATHNAME', 'onesignal_cancel_batch';

COMMENT ON FUNCTION onesignal_cancel_batch(uuid, uuid[]) IS
'cancels many scheduled messages of one app now, over multiplexed HTTP/2. Returns one row, as onesignal_cancel does, for each array element in the array''s order. Sends at most rate_limit requests a second. A rollback undoes nothing. Errors: those of onesignal_cancel; 22004 NULL element';

CREATE FUNCTION onesignal_cancel_version()
RETURNS text
LANGUAGE C STABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'onesignal_cancel_version';

COMMENT ON FUNCTION onesignal_cancel_version() IS
'versions of the extension, PostgreSQL, libcurl, TLS and nghttp2, for a bug report';

--
-- The companion table
--

CREATE TYPE onesignal_message_state AS ENUM (
    'scheduled',    -- no cancel was requested
    'pending',      -- a cancel was requested and is not delivered yet
    'canceled',     -- OneSignal has canceled it
    'refused',      -- OneSignal said no
    'failed');      -- no usable answer in time

COMMENT ON TYPE onesignal_message_state IS
'scheduled -> pending (cancel was set) -> canceled | refused (OneSignal said no, usually because it has sent the message) | failed (no usable answer within onesignal_cancel.retry_window)';

-- src/message.c knows the columns by number: append new ones at the end.
CREATE TABLE onesignal_message (
    message_id uuid NOT NULL,
    app_id uuid NOT NULL,
    send_after timestamptz,
    cancel boolean NOT NULL DEFAULT false,
    reason text,
    state onesignal_message_state NOT NULL DEFAULT 'scheduled',
    http_status integer,
    errors text[],
    response jsonb,
    attempts integer NOT NULL DEFAULT 0,
    unanswered boolean NOT NULL DEFAULT false,
    requested_by name,
    requested_at timestamptz,
    first_attempt_at timestamptz,
    last_attempt_at timestamptz,
    next_attempt_at timestamptz,
    finished_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (message_id, app_id),
    CONSTRAINT onesignal_message_pending_is_requested CHECK (state OPERATOR(pg_catalog.<>) 'pending'
        OR (requested_by IS NOT NULL AND requested_at IS NOT NULL)),
    CONSTRAINT onesignal_message_cancel_is_requested CHECK (NOT cancel
        OR state OPERATOR(pg_catalog.<>) 'scheduled'))
    -- Nearly every change of state leaves a dead row: vacuum soon, and leave room
    -- on the page for the update of a retry, which then changes no index.
    WITH (fillfactor = 90,
          autovacuum_vacuum_scale_factor = 0.02,
          autovacuum_analyze_scale_factor = 0.02);

-- The pending rows of each lane in the order of delivery. It leaves out
-- next_attempt_at so that the update of a retry changes no index.
CREATE INDEX onesignal_message_pending ON onesignal_message
    (app_id, requested_by, (COALESCE(send_after, '-infinity'::timestamptz)), message_id)
    WHERE state OPERATOR(pg_catalog.=) 'pending';

COMMENT ON TABLE onesignal_message IS
'Messages scheduled with OneSignal. Setting cancel to true cancels the message after commit; state tells the result. To use it: GRANT SELECT, INSERT, UPDATE ON onesignal_message TO role, and GRANT USAGE on the app''s server. Only the extension writes the columns from state on: it ignores what anybody else writes to them, with a NOTICE. Only an INSERT by a member of the table''s owner may set them, so that dumps can be restored. Deferrable constraint triggers on this table are not supported.';
COMMENT ON COLUMN onesignal_message.message_id IS
'the id that OneSignal returned for the message; it cannot be changed (0A000)';
COMMENT ON COLUMN onesignal_message.app_id IS
'the OneSignal app that the message was created with; it cannot be changed (0A000)';
COMMENT ON COLUMN onesignal_message.send_after IS
'when OneSignal will send the message. The soonest is canceled first, and NULL (it may be going out now) before all others. It may be changed while the row is pending';
COMMENT ON COLUMN onesignal_message.cancel IS
'true if the message should be canceled. Setting it to true makes a scheduled or failed row pending. A pending row whose requester can no longer cancel becomes the current user''s request. Other rows stay as they are. Setting it to false takes a pending request back, and returns a refused or failed row to scheduled; on a canceled row it raises 55000. If the same UPDATE sets state, a value of cancel that does not fit that state is ignored: the UPDATE saves a copy that is older than the request or its take-back. In a MERGE only a change of the value counts. To request and to take back, a role needs USAGE on a server with the app_id (42501) and a user mapping (42704)';
COMMENT ON COLUMN onesignal_message.reason IS
'free text of the application; not sent anywhere';
COMMENT ON COLUMN onesignal_message.state IS
'scheduled, pending, canceled, refused or failed';
COMMENT ON COLUMN onesignal_message.http_status IS
'HTTP status of the last attempt; NULL if there was none yet or it had no answer';
COMMENT ON COLUMN onesignal_message.errors IS
'what OneSignal or libcurl said to the last attempt, or why the message was given up; NULL before. It never contains the API key';
COMMENT ON COLUMN onesignal_message.response IS
'body of the last attempt''s answer; NULL after a plain success, and if it was not JSON';
COMMENT ON COLUMN onesignal_message.attempts IS
'attempts for the current request to cancel, also those that found no connection';
COMMENT ON COLUMN onesignal_message.unanswered IS
'true if an attempt that was sent had no answer of OneSignal, or a pending request was taken back or adopted: the message may be canceled although a later attempt was refused';
COMMENT ON COLUMN onesignal_message.requested_by IS
'the role that was current_user when cancel was requested; its user mapping is used. Never NULL while pending';
COMMENT ON COLUMN onesignal_message.requested_at IS
'start of the transaction that requested the cancel. Never NULL while pending';
COMMENT ON COLUMN onesignal_message.first_attempt_at IS
'first attempt of the current request; onesignal_cancel.retry_window begins at the later of this and send_after';
COMMENT ON COLUMN onesignal_message.last_attempt_at IS
'last attempt';
COMMENT ON COLUMN onesignal_message.next_attempt_at IS
'a pending message is not tried before, unless its key was rejected and a new one works';
COMMENT ON COLUMN onesignal_message.finished_at IS
'when it became canceled, refused or failed';
COMMENT ON COLUMN onesignal_message.created_at IS
'when the row was inserted';
COMMENT ON CONSTRAINT onesignal_message_cancel_is_requested ON onesignal_message IS
'cancel must not be set while the extension''s trigger does not fire (session_replication_role): nobody would deliver the cancel';
COMMENT ON CONSTRAINT onesignal_message_pending_is_requested ON onesignal_message IS
'delivery needs to know who requested a pending cancel, and when';
COMMENT ON INDEX onesignal_message_pending IS
'the pending rows of each app and requester in the order of delivery; other rows take no room in it';

-- Finished rows stay finished in the copy, and pending ones pending.
SELECT pg_catalog.pg_extension_config_dump('onesignal_message', '');

CREATE FUNCTION onesignal_message_change()
RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onesignal_message_change';
COMMENT ON FUNCTION onesignal_message_change() IS
'the function of trigger zz_onesignal_message on onesignal_message, and of no other';

CREATE FUNCTION onesignal_message_guard()
RETURNS boolean
LANGUAGE C STABLE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onesignal_message_guard';
COMMENT ON FUNCTION onesignal_message_guard() IS
'true; raises 55000 unless trigger zz_onesignal_message of onesignal_message is the extension''s own, and the last';

-- Whoever has TRIGGER on the table may replace the trigger, but not drop this.
ALTER TABLE onesignal_message
    ADD CONSTRAINT onesignal_message_has_its_trigger CHECK (onesignal_message_guard());
COMMENT ON CONSTRAINT onesignal_message_has_its_trigger ON onesignal_message IS
'rows can be written only through the extension''s trigger, which protects requested_by';

-- Its name sorts last, so that it sees what other BEFORE triggers made of a row.
CREATE TRIGGER zz_onesignal_message BEFORE INSERT OR UPDATE ON onesignal_message
FOR EACH ROW EXECUTE FUNCTION onesignal_message_change();
COMMENT ON TRIGGER zz_onesignal_message ON onesignal_message IS
'turns changes of cancel into requests, and protects the columns from state on. No trigger may have a name that sorts after it (55000): it could change who requested, and so whose credentials are used';

--
-- What delivery knows of each app
--

CREATE TABLE onesignal_app (
    app_id uuid PRIMARY KEY,
    paused_until timestamptz,
    pause_reason text,
    paused_by name,
    resumed_at timestamptz,
    circuit_until timestamptz,
    circuit_role name,
    circuit_reason text,
    pace double precision,
    pace_at timestamptz,
    last_error text,
    last_error_at timestamptz,
    canceled_total bigint NOT NULL DEFAULT 0,
    refused_total bigint NOT NULL DEFAULT 0,
    failed_total bigint NOT NULL DEFAULT 0)
    -- These few rows are updated all the time.
    WITH (fillfactor = 50);

COMMENT ON TABLE onesignal_app IS
'What delivery knows of each app: pauses, circuit, pace, totals. No secrets. Only the extension writes it: use onesignal_cancel_pause() and onesignal_cancel_resume(). Its rows are dumped.';
COMMENT ON COLUMN onesignal_app.app_id IS
'the OneSignal app';
COMMENT ON COLUMN onesignal_app.paused_until IS
'onesignal_cancel_pause() has paused delivery until then; NULL if it has not';
COMMENT ON COLUMN onesignal_app.pause_reason IS
'the reason that was given to onesignal_cancel_pause()';
COMMENT ON COLUMN onesignal_app.paused_by IS
'the role that paused';
COMMENT ON COLUMN onesignal_app.resumed_at IS
'when onesignal_cancel_resume() was last called';
COMMENT ON COLUMN onesignal_app.circuit_until IS
'delivery has paused by itself and tries one message then; NULL if it has not';
COMMENT ON COLUMN onesignal_app.circuit_role IS
'only requests of this role are paused, because its key was rejected or is missing; NULL: the whole app is paused';
COMMENT ON COLUMN onesignal_app.circuit_reason IS
'why delivery has paused by itself';
COMMENT ON COLUMN onesignal_app.pace IS
'requests a second that delivery allows itself; 0: unlimited; NULL: not known yet';
COMMENT ON COLUMN onesignal_app.pace_at IS
'when the pace was saved; a worker that starts within ten minutes begins with this pace';
COMMENT ON COLUMN onesignal_app.last_error IS
'the last error of any of its messages';
COMMENT ON COLUMN onesignal_app.last_error_at IS
'when last_error happened';
COMMENT ON COLUMN onesignal_app.canceled_total IS
'how many messages have become canceled so far';
COMMENT ON COLUMN onesignal_app.refused_total IS
'how many messages have become refused so far';
COMMENT ON COLUMN onesignal_app.failed_total IS
'how many messages have become failed so far';

-- Pauses and totals survive a restore.
SELECT pg_catalog.pg_extension_config_dump('onesignal_app', '');

--
-- Requesting
--

CREATE FUNCTION onesignal_cancel_enqueue(app_id uuid, message_id uuid,
    send_after timestamptz DEFAULT NULL, reason text DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onesignal_cancel_enqueue';
COMMENT ON FUNCTION onesignal_cancel_enqueue(uuid, uuid, timestamptz, text) IS
'requests the cancel of a message, delivered after commit. As the current user it inserts the message''s row into onesignal_message, or sets cancel in it. NULL keeps the row''s send_after and reason. Errors: 22004 app_id or message_id is NULL; 42704 no server with that app_id, or no user mapping; 42710 more than one server; 42501 no USAGE on it, or no SELECT, INSERT, UPDATE on onesignal_message; 55000 the table''s trigger is not the extension''s own';

CREATE FUNCTION onesignal_cancel_trigger()
RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onesignal_cancel_trigger';
COMMENT ON FUNCTION onesignal_cancel_trigger() IS
'onesignal_cancel_trigger(message_id_column, app [, send_after_column]): requests the cancel of the row''s message, as onesignal_cancel_enqueue() does. AFTER ... FOR EACH ROW only (39P01). app is a uuid, or else the name of a column, or else of a server. UPDATE and DELETE cancel the message that the row had before. INSERT, and a row that had none before, cancel the one that it has now. NULL and an empty or blank text are no message. Columns are uuid or text (22P02 if the text is no uuid), timestamptz, timestamp or date. Each UPDATE that fires the trigger cancels, whatever it changed: restrict it with UPDATE OF and WHEN. A row that moves to another partition is deleted and inserted';

--
-- Delivering, and keeping the table small
--

CREATE PROCEDURE onesignal_cancel_deliver(max_duration interval DEFAULT NULL)
LANGUAGE C
AS 'MODULE_PATHNAME', 'onesignal_cancel_deliver';
COMMENT ON PROCEDURE onesignal_cancel_deliver(interval) IS
'delivers in this session: all that is due now, or, with max_duration, what falls due within it. It commits as it goes and cannot run in a transaction block (2D000). It does nothing, with a NOTICE, while another session or the background worker delivers. Errors: 22023 max_duration is negative; 55000 onesignal_cancel.enabled is off; 25006 on a standby, or read-only';

CREATE PROCEDURE onesignal_cancel_purge(older_than interval, INOUT purged bigint DEFAULT 0)
LANGUAGE C
AS 'MODULE_PATHNAME', 'onesignal_cancel_purge';
COMMENT ON PROCEDURE onesignal_cancel_purge(interval, bigint) IS
'deletes messages that became canceled, refused or failed that long ago, and scheduled ones whose send_after (or else created_at) is that old. It never deletes a pending message, or one that somebody has locked. purged is the number of deleted rows. It reads the table once and commits every 2 MB: it cannot run in a transaction block (2D000). DELETE triggers fire only if they are ENABLE ALWAYS. Errors: 22004 older_than is NULL; 22023 it is less than one day; 0A000 a foreign key references the table';

CREATE FUNCTION onesignal_cancel_pause(app_id uuid,
    until timestamptz DEFAULT 'infinity', reason text DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onesignal_cancel_pause';
COMMENT ON FUNCTION onesignal_cancel_pause(uuid, timestamptz, text) IS
'pauses delivery of an app''s messages after commit. Requests are accepted and wait. Direct calls of onesignal_cancel() are not affected. Errors: 22004 app_id or until is NULL; 22023 until is not in the future; 42704 the app has neither a server nor rows';

CREATE FUNCTION onesignal_cancel_resume(app_id uuid)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onesignal_cancel_resume';
COMMENT ON FUNCTION onesignal_cancel_resume(uuid) IS
'ends a pause, closes the app''s circuit, and wakes delivery after commit. It raises no error if the app is not paused. Errors: 22004 app_id is NULL; 42704 the app has neither a server nor rows';

--
-- Watching
--

CREATE FUNCTION onesignal_cancel_preloaded()
RETURNS boolean
LANGUAGE C STABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'onesignal_cancel_preloaded';
COMMENT ON FUNCTION onesignal_cancel_preloaded() IS
'true if shared_preload_libraries has loaded the library. If not, after a restart of the server nothing is delivered until the next request';

CREATE FUNCTION onesignal_cancel_delivery()
RETURNS text
LANGUAGE C STABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'onesignal_cancel_delivery';
COMMENT ON FUNCTION onesignal_cancel_delivery() IS
'what happens to pending messages of this database whose app is not paused: working, switched off, by CALL only, waits for a request, no free worker, or standby';

-- It never counts finished rows: it reads onesignal_message_pending alone.
CREATE VIEW onesignal_cancel_status AS
    WITH servers AS (
        SELECT a.app_id, pg_catalog.string_agg(a.srvname::text, ', ' ORDER BY a.srvname) AS server
        FROM (
            SELECT s.srvname,
                -- A superuser can drop the validator and then set any value.
                CASE WHEN o.option_value OPERATOR(pg_catalog.~*)
                        '^(([0-9a-f]{4}-?){7}[0-9a-f]{4}|\{([0-9a-f]{4}-?){7}[0-9a-f]{4}\})$'
                    THEN o.option_value::uuid END AS app_id
            FROM pg_catalog.pg_foreign_server s
                JOIN pg_catalog.pg_foreign_data_wrapper w
                    ON w.oid OPERATOR(pg_catalog.=) s.srvfdw
                        AND w.fdwname OPERATOR(pg_catalog.=) 'onesignal'
                CROSS JOIN pg_catalog.pg_options_to_table(s.srvoptions) o
            WHERE o.option_name OPERATOR(pg_catalog.=) 'app_id') a
        WHERE a.app_id IS NOT NULL
        GROUP BY a.app_id
    ), queue AS (
        SELECT m.app_id, pg_catalog.count(*) AS pending,
            pg_catalog.min(m.requested_at) AS oldest_request,
            pg_catalog.min(m.send_after) AS next_send_after,
            pg_catalog.bool_and(a.circuit_until IS NOT NULL AND (a.circuit_role IS NULL
                OR a.circuit_role OPERATOR(pg_catalog.=) m.requested_by)) AS circuit_open
        FROM ONLY onesignal_message m
            LEFT JOIN onesignal_app a ON a.app_id OPERATOR(pg_catalog.=) m.app_id
        WHERE m.state OPERATOR(pg_catalog.=) 'pending'
        GROUP BY m.app_id
    ), apps AS (
        SELECT s.app_id FROM servers s
        UNION SELECT q.app_id FROM queue q
        UNION SELECT a.app_id FROM onesignal_app a
    ), status AS (
        SELECT i.app_id, s.server, COALESCE(q.pending, 0::bigint) AS pending,
            q.oldest_request, q.next_send_after, a.paused_until, a.pause_reason,
            a.circuit_until, a.circuit_reason, a.circuit_role,
            a.paused_until OPERATOR(pg_catalog.>) pg_catalog.now() AS paused,
            CASE
                WHEN w.delivery OPERATOR(pg_catalog.=) 'switched off' THEN w.delivery
                WHEN a.paused_until OPERATOR(pg_catalog.>) pg_catalog.now() OR q.circuit_open THEN 'paused'
                WHEN q.app_id IS NULL THEN 'idle'
                ELSE w.delivery
            END AS delivery,
            a.pace, a.last_error, a.last_error_at,
            COALESCE(a.canceled_total, 0::bigint) AS canceled_total,
            COALESCE(a.refused_total, 0::bigint) AS refused_total,
            COALESCE(a.failed_total, 0::bigint) AS failed_total
        FROM apps i
            LEFT JOIN servers s ON s.app_id OPERATOR(pg_catalog.=) i.app_id
            LEFT JOIN queue q ON q.app_id OPERATOR(pg_catalog.=) i.app_id
            LEFT JOIN onesignal_app a ON a.app_id OPERATOR(pg_catalog.=) i.app_id
            CROSS JOIN onesignal_cancel_delivery() AS w (delivery)
    )
    SELECT t.app_id, t.server, t.delivery, t.pending, t.oldest_request, t.next_send_after,
        CASE WHEN t.paused THEN t.paused_until ELSE t.circuit_until END AS paused_until,
        CASE WHEN t.paused THEN t.pause_reason ELSE t.circuit_reason END AS paused_reason,
        CASE WHEN NOT COALESCE(t.paused, false) THEN t.circuit_role END AS paused_role,
        t.pace,
        CASE
            WHEN t.delivery OPERATOR(pg_catalog.=) 'working'
                AND t.pace OPERATOR(pg_catalog.>) 0::double precision
            THEN pg_catalog.date_trunc('second', '1 second'::interval OPERATOR(pg_catalog.*)
                (t.pending::double precision OPERATOR(pg_catalog./) t.pace))
        END AS eta,
        t.last_error, t.last_error_at, t.canceled_total, t.refused_total, t.failed_total,
        onesignal_cancel_preloaded() AS preloaded
    FROM status t;

COMMENT ON VIEW onesignal_cancel_status IS
'The state of delivery: one row for each app that has a server, pending messages or a history. It counts pending messages only, so that a long history costs nothing. For pg_monitor';
COMMENT ON COLUMN onesignal_cancel_status.app_id IS
'the OneSignal app';
COMMENT ON COLUMN onesignal_cancel_status.server IS
'the app''s servers, separated by commas; NULL if there is none: nothing can be sent';
COMMENT ON COLUMN onesignal_cancel_status.delivery IS
'what happens to the pending messages now. working; idle: there are none; paused: see paused_until; switched off: onesignal_cancel.enabled is off; by CALL only: onesignal_cancel.background_delivery is off; waits for a request: no worker runs, and none will come by itself, most often since the library is not preloaded; no free worker: a worker could not start, see max_worker_processes and the server''s log; standby: the primary server delivers';
COMMENT ON COLUMN onesignal_cancel_status.pending IS
'how many messages wait for their cancel to be delivered';
COMMENT ON COLUMN onesignal_cancel_status.oldest_request IS
'when the oldest pending cancel was requested';
COMMENT ON COLUMN onesignal_cancel_status.next_send_after IS
'when OneSignal will send the soonest of the pending messages';
COMMENT ON COLUMN onesignal_cancel_status.paused_until IS
'delivery is paused until then, by onesignal_cancel_pause() or by itself (then it tries one message); NULL if it is not';
COMMENT ON COLUMN onesignal_cancel_status.paused_reason IS
'why delivery is paused';
COMMENT ON COLUMN onesignal_cancel_status.paused_role IS
'only requests of this role are paused, or those of this one among others; NULL: all, or none';
COMMENT ON COLUMN onesignal_cancel_status.pace IS
'requests a second that delivery allows itself; 0: unlimited; NULL: not known yet';
COMMENT ON COLUMN onesignal_cancel_status.eta IS
'how long the pending messages take at that pace; NULL if not known, or if delivery is not working';
COMMENT ON COLUMN onesignal_cancel_status.last_error IS
'the last error of any of its messages';
COMMENT ON COLUMN onesignal_cancel_status.last_error_at IS
'when last_error happened';
COMMENT ON COLUMN onesignal_cancel_status.canceled_total IS
'how many messages have become canceled so far';
COMMENT ON COLUMN onesignal_cancel_status.refused_total IS
'how many messages have become refused so far';
COMMENT ON COLUMN onesignal_cancel_status.failed_total IS
'how many messages have become failed so far';
COMMENT ON COLUMN onesignal_cancel_status.preloaded IS
'true if shared_preload_libraries has loaded the library, on which delivery after a restart depends';

--
-- Rights
--

-- First this revokes what the database's default privileges (ALTER DEFAULT
-- PRIVILEGES) have granted, and what PostgreSQL grants to PUBLIC.
DO LANGUAGE plpgsql $$
DECLARE
    revoke text;
BEGIN
    FOR revoke IN
        SELECT pg_catalog.format('REVOKE ALL ON %s FROM %s CASCADE', o.name,
            CASE WHEN a.grantee OPERATOR(pg_catalog.=) 0::oid THEN 'PUBLIC'
                ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END)
        FROM pg_catalog.pg_depend d
            JOIN pg_catalog.pg_extension e ON d.refobjid OPERATOR(pg_catalog.=) e.oid
            CROSS JOIN LATERAL (
                SELECT pg_catalog.format('TABLE %s', c.oid::regclass), c.relowner,
                    COALESCE(c.relacl, pg_catalog.acldefault('r', c.relowner))
                FROM pg_catalog.pg_class c
                WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::regclass::oid
                    AND c.oid OPERATOR(pg_catalog.=) d.objid
                    AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,v}'::"char"[])
                UNION ALL
                SELECT pg_catalog.format('ROUTINE %s', p.oid::regprocedure), p.proowner,
                    COALESCE(p.proacl, pg_catalog.acldefault('f', p.proowner))
                FROM pg_catalog.pg_proc p
                WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::regclass::oid
                    AND p.oid OPERATOR(pg_catalog.=) d.objid
                UNION ALL
                SELECT pg_catalog.format('TYPE %s', t.oid::regtype), t.typowner,
                    COALESCE(t.typacl, pg_catalog.acldefault('T', t.typowner))
                FROM pg_catalog.pg_type t
                    LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.typrelid
                WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_type'::regclass::oid
                    AND t.oid OPERATOR(pg_catalog.=) d.objid
                    -- arrays and rows of tables have no rights of their own
                    AND t.typelem OPERATOR(pg_catalog.=) 0::oid
                    AND COALESCE(c.relkind, 'c') OPERATOR(pg_catalog.=) 'c'::"char"
                UNION ALL
                SELECT pg_catalog.format('FOREIGN DATA WRAPPER %I', w.fdwname), w.fdwowner,
                    COALESCE(w.fdwacl, pg_catalog.acldefault('F', w.fdwowner))
                FROM pg_catalog.pg_foreign_data_wrapper w
                WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_foreign_data_wrapper'::regclass::oid
                    AND w.oid OPERATOR(pg_catalog.=) d.objid
                ) AS o (name, owner, acl)
            CROSS JOIN LATERAL pg_catalog.aclexplode(o.acl) a
        WHERE e.extname OPERATOR(pg_catalog.=) 'onesignal_cancel'
            AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::regclass::oid
            AND d.deptype OPERATOR(pg_catalog.=) 'e'::"char"
            AND a.grantee OPERATOR(pg_catalog.<>) o.owner
        GROUP BY o.name, a.grantee
    LOOP
        EXECUTE revoke;
    END LOOP;
END $$;

-- Each of these checks its caller's rights itself.
GRANT EXECUTE ON FUNCTION
    onesignal_cancel(uuid, uuid),
    onesignal_cancel_batch(uuid, uuid[]),
    onesignal_cancel_delivery(),
    onesignal_cancel_enqueue(uuid, uuid, timestamptz, text),
    onesignal_cancel_preloaded(),
    onesignal_cancel_trigger(),
    onesignal_cancel_version(),
    onesignal_message_guard()
TO PUBLIC;
GRANT USAGE ON TYPE onesignal_cancel_result, onesignal_message_state TO PUBLIC;
GRANT SELECT ON onesignal_cancel_status TO pg_monitor;

-- Loads the library, which raises a WARNING if it is not preloaded.
SELECT onesignal_cancel_preloaded();
