/*
 * queue.c
 *		The deliverer's short transactions, and what it reads in them.
 *
 * A deliverer has no transaction while its requests are on the wire: it opens
 * one to fetch or to record, as the table's owner, and closes it at once.
 * Nothing is marked as taken when it is fetched, since there is one deliverer
 * a database; what became of a row between fetching and recording it is found
 * out when its outcome is recorded (record.c).
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "owner.h"
#include "queue.h"
#include "record.h"
#include "statements.h"

/* The open transaction, or the last one. */
static struct
{
	bool		open;
	bool		in_procedure;
	Installation installation;
	OwnerContext owner;
} transaction;

/* ---- transactions ---- */

static void
end_worker_transaction(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(true);
}

/* The extension is gone, and nothing of a transaction is begun but itself. */
static bool
nothing_to_begin(void)
{
	if (!transaction.in_procedure)
		CommitTransactionCommand();
	return false;
}

bool
queue_begin(bool in_procedure)
{
	MemoryContext old = CurrentMemoryContext;

	transaction.in_procedure = in_procedure;
	transaction.open = false;
	if (in_procedure)
	{
		/* Whatever the session's default: a row that changed meanwhile is no error. */
		if (!FirstSnapshotSet)
			XactIsoLevel = XACT_READ_COMMITTED;
	}
	else
	{
		owner_settle();
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
	}

	/* It may have to wait for the table's lock: without a snapshot, for VACUUM's sake. */
	transaction.open = owner_find_and_lock(&transaction.installation);
	MemoryContextSwitchTo(old);
	if (!transaction.open)
		return nothing_to_begin();
	if (!in_procedure)
	{
		PushActiveSnapshot(GetTransactionSnapshot());	/* SPI wants one; each statement takes its own */
		SPI_connect();
	}
	record_begin();
	owner_enter(&transaction.owner, &transaction.installation);
	MemoryContextSwitchTo(old);
	return true;
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
		end_worker_transaction();
	record_committed();
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

Oid
queue_extension(void)
{
	Installation installation;

	return owner_find(&installation) ? installation.extension : InvalidOid;
}

/* ---- reading ---- */

/* The nth column of a returned row; fallback where it is NULL. */
static Datum
column(HeapTuple tuple, int number, Datum fallback)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, SPI_tuptable->tupdesc, number, &isnull);

	return isnull ? fallback : value;
}

static TimestampTz
time_column(HeapTuple tuple, int number, TimestampTz fallback)
{
	return DatumGetTimestampTz(column(tuple, number, TimestampTzGetDatum(fallback)));
}

/* palloc'd; NULL where it is NULL */
static char *
text_column(HeapTuple tuple, int number)
{
	Datum		value = column(tuple, number, (Datum) 0);

	return value == (Datum) 0 ? NULL : TextDatumGetCString(value);
}

/* Runs a statement; what it returns is to be read and freed before the next. */
static int
run(Statement which, Datum *values, const char *nulls)
{
	return (int) statement_run(which, transaction.installation.schema, values, nulls);
}

List *
queue_lanes(void)
{
	List	   *lanes = NIL;
	int			count = run(STATEMENT_LANES, NULL, NULL);

	for (int i = 0; i < count; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		QueueLane  *lane = palloc0(sizeof(QueueLane));

		lane->app_id = *DatumGetUUIDP(column(tuple, 1, (Datum) 0));
		lane->requested_by = *DatumGetName(column(tuple, 2, (Datum) 0));
		lanes = lappend(lanes, lane);
	}
	SPI_freetuptable(SPI_tuptable);
	return lanes;
}

static void
read_row(HeapTuple tuple, QueueRow *row)
{
	row->message_id = *DatumGetUUIDP(column(tuple, 1, (Datum) 0));
	row->send_after = time_column(tuple, 2, DT_NOBEGIN);
	row->requested_at = time_column(tuple, 3, 0);
	row->next_attempt_at = time_column(tuple, 4, 0);
	row->first_attempt_at = time_column(tuple, 5, 0);
	row->attempts = DatumGetInt32(column(tuple, 6, Int32GetDatum(0)));
	row->unanswered = DatumGetBool(column(tuple, 7, BoolGetDatum(false)));
	row->last_attempt_at = time_column(tuple, 8, 0);
	row->http_status = DatumGetInt32(column(tuple, 9, Int32GetDatum(0)));
}

