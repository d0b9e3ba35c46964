/*
 * statements.c
 *		Every SQL statement on our tables, and running them as the tables' owner.
 *
 * Each statement is one constant string, prepared once a process.  "@" stands
 * for the extension's schema: it is put in when the statement is prepared, and
 * all are prepared again when the schema's name has changed.  Operators and
 * functions are qualified, for some statements run with the caller's
 * search_path.
 *
 * Whoever delivers, purges or pauses works as the owner of onesignal_message:
 * a grantee's row security policies and missing privileges must not hide a
 * message.  Code of others must not get hold of that privilege, so
 *
 * - the operation is security-restricted, and search_path is fixed;
 * - session_replication_role is replica, since GRANT ALL includes TRIGGER, and
 *   a grantee's trigger would run with the owner's rights.  Only what the
 *   owner made ENABLE ALWAYS fires;
 * - FORCE ROW LEVEL SECURITY does not apply (SECURITY_NOFORCE_RLS).
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "statements.h"

#define EQ " OPERATOR(pg_catalog.=) "
#define NE " OPERATOR(pg_catalog.<>) "
#define GT " OPERATOR(pg_catalog.>) "
#define LT " OPERATOR(pg_catalog.<) "
#define GE " OPERATOR(pg_catalog.>=) "
#define PLUS " OPERATOR(pg_catalog.+) "
#define MINUS " OPERATOR(pg_catalog.-) "

/*
 * The row that an outcome may be written to.  A cancel that worked is the
 * truth, whatever the row says now; any other outcome counts only for the
 * request that it was sent for.
 *
 * With plain equality the planner, misled by the statistics of an empty table,
 * could read the whole index for each outcome, for its order's sake.  The order
 * of an array's element is of no use to it.
 */
#define ROW_OF_OUTCOME(app_id, message_id, requested_at, state) \
	" FROM @onesignal_message AS m WHERE m.message_id" EQ "ANY (ARRAY[" message_id "])" \
	" AND m.app_id" EQ "ANY (ARRAY[" app_id "])" \
	" AND ((" state EQ "'canceled' AND m.state" NE "'canceled')" \
	" OR (m.state" EQ "'pending' AND m.requested_at" EQ requested_at "))"

typedef struct StatementText
{
	const char *sql;
	int			parameter_count;
	Oid			parameters[STATEMENT_PARAMETERS_MAX];
} StatementText;

