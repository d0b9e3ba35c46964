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
#include "statements.h"

/*
 * How long to wait for a session that is about to make an app's first row.
 * Most do so in a transaction of a millisecond; no other is waited for.
 */
#define APP_LOCK_TIMEOUT "10ms"

#define OUTCOME_FIELDS 10

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
	OwnerContext owner;
} transaction;

/* ---- transactions ---- */

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

	/* This may wait for the table's lock, without a snapshot for VACUUM's sake. */
	transaction.open = owner_find_and_lock(&transaction.installation);
	if (transaction.open && !in_procedure)
	{
		PushActiveSnapshot(GetTransactionSnapshot());	/* SPI wants one; each statement takes its own */
		SPI_connect();
	}
	if (transaction.open)
		owner_enter(&transaction.owner, &transaction.installation);
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
	owner_leave(&transaction.owner);
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
		SetUserIdAndSecContext(transaction.owner.user, transaction.owner.sec_context);
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
				 errhint("Use CALL by itself: not between BEGIN and COMMIT, not beside another statement in one string, and not from a function or a block with EXCEPTION.")));
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	SPI_commit();
}

void
queue_call_end(void)
{
	SPI_finish();
}

/* ---- reading ---- */

/* The nth column of a returned row; fallback where it is NULL. */
static Datum
read_column(HeapTuple tuple, int number, Datum fallback)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, SPI_tuptable->tupdesc, number, &isnull);

	return isnull ? fallback : value;
}

static TimestampTz
read_time(HeapTuple tuple, int number, TimestampTz fallback)
{
	return DatumGetTimestampTz(read_column(tuple, number, TimestampTzGetDatum(fallback)));
}

static uint64
run_in_transaction(Statement which, Datum *values)
{
	return statement_run(which, transaction.installation.schema, values, NULL);
}

char *
queue_problem(void)
{
	return owner_trigger_problem(transaction.installation.message_table, transaction.installation.schema, false);
}

