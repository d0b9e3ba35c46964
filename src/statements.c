/*
 * statements.c
 *		The SQL statements on onesignal_message and onesignal_app.
 *
 * Each is one constant string, prepared once a process.  "@" stands for the
 * extension's schema, which the user chose: it is put in when the statement is
 * prepared, and all are prepared again when its name is another one.  Tables
 * that were dropped and made again are the plan cache's business.
 *
 * Operators and functions are qualified, for some of these run with the
 * caller's search_path.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "statements.h"

#define STATEMENT_PARAMETERS_MAX 9

#define EQ " OPERATOR(pg_catalog.=) "
#define NE " OPERATOR(pg_catalog.<>) "
#define GT " OPERATOR(pg_catalog.>) "
#define LT " OPERATOR(pg_catalog.<) "
#define GE " OPERATOR(pg_catalog.>=) "
#define PLUS " OPERATOR(pg_catalog.+) "

/* The order of delivery within a lane, as onesignal_message_pending has it. */
#define POSITION "COALESCE(send_after, '-infinity'::pg_catalog.timestamptz), message_id"

#define FETCH \
	"SELECT message_id, send_after, requested_at, next_attempt_at, first_attempt_at," \
	" attempts, unanswered, last_attempt_at, http_status" \
	" FROM @onesignal_message" \
	" WHERE state" EQ "'pending' AND app_id" EQ "$1 AND requested_by" EQ "$2" \
	" AND requested_at IS NOT NULL"

/*
 * The row that an outcome may be written to.  A cancel that worked is the
 * truth, whatever the row says now; anything else counts only for the request
 * that it was sent for.
 *
 * Plain equality would let the planner, misled by the statistics of a table
 * that was empty, read the whole index for each outcome, since its order might
 * be of use to the join; that of an array's element is of none.
 */
#define IS_ROW_OF_OUTCOME \
	"m.message_id" EQ "ANY (ARRAY[o.message_id]) AND m.app_id" EQ "ANY (ARRAY[o.app_id])" \
	" AND ((o.state" EQ "'canceled' AND m.state" NE "'canceled')" \
	" OR (m.state" EQ "'pending' AND m.requested_at" EQ "o.requested_at))"

/* A lateral subquery that cannot be pulled up, to be joined by address. */
#define ROW_OF_OUTCOME \
	"SELECT m.ctid AS address FROM @onesignal_message AS m WHERE " IS_ROW_OF_OUTCOME

/* An array for each field of QueueOutcome, errors NULL for none */
#define OUTCOMES \
	"ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3)," \
	" pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6)," \
	" pg_catalog.unnest($7), pg_catalog.unnest($8), pg_catalog.unnest($9)) WITH ORDINALITY" \
	" AS o (app_id, message_id, requested_at, state, http_status, errors, response," \
	" last_attempt_at, next_attempt_at, ordinal)"
#define OUTCOME_PARAMETERS \
	9, {UUIDARRAYOID, UUIDARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, INT4ARRAYOID, \
		TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID}

#define WRITE_OUTCOME \
	"UPDATE @onesignal_message AS m SET state = o.state::@onesignal_message_state," \
	" http_status = o.http_status, errors = COALESCE(o.errors::pg_catalog.text[], '{}')," \
	" response = o.response::pg_catalog.jsonb, attempts = m.attempts" PLUS "1," \
	" unanswered = m.unanswered OR o.http_status IS NULL," \
	" first_attempt_at = COALESCE(m.first_attempt_at, o.last_attempt_at)," \
	" last_attempt_at = o.last_attempt_at, next_attempt_at = o.next_attempt_at," \
	" finished_at = CASE WHEN o.state" NE "'pending' THEN pg_catalog.clock_timestamp() END"

/* Never waits for onesignal_cancel_pause() in a transaction left open. */
#define UNLOCKED_APP \
	"WITH unlocked AS MATERIALIZED (" \
	"SELECT app_id FROM @onesignal_app WHERE app_id" EQ "$1" \
	" FOR NO KEY UPDATE SKIP LOCKED)" \
	" UPDATE @onesignal_app AS a SET "