static const StatementText statements[STATEMENT_COUNT] = {
	/* app_id, message_id, send_after, reason: as the current user */
	[STATEMENT_ENQUEUE] = {
		"INSERT INTO @onesignal_message AS m (app_id, message_id, send_after, reason, cancel)"
		" VALUES ($1, $2, $3, $4, true)"
		" ON CONFLICT (message_id, app_id) DO UPDATE SET cancel = true,"
		" send_after = COALESCE($3, m.send_after), reason = COALESCE($4, m.reason)",
		4, {UUIDOID, UUIDOID, TIMESTAMPTZOID, TEXTOID}
	},

	/*
	 * The lanes after (app_id, requested_by), at most so many, and what
	 * onesignal_app says of each one's app.  A loose index scan: as many
	 * probes as there are lanes, however long they are.
	 */
	[STATEMENT_LANES] = {
		"WITH RECURSIVE lane AS ("
		"(SELECT app_id, requested_by, 1 AS number FROM @onesignal_message"
		" WHERE state" EQ "'pending' AND (app_id, requested_by)" GT "($1, $2)"
		" ORDER BY app_id, requested_by LIMIT 1)"
		" UNION ALL"
		" SELECT next.app_id, next.requested_by, lane.number" PLUS "1 FROM lane CROSS JOIN LATERAL ("
		"SELECT m.app_id, m.requested_by FROM @onesignal_message m WHERE m.state" EQ "'pending'"
		" AND (m.app_id, m.requested_by)" GT "(lane.app_id, lane.requested_by)"
		" ORDER BY m.app_id, m.requested_by LIMIT 1) AS next WHERE lane.number" LT "$3)"
		" SELECT lane.app_id, lane.requested_by, a.app_id IS NOT NULL, a.paused_until, a.resumed_at,"
		" CASE WHEN a.circuit_role IS NULL THEN a.circuit_until END, a.circuit_until IS NOT NULL,"
		" CASE WHEN a.pace_at" GT "(pg_catalog.now()" MINUS "'10 minutes'::pg_catalog.interval)"
		" THEN a.pace END, a.circuit_role" EQ "lane.requested_by"
		" FROM lane LEFT JOIN @onesignal_app AS a ON a.app_id" EQ "lane.app_id",
		3, {UUIDOID, NAMEOID, INT4OID}
	},

	/* app_id, requested_by, send_after, message_id, count: the lane's next rows from a position on */
	[STATEMENT_FETCH] = {
		"SELECT m.message_id, m.send_after, m.requested_at, m.next_attempt_at,"
		" m.first_attempt_at, m.attempts, m.unanswered, m.last_attempt_at, m.http_status"
		" FROM @onesignal_message AS m"
		" WHERE m.state" EQ "'pending' AND m.app_id" EQ "$1 AND m.requested_by" EQ "$2"
		" AND (COALESCE(m.send_after, '-infinity'::pg_catalog.timestamptz), m.message_id)" GE "($3, $4)"
		" ORDER BY COALESCE(m.send_after, '-infinity'::pg_catalog.timestamptz), m.message_id"
		" LIMIT $5",
		5, {UUIDOID, NAMEOID, TIMESTAMPTZOID, UUIDOID, INT4OID}
	},

	/*
	 * An array for each field of QueueOutcome, that of errors as text.
	 * Returns the ordinals of the outcomes that it wrote, and leaves out
	 * rows that somebody has locked.
	 */
	[STATEMENT_RECORD] = {
		"WITH unlocked AS MATERIALIZED (SELECT o.*, m.address"
		" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"
		" pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7),"
		" pg_catalog.unnest($8), pg_catalog.unnest($9), pg_catalog.unnest($10)) WITH ORDINALITY"
		" AS o (app_id, message_id, requested_at, state, unanswered, http_status, errors, response,"
		" last_attempt_at, next_attempt_at, ordinal) CROSS JOIN LATERAL (SELECT m.ctid AS address"
		ROW_OF_OUTCOME("o.app_id", "o.message_id", "o.requested_at", "o.state")
		" FOR NO KEY UPDATE SKIP LOCKED) AS m)"
		" UPDATE @onesignal_message AS m SET state = o.state::@onesignal_message_state, http_status = o.http_status,"
		" errors = o.errors::pg_catalog.text[], response = o.response::pg_catalog.jsonb,"
		" attempts = m.attempts" PLUS "1, unanswered = m.unanswered OR o.unanswered,"
		" first_attempt_at = COALESCE(m.first_attempt_at, o.last_attempt_at),"
		" last_attempt_at = o.last_attempt_at, next_attempt_at = o.next_attempt_at,"
		" finished_at = CASE WHEN o.state" NE "'pending' THEN pg_catalog.clock_timestamp() END"
		" FROM unlocked AS o WHERE m.ctid" EQ "o.address RETURNING o.ordinal",
		10, {UUIDARRAYOID, UUIDARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, BOOLARRAYOID,
		INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID}
	},

	/* the first four fields of one outcome: returns the row, if there is one to write to */
	[STATEMENT_UNRECORDED] = {
		"SELECT m.message_id" ROW_OF_OUTCOME("$1", "$2", "$3", "$4"),
		4, {UUIDOID, UUIDOID, TIMESTAMPTZOID, TEXTOID}
	},

	/*
	 * app_id, requested_by, a time, the reason: gives up what was requested,
	 * and was to be sent, before then.
	 */
	[STATEMENT_EXPIRE] = {
		"UPDATE @onesignal_message SET state = 'failed', errors = ARRAY[$4],"
		" finished_at = pg_catalog.clock_timestamp(), next_attempt_at = NULL"
		" WHERE ctid" EQ "ANY (ARRAY(SELECT m.ctid FROM @onesignal_message AS m"
		" WHERE m.state" EQ "'pending' AND m.app_id" EQ "$1 AND m.requested_by" EQ "$2"
		" AND COALESCE(NULLIF(m.send_after, 'infinity'::pg_catalog.timestamptz),"
		" '-infinity'::pg_catalog.timestamptz)" LT "$3"
		" AND m.requested_at" LT "$3 LIMIT 10000 FOR UPDATE SKIP LOCKED))",
		4, {UUIDOID, NAMEOID, TIMESTAMPTZOID, TEXTOID}
	},

	/* app_id */
	[STATEMENT_CREATE_APP] = {
		"INSERT INTO @onesignal_app (app_id) VALUES ($1) ON CONFLICT (app_id) DO NOTHING",
		1, {UUIDOID}
	},

	/*
	 * The fields of QueueApp that are saved.  Changes nothing while somebody
	 * has the row locked: it never waits for onesignal_cancel_pause() in a
	 * transaction left open.
	 */
	[STATEMENT_SAVE_APP] = {
		"UPDATE @onesignal_app AS a SET circuit_until = $2, circuit_role = $3, circuit_reason = $4,"
		" pace = $5, pace_at = pg_catalog.now(), last_error = COALESCE($6, a.last_error),"
		" last_error_at = CASE WHEN $6 IS NULL THEN a.last_error_at ELSE pg_catalog.now() END,"
		" canceled_total = a.canceled_total" PLUS "$7, refused_total = a.refused_total" PLUS "$8,"
		" failed_total = a.failed_total" PLUS "$9"
		" WHERE a.ctid" EQ "(SELECT a.ctid FROM @onesignal_app AS a WHERE a.app_id" EQ "$1"
		" FOR NO KEY UPDATE SKIP LOCKED)",
		9, {UUIDOID, TIMESTAMPTZOID, NAMEOID, TEXTOID, FLOAT8OID, TEXTOID, INT8OID, INT8OID, INT8OID}
	},

	/* app_id.  For a mistyped id it reads all messages. */
	[STATEMENT_KNOWS_APP] = {
		"SELECT 1 FROM @onesignal_app WHERE app_id" EQ "$1"
		" UNION ALL SELECT 1 FROM @onesignal_message WHERE app_id" EQ "$1 LIMIT 1",
		1, {UUIDOID}
	},

	/* app_id, until, reason, by whom */
	[STATEMENT_PAUSE] = {
		"INSERT INTO @onesignal_app AS a (app_id, paused_until, pause_reason, paused_by)"
		" VALUES ($1, $2, $3, $4)"
		" ON CONFLICT (app_id) DO UPDATE SET paused_until = $2, pause_reason = $3, paused_by = $4",
		4, {UUIDOID, TIMESTAMPTZOID, TEXTOID, NAMEOID}
	},

	/* app_id */
	[STATEMENT_RESUME] = {
		"UPDATE @onesignal_app SET paused_until = NULL, pause_reason = NULL, paused_by = NULL,"
		" circuit_until = NULL, circuit_role = NULL, circuit_reason = NULL,"
		" resumed_at = pg_catalog.clock_timestamp()"
		" WHERE app_id" EQ "$1",
		1, {UUIDOID}
	},

	/* before when; from this row's address up to, without it, that one's */
	[STATEMENT_PURGE] = {
		"DELETE FROM @onesignal_message WHERE ctid" EQ "ANY (ARRAY("
		"SELECT m.ctid FROM @onesignal_message AS m"
		" WHERE m.ctid" GE "$2 AND m.ctid" LT "$3 AND m.state" NE "'pending'"
		" AND CASE WHEN m.state" EQ "'scheduled' THEN COALESCE(m.send_after, m.created_at)"
		" ELSE COALESCE(m.finished_at, m.created_at) END" LT "$1"
		" FOR UPDATE SKIP LOCKED))",
		3, {TIMESTAMPTZOID, TIDOID, TIDOID}
	},
};