List *
queue_lanes(const QueueLane *after, int max)
{
	List	   *lanes = NIL;
	Datum		values[] = {
		UUIDPGetDatum(&after->app_id),
		NameGetDatum(&after->requested_by),
		Int32GetDatum(max),
	};
	int			count = (int) run_in_transaction(STATEMENT_LANES, values);

	for (int i = 0; i < count; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		QueueListed *listed = palloc0(sizeof(QueueListed));

		listed->lane.app_id = *DatumGetUUIDP(read_column(tuple, 1, (Datum) 0));
		listed->lane.requested_by = *DatumGetName(read_column(tuple, 2, (Datum) 0));
		listed->app.exists = DatumGetBool(read_column(tuple, 3, BoolGetDatum(false)));
		listed->app.paused_until = read_time(tuple, 4, 0);
		listed->app.resumed_at = read_time(tuple, 5, 0);
		listed->app.circuit_until = read_time(tuple, 6, 0);
		listed->app.has_circuit = DatumGetBool(read_column(tuple, 7, BoolGetDatum(false)));
		listed->app.pace = DatumGetFloat8(read_column(tuple, 8, Float8GetDatum(-1)));
		listed->app.is_of_lane = DatumGetBool(read_column(tuple, 9, BoolGetDatum(false)));
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

static void
read_row(HeapTuple tuple, QueueRow *row)
{
	row->message_id = *DatumGetUUIDP(read_column(tuple, 1, (Datum) 0));
	row->send_after = read_time(tuple, 2, DT_NOBEGIN);
	row->requested_at = read_time(tuple, 3, 0);
	row->next_attempt_at = read_time(tuple, 4, 0);
	row->first_attempt_at = read_time(tuple, 5, 0);
	row->attempts = DatumGetInt32(read_column(tuple, 6, Int32GetDatum(0)));
	row->unanswered = DatumGetBool(read_column(tuple, 7, BoolGetDatum(false)));
	row->last_attempt_at = read_time(tuple, 8, 0);
	row->http_status = DatumGetInt32(read_column(tuple, 9, Int32GetDatum(0)));
}

int
queue_fetch(const QueueLane *lane, const QueuePosition *from, QueueRow *rows, int max)
{
	Datum		values[] = {
		UUIDPGetDatum(&lane->app_id),
		NameGetDatum(&lane->requested_by),
		TimestampTzGetDatum(from->send_after),
		UUIDPGetDatum(&from->message_id),
		Int32GetDatum(max),
	};
	int			count = (int) run_in_transaction(STATEMENT_FETCH, values);

	for (int i = 0; i < count; i++)
		read_row(SPI_tuptable->vals[i], &rows[i]);
	SPI_freetuptable(SPI_tuptable);
	return count;
}

/* ---- recording ---- */

static void
set_parameter(StatementCall *call, int number, Datum value, bool isnull)
{
	call->values[number] = value;
	call->nulls[number] = isnull ? 'n' : ' ';
}

static void
set_text_parameter(StatementCall *call, int number, const char *text)
{
	set_parameter(call, number, text == NULL ? (Datum) 0 : CStringGetTextDatum(text), text == NULL);
}

static void
set_outcome(StatementCall *call, const QueueOutcome *outcome)
{
	Datum	   *errors = palloc(sizeof(Datum) * Max(outcome->error_count, 1));
	ArrayType  *array;

	for (int i = 0; i < outcome->error_count; i++)
		errors[i] = CStringGetTextDatum(outcome->errors[i]);
	set_parameter(call, 0, UUIDPGetDatum(&outcome->app_id), false);
	set_parameter(call, 1, UUIDPGetDatum(&outcome->message_id), false);
	set_parameter(call, 2, TimestampTzGetDatum(outcome->requested_at), false);
	set_text_parameter(call, 3, queue_state_names[outcome->state]);
	set_parameter(call, 4, BoolGetDatum(outcome->unanswered), false);
	set_parameter(call, 5, Int32GetDatum(outcome->http_status), outcome->http_status == 0);
	array = construct_array(errors, outcome->error_count, TEXTOID, -1, false, TYPALIGN_INT);
	set_text_parameter(call, 6, OidOutputFunctionCall(F_ARRAY_OUT, PointerGetDatum(array)));
	set_text_parameter(call, 7, outcome->response);
	set_parameter(call, 8, TimestampTzGetDatum(outcome->last_attempt_at), false);
	set_parameter(call, 9, TimestampTzGetDatum(outcome->next_attempt_at), outcome->state != QUEUE_PENDING);
}

/* Makes one call of many, with an array of each parameter. */
static void
gather_outcomes(const StatementCall *calls, int count, StatementCall *all)
{
	static const Oid types[OUTCOME_FIELDS] = {
		UUIDOID, UUIDOID, TIMESTAMPTZOID, TEXTOID, BOOLOID, INT4OID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID
	};
	Datum	   *values = palloc(sizeof(Datum) * count);
	bool	   *nulls = palloc(sizeof(bool) * count);
	int			lower = 1;

	for (int field = 0; field < OUTCOME_FIELDS; field++)
	{
		int16		length;
		bool		by_value;
		char		alignment;
		ArrayType  *array;

		for (int i = 0; i < count; i++)
		{
			values[i] = calls[i].values[field];
			nulls[i] = calls[i].nulls[field] == 'n';
		}
		get_typlenbyvalalign(types[field], &length, &by_value, &alignment);
		array = construct_md_array(values, nulls, 1, &count, &lower, types[field], length, by_value, alignment);
		set_parameter(all, field, PointerGetDatum(array), false);
	}
}

/* Of an outcome that was not written: is there a row to write it to, which must be locked? */
static QueueRecorded
left_out_as(StatementCall *call)
{
	uint64		found = statement_run(STATEMENT_UNRECORDED, transaction.installation.schema, call->values, call->nulls);

	SPI_freetuptable(SPI_tuptable);
	return found > 0 ? QUEUE_LOCKED : QUEUE_DROPPED;
}

static ErrorData *
record_calls(StatementCall *calls, int count, QueueRecorded *recorded)
{
	StatementCall all;
	ErrorData  *error;

	gather_outcomes(calls, count, &all);
	error = statement_try(STATEMENT_RECORD, transaction.installation.schema, &all, 1);
	for (int i = 0; i < count; i++)
		recorded[i] = error == NULL ? QUEUE_DROPPED : QUEUE_UNRECORDABLE;
	if (error != NULL)
		return error;
	for (uint64 row = 0; row < all.processed; row++)
		recorded[DatumGetInt64(read_column(SPI_tuptable->vals[row], 1, (Datum) 0)) - 1] = QUEUE_RECORDED;
	SPI_freetuptable(SPI_tuptable);
	for (int i = 0; i < count; i++)
		if (recorded[i] == QUEUE_DROPPED)
			recorded[i] = left_out_as(&calls[i]);
	return NULL;
}

void
queue_record(const QueueOutcome *outcomes, int count, QueueRecorded *recorded, char **error)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	StatementCall *calls = palloc(sizeof(StatementCall) * Max(count, 1));

	*error = NULL;
	for (int i = 0; i < count; i++)
		set_outcome(&calls[i], &outcomes[i]);
	if (count > 0 && record_calls(calls, count, recorded) != NULL)
		for (int i = 0; i < count; i++)
		{
			ErrorData  *failure = record_calls(&calls[i], 1, &recorded[i]);

			/* Not its detail, which may hold the whole row. */
			if (failure != NULL && *error == NULL)
				*error = MemoryContextStrdup(old, failure->message);
		}
	MemoryContextSwitchTo(old);
}

int
queue_expire(const QueueLane *lane, TimestampTz before, const char *reason)
{
	StatementCall call;
	ErrorData  *error;

	set_parameter(&call, 0, UUIDPGetDatum(&lane->app_id), false);
	set_parameter(&call, 1, NameGetDatum(&lane->requested_by), false);
	set_parameter(&call, 2, TimestampTzGetDatum(before), false);
	set_text_parameter(&call, 3, reason);
	error = statement_try(STATEMENT_EXPIRE, transaction.installation.schema, &call, 1);
	if (error == NULL)
		return (int) call.processed;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("onesignal_cancel: could not give up messages: %s", error->message)));
	return 0;
}

