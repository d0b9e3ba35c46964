/*
 * queue.c
 *		The deliverer's short transactions: what it fetches, records and saves.
 *
 * A deliverer has no transaction while its requests are on the wire: it opens
 * one to fetch or to record, as the table's owner, and closes it at once.
 * Fetching marks nothing as taken, since a database has one deliverer; what
 * happened to a row in between is found out when its outcome is recorded.
 *
 * Recording must not wait for a session that left a transaction open, and one
 * row that cannot be written must not keep hundreds of others from being
 * written.  So outcomes are written in one subtransaction by a statement that
 * skips locked rows; if it fails, each is written in one of its own.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "queue.h"

/*
 * How long to wait for a session that has an app's row locked, and how often in
 * one transaction.  Most sessions lock it for a millisecond; what cannot be saved
 * is saved later.
 */
#define APP_LOCK_TIMEOUT "10ms"
#define APP_LOCKS_MAX 10

#define EQ " OPERATOR(pg_catalog.=) "
#define NE " OPERATOR(pg_catalog.<>) "
#define GT " OPERATOR(pg_catalog.>) "
#define LT " OPERATOR(pg_catalog.<) "
#define GE " OPERATOR(pg_catalog.>=) "
#define PLUS " OPERATOR(pg_catalog.+) "
#define MINUS " OPERATOR(pg_catalog.-) "

const char *const queue_state_names[QUEUE_STATES] = {
	[QUEUE_SCHEDULED] = "scheduled",
	[QUEUE_PENDING] = "pending",
	[QUEUE_CANCELED] = "canceled",
	[QUEUE_REFUSED] = "refused",
	[QUEUE_FAILED] = "failed",
};

/* The open transaction, or the last one. */
static struct
{
	bool		open;
	bool		in_procedure;
	Installation installation;
} transaction;

/* ---- transactions ---- */

/* Waits for a DROP EXTENSION or ALTER TABLE under way, and finds the table again with what that changed. */
static bool
find_and_lock(Installation *installation)
{
	Oid			locked = InvalidOid;
	bool		found;

	while ((found = owner_find(installation)) && installation->message_table != locked)
	{
		locked = installation->message_table;
		InvalidateCatalogSnapshot();	/* a snapshot that waits would hold up VACUUM */
		LockRelationOid(locked, RowExclusiveLock);
	}
	return found;
}

bool
queue_begin(bool in_procedure)
{
	MemoryContext old = CurrentMemoryContext;

	transaction.in_procedure = in_procedure;
	transaction.open = false;
	if (!in_procedure)
	{
		owner_settle();
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
	}
	else if (!FirstSnapshotSet)
		XactIsoLevel = XACT_READ_COMMITTED; /* or a row that changed meanwhile would be an error */

	if (find_and_lock(&transaction.installation))
	{
		if (!in_procedure)
		{
			PushActiveSnapshot(GetTransactionSnapshot());	/* SPI wants one; each statement takes its own */
			SPI_connect();
		}
		transaction.open = true;
		owner_enter(&transaction.installation);
	}
	else if (!in_procedure)
		CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	return transaction.open;
}

void
queue_commit(void)
{
	MemoryContext old = CurrentMemoryContext;

	Assert(transaction.open);
	transaction.open = false;
	owner_leave(&transaction.installation);
	if (transaction.in_procedure)
		SPI_commit();
	else
	{
		SPI_finish();
		PopActiveSnapshot();
		CommitTransactionCommand();
		pgstat_report_stat(true);
	}
	MemoryContextSwitchTo(old);
}

void
queue_abandon(void)
{
	if (transaction.open)
		SetUserIdAndSecContext(transaction.installation.user, transaction.installation.sec_context);
	transaction.open = false;
}

void
queue_call_begin(FunctionCallInfo fcinfo)
{
	CallContext *context = (CallContext *) fcinfo->context;

	if (context == NULL || !IsA(context, CallContext) || context->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("%s commits as it goes and cannot run in a transaction block",
						get_func_name(fcinfo->flinfo->fn_oid)),
				 errhint("Use CALL by itself: not between BEGIN and COMMIT, not beside another statement "
						 "in one string, and not from a function or a block with EXCEPTION.")));
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	SPI_commit();
}

static uint64
run_in_transaction(Statement *statement, Datum *values)
{
	return statement_run(statement, transaction.installation.schema, values, NULL);
}