/* ---- the owner ---- */

#define MESSAGE_TRIGGER "zz_onesignal_message"

typedef struct Setting
{
	const char *name;
	const char *value;
} Setting;

/*
 * A plan is made when the table may still be empty and is used when it holds
 * millions: the planner's settings leave it nothing but the index that the
 * statement was written for.
 */
static const Setting statement_settings[] = {
	{"search_path", "pg_catalog, pg_temp"},
	{"row_security", "off"},
	{"session_replication_role", "replica"},
	{"plan_cache_mode", "force_generic_plan"},
	{"enable_bitmapscan", "off"},
	{"enable_hashjoin", "off"},
	{"enable_indexscan", "on"},
	{"enable_mergejoin", "off"},
	{"enable_nestloop", "on"},
	{"enable_seqscan", "off"},
	{"enable_tidscan", "on"},
	{"exit_on_error", "off"},	/* an outcome that cannot be written must not end the process */
	{"jit", "off"},
	{"max_parallel_workers_per_gather", "0"},
};

/* As autovacuum does: no setting of the database may stop the worker. */
static const Setting worker_settings[] = {
	{"default_transaction_deferrable", "off"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"idle_in_transaction_session_timeout", "0"},
	{"lock_timeout", "0"},
	{"statement_timeout", "0"},
	{"transaction_timeout", "0"},	/* PostgreSQL 17 and newer */
};

