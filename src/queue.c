/*
 * queue.c
 *		The deliverer's short transactions: what it fetches, records and saves.
 *
 * Fetching marks nothing as taken, since a database has one deliverer; what
 * happened to a row in between is found out when its outcome is recorded.
 *
 * Recording waits for no locked row.  If the one statement fails, each outcome
 * is written in a subtransaction of its own: a row that cannot be written keeps
 * no other from it.
 */
#include "postgres.h"

#include "catalog/objectaddress.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "queue.h"

const char *const queue_state_names[QUEUE_STATES] = {
	[QUEUE_SCHEDULED] = "scheduled",
	[QUEUE_PENDING] = "pending",
	[QUEUE_CANCELED] = "canceled",
	[QUEUE_REFUSED] = "refused",
	[QUEUE_FAILED] = "failed",
};

/* Of the open transaction, or of the last one. */
static Installation installation;

/* ---- transactions ---- */

const Installation *
queue_begin(void)
{
	MemoryContext old = CurrentMemoryContext;
	Oid			locked = InvalidOid;
	bool		found;

	if (owner_is_worker)
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
	}
	else if (!FirstSnapshotSet)
		XactIsoLevel = XACT_READ_COMMITTED; /* or a row that changed meanwhile would be an error */

	/* Waits for a DROP EXTENSION or ALTER TABLE under way, and finds the table again with what that changed. */
	while ((found = owner_find(&installation, true)) && installation.message_table != locked)
	{
		locked = installation.message_table;
		InvalidateCatalogSnapshot();	/* a snapshot that waits would hold up VACUUM */
		LockRelationOid(locked, RowExclusiveLock);
	}
	if (found && owner_is_worker)
	{
		PushActiveSnapshot(GetTransactionSnapshot());	/* SPI wants one; each statement takes its own */
		SPI_connect();
	}
	if (found)
		owner_enter(&installation);
	else if (owner_is_worker)
		CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	return found ? &installation : NULL;
}

void
queue_commit(void)
{
	MemoryContext old = CurrentMemoryContext;

	owner_leave(&installation);
	if (!owner_is_worker)
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
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	SPI_commit();
}

/* ---- reading ---- */

/* The nth column of a returned row.  Those that may be NULL are times, and then 0. */
static Datum
read_column(uint64 row, int number)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number, &isnull);

	return isnull ? TimestampTzGetDatum(0) : value;
}

/* A loose index scan: as many probes as there are lanes, however long they are. */
int
queue_lanes(const QueueLane *after, QueueListed *listed, int max)
{
	static Statement next_lanes = {
		.sql = "WITH RECURSIVE lane AS ("
			   "(SELECT app_id, requested_by, 1 AS number FROM ONLY @onesignal_message"
			   " WHERE state" EQ "'pending' AND (app_id, requested_by)" GT "($1, $2)"
			   " ORDER BY app_id, requested_by LIMIT 1)"
			   " UNION ALL"
			   " SELECT next.app_id, next.requested_by, lane.number" PLUS "1 FROM lane CROSS JOIN LATERAL ("
			   "SELECT m.app_id, m.requested_by FROM ONLY @onesignal_message m WHERE m.state" EQ "'pending'"
			   " AND (m.app_id, m.requested_by)" GT "(lane.app_id, lane.requested_by)"
			   " ORDER BY m.app_id, m.requested_by LIMIT 1) AS next WHERE lane.number" LT "$3)"
			   " SELECT lane.app_id, lane.requested_by, a.paused_until,"
			   " CASE WHEN pg_catalog.clock_timestamp()" GE "a.resumed_at THEN a.resumed_at END,"
			   " CASE WHEN pg_catalog.now()" GE "a.pace_at THEN a.circuit_until END, COALESCE(a.circuit_role, ''),"
			   " COALESCE(CASE WHEN a.pace_at" GT "(pg_catalog.now()" MINUS "'10 minutes'::pg_catalog.interval)"
			   " THEN a.pace END, -1)"
			   " FROM lane LEFT JOIN @onesignal_app AS a ON a.app_id" EQ "lane.app_id",
		.types = {UUIDOID, NAMEOID, INT4OID}
	};
	Datum		values[] = {UUIDPGetDatum(&after->app_id), NameGetDatum(&after->requested_by), Int32GetDatum(max)};
	int			count = (int) statement_run(&next_lanes, installation.schema, values, NULL);

	for (int i = 0; i < count; i++)
	{
		listed[i].lane.app_id = *DatumGetUUIDP(read_column(i, 1));
		/* A hash key needs zeros to its end: before 15.7 and 16.3 an index-only scan gives what lies behind it. */
		namestrcpy(&listed[i].lane.requested_by, NameStr(*DatumGetName(read_column(i, 2))));
		listed[i].paused_until = DatumGetTimestampTz(read_column(i, 3));
		listed[i].resumed_at = DatumGetTimestampTz(read_column(i, 4));
		listed[i].circuit_until = DatumGetTimestampTz(read_column(i, 5));
		listed[i].circuit_role = *DatumGetName(read_column(i, 6));
		listed[i].pace = DatumGetFloat8(read_column(i, 7));
	}
	SPI_freetuptable(SPI_tuptable);
	return count;
}

