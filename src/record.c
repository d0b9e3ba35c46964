/*
 * record.c
 *		Writing what came of attempts, past whatever others hold locked.
 *
 * The deliverer must not wait for a session that left a transaction open, and
 * one row that cannot be written must not keep hundreds of outcomes from being
 * written.  So a batch is written in a subtransaction, which waits a
 * millisecond for rows that are locked; then with a statement that skips these,
 * for them to be reported; then, if one could not be written, row by row.
 *
 * The totals of onesignal_app change in the same transaction as the rows that
 * they count.  While somebody has an app's row locked, what it is owed is kept
 * in this process.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "http.h"
#include "record.h"

/* Arrays that STATEMENT_RECORD takes; STATEMENT_OWED takes the first four. */
#define RECORD_ARRAYS 9

/*
 * How long to wait for a session that is about to make an app's first row.
 * Most do so in a transaction of a millisecond; no other is waited for.
 */
#define APP_LOCK_TIMEOUT "10ms"

/*
 * The least there is, for each lock that has to be waited for, most likely a
 * row's.  Where one was locked, others may be, for so long.
 */
#define ROW_LOCK_TIMEOUT "1ms"
#define ROWS_LOCKED_US INT64CONST(1000000)

static const char *const state_names[] = {
	[QUEUE_PENDING] = "pending",
	[QUEUE_CANCELED] = "canceled",
	[QUEUE_REFUSED] = "refused",
	[QUEUE_FAILED] = "failed",
};

/* An app's changes of state that are not yet part of its totals. */
typedef struct Tally
{
	pg_uuid_t	app_id;
	int64		owed[QUEUE_FAILED + 1]; /* by transactions that were committed */
	int64		change[QUEUE_FAILED + 1];	/* of it, by the open transaction */
} Tally;

/* Of Tally, in TopMemoryContext: one for each app that this process delivered for. */
static List *tallies = NIL;

/* Until then it is likely that rows are locked. */
static int64 rows_locked_until_us = 0;

/* A batch on its way through a subtransaction. */
typedef struct Batch
{
	Oid			schema;
	const QueueOutcome *outcomes;
	int			count;
	QueueRecorded *recorded;
	bool	   *written;		/* else it is dropped, or locked */
	bool		skips_locked;
} Batch;

/* ---- subtransactions ---- */

/*
 * Does it in a subtransaction.  Returns NULL, or the error that rolled it
 * back; raises those that say that nothing else will work either.
 */
static ErrorData *
attempt(void (*work) (void *), void *argument)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner resources = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	int			category;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		work(argument);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		/* First: copying can fail for lack of memory, and nobody else would end the subtransaction. */
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = resources;

	if (error == NULL)
		return NULL;
	category = ERRCODE_TO_CATEGORY(error->sqlerrcode);
	if (category == ERRCODE_TO_CATEGORY(ERRCODE_QUERY_CANCELED) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_INVALID_TRANSACTION_STATE) ||
		error->sqlerrcode == ERRCODE_UNDEFINED_TABLE)
		ReThrowError(error);
	return error;
}