/* ---- saving ---- */

/* Makes the rows that apps lack.  Those that another transaction is just making are left to it. */
static ErrorData *
create_apps(const QueueApp *apps, int count, StatementCall *calls)
{
	int			missing = 0;
	int			level = NewGUCNestLevel();
	ErrorData  *error;

	for (int i = 0; i < count; i++)
		if (!apps[i].exists)
			set_parameter(&calls[missing++], 0, UUIDPGetDatum(&apps[i].app_id), false);
	(void) set_config_option("lock_timeout", APP_LOCK_TIMEOUT, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	error = missing == 0 ? NULL :
		statement_try(STATEMENT_CREATE_APP, transaction.installation.schema, calls, missing);
	AtEOXact_GUC(false, level);
	return error != NULL && error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE ? error : NULL;
}

static void
set_app(StatementCall *call, const QueueApp *app)
{
	Name		role = palloc(NAMEDATALEN);

	namestrcpy(role, app->circuit_role != NULL ? app->circuit_role : "");
	set_parameter(call, 0, UUIDPGetDatum(&app->app_id), false);
	set_parameter(call, 1, TimestampTzGetDatum(app->circuit_until), app->circuit_until == 0);
	set_parameter(call, 2, NameGetDatum(role), app->circuit_role == NULL);
	set_text_parameter(call, 3, app->circuit_reason);
	set_parameter(call, 4, Float8GetDatum(app->pace), false);
	set_text_parameter(call, 5, app->last_error);
	set_parameter(call, 6, Int64GetDatum(app->totals[QUEUE_CANCELED]), false);
	set_parameter(call, 7, Int64GetDatum(app->totals[QUEUE_REFUSED]), false);
	set_parameter(call, 8, Int64GetDatum(app->totals[QUEUE_FAILED]), false);
}

void
queue_save_apps(QueueApp *apps, int count)
{
	static char logged[256] = "";
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	StatementCall *calls = palloc(sizeof(StatementCall) * count);
	ErrorData  *error = create_apps(apps, count, calls);

	for (int i = 0; i < count; i++)
		set_app(&calls[i], &apps[i]);
	if (error == NULL)
		error = statement_try(STATEMENT_SAVE_APP, transaction.installation.schema, calls, count);
	for (int i = 0; i < count; i++)
		apps[i].saved = error == NULL && calls[i].processed > 0;
	/* Logged once, although it is tried again each time. */
	if (error != NULL && strncmp(logged, error->message, sizeof(logged) - 1) != 0)
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("onesignal_cancel: could not save the state of apps: %s", error->message)));
	strlcpy(logged, error != NULL ? error->message : "", sizeof(logged));
	MemoryContextSwitchTo(old);
}

/* ---- purging ---- */

BlockNumber
queue_purge_size(void)
{
	Relation	relation = relation_open(transaction.installation.message_table, AccessShareLock);
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
	relation_close(relation, AccessShareLock);
	return blocks;
}

uint64
queue_purge(TimestampTz before, BlockNumber block, BlockNumber count)
{
	ItemPointerData from;
	ItemPointerData to;
	Datum		values[] = {TimestampTzGetDatum(before), PointerGetDatum(&from), PointerGetDatum(&to)};

	ItemPointerSet(&from, block, 0);
	ItemPointerSet(&to, block + Min(count, MaxBlockNumber - block), 0);
	return run_in_transaction(STATEMENT_PURGE, values);
}

/* ---- in anybody's transaction ---- */

static uint64
run_as_owner(Statement which, Datum *values, const char *nulls)
{
	Installation installation;
	OwnerContext context;
	uint64		count;

	if (!owner_find(&installation))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table onesignal_message does not exist in the extension's schema")));
	SPI_connect();
	owner_enter(&context, &installation);
	count = statement_run(which, installation.schema, values, nulls);
	owner_leave(&context);
	SPI_finish();
	return count;
}

bool
queue_knows_app(const pg_uuid_t *app_id)
{
	Datum		values[] = {UUIDPGetDatum(app_id)};

	return run_as_owner(STATEMENT_KNOWS_APP, values, NULL) > 0;
}

void
queue_pause(const pg_uuid_t *app_id, TimestampTz until, text *reason)
{
	NameData	role;
	Datum		values[] = {
		UUIDPGetDatum(app_id),
		TimestampTzGetDatum(until),
		PointerGetDatum(reason),
		NameGetDatum(&role),
	};
	char		nulls[] = {' ', ' ', reason ? ' ' : 'n', ' '};

	namestrcpy(&role, GetUserNameFromId(GetUserId(), false));
	(void) run_as_owner(STATEMENT_PAUSE, values, nulls);
}

void
queue_resume(const pg_uuid_t *app_id)
{
	Datum		values[] = {UUIDPGetDatum(app_id)};

	(void) run_as_owner(STATEMENT_RESUME, values, NULL);
}