int
queue_fetch(const QueueLane *lane, const QueuePosition *from, QueueRow *rows, int max)
{
	static Statement next_rows = {
		.sql = "SELECT m.message_id, COALESCE(m.send_after, '-infinity'), m.requested_at, m.next_attempt_at,"
			   " m.first_attempt_at, m.last_attempt_at, COALESCE(m.http_status, 0), m.attempts, m.unanswered"
			   " FROM ONLY @onesignal_message AS m"
			   " WHERE m.state" EQ "'pending' AND m.app_id" EQ "$1 AND m.requested_by" EQ "$2"
			   " AND (COALESCE(m.send_after, '-infinity'), m.message_id)" GE "($3, $4)"
			   " ORDER BY COALESCE(m.send_after, '-infinity'), m.message_id LIMIT $5",
		.types = {UUIDOID, NAMEOID, TIMESTAMPTZOID, UUIDOID, INT4OID}
	};
	Datum		values[] = {
		UUIDPGetDatum(&lane->app_id), NameGetDatum(&lane->requested_by),
		TimestampTzGetDatum(from->send_after), UUIDPGetDatum(&from->message_id), Int32GetDatum(max)
	};
	int			count = (int) statement_run(&next_rows, installation.schema, values, NULL);

	for (int i = 0; i < count; i++)
	{
		rows[i].message_id = *DatumGetUUIDP(read_column(i, 1));
		rows[i].send_after = DatumGetTimestampTz(read_column(i, 2));
		rows[i].requested_at = DatumGetTimestampTz(read_column(i, 3));
		rows[i].next_attempt_at = DatumGetTimestampTz(read_column(i, 4));
		rows[i].first_attempt_at = DatumGetTimestampTz(read_column(i, 5));
		rows[i].last_attempt_at = DatumGetTimestampTz(read_column(i, 6));
		rows[i].http_status = DatumGetInt32(read_column(i, 7));
		rows[i].attempts = DatumGetInt32(read_column(i, 8));
		rows[i].unanswered = DatumGetBool(read_column(i, 9));
	}
	SPI_freetuptable(SPI_tuptable);
	return count;
}

/* ---- recording ---- */

/*
 * The row that an outcome may be written to: a success always, any other one
 * only while the row has the request that it was sent for.
 *
 * With plain equality the planner, misled by the statistics of an empty table,
 * could read the whole index for each outcome, for its order's sake; an array's
 * has none.  ONLY: other tables may inherit from this one, and their rows have
 * the same ctids.
 */
#define ROW_OF_OUTCOME \
	" FROM ONLY @onesignal_message AS m" \
	" WHERE m.message_id" EQ "ANY (ARRAY[o.message_id]) AND m.app_id" EQ "ANY (ARRAY[o.app_id])" \
	" AND ((o.state" EQ "'canceled' AND m.state" NE "'canceled')" \
	" OR (m.state" EQ "'pending' AND m.requested_at" EQ "o.requested_at))"

#define OUTCOMES \
	" unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) WITH ORDINALITY" \
	" AS o (app_id, message_id, requested_at, state, unanswered, http_status, errors, response," \
	" last_attempt_at, next_attempt_at, send_after, ordinal)"