static ErrorData *
try_in_transaction(Statement *statement, Datum *values)
{
	return statement_try(statement, transaction.installation.schema, values, NULL);
}

/* ---- reading ---- */

/* The nth column of a returned row; fallback where it is NULL. */
static Datum
read_column(uint64 row, int number, Datum fallback)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number, &isnull);

	return isnull ? fallback : value;
}

static TimestampTz
read_time(uint64 row, int number, TimestampTz fallback)
{
	return DatumGetTimestampTz(read_column(row, number, TimestampTzGetDatum(fallback)));
}

const char *
queue_problem(void)
{
	return owner_has_trigger(&transaction.installation, false) ? NULL : OWNER_TRIGGER_PROBLEM;
}

/* A loose index scan: as many probes as there are lanes, however long they are. */
List *
queue_lanes(const QueueLane *after, int max)
{
	static Statement next_lanes = {
		.sql = "WITH RECURSIVE lane AS ("
			   "(SELECT app_id, requested_by, 1 AS number FROM @onesignal_message"
			   " WHERE state" EQ "'pending' AND (app_id, requested_by)" GT "($1, $2)"
			   " ORDER BY app_id, requested_by LIMIT 1)"
			   " UNION ALL"
			   " SELECT next.app_id, next.requested_by, lane.number" PLUS "1 FROM lane CROSS JOIN LATERAL ("
			   "SELECT m.app_id, m.requested_by FROM @onesignal_message m WHERE m.state" EQ "'pending'"
			   " AND (m.app_id, m.requested_by)" GT "(lane.app_id, lane.requested_by)"
			   " ORDER BY m.app_id, m.requested_by LIMIT 1) AS next WHERE lane.number" LT "$3)"
			   " SELECT lane.app_id, lane.requested_by, a.paused_until, a.resumed_at,"
			   " CASE WHEN a.circuit_role IS NULL THEN a.circuit_until END, a.circuit_until IS NOT NULL,"
			   " CASE WHEN a.pace_at" GT "(pg_catalog.now()" MINUS "'10 minutes'::pg_catalog.interval)"
			   " THEN a.pace END, a.circuit_role" EQ "lane.requested_by"
			   " FROM lane LEFT JOIN @onesignal_app AS a ON a.app_id" EQ "lane.app_id",
		.types = {UUIDOID, NAMEOID, INT4OID}
	};
	List	   *lanes = NIL;
	Datum		values[] = {
		UUIDPGetDatum(&after->app_id),
		NameGetDatum(&after->requested_by),
		Int32GetDatum(max),
	};
	uint64		count = run_in_transaction(&next_lanes, values);

	for (uint64 row = 0; row < count; row++)
	{
		QueueListed *listed = palloc0(sizeof(QueueListed));

		listed->lane.app_id = *DatumGetUUIDP(read_column(row, 1, (Datum) 0));
		listed->lane.requested_by = *DatumGetName(read_column(row, 2, (Datum) 0));
		listed->app.paused_until = read_time(row, 3, 0);
		listed->app.resumed_at = read_time(row, 4, 0);
		listed->app.circuit_until = read_time(row, 5, 0);
		listed->app.has_circuit = DatumGetBool(read_column(row, 6, BoolGetDatum(false)));
		listed->app.pace = DatumGetFloat8(read_column(row, 7, Float8GetDatum(-1)));
		listed->app.is_of_lane = DatumGetBool(read_column(row, 8, BoolGetDatum(false)));
		lanes = lappend(lanes, listed);
	}
	SPI_freetuptable(SPI_tuptable);
	return lanes;
}

bool
queue_has_pending(void)
{
	static const QueueLane first;

	return queue_lanes(&first, 1) != NIL;
}