int
queue_fetch(const QueueLane *lane, QueueCursor *cursor, QueueRow *rows, int max)
{
	Datum		values[] = {
		UUIDPGetDatum(&lane->app_id),
		NameGetDatum(&lane->requested_by),
		Int64GetDatum(max),
		TimestampTzGetDatum(cursor->send_after),
		UUIDPGetDatum(&cursor->message_id),
	};
	int			count = run(cursor->started ? STATEMENT_FETCH_NEXT : STATEMENT_FETCH_HEAD,
							values, NULL);

	for (int i = 0; i < count; i++)
		read_row(SPI_tuptable->vals[i], &rows[i]);
	SPI_freetuptable(SPI_tuptable);
	if (count > 0)
	{
		cursor->started = true;
		cursor->send_after = rows[count - 1].send_after;
		cursor->message_id = rows[count - 1].message_id;
	}
	return count;
}

List *
queue_apps(void)
{
	List	   *apps = NIL;
	int			count = run(STATEMENT_APPS, NULL, NULL);

	for (int i = 0; i < count; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		QueueApp   *app = palloc0(sizeof(QueueApp));
		Datum		role = column(tuple, 4, (Datum) 0);

		app->app_id = *DatumGetUUIDP(column(tuple, 1, (Datum) 0));
		app->paused_until = time_column(tuple, 2, 0);
		app->circuit_until = time_column(tuple, 3, 0);
		if (role != (Datum) 0)
			app->circuit_role = *DatumGetName(role);
		app->circuit_reason = text_column(tuple, 5);
		app->pace = DatumGetFloat8(column(tuple, 6, Float8GetDatum(-1)));
		app->last_error = text_column(tuple, 7);
		apps = lappend(apps, app);
	}
	SPI_freetuptable(SPI_tuptable);
	return apps;
}

/* ---- writing ---- */

void
queue_record(const QueueOutcome *outcomes, int count, QueueRecorded *recorded)
{
	record_outcomes(transaction.installation.schema, outcomes, count, recorded);
}

bool
queue_save_app(const QueueApp *app)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	bool		saved;
	Datum		values[] = {
		UUIDPGetDatum(&app->app_id),
		TimestampTzGetDatum(app->circuit_until),
		NameGetDatum(&app->circuit_role),
		app->circuit_reason ? CStringGetTextDatum(app->circuit_reason) : (Datum) 0,
		Float8GetDatum(app->pace),
		app->last_error ? CStringGetTextDatum(app->last_error) : (Datum) 0,
	};
	char		nulls[] = {
		' ',
		app->circuit_until == 0 ? 'n' : ' ',
		NameStr(app->circuit_role)[0] == '\0' ? 'n' : ' ',
		app->circuit_reason == NULL ? 'n' : ' ',
		app->pace < 0 ? 'n' : ' ',
		app->last_error == NULL ? 'n' : ' ',
	};

	saved = record_app(transaction.installation.schema, STATEMENT_SAVE_APP, values, nulls);
	MemoryContextSwitchTo(old);
	return saved;
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
	return run(STATEMENT_PURGE, values, NULL);
}

/* ---- in anybody's transaction ---- */

void
queue_enqueue(Oid schema, const pg_uuid_t *app_id, const pg_uuid_t *message_id,
			  const TimestampTz *send_after, text *reason)
{
	Datum		values[] = {
		UUIDPGetDatum(app_id),
		UUIDPGetDatum(message_id),
		TimestampTzGetDatum(send_after ? *send_after : 0),
		PointerGetDatum(reason),
	};
	char		nulls[] = {' ', ' ', send_after ? ' ' : 'n', reason ? ' ' : 'n'};

	SPI_connect();
	(void) statement_run(STATEMENT_ENQUEUE, schema, values, nulls);
	SPI_finish();
}

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