/* An array for each field of QueueOutcome.  Returns their QueueRecorded.  moved: send_after was changed meanwhile. */
static Statement record_outcomes = {
	.sql = "WITH unlocked AS MATERIALIZED (SELECT o.*, m.address, m.moved FROM" OUTCOMES
		   " CROSS JOIN LATERAL (SELECT m.ctid AS address, o.state" EQ "ANY (ARRAY['pending', 'failed']) AND"
		   " COALESCE(m.send_after, '-infinity')" NE "o.send_after AS moved" ROW_OF_OUTCOME
		   " FOR NO KEY UPDATE SKIP LOCKED) AS m),"
		   " written AS (UPDATE ONLY @onesignal_message AS m SET"
		   " state = CASE WHEN o.moved THEN m.state ELSE o.state::@onesignal_message_state END,"
		   " http_status = NULLIF(o.http_status, 0), errors = o.errors::pg_catalog.text[],"
		   " response = NULLIF(o.response, '')::pg_catalog.jsonb, attempts = m.attempts" PLUS "1,"
		   " unanswered = m.unanswered OR o.unanswered,"
		   " first_attempt_at = COALESCE(m.first_attempt_at, o.last_attempt_at),"
		   " last_attempt_at = o.last_attempt_at, next_attempt_at = CASE WHEN o.moved THEN m.next_attempt_at"
		   " ELSE NULLIF(o.next_attempt_at, '-infinity') END,"
		   " finished_at = CASE WHEN o.state" NE "'pending' AND NOT o.moved THEN pg_catalog.clock_timestamp() END"
		   " FROM unlocked AS o WHERE m.ctid" EQ "o.address RETURNING o.ordinal, o.moved)"
		   " SELECT CASE WHEN o.ordinal" EQ "ANY (SELECT w.ordinal FROM written AS w WHERE NOT w.moved) THEN 0"
		   " WHEN o.ordinal" EQ "ANY (SELECT w.ordinal FROM written AS w) THEN 1"
		   " WHEN NOT EXISTS (SELECT" ROW_OF_OUTCOME ") THEN 1 ELSE 2 END FROM" OUTCOMES " ORDER BY o.ordinal",
	.types = {UUIDARRAYOID, UUIDARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, BOOLARRAYOID, INT4ARRAYOID,
			   TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID}
};

#define OUTCOME_FIELDS 11

static ErrorData *
try_to_record(QueueOutcome *outcomes, int count)
{
	ArrayBuildState *states[OUTCOME_FIELDS];
	Datum		arrays[OUTCOME_FIELDS];
	ErrorData  *error;

	for (int field = 0; field < OUTCOME_FIELDS; field++)
		states[field] = initArrayResult(get_element_type(record_outcomes.types[field]), CurrentMemoryContext, false);
	for (int i = 0; i < count; i++)
	{
		const QueueOutcome *outcome = &outcomes[i];
		const CancelOutcome *judged = &outcome->judged;
		char	   *errors = OidOutputFunctionCall(F_ARRAY_OUT, PointerGetDatum(strlist_to_textarray(judged->errors)));
		Datum		values[OUTCOME_FIELDS] = {
			UUIDPGetDatum(&outcome->app_id),
			UUIDPGetDatum(&outcome->row->message_id),
			TimestampTzGetDatum(outcome->row->requested_at),
			CStringGetTextDatum(queue_state_names[outcome->state]),
			BoolGetDatum(outcome->unanswered),
			Int32GetDatum(judged->status),
			CStringGetTextDatum(errors),
			CStringGetTextDatum(judged->response != NULL ? judged->response : ""),
			TimestampTzGetDatum(outcome->last_attempt_at),
			TimestampTzGetDatum(outcome->state == QUEUE_PENDING ? outcome->next_attempt_at : DT_NOBEGIN),
			TimestampTzGetDatum(outcome->row->send_after)
		};

		for (int field = 0; field < OUTCOME_FIELDS; field++)
			(void) accumArrayResult(states[field], values[field], false, states[field]->element_type,
									CurrentMemoryContext);
	}
	for (int field = 0; field < OUTCOME_FIELDS; field++)
		arrays[field] = makeArrayResult(states[field], CurrentMemoryContext);
	error = statement_try(&record_outcomes, installation.schema, arrays);
	for (int i = 0; i < count; i++)
		outcomes[i].recorded = error != NULL ? QUEUE_UNRECORDABLE : DatumGetInt32(read_column(i, 1));
	if (error == NULL)
		SPI_freetuptable(SPI_tuptable);
	return error;
}