int
queue_fetch(const QueueLane *lane, const QueuePosition *from, QueueRow *rows, int max)
{
	static Statement next_rows = {
		.sql = "SELECT m.message_id, m.send_after, m.requested_at, m.next_attempt_at,"
			   " m.first_attempt_at, m.attempts, m.unanswered, m.last_attempt_at, m.http_status"
			   " FROM @onesignal_message AS m"
			   " WHERE m.state" EQ "'pending' AND m.app_id" EQ "$1 AND m.requested_by" EQ "$2"
			   " AND (COALESCE(m.send_after, '-infinity'::pg_catalog.timestamptz), m.message_id)" GE "($3, $4)"
			   " ORDER BY COALESCE(m.send_after, '-infinity'::pg_catalog.timestamptz), m.message_id"
			   " LIMIT $5",
		.types = {UUIDOID, NAMEOID, TIMESTAMPTZOID, UUIDOID, INT4OID}
	};
	Datum		values[] = {
		UUIDPGetDatum(&lane->app_id),
		NameGetDatum(&lane->requested_by),
		TimestampTzGetDatum(from->send_after),
		UUIDPGetDatum(&from->message_id),
		Int32GetDatum(max),
	};
	int			count = (int) run_in_transaction(&next_rows, values);

	for (int i = 0; i < count; i++)
	{
		rows[i].message_id = *DatumGetUUIDP(read_column(i, 1, (Datum) 0));
		rows[i].send_after = read_time(i, 2, DT_NOBEGIN);
		rows[i].requested_at = read_time(i, 3, 0);
		rows[i].next_attempt_at = read_time(i, 4, 0);
		rows[i].first_attempt_at = read_time(i, 5, 0);
		rows[i].attempts = DatumGetInt32(read_column(i, 6, Int32GetDatum(0)));
		rows[i].unanswered = DatumGetBool(read_column(i, 7, BoolGetDatum(false)));
		rows[i].last_attempt_at = read_time(i, 8, 0);
		rows[i].http_status = DatumGetInt32(read_column(i, 9, Int32GetDatum(0)));
	}
	SPI_freetuptable(SPI_tuptable);
	return count;
}

/* ---- recording ---- */

/* Adds an element to the array that is a statement's nth parameter; the array begins as 0. */
static void
add_element(const Statement *statement, Datum *arrays, int number, Datum value, bool isnull)
{
	ArrayBuildState *array = (ArrayBuildState *) DatumGetPointer(arrays[number]);
	Oid			type = get_element_type(statement->types[number]);

	arrays[number] = PointerGetDatum(accumArrayResult(array, value, isnull, type, CurrentMemoryContext));
}

static void
add_text(const Statement *statement, Datum *arrays, int number, const char *text)
{
	add_element(statement, arrays, number, text == NULL ? (Datum) 0 : CStringGetTextDatum(text), text == NULL);
}

static void
finish_arrays(const Statement *statement, Datum *arrays)
{
	for (int i = 0; OidIsValid(statement->types[i]); i++)
		arrays[i] = makeArrayResult((ArrayBuildState *) DatumGetPointer(arrays[i]), CurrentMemoryContext);
}

/*
 * The row that an outcome may be written to.  A cancel that worked is the
 * truth, whatever the row says now; any other outcome counts only for the
 * request that it was sent for.
 *
 * With plain equality the planner, misled by the statistics of an empty table,
 * could read the whole index for each outcome, for its order's sake.  The order
 * of an array's element is of no use to it.
 */
#define ROW_OF_OUTCOME \
	" FROM @onesignal_message AS m" \
	" WHERE m.message_id" EQ "ANY (ARRAY[o.message_id]) AND m.app_id" EQ "ANY (ARRAY[o.app_id])" \
	" AND ((o.state" EQ "'canceled' AND m.state" NE "'canceled')" \
	" OR (m.state" EQ "'pending' AND m.requested_at" EQ "o.requested_at))"

#define OUTCOMES \
	" unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) WITH ORDINALITY" \
	" AS o (app_id, message_id, requested_at, state, unanswered, http_status, errors, response," \
	" last_attempt_at, next_attempt_at, ordinal)"

/* An array for each field of QueueOutcome, that of errors as text.  Returns their QueueRecorded, in that order. */
static Statement record_outcomes = {
	.sql = "WITH unlocked AS MATERIALIZED (SELECT o.*, m.address FROM" OUTCOMES
		   " CROSS JOIN LATERAL (SELECT m.ctid AS address" ROW_OF_OUTCOME " FOR NO KEY UPDATE SKIP LOCKED) AS m),"
		   " written AS (UPDATE @onesignal_message AS m SET state = o.state::@onesignal_message_state,"
		   " http_status = o.http_status, errors = o.errors::pg_catalog.text[],"
		   " response = o.response::pg_catalog.jsonb, attempts = m.attempts" PLUS "1,"
		   " unanswered = m.unanswered OR o.unanswered,"
		   " first_attempt_at = COALESCE(m.first_attempt_at, o.last_attempt_at),"
		   " last_attempt_at = o.last_attempt_at, next_attempt_at = o.next_attempt_at,"
		   " finished_at = CASE WHEN o.state" NE "'pending' THEN pg_catalog.clock_timestamp() END"
		   " FROM unlocked AS o WHERE m.ctid" EQ "o.address RETURNING o.ordinal)"
		   " SELECT CASE WHEN o.ordinal" EQ "ANY (SELECT w.ordinal FROM written AS w) THEN 0"
		   " WHEN NOT EXISTS (SELECT" ROW_OF_OUTCOME ") THEN 1 ELSE 2 END FROM" OUTCOMES " ORDER BY o.ordinal",
	.types = {UUIDARRAYOID, UUIDARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, BOOLARRAYOID,
			   INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID}
};