#define OF_UNLOCKED_APP \
	" FROM unlocked WHERE a.app_id" EQ "unlocked.app_id"

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

	/* A loose index scan: as many probes as there are lanes, however long they are. */
	[STATEMENT_LANES] = {
		"WITH RECURSIVE lane AS ("
		"(SELECT app_id, requested_by FROM @onesignal_message WHERE state" EQ "'pending'"
		" ORDER BY app_id, requested_by LIMIT 1)"
		" UNION ALL"
		" SELECT next.app_id, next.requested_by FROM lane CROSS JOIN LATERAL ("
		"SELECT m.app_id, m.requested_by FROM @onesignal_message m WHERE m.state" EQ "'pending'"
		" AND (m.app_id, m.requested_by)" GT "(lane.app_id, lane.requested_by)"
		" ORDER BY m.app_id, m.requested_by LIMIT 1) AS next)"
		" SELECT app_id, requested_by FROM lane WHERE requested_by IS NOT NULL",
		0, {0}
	},

	/* app_id, requested_by, limit */
	[STATEMENT_FETCH_HEAD] = {
		FETCH " ORDER BY " POSITION " LIMIT $3",
		3, {UUIDOID, NAMEOID, INT8OID}
	},

	/* app_id, requested_by, limit, and the last row's send_after and message_id */
	[STATEMENT_FETCH_NEXT] = {
		FETCH " AND (" POSITION ")" GT "($4, $5) ORDER BY " POSITION " LIMIT $3",
		5, {UUIDOID, NAMEOID, INT8OID, TIMESTAMPTZOID, UUIDOID}
	},

	/* Returns the ordinality of the outcomes that were written.  Waits for rows that are locked. */
	[STATEMENT_RECORD] = {
		WRITE_OUTCOME " FROM " OUTCOMES " WHERE " IS_ROW_OF_OUTCOME " RETURNING o.ordinal",
		OUTCOME_PARAMETERS
	},

	/* The same, but leaves out the rows that somebody has locked; half as slow again. */
	[STATEMENT_RECORD_UNLOCKED] = {
		"WITH unlocked AS MATERIALIZED ("
		"SELECT o.*, m.address FROM " OUTCOMES
		" CROSS JOIN LATERAL (" ROW_OF_OUTCOME " FOR NO KEY UPDATE SKIP LOCKED) AS m) "
		WRITE_OUTCOME " FROM unlocked AS o WHERE m.ctid" EQ "o.address RETURNING o.ordinal",
		OUTCOME_PARAMETERS
	},

	/*
	 * The first four arrays of STATEMENT_RECORD.  Of those that it left out:
	 * which have a row all the same.  Asked apart, since in the same statement
	 * it would cost the square of their number.
	 */
	[STATEMENT_OWED] = {
		"SELECT o.ordinal FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2),"
		" pg_catalog.unnest($3), pg_catalog.unnest($4)) WITH ORDINALITY"
		" AS o (app_id, message_id, requested_at, state, ordinal)"
		" CROSS JOIN LATERAL (" ROW_OF_OUTCOME " OFFSET 0) AS m",
		4, {UUIDARRAYOID, UUIDARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID}
	},

	[STATEMENT_APPS] = {
		"SELECT app_id, paused_until, circuit_until, circuit_role, circuit_reason, pace,"
		" last_error FROM @onesignal_app",
		0, {0}
	},

	/* app_id */
	[STATEMENT_CREATE_APP] = {
		"INSERT INTO @onesignal_app (app_id) VALUES ($1) ON CONFLICT (app_id) DO NOTHING",
		1, {UUIDOID}
	},

	/* app_id, circuit_until, circuit_role, circuit_reason, pace, last_error or NULL to keep it */
	[STATEMENT_SAVE_APP] = {
		UNLOCKED_APP
		"circuit_until = $2, circuit_role = $3, circuit_reason = $4, pace = $5,"
		" last_error = COALESCE($6, a.last_error),"
		" last_error_at = CASE WHEN $6 IS NULL THEN a.last_error_at ELSE pg_catalog.now() END"
		OF_UNLOCKED_APP,
		6, {UUIDOID, TIMESTAMPTZOID, NAMEOID, TEXTOID, FLOAT8OID, TEXTOID}
	},

	/* app_id, and how many more were canceled, refused, failed */
	[STATEMENT_ADD_TOTALS] = {
		UNLOCKED_APP
		"canceled_total = a.canceled_total" PLUS "$2,"
		" refused_total = a.refused_total" PLUS "$3,"
		" failed_total = a.failed_total" PLUS "$4"
		OF_UNLOCKED_APP,
		4, {UUIDOID, INT8OID, INT8OID, INT8OID}
	},

	/* app_id.  Without a row in onesignal_app it may read all messages: for a mistyped id. */
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
		" circuit_until = NULL, circuit_role = NULL, circuit_reason = NULL"
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

static char *
with_schema(const char *sql, const char *schema)
{
	const char *quoted = quote_identifier(schema);
	StringInfoData text;

	initStringInfo(&text);
	for (; *sql != '\0'; sql++)
	{
		if (*sql == '@')
			appendStringInfo(&text, "%s.", quoted);
		else
			appendStringInfoChar(&text, *sql);
	}
	return text.data;
}

static SPIPlanPtr
prepare(Statement which)
{
	const StatementText *statement = &statements[which];
	const Oid  *parameters = statement->parameters;
	SPIPlanPtr	plan = SPI_prepare(with_schema(statement->sql, NameStr(prepared_for)),
								   statement->parameter_count, unconstify(Oid *, parameters));

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