const char *
queue_record(QueueOutcome *outcomes, int count)
{
	const char *problem = NULL;

	if (count == 0 || try_to_record(outcomes, count) == NULL)
		return NULL;
	for (int i = 0; i < count; i++)
	{
		ErrorData  *error = try_to_record(&outcomes[i], 1);

		/* Not its detail, which may hold the whole row. */
		if (error != NULL && problem == NULL)
			problem = error->message;
	}
	return problem;
}

int
queue_expire(const QueueLane *lane, TimestampTz before, const char *reason)
{
	static Statement give_up = {
		.sql = "UPDATE ONLY @onesignal_message SET state = 'failed', errors = ARRAY[$4],"
			   " finished_at = pg_catalog.clock_timestamp(), next_attempt_at = NULL"
			   " WHERE ctid" EQ "ANY (ARRAY(SELECT m.ctid FROM ONLY @onesignal_message AS m"
			   " WHERE m.state" EQ "'pending' AND m.app_id" EQ "$1 AND m.requested_by" EQ "$2"
			   " AND COALESCE(NULLIF(m.send_after, 'infinity'), '-infinity')" LT "$3"
			   " AND m.requested_at" LT "$3 LIMIT 10000 FOR UPDATE SKIP LOCKED))",
		.types = {UUIDOID, NAMEOID, TIMESTAMPTZOID, TEXTOID}
	};
	Datum		values[] = {
		UUIDPGetDatum(&lane->app_id), NameGetDatum(&lane->requested_by),
		TimestampTzGetDatum(before), CStringGetTextDatum(reason)
	};
	ErrorData  *error = statement_try(&give_up, installation.schema, values);

	if (error == NULL)
		return (int) SPI_processed;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("onesignal_cancel: could not give up messages: %s", error->message)));
	return 0;
}

bool
queue_save_app(const QueueApp *app)
{
	static Statement save_app = {
		.sql = "INSERT INTO @onesignal_app AS a (app_id, circuit_until, circuit_role, circuit_reason, pace, last_error,"
			   " canceled_total, refused_total, failed_total, pace_at, last_error_at)"
			   " VALUES ($1, NULLIF($2, '-infinity'), NULLIF($3, ''), NULLIF($4, ''), $5, NULLIF($6, ''), $7, $8, $9,"
			   " pg_catalog.now(), CASE WHEN $6" NE "'' THEN pg_catalog.now() END)"
			   " ON CONFLICT (app_id) DO UPDATE SET circuit_until = excluded.circuit_until,"
			   " circuit_role = excluded.circuit_role, circuit_reason = excluded.circuit_reason,"
			   " pace = excluded.pace, pace_at = excluded.pace_at,"
			   " last_error = COALESCE(excluded.last_error, a.last_error),"
			   " last_error_at = COALESCE(excluded.last_error_at, a.last_error_at),"
			   " canceled_total = a.canceled_total" PLUS "excluded.canceled_total,"
			   " refused_total = a.refused_total" PLUS "excluded.refused_total,"
			   " failed_total = a.failed_total" PLUS "excluded.failed_total",
		.types = {UUIDOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, FLOAT8OID, TEXTOID, INT8OID, INT8OID, INT8OID}
	};
	static char logged[256] = "";
	Datum		values[] = {
		UUIDPGetDatum(&app->app_id),
		TimestampTzGetDatum(app->circuit_until),
		CStringGetTextDatum(app->circuit_role),
		CStringGetTextDatum(app->circuit_reason),
		Float8GetDatum(app->pace),
		CStringGetTextDatum(app->last_error != NULL ? app->last_error : ""),
		Int64GetDatum(app->totals[QUEUE_CANCELED]),
		Int64GetDatum(app->totals[QUEUE_REFUSED]),
		Int64GetDatum(app->totals[QUEUE_FAILED])
	};
	int			level = NewGUCNestLevel();
	ErrorData  *error;

	/* Most sessions have an app's row locked for a millisecond; what cannot be saved is saved later. */
	SetConfigOption("lock_timeout", "10ms", PGC_SUSET, PGC_S_SESSION);
	error = statement_try(&save_app, installation.schema, values);
	AtEOXact_GUC(false, level);
	/* Logged once, although it is tried again each time. */
	if (error != NULL && error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE &&
		strncmp(logged, error->message, sizeof(logged) - 1) != 0)
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("onesignal_cancel: could not save the state of apps: %s", error->message)));
	strlcpy(logged, error != NULL ? error->message : "", sizeof(logged));
	return error == NULL;
}