static void
add_outcome(Datum *arrays, const QueueOutcome *outcome)
{
	const Statement *to = &record_outcomes;
	Datum	   *errors = palloc(sizeof(Datum) * Max(outcome->error_count, 1));
	ArrayType  *array;

	for (int i = 0; i < outcome->error_count; i++)
		errors[i] = CStringGetTextDatum(outcome->errors[i]);
	array = construct_array(errors, outcome->error_count, TEXTOID, -1, false, TYPALIGN_INT);
	add_element(to, arrays, 0, UUIDPGetDatum(&outcome->app_id), false);
	add_element(to, arrays, 1, UUIDPGetDatum(&outcome->message_id), false);
	add_element(to, arrays, 2, TimestampTzGetDatum(outcome->requested_at), false);
	add_text(to, arrays, 3, queue_state_names[outcome->state]);
	add_element(to, arrays, 4, BoolGetDatum(outcome->unanswered), false);
	add_element(to, arrays, 5, Int32GetDatum(outcome->http_status), outcome->http_status == 0);
	add_text(to, arrays, 6, OidOutputFunctionCall(F_ARRAY_OUT, PointerGetDatum(array)));
	add_text(to, arrays, 7, outcome->response);
	add_element(to, arrays, 8, TimestampTzGetDatum(outcome->last_attempt_at), false);
	add_element(to, arrays, 9, TimestampTzGetDatum(outcome->next_attempt_at), outcome->state != QUEUE_PENDING);
}

static ErrorData *
try_to_record(const QueueOutcome *outcomes, int count, QueueRecorded *recorded)
{
	Datum		arrays[10] = {0};
	ErrorData  *error;

	for (int i = 0; i < count; i++)
		add_outcome(arrays, &outcomes[i]);
	finish_arrays(&record_outcomes, arrays);
	error = try_in_transaction(&record_outcomes, arrays);
	for (int i = 0; i < count; i++)
		recorded[i] = error != NULL ? QUEUE_UNRECORDABLE : DatumGetInt32(read_column(i, 1, (Datum) 0));
	if (error == NULL)
		SPI_freetuptable(SPI_tuptable);
	return error;
}

void
queue_record(const QueueOutcome *outcomes, int count, QueueRecorded *recorded, char **error)
{
	*error = NULL;
	if (count > 0 && try_to_record(outcomes, count, recorded) != NULL)
		for (int i = 0; i < count; i++)
		{
			ErrorData  *failure = try_to_record(&outcomes[i], 1, &recorded[i]);

			/* Not its detail, which may hold the whole row. */
			if (failure != NULL && *error == NULL)
				*error = failure->message;
		}
}

int
queue_expire(const QueueLane *lane, TimestampTz before, const char *reason)
{
	static Statement give_up = {
		.sql = "UPDATE @onesignal_message SET state = 'failed', errors = ARRAY[$4],"
			   " finished_at = pg_catalog.clock_timestamp(), next_attempt_at = NULL"
			   " WHERE ctid" EQ "ANY (ARRAY(SELECT m.ctid FROM @onesignal_message AS m"
			   " WHERE m.state" EQ "'pending' AND m.app_id" EQ "$1 AND m.requested_by" EQ "$2"
			   " AND COALESCE(NULLIF(m.send_after, 'infinity'::pg_catalog.timestamptz),"
			   " '-infinity'::pg_catalog.timestamptz)" LT "$3"
			   " AND m.requested_at" LT "$3 LIMIT 10000 FOR UPDATE SKIP LOCKED))",
		.types = {UUIDOID, NAMEOID, TIMESTAMPTZOID, TEXTOID}
	};
	Datum		values[] = {
		UUIDPGetDatum(&lane->app_id),
		NameGetDatum(&lane->requested_by),
		TimestampTzGetDatum(before),
		CStringGetTextDatum(reason),
	};
	ErrorData  *error = try_in_transaction(&give_up, values);

	if (error == NULL)
		return (int) SPI_processed;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("onesignal_cancel: could not give up messages: %s", error->message)));
	return 0;
}

