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

-- PostgreSQL calls it without asking for this right; nobody else has a use for it.
REVOKE ALL ON FUNCTION onesignal_cancel_fdw_validator(text[], oid) FROM PUBLIC;

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
'what one cancel came to';
COMMENT ON COLUMN onesignal_cancel_result.status IS
'HTTP status of OneSignal''s answer; NULL: no answer';
COMMENT ON COLUMN onesignal_cancel_result.success IS
'true: the message is canceled and will not be sent; never NULL';
COMMENT ON COLUMN onesignal_cancel_result.errors IS
'OneSignal''s own words, or one line that says what went wrong; usually empty on success, never NULL';

-- Not strict: a NULL argument is a mistake of the caller and raises an error.
-- Not parallel: it uses subtransactions.  The cost is far beyond that of any
-- other condition, so that a query which has some tries those first.
CREATE FUNCTION onesignal_cancel(app_id uuid, message_id uuid)
RETURNS onesignal_cancel_result
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
COST 1000000
AS 'MODULE_PATHNAME', 'onesignal_cancel';

COMMENT ON FUNCTION onesignal_cancel(uuid, uuid) IS
'cancels a scheduled message now: one DELETE to OneSignal, which a rollback does not undo; use it in FROM; raises 22004 (NULL argument), 42704 (no server, user mapping or key), 42501 (no USAGE), 42710 (more than one server), 58P01 (key file), 55000 (onesignal_cancel.enabled is off)';

CREATE FUNCTION onesignal_cancel_batch(app_id uuid, message_ids uuid[])
RETURNS TABLE (message_id uuid, status integer, success boolean, errors text[])
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
COST 1000000 ROWS 1000
AS 'MODULE_PATHNAME', 'onesignal_cancel_batch';

COMMENT ON FUNCTION onesignal_cancel_batch(uuid, uuid[]) IS
'cancels many scheduled messages of one app now, over multiplexed HTTP/2: one row (as of onesignal_cancel) for each array element, in the array''s order; at most rate_limit requests a second; a rollback undoes nothing; raises as onesignal_cancel does, and 22004 for a NULL element';

CREATE FUNCTION onesignal_cancel_version()
RETURNS text
LANGUAGE C STABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'onesignal_cancel_version';

COMMENT ON FUNCTION onesignal_cancel_version() IS
'versions of the extension, PostgreSQL, libcurl, TLS and nghttp2, for a bug report';
