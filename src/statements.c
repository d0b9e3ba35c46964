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
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "statements.h"

#define STATEMENT_PARAMETERS_MAX 10

#define EQ " OPERATOR(pg_catalog.=) "
#define NE " OPERATOR(pg_catalog.<>) "
#define GT " OPERATOR(pg_catalog.>) "
#define LT " OPERATOR(pg_catalog.<) "
#define GE " OPERATOR(pg_catalog.>=) "
#define PLUS " OPERATOR(pg_catalog.+) "
#define MINUS " OPERATOR(pg_catalog.-) "

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
	" pg_catalog.unnest($7), pg_catalog.unnest($8), pg_catalog.unnest($9)," \
	" pg_catalog.unnest($10)) WITH ORDINALITY" \
	" AS o (app_id, message_id, requested_at, state, unanswered, http_status, errors, response," \
	" last_attempt_at, next_attempt_at, ordinal)"

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

	/*
	 * Of each lane (app_id, requested_by) the rows from a position on, at
	 * most so many, in the order of delivery.
	 */
	[STATEMENT_FETCH] = {
		"SELECT l.ordinal, m.message_id, m.send_after, m.requested_at, m.next_attempt_at,"
		" m.first_attempt_at, m.attempts, m.unanswered, m.last_attempt_at, m.http_status"
		" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"
		" pg_catalog.unnest($4), pg_catalog.unnest($5)) WITH ORDINALITY"
		" AS l (app_id, requested_by, send_after, message_id, count, ordinal)"
		" CROSS JOIN LATERAL (SELECT * FROM @onesignal_message"
		" WHERE state" EQ "'pending' AND app_id" EQ "l.app_id AND requested_by" EQ "l.requested_by"
		" AND (COALESCE(send_after, '-infinity'::pg_catalog.timestamptz), onesignal_message.message_id)"
		GE "(l.send_after, l.message_id)"
		" ORDER BY COALESCE(send_after, '-infinity'::pg_catalog.timestamptz), onesignal_message.message_id"
		" LIMIT l.count) AS m",
		5, {UUIDARRAYOID, NAMEARRAYOID, TIMESTAMPTZARRAYOID, UUIDARRAYOID, INT4ARRAYOID}
	},

	/*
	 * Returns the ordinality of the outcomes that were written; leaves out
	 * the rows that somebody has locked.
	 */
	[STATEMENT_RECORD] = {
		"WITH unlocked AS MATERIALIZED ("
		"SELECT o.*, m.address FROM " OUTCOMES
		" CROSS JOIN LATERAL (" ROW_OF_OUTCOME " FOR NO KEY UPDATE SKIP LOCKED) AS m)"
		" UPDATE @onesignal_message AS m SET state = o.state::@onesignal_message_state,"
		" http_status = o.http_status, errors = COALESCE(o.errors::pg_catalog.text[], '{}'),"
		" response = o.response::pg_catalog.jsonb, attempts = m.attempts" PLUS "1,"
		" unanswered = m.unanswered OR o.unanswered,"
		" first_attempt_at = COALESCE(m.first_attempt_at, o.last_attempt_at),"
		" last_attempt_at = o.last_attempt_at, next_attempt_at = o.next_attempt_at,"
		" finished_at = CASE WHEN o.state" NE "'pending' THEN pg_catalog.clock_timestamp() END"
		" FROM unlocked AS o WHERE m.ctid" EQ "o.address RETURNING o.ordinal",
		10, {UUIDARRAYOID, UUIDARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, BOOLARRAYOID,
		INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID}
	},

	/*
	 * The first four arrays of STATEMENT_RECORD.  Of those that it left out:
	 * which have a row all the same.  Asked apart, since in the same statement
	 * it would cost the square of their number.
	 */
	[STATEMENT_UNRECORDED] = {
		"SELECT o.ordinal FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2),"
		" pg_catalog.unnest($3), pg_catalog.unnest($4)) WITH ORDINALITY"
		" AS o (app_id, message_id, requested_at, state, ordinal)"
		" CROSS JOIN LATERAL (" ROW_OF_OUTCOME " OFFSET 0) AS m",
		4, {UUIDARRAYOID, UUIDARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID}
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

	/* app_ids */
	[STATEMENT_CREATE_APPS] = {
		"INSERT INTO @onesignal_app (app_id) SELECT pg_catalog.unnest($1) ON CONFLICT (app_id) DO NOTHING",
		1, {UUIDARRAYOID}
	},

	/*
	 * An array for each field of QueueApp that is saved.  Returns the
	 * ordinality of those that were, leaving out those that somebody has
	 * locked: it never waits for onesignal_cancel_pause() in a transaction
	 * left open.
	 */
	[STATEMENT_SAVE_APPS] = {
		"WITH unlocked AS MATERIALIZED ("
		"SELECT s.* FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"
		" pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7),"
		" pg_catalog.unnest($8), pg_catalog.unnest($9)) WITH ORDINALITY"
		" AS s (app_id, circuit_until, circuit_role, circuit_reason, pace, last_error,"
		" canceled, refused, failed, ordinal)"
		" CROSS JOIN LATERAL (SELECT FROM @onesignal_app AS a WHERE a.app_id" EQ "s.app_id"
		" FOR NO KEY UPDATE SKIP LOCKED) AS a)"
		" UPDATE @onesignal_app AS a SET circuit_until = s.circuit_until, circuit_role = s.circuit_role,"
		" circuit_reason = s.circuit_reason, pace = s.pace, pace_at = pg_catalog.now(),"
		" last_error = COALESCE(s.last_error, a.last_error),"
		" last_error_at = CASE WHEN s.last_error IS NULL THEN a.last_error_at ELSE pg_catalog.now() END,"
		" canceled_total = a.canceled_total" PLUS "s.canceled,"
		" refused_total = a.refused_total" PLUS "s.refused,"
		" failed_total = a.failed_total" PLUS "s.failed"
		" FROM unlocked AS s WHERE a.app_id" EQ "s.app_id RETURNING s.ordinal",
		9, {UUIDARRAYOID, TIMESTAMPTZARRAYOID, NAMEARRAYOID, TEXTARRAYOID, FLOAT8ARRAYOID,
		TEXTARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID}
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

void
statement_rows_begin(StatementRows *rows, Statement which, int max)
{
	rows->which = which;
	rows->columns = statements[which].parameter_count;
	rows->count = 0;
	rows->max = max;
	rows->values = palloc(sizeof(Datum) * rows->columns * Max(max, 1));
	rows->nulls = palloc(sizeof(bool) * rows->columns * Max(max, 1));
}

void
statement_rows_add(StatementRows *rows, const Datum *values, const bool *nulls)
{
	Assert(rows->count < rows->max);
	for (int column = 0; column < rows->columns; column++)
	{
		rows->values[column * rows->max + rows->count] = values[column];
		rows->nulls[column * rows->max + rows->count] = nulls != NULL && nulls[column];
	}
	rows->count++;
}

uint64
statement_rows_run(StatementRows *rows, Oid schema)
{
	Datum		arrays[STATEMENT_PARAMETERS_MAX];
	int			lower = 1;

	for (int column = 0; column < rows->columns; column++)
	{
		Oid			type = get_element_type(statements[rows->which].parameters[column]);
		int16		length;
		bool		by_value;
		char		alignment;

		get_typlenbyvalalign(type, &length, &by_value, &alignment);
		arrays[column] = PointerGetDatum(construct_md_array(rows->values + column * rows->max,
															rows->nulls + column * rows->max,
															1, &rows->count, &lower, type,
															length, by_value, alignment));
	}
	return statement_run(rows->which, schema, arrays, NULL);
}