static bool settled = false;

static bool
find_table(const char *name, Oid schema, Oid *table, Oid *owner)
{
	HeapTuple	tuple;

	*table = get_relname_relid(name, schema);
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(*table));
	if (!HeapTupleIsValid(tuple))
		return false;
	*owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return true;
}

bool
owner_find(Installation *installation)
{
	Relation	catalog = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;
	Oid			app_table;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("onesignal_cancel"));
	scan = systable_beginscan(catalog, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
	{
		installation->extension = ((Form_pg_extension) GETSTRUCT(tuple))->oid;
		installation->schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return found &&
		find_table("onesignal_message", installation->schema,
				   &installation->message_table, &installation->owner) &&
		find_table("onesignal_app", installation->schema, &app_table, &installation->app_owner);
}

bool
owner_find_and_lock(Installation *installation)
{
	Oid			locked = InvalidOid;

	while (owner_find(installation))
	{
		if (installation->message_table == locked)
			return true;
		/* Find it again with what changed while this waited. */
		locked = installation->message_table;
		InvalidateCatalogSnapshot();
		LockRelationOid(locked, RowExclusiveLock);
	}
	return false;
}

static const char *
trigger_problem(const Trigger *trigger, Oid schema, bool allow_off)
{
	const char *function = get_func_name(trigger->tgfoid);

	/* No other function of that name can be a trigger's: those have no arguments. */
	if (function == NULL || strcmp(function, "onesignal_message_change") != 0 ||
		get_func_namespace(trigger->tgfoid) != schema)
		return "it calls another function";
	if (trigger->tgtype != (TRIGGER_TYPE_ROW | TRIGGER_TYPE_BEFORE | TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE) ||
		trigger->tgnattr > 0 || trigger->tgqual != NULL)
		return "it does not fire before each INSERT and UPDATE of a row";
	if (!allow_off && trigger->tgenabled != TRIGGER_FIRES_ON_ORIGIN && trigger->tgenabled != TRIGGER_FIRES_ALWAYS)
		return "it is disabled";
	return NULL;
}

char *
owner_trigger_problem(Oid message_table, Oid schema, bool allow_off)
{
	Relation	relation = table_open(message_table, NoLock);
	const TriggerDesc *all = relation->trigdesc;
	const char *problem = "it does not exist";

	for (int i = 0; all != NULL && i < all->numtriggers; i++)
		if (strcmp(all->triggers[i].tgname, MESSAGE_TRIGGER) == 0)
			problem = trigger_problem(&all->triggers[i], schema, allow_off);
	table_close(relation, NoLock);
	return problem == NULL ? NULL :
		psprintf("trigger \"%s\" of table \"onesignal_message\" is not the extension's own: %s", MESSAGE_TRIGGER, problem);
}

void
owner_require_trigger(Oid schema, bool allow_off)
{
	Oid			message_table = get_relname_relid("onesignal_message", schema);
	const char *problem;

	if (!OidIsValid(message_table))
		elog(ERROR, "table onesignal_message does not exist in schema with OID %u", schema);
	LockRelationOid(message_table, RowExclusiveLock);
	problem = owner_trigger_problem(message_table, schema, allow_off);
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s", problem),
				 errdetail("Nothing is requested or delivered until it is, since requests could be forged without it."),
				 errhint("The table's owner can put it back with CREATE OR REPLACE TRIGGER %s BEFORE INSERT OR UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION %s(), and enable it with ALTER TABLE ... ENABLE TRIGGER.",
						 MESSAGE_TRIGGER,
						 quote_qualified_identifier(get_namespace_name(schema), "onesignal_message"),
						 quote_qualified_identifier(get_namespace_name(schema), "onesignal_message_change"))));
}

static void
set_all(const Setting *settings, int count, GucSource source, GucAction action)
{
	for (int i = 0; i < count; i++)
		if (GetConfigOption(settings[i].name, true, false) != NULL)
			(void) set_config_option(settings[i].name, settings[i].value,
									 PGC_SUSET, source, action, true, 0, false);
}