/* ---- saving ---- */

/* An array for each field of QueueApp that is saved. */
static Statement save_apps = {
	.sql = "INSERT INTO @onesignal_app AS a (app_id, circuit_until, circuit_role, circuit_reason, pace, pace_at,"
		   " last_error, last_error_at, canceled_total, refused_total, failed_total)"
		   " SELECT o.app_id, o.circuit_until, o.circuit_role, o.circuit_reason, o.pace, pg_catalog.now(),"
		   " o.last_error, CASE WHEN o.last_error IS NOT NULL THEN pg_catalog.now() END,"
		   " o.canceled, o.refused, o.failed"
		   " FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9) AS o (app_id, circuit_until, circuit_role,"
		   " circuit_reason, pace, last_error, canceled, refused, failed)"
		   " ON CONFLICT (app_id) DO UPDATE SET circuit_until = excluded.circuit_until,"
		   " circuit_role = excluded.circuit_role, circuit_reason = excluded.circuit_reason,"
		   " pace = excluded.pace, pace_at = excluded.pace_at,"
		   " last_error = COALESCE(excluded.last_error, a.last_error),"
		   " last_error_at = COALESCE(excluded.last_error_at, a.last_error_at),"
		   " canceled_total = a.canceled_total" PLUS "excluded.canceled_total,"
		   " refused_total = a.refused_total" PLUS "excluded.refused_total,"
		   " failed_total = a.failed_total" PLUS "excluded.failed_total",
	.types = {UUIDARRAYOID, TIMESTAMPTZARRAYOID, NAMEARRAYOID, TEXTARRAYOID, FLOAT8ARRAYOID, TEXTARRAYOID,
			   INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID}
};

static void
add_app(Datum *arrays, const QueueApp *app)
{
	const Statement *to = &save_apps;
	NameData	role;

	namestrcpy(&role, app->circuit_role != NULL ? app->circuit_role : "");
	add_element(to, arrays, 0, UUIDPGetDatum(&app->app_id), false);
	add_element(to, arrays, 1, TimestampTzGetDatum(app->circuit_until), app->circuit_until == 0);
	add_element(to, arrays, 2, NameGetDatum(&role), app->circuit_role == NULL);
	add_text(to, arrays, 3, app->circuit_reason);
	add_element(to, arrays, 4, Float8GetDatum(app->pace), false);
	add_text(to, arrays, 5, app->last_error);
	for (int state = QUEUE_CANCELED; state <= QUEUE_FAILED; state++)
		add_element(to, arrays, 6 + state - QUEUE_CANCELED, Int64GetDatum(app->totals[state]), false);
}

/* Saves all or none. */
static ErrorData *
try_to_save(QueueApp *apps, int count)
{
	Datum		arrays[9] = {0};
	int			level = NewGUCNestLevel();
	ErrorData  *error;

	for (int i = 0; i < count; i++)
		add_app(arrays, &apps[i]);
	finish_arrays(&save_apps, arrays);
	(void) set_config_option("lock_timeout", APP_LOCK_TIMEOUT, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	error = try_in_transaction(&save_apps, arrays);
	AtEOXact_GUC(false, level);
	for (int i = 0; i < count; i++)
		apps[i].saved = error == NULL;
	return error;
}

void
queue_save_apps(QueueApp *apps, int count)
{
	static char logged[256] = "";
	ErrorData  *error = try_to_save(apps, count);
	int			locked = 0;

	if (error != NULL && error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
	{
		error = NULL;
		for (int i = 0; i < count && locked < APP_LOCKS_MAX; i++)
			locked += try_to_save(&apps[i], 1) != NULL;
	}
	/* Logged once, although it is tried again each time. */
	if (error != NULL && strncmp(logged, error->message, sizeof(logged) - 1) != 0)
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("onesignal_cancel: could not save the state of apps: %s", error->message)));
	strlcpy(logged, error != NULL ? error->message : "", sizeof(logged));
}