/* For use in attempt(), which puts the setting back if this raises 55P03. */
static uint64
run_impatiently(const char *lock_timeout, Statement which, Oid schema, Datum *values)
{
	int			level = NewGUCNestLevel();
	uint64		count;

	(void) set_config_option("lock_timeout", lock_timeout, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	count = statement_run(which, schema, values, NULL);
	AtEOXact_GUC(false, level);
	return count;
}

/* ---- totals ---- */

void
record_begin(void)
{
	ListCell   *cell;

	foreach(cell, tallies)
		memset(((Tally *) lfirst(cell))->change, 0, sizeof(((Tally *) NULL)->change));
}

void
record_committed(void)
{
	ListCell   *cell;

	foreach(cell, tallies)
	{
		Tally	   *tally = lfirst(cell);

		for (int state = 0; state <= QUEUE_FAILED; state++)
			tally->owed[state] += tally->change[state];
	}
	record_begin();
}

static Tally *
tally_of(const pg_uuid_t *app_id)
{
	MemoryContext old;
	ListCell   *cell;
	Tally	   *tally;

	foreach(cell, tallies)
	{
		tally = lfirst(cell);
		if (memcmp(&tally->app_id, app_id, sizeof(pg_uuid_t)) == 0)
			return tally;
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	tally = palloc0(sizeof(Tally));
	tally->app_id = *app_id;
	tallies = lappend(tallies, tally);
	MemoryContextSwitchTo(old);
	return tally;
}

typedef struct AppCreation
{
	Oid			schema;
	Datum		app_id;
} AppCreation;

static void
create_app(void *argument)
{
	AppCreation *creation = argument;

	(void) run_impatiently(APP_LOCK_TIMEOUT, STATEMENT_CREATE_APP, creation->schema, &creation->app_id);
}

bool
record_app(Oid schema, Statement which, Datum *values, const char *nulls)
{
	AppCreation creation = {schema, values[0]};
	ErrorData  *error;

	if (statement_run(which, schema, values, nulls) > 0)
		return true;
	error = attempt(create_app, &creation);
	if (error != NULL && error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
		ReThrowError(error);
	return statement_run(which, schema, values, nulls) > 0;
}

static void
save_tallies(Oid schema)
{
	ListCell   *cell;

	foreach(cell, tallies)
	{
		Tally	   *tally = lfirst(cell);
		Datum		values[QUEUE_FAILED + 1] = {UUIDPGetDatum(&tally->app_id)};
		int64		sum = 0;

		for (int state = QUEUE_CANCELED; state <= QUEUE_FAILED; state++)
		{
			sum += tally->owed[state] + tally->change[state];
			values[state] = Int64GetDatum(tally->owed[state] + tally->change[state]);
		}
		if (sum > 0 && record_app(schema, STATEMENT_ADD_TOTALS, values, NULL))
			for (int state = QUEUE_CANCELED; state <= QUEUE_FAILED; state++)
				tally->change[state] = -tally->owed[state];
	}
}

/* ---- outcomes ---- */

static Datum
text_or_null(const char *text, bool *isnull)
{
	*isnull = text == NULL;
	return *isnull ? (Datum) 0 : CStringGetTextDatum(text);
}

/* As an array's text, since unnest() would take an array of arrays apart; NULL for none. */
static Datum
errors_literal(const QueueOutcome *outcome, bool *isnull)
{
	Datum	   *elements;
	ArrayType  *array;

	*isnull = outcome->error_count == 0;
	if (*isnull)
		return (Datum) 0;
	elements = palloc(sizeof(Datum) * outcome->error_count);
	for (int i = 0; i < outcome->error_count; i++)
		elements[i] = CStringGetTextDatum(outcome->errors[i]);
	array = construct_array(elements, outcome->error_count, TEXTOID, -1, false, TYPALIGN_INT);
	return CStringGetTextDatum(OidOutputFunctionCall(F_ARRAY_OUT, PointerGetDatum(array)));
}

/* In the order of the statement's parameters. */
static void
outcome_fields(const QueueOutcome *outcome, Datum *fields, bool *nulls)
{
	memset(nulls, 0, sizeof(bool) * RECORD_ARRAYS);
	fields[0] = UUIDPGetDatum(&outcome->app_id);
	fields[1] = UUIDPGetDatum(&outcome->message_id);
	fields[2] = TimestampTzGetDatum(outcome->requested_at);
	fields[3] = CStringGetTextDatum(state_names[outcome->state]);
	fields[4] = Int32GetDatum(outcome->http_status);
	nulls[4] = outcome->http_status == 0;
	fields[5] = errors_literal(outcome, &nulls[5]);
	fields[6] = text_or_null(outcome->response, &nulls[6]);
	fields[7] = TimestampTzGetDatum(outcome->last_attempt_at);
	fields[8] = TimestampTzGetDatum(outcome->next_attempt_at);
	nulls[8] = outcome->state != QUEUE_PENDING;
}

static void
make_arrays(const QueueOutcome *outcomes, int count, Datum *arrays)
{
	static const Oid types[RECORD_ARRAYS] = {
		UUIDOID, UUIDOID, TIMESTAMPTZOID, TEXTOID, INT4OID, TEXTOID, TEXTOID,
		TIMESTAMPTZOID, TIMESTAMPTZOID
	};
	Datum	   *elements = palloc(sizeof(Datum) * RECORD_ARRAYS * count);
	bool	   *nulls = palloc(sizeof(bool) * RECORD_ARRAYS * count);
	int			lower = 1;

	for (int i = 0; i < count; i++)
	{
		Datum		fields[RECORD_ARRAYS];
		bool		field_nulls[RECORD_ARRAYS];

		outcome_fields(&outcomes[i], fields, field_nulls);
		for (int field = 0; field < RECORD_ARRAYS; field++)
		{
			elements[field * count + i] = fields[field];
			nulls[field * count + i] = field_nulls[field];
		}
	}
	for (int field = 0; field < RECORD_ARRAYS; field++)
	{
		int16		length;
		bool		by_value;
		char		alignment;

		get_typlenbyvalalign(types[field], &length, &by_value, &alignment);
		arrays[field] = PointerGetDatum(construct_md_array(elements + field * count, nulls + field * count,
														   1, &count, &lower, types[field],
														   length, by_value, alignment));
	}
}

/* The ordinality that a row returned: from 0. */
static int
returned_ordinal(int row)
{
	bool		isnull;

	return (int) DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, 1, &isnull)) - 1;
}

/* Of what was not written: is there a row to write it to, which must be locked, or none? */
static void
find_locked(Batch *batch)
{
	QueueOutcome *rest = palloc(sizeof(QueueOutcome) * batch->count);
	int		   *origin = palloc(sizeof(int) * batch->count);
	Datum		arrays[RECORD_ARRAYS];
	int			count = 0;

	for (int i = 0; i < batch->count; i++)
	{
		if (batch->written[i])
			continue;
		origin[count] = i;
		rest[count++] = batch->outcomes[i];
	}
	if (count == 0)
		return;
	make_arrays(rest, count, arrays);
	count = (int) statement_run(STATEMENT_OWED, batch->schema, arrays, NULL);
	for (int row = 0; row < count; row++)
		batch->recorded[origin[returned_ordinal(row)]] = QUEUE_LOCKED;
	SPI_freetuptable(SPI_tuptable);
}

static void
write_batch(void *argument)
{
	Batch	   *batch = argument;
	Datum		arrays[RECORD_ARRAYS];
	int			count;

	for (int i = 0; i < batch->count; i++)
	{
		batch->written[i] = false;
		batch->recorded[i] = QUEUE_RECORDED;
	}
	make_arrays(batch->outcomes, batch->count, arrays);
	count = (int) (batch->skips_locked ?
				   statement_run(STATEMENT_RECORD_UNLOCKED, batch->schema, arrays, NULL) :
				   run_impatiently(ROW_LOCK_TIMEOUT, STATEMENT_RECORD, batch->schema, arrays));
	for (int row = 0; row < count; row++)
		batch->written[returned_ordinal(row)] = true;
	SPI_freetuptable(SPI_tuptable);
	find_locked(batch);
}

static ErrorData *
try_batch(Batch *batch)
{
	int64		now_us = http_clock_us();
	ErrorData  *error;

	batch->skips_locked = now_us < rows_locked_until_us;
	error = attempt(write_batch, batch);
	if (error != NULL && error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
	{
		rows_locked_until_us = now_us + ROWS_LOCKED_US;
		batch->skips_locked = true;
		error = attempt(write_batch, batch);
	}
	for (int i = 0; error == NULL && i < batch->count; i++)
		if (batch->written[i])
			tally_of(&batch->outcomes[i].app_id)->change[batch->outcomes[i].state]++;
	return error;
}

void
record_outcomes(Oid schema, const QueueOutcome *outcomes, int count, QueueRecorded *recorded)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	bool	   *written = palloc(sizeof(bool) * (count + 1));
	Batch		batch = {schema, outcomes, count, recorded, written, false};

	if (count > 0 && try_batch(&batch) != NULL)
		for (int i = 0; i < count; i++)
		{
			Batch		single = {schema, &outcomes[i], 1, &recorded[i], &written[i], false};
			ErrorData  *error = try_batch(&single);

			if (error == NULL)
				continue;
			recorded[i] = QUEUE_UNRECORDABLE;
			/* Its detail may hold the whole row. */
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("could not record what came of message %s of app %s: %s",
							DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&outcomes[i].message_id))),
							DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&outcomes[i].app_id))),
							error->message)));
		}
	save_tallies(schema);
	MemoryContextSwitchTo(old);
}
