/*
 * record.c
 *		Writing the outcomes of attempts, past whatever others have locked.
 *
 * The deliverer must not wait for a session that left a transaction open, and
 * one row that cannot be written must not keep hundreds of outcomes from being
 * written.  So a batch is written in a subtransaction, by a statement that
 * skips locked rows; and when one of its rows cannot be written, row by row.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "record.h"
#include "statements.h"

/* Columns of STATEMENT_RECORD; STATEMENT_UNRECORDED takes the first four. */
#define OUTCOME_COLUMNS 10
#define APP_COLUMNS 9

/*
 * How long to wait for a session that is about to make an app's first row.
 * Most do so in a transaction of a millisecond; no other is waited for.
 */
#define APP_LOCK_TIMEOUT "10ms"

static const char *const state_names[QUEUE_STATES] = {
	[QUEUE_PENDING] = "pending",
	[QUEUE_CANCELED] = "canceled",
	[QUEUE_REFUSED] = "refused",
	[QUEUE_FAILED] = "failed",
};

typedef struct Batch
{
	Oid			schema;
	const QueueOutcome *outcomes;
	int			count;
	QueueRecorded *recorded;
} Batch;

/* ---- subtransactions ---- */

/* Errors after which nothing else will work in this transaction either, and interrupts. */
static bool
ends_transaction(int sqlstate)
{
	int			category = ERRCODE_TO_CATEGORY(sqlstate);

	return category == ERRCODE_TO_CATEGORY(ERRCODE_QUERY_CANCELED) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_INVALID_TRANSACTION_STATE) ||
		sqlstate == ERRCODE_OUT_OF_MEMORY ||
		sqlstate == ERRCODE_UNDEFINED_TABLE ||
		sqlstate == ERRCODE_UNDEFINED_SCHEMA;
}

/*
 * Does it in a subtransaction.  Returns NULL, or the error that rolled it
 * back; raises those that ends_transaction().  The rollback comes first:
 * copying the error allocates, and without memory it would leave the
 * subtransaction open for ever.
 */
static ErrorData *
record_attempt(void (*work) (void *), void *argument)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner resources = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		work(argument);
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

	if (error != NULL && ends_transaction(error->sqlerrcode))
		ReThrowError(error);
	return error;
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

static void
add_outcome(StatementRows *rows, const QueueOutcome *outcome)
{
	Datum		values[OUTCOME_COLUMNS];
	bool		nulls[OUTCOME_COLUMNS] = {0};

	values[0] = UUIDPGetDatum(&outcome->app_id);
	values[1] = UUIDPGetDatum(&outcome->message_id);
	values[2] = TimestampTzGetDatum(outcome->requested_at);
	values[3] = CStringGetTextDatum(state_names[outcome->state]);
	values[4] = BoolGetDatum(outcome->unanswered);
	values[5] = Int32GetDatum(outcome->http_status);
	nulls[5] = outcome->http_status == 0;
	values[6] = errors_literal(outcome, &nulls[6]);
	values[7] = text_or_null(outcome->response, &nulls[7]);
	values[8] = TimestampTzGetDatum(outcome->last_attempt_at);
	values[9] = TimestampTzGetDatum(outcome->next_attempt_at);
	nulls[9] = outcome->state != QUEUE_PENDING;
	statement_rows_add(rows, values, nulls);
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
	StatementRows rows;
	int		   *origin = palloc(sizeof(int) * batch->count);
	int			count = 0;

	statement_rows_begin(&rows, STATEMENT_UNRECORDED, batch->count);
	for (int i = 0; i < batch->count; i++)
	{
		if (batch->recorded[i] == QUEUE_RECORDED)
			continue;
		origin[count++] = i;
		add_outcome(&rows, &batch->outcomes[i]);
	}
	if (count == 0)
		return;
	count = (int) statement_rows_run(&rows, batch->schema);
	for (int row = 0; row < count; row++)
		batch->recorded[origin[returned_ordinal(row)]] = QUEUE_LOCKED;
	SPI_freetuptable(SPI_tuptable);
}

static void
write_batch(void *argument)
{
	Batch	   *batch = argument;
	StatementRows rows;
	int			count;

	statement_rows_begin(&rows, STATEMENT_RECORD, batch->count);
	for (int i = 0; i < batch->count; i++)
	{
		batch->recorded[i] = QUEUE_DROPPED;
		add_outcome(&rows, &batch->outcomes[i]);
	}
	count = (int) statement_rows_run(&rows, batch->schema);
	for (int row = 0; row < count; row++)
		batch->recorded[returned_ordinal(row)] = QUEUE_RECORDED;
	SPI_freetuptable(SPI_tuptable);
	find_locked(batch);
}