/* ---- purging ---- */

bool
queue_purge(TimestampTz before, BlockNumber block, BlockNumber count, uint64 *purged)
{
	static Statement purge = {
		.sql = "DELETE FROM @onesignal_message WHERE ctid" EQ "ANY (ARRAY("
			   "SELECT m.ctid FROM @onesignal_message AS m"
			   " WHERE m.ctid" GE "$2 AND m.ctid" LT "$3 AND m.state" NE "'pending'"
			   " AND CASE WHEN m.state" EQ "'scheduled' THEN COALESCE(m.send_after, m.created_at)"
			   " ELSE COALESCE(m.finished_at, m.created_at) END" LT "$1"
			   " FOR UPDATE SKIP LOCKED))",
		.types = {TIMESTAMPTZOID, TIDOID, TIDOID}
	};
	ItemPointerData from;
	ItemPointerData to;
	Datum		values[] = {TimestampTzGetDatum(before), PointerGetDatum(&from), PointerGetDatum(&to)};
	Relation	relation = relation_open(transaction.installation.message_table, NoLock);
	TriggerDesc *triggers = relation->trigdesc;
	BlockNumber blocks = RelationGetNumberOfBlocks(relation);

	/* They do not fire for us: the rows that reference ours would be left dangling. */
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (RI_FKey_trigger_type(triggers->triggers[i].tgfoid) == RI_TRIGGER_PK)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot purge onesignal_message while a foreign key references it"),
					 errdetail("Table \"%s\" has such a foreign key.",
							   get_rel_name(triggers->triggers[i].tgconstrrelid)),
					 errhint("Drop the foreign key, or delete the rows with DELETE.")));
	relation_close(relation, NoLock);
	ItemPointerSet(&from, block, 0);
	ItemPointerSet(&to, block + Min(count, MaxBlockNumber - block), 0);
	*purged += run_in_transaction(&purge, values);
	return block < blocks && blocks - block > count;
}

/* ---- in anybody's transaction ---- */

static uint64
run_as_owner(Statement *statement, Datum *values, const char *nulls)
{
	Installation installation;
	uint64		count;

	owner_get(&installation);
	SPI_connect();
	owner_enter(&installation);
	count = statement_run(statement, installation.schema, values, nulls);
	owner_leave(&installation);
	SPI_finish();
	return count;
}

/* For a mistyped id it reads all messages. */
bool
queue_knows_app(const pg_uuid_t *app_id)
{
	static Statement find_app = {
		.sql = "SELECT 1 FROM @onesignal_app WHERE app_id" EQ "$1"
			   " UNION ALL SELECT 1 FROM @onesignal_message WHERE app_id" EQ "$1 LIMIT 1",
		.types = {UUIDOID}
	};
	Datum		values[] = {UUIDPGetDatum(app_id)};

	return run_as_owner(&find_app, values, NULL) > 0;
}

void
queue_pause(const pg_uuid_t *app_id, TimestampTz until, text *reason)
{
	static Statement pause_app = {
		.sql = "INSERT INTO @onesignal_app AS a (app_id, paused_until, pause_reason, paused_by)"
			   " VALUES ($1, $2, $3, $4)"
			   " ON CONFLICT (app_id) DO UPDATE SET paused_until = $2, pause_reason = $3, paused_by = $4",
		.types = {UUIDOID, TIMESTAMPTZOID, TEXTOID, NAMEOID}
	};
	NameData	role;
	Datum		values[] = {
		UUIDPGetDatum(app_id),
		TimestampTzGetDatum(until),
		PointerGetDatum(reason),
		NameGetDatum(&role),
	};

	namestrcpy(&role, GetUserNameFromId(GetUserId(), false));
	(void) run_as_owner(&pause_app, values, reason != NULL ? NULL : "  n ");
}

void
queue_resume(const pg_uuid_t *app_id)
{
	static Statement resume_app = {
		.sql = "UPDATE @onesignal_app SET paused_until = NULL, pause_reason = NULL, paused_by = NULL,"
			   " circuit_until = NULL, circuit_role = NULL, circuit_reason = NULL,"
			   " resumed_at = pg_catalog.clock_timestamp()"
			   " WHERE app_id" EQ "$1",
		.types = {UUIDOID}
	};
	Datum		values[] = {UUIDPGetDatum(app_id)};

	(void) run_as_owner(&resume_app, values, NULL);
}