void
owner_enter(OwnerContext *context, const Installation *installation)
{
	GetUserIdAndSecContext(&context->user, &context->sec_context);
	if (!has_privs_of_role(installation->owner, installation->app_owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the owner of onesignal_message may not write onesignal_app"),
				 errhint("Give both tables the same owner with ALTER TABLE ... OWNER TO.")));
	SetUserIdAndSecContext(installation->owner, context->sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION | SECURITY_NOFORCE_RLS);
	context->guc_level = 0;
	if (settled)
		return;
	context->guc_level = NewGUCNestLevel();
	set_all(statement_settings, lengthof(statement_settings), PGC_S_SESSION, GUC_ACTION_SAVE);
}

void
owner_leave(const OwnerContext *context)
{
	if (context->guc_level != 0)
		AtEOXact_GUC(false, context->guc_level);
	SetUserIdAndSecContext(context->user, context->sec_context);
}

/* Assigning session_replication_role discards every plan of the session: the worker does so once. */
void
owner_settle(void)
{
	if (settled)
		return;
	set_all(statement_settings, lengthof(statement_settings), PGC_S_OVERRIDE, GUC_ACTION_SET);
	set_all(worker_settings, lengthof(worker_settings), PGC_S_OVERRIDE, GUC_ACTION_SET);
	settled = true;
}

/* ---- running ---- */

/* Prepared for the schema of that name. */
static NameData prepared_for;
static SPIPlanPtr prepared[STATEMENT_COUNT];

static void
forget_unless(const char *schema)
{
	if (strcmp(NameStr(prepared_for), schema) == 0)
		return;
	for (int i = 0; i < STATEMENT_COUNT; i++)
	{
		if (prepared[i] != NULL)
			SPI_freeplan(prepared[i]);
		prepared[i] = NULL;
	}
	namestrcpy(&prepared_for, schema);
}

static SPIPlanPtr
prepare(Statement which)
{
	const StatementText *statement = &statements[which];
	const Oid  *parameters = statement->parameters;
	const char *quoted = quote_identifier(NameStr(prepared_for));
	StringInfoData sql;
	SPIPlanPtr	plan;

	initStringInfo(&sql);
	for (const char *from = statement->sql; *from != '\0'; from++)
	{
		if (*from == '@')
			appendStringInfo(&sql, "%s.", quoted);
		else
			appendStringInfoChar(&sql, *from);
	}
	plan = SPI_prepare(sql.data, statement->parameter_count, unconstify(Oid *, parameters));
	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare statement %d: %s", which, SPI_result_code_string(SPI_result));
	return plan;
}

uint64
statement_run(Statement which, Oid schema, Datum *values, const char *nulls)
{
	MemoryContext old = CurrentMemoryContext;	/* SPI leaves us in its own */
	char	   *schema_name = get_namespace_name(schema);
	int			result;

	if (schema_name == NULL)
		elog(ERROR, "schema with OID %u does not exist", schema);
	forget_unless(schema_name);
	pfree(schema_name);
	if (prepared[which] == NULL)
		prepared[which] = prepare(which);

	result = SPI_execute_plan(prepared[which], values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "could not run statement %d: %s", which, SPI_result_code_string(result));
	MemoryContextSwitchTo(old);
	return SPI_processed;
}

/*
 * Errors after which nothing else will work in this transaction either, and
 * interrupts.  A trigger may raise any SQLSTATE for the rows of one app, so we
 * look at what is the case.  An interrupt is no longer pending when it has
 * become an error: it is known by the function that raised it.
 */
static bool
ends_transaction(const ErrorData *error, Oid schema)
{
	Installation installation;

	return (error->sqlerrcode == ERRCODE_QUERY_CANCELED &&
			error->funcname != NULL && strcmp(error->funcname, "ProcessInterrupts") == 0) ||
		error->sqlerrcode == ERRCODE_OUT_OF_MEMORY ||
		XactReadOnly || !owner_find(&installation) || installation.schema != schema;
}

/*
 * It rolls back before it copies the error: copying allocates, and a failure
 * there would leave the subtransaction open for ever.
 */
ErrorData *
statement_try(Statement which, Oid schema, StatementCall *calls, int count)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner resources = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		for (int i = 0; i < count; i++)
			calls[i].processed = statement_run(which, schema, calls[i].values, calls[i].nulls);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = resources;
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = resources;

	if (error != NULL && ends_transaction(error, schema))
		ReThrowError(error);
	return error;
}