void
record_outcomes(Oid schema, const QueueOutcome *outcomes, int count,
				QueueRecorded *recorded, char **error)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Batch		all = {schema, outcomes, count, recorded};

	*error = NULL;
	if (count > 0 && record_attempt(write_batch, &all) != NULL)
		for (int i = 0; i < count; i++)
		{
			Batch		single = {schema, &outcomes[i], 1, &recorded[i]};
			ErrorData  *failure = record_attempt(write_batch, &single);

			if (failure == NULL)
				continue;
			recorded[i] = QUEUE_UNRECORDABLE;
			/* Its detail may hold the whole row. */
			if (*error == NULL)
				*error = MemoryContextStrdup(old, failure->message);
		}
	MemoryContextSwitchTo(old);
}

typedef struct Expiry
{
	Oid			schema;
	Datum		values[4];
	int			count;
} Expiry;

static void
expire(void *argument)
{
	Expiry	   *expiry = argument;

	expiry->count = (int) statement_run(STATEMENT_EXPIRE, expiry->schema, expiry->values, NULL);
}

int
record_expired(Oid schema, const QueueLane *lane, TimestampTz before, const char *reason)
{
	Expiry		expiry = {
		.schema = schema,
		.values = {
			UUIDPGetDatum(&lane->app_id),
			NameGetDatum(&lane->requested_by),
			TimestampTzGetDatum(before),
			CStringGetTextDatum(reason),
		}
	};
	ErrorData  *error = record_attempt(expire, &expiry);

	if (error == NULL)
		return expiry.count;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("onesignal_cancel: could not give up messages: %s", error->message)));
	return 0;
}

/* ---- onesignal_app ---- */

typedef struct AppCreation
{
	Oid			schema;
	StatementRows rows;
} AppCreation;

/* For use in record_attempt(), which puts the setting back if this raises 55P03. */
static void
create_apps(void *argument)
{
	AppCreation *creation = argument;
	int			level = NewGUCNestLevel();

	(void) set_config_option("lock_timeout", APP_LOCK_TIMEOUT, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) statement_rows_run(&creation->rows, creation->schema);
	AtEOXact_GUC(false, level);
}

static void
create_missing_apps(Oid schema, const QueueApp *apps, int count)
{
	AppCreation creation = {.schema = schema};
	ErrorData  *error;

	statement_rows_begin(&creation.rows, STATEMENT_CREATE_APPS, count);
	for (int i = 0; i < count; i++)
	{
		Datum		app_id = UUIDPGetDatum(&apps[i].app_id);

		if (!apps[i].exists)
			statement_rows_add(&creation.rows, &app_id, NULL);
	}
	if (creation.rows.count == 0)
		return;
	error = record_attempt(create_apps, &creation);
	if (error != NULL && error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
		ReThrowError(error);
}

static void
add_app(StatementRows *rows, const QueueApp *app)
{
	Datum		values[APP_COLUMNS];
	bool		nulls[APP_COLUMNS] = {0};
	NameData	role;

	namestrcpy(&role, app->circuit_role != NULL ? app->circuit_role : "");
	values[0] = UUIDPGetDatum(&app->app_id);
	values[1] = TimestampTzGetDatum(app->circuit_until);
	nulls[1] = app->circuit_until == 0;
	values[2] = PointerGetDatum(memcpy(palloc(NAMEDATALEN), &role, NAMEDATALEN));
	nulls[2] = app->circuit_role == NULL;
	values[3] = text_or_null(app->circuit_reason, &nulls[3]);
	values[4] = Float8GetDatum(app->pace);
	values[5] = text_or_null(app->last_error, &nulls[5]);
	for (int state = QUEUE_CANCELED; state <= QUEUE_FAILED; state++)
		values[5 + state] = Int64GetDatum(app->totals[state]);
	statement_rows_add(rows, values, nulls);
}

typedef struct Saving
{
	Oid			schema;
	QueueApp   *apps;
	int			count;
} Saving;

static void
save_apps(void *argument)
{
	Saving	   *saving = argument;
	StatementRows rows;
	int			count;

	create_missing_apps(saving->schema, saving->apps, saving->count);
	statement_rows_begin(&rows, STATEMENT_SAVE_APPS, saving->count);
	for (int i = 0; i < saving->count; i++)
		add_app(&rows, &saving->apps[i]);
	count = (int) statement_rows_run(&rows, saving->schema);
	for (int row = 0; row < count; row++)
		saving->apps[returned_ordinal(row)].saved = true;
	SPI_freetuptable(SPI_tuptable);
}

void
record_apps(Oid schema, QueueApp *apps, int count)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	static char logged[256] = "";
	Saving		saving = {schema, apps, count};
	ErrorData  *error;

	for (int i = 0; i < count; i++)
		apps[i].saved = false;
	error = record_attempt(save_apps, &saving);
	/* Once, for it is tried again with each visit. */
	if (error != NULL && strncmp(logged, error->message, sizeof(logged) - 1) != 0)
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("onesignal_cancel: could not save what is known of apps: %s", error->message)));
	strlcpy(logged, error != NULL ? error->message : "", sizeof(logged));
	MemoryContextSwitchTo(old);
}
