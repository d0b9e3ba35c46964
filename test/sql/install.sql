-- What CREATE EXTENSION makes, and that each object says what it is.
-- CREATE EXTENSION warns where the library is not preloaded.
SET client_min_messages = error;
\pset format unaligned
\pset footer off

-- into the schema that the user chooses, and to stay there
CREATE SCHEMA regress_onesignal;
CREATE EXTENSION onesignal_cancel SCHEMA regress_onesignal;
SET client_min_messages = warning;
-- Nothing is to be delivered here.
SET onesignal_cancel.background_delivery = off;

-- Of types that come with others (arrays, rows of tables), some versions of
-- PostgreSQL say that they belong to the extension.
CREATE VIEW members AS
SELECT classid, objid, i.type, i.schema, i.name, i.identity
FROM pg_depend d
CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) i
LEFT JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = d.objid
LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
    AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'onesignal_cancel')
    AND COALESCE(t.typelem, 0) = 0 AND COALESCE(c.relkind, 'c') = 'c';

SELECT type, identity FROM members ORDER BY type COLLATE "C", identity COLLATE "C";

-- volatility, strictness, parallel safety, and whether PUBLIC may call it
SELECT proname, provolatile AS volatile, proisstrict AS strict, proparallel AS parallel,
    has_function_privilege('public', oid, 'EXECUTE') AS public
FROM pg_proc JOIN members ON classid = 'pg_proc'::regclass AND objid = oid
ORDER BY proname COLLATE "C";

-- none of these
SELECT identity AS "without a comment" FROM members
WHERE obj_description(objid, (SELECT relname FROM pg_class WHERE oid = classid)) IS NULL;
SELECT identity AS "misnamed" FROM members
WHERE COALESCE(name, identity) NOT LIKE 'onesignal%' AND identity NOT LIKE 'regress_onesignal.onesignal%';
SELECT attrelid::regclass || '.' || attname AS "column without a comment"
FROM members
JOIN pg_class c ON c.oid = (SELECT typrelid FROM pg_type WHERE classid = 'pg_type'::regclass AND oid = objid)
    OR (classid = 'pg_class'::regclass AND c.oid = objid AND c.relkind IN ('r', 'v'))
JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
WHERE col_description(attrelid, attnum) IS NULL
ORDER BY 1;
SELECT identity AS "outside of its schema" FROM members WHERE schema <> 'regress_onesignal';

SELECT regress_onesignal.onesignal_cancel_version() ~
    '^onesignal_cancel \d+\.\d+, PostgreSQL \d+.*, libcurl/\d+\.\d+\.\d+ .+ nghttp2/' AS version;

ALTER EXTENSION onesignal_cancel SET SCHEMA public;

-- servers are the user's own: they go only when told so
CREATE SERVER clinic FOREIGN DATA WRAPPER onesignal OPTIONS (app_id '5e605fcd-de88-4b0a-a5eb-5c18b84d52f3');
DROP EXTENSION onesignal_cancel;
SET client_min_messages = error;
DROP EXTENSION onesignal_cancel CASCADE;
SELECT count(*) FROM pg_foreign_server;

DROP VIEW members;
DROP SCHEMA regress_onesignal;

-- Default privileges give nobody anything, however they were made; and what they took away is granted.
SET client_min_messages = warning;
CREATE ROLE regress_onesignal_anon;
CREATE ROLE "regress onesignal ""quoted""";
CREATE SCHEMA "regress onesignal";
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO regress_onesignal_anon WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES GRANT ALL ON ROUTINES TO regress_onesignal_anon, "regress onesignal ""quoted""";
ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO regress_onesignal_anon;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON ROUTINES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TYPES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA "regress onesignal" GRANT ALL ON TABLES TO "regress onesignal ""quoted""", PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA "regress onesignal" GRANT ALL ON ROUTINES TO regress_onesignal_anon, PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA "regress onesignal" GRANT ALL ON TYPES TO "regress onesignal ""quoted""";
SET client_min_messages = error;
CREATE EXTENSION onesignal_cancel SCHEMA "regress onesignal";
SET client_min_messages = warning;
SELECT i.type, i.name, string_agg(CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee) END || ' ' || privilege_type, ', ' ORDER BY grantee, privilege_type) AS granted
FROM pg_depend d
CROSS JOIN LATERAL (
    SELECT relname AS name, relacl AS acl, relowner AS owner, 'table' AS type FROM pg_class WHERE d.classid = 'pg_class'::regclass AND oid = d.objid
    UNION ALL SELECT proname, proacl, proowner, 'function' FROM pg_proc WHERE d.classid = 'pg_proc'::regclass AND oid = d.objid
    UNION ALL SELECT typname, typacl, typowner, 'type' FROM pg_type WHERE d.classid = 'pg_type'::regclass AND oid = d.objid AND typtype IN ('e', 'c')
    UNION ALL SELECT fdwname, fdwacl, fdwowner, 'foreign-data wrapper' FROM pg_foreign_data_wrapper WHERE d.classid = 'pg_foreign_data_wrapper'::regclass AND oid = d.objid) i
LEFT JOIN LATERAL aclexplode(i.acl) ON grantee <> i.owner
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
    AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'onesignal_cancel')
    AND (i.type <> 'type' OR i.name IN ('onesignal_cancel_result', 'onesignal_message_state'))
GROUP BY i.type, i.name ORDER BY i.type, i.name COLLATE "C";
DROP EXTENSION onesignal_cancel;
DROP SCHEMA "regress onesignal";
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM regress_onesignal_anon;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON ROUTINES FROM regress_onesignal_anon, "regress onesignal ""quoted""";
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TYPES FROM regress_onesignal_anon;
ALTER DEFAULT PRIVILEGES GRANT ALL ON ROUTINES TO PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO PUBLIC;
DROP ROLE regress_onesignal_anon, "regress onesignal ""quoted""";
