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

/* Runs a statement; what it returns is to be read and freed before the next. */
static int
run(Statement which, Datum *values, const char *nulls)
{
	return (int) statement_run(which, transaction.installation.schema, values, nulls);
}

char *
queue_problem(void)
{
	const char *problem = owner_trigger_problem(transaction.installation.message_table,
												transaction.installation.schema, false);

	return problem == NULL ? NULL :
		psprintf("trigger \"zz_onesignal_message\" of table \"onesignal_message\" is not the extension's own: %s", problem);
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
	int			count = run(STATEMENT_LANES, values, NULL);

	for (int i = 0; i < count; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		QueueListed *listed = palloc0(sizeof(QueueListed));

		listed->lane.app_id = *DatumGetUUIDP(column(tuple, 1, (Datum) 0));
		strlcpy(NameStr(listed->lane.requested_by), NameStr(*DatumGetName(column(tuple, 2, (Datum) 0))), NAMEDATALEN);
		listed->app.exists = DatumGetBool(column(tuple, 3, BoolGetDatum(false)));
		listed->app.paused_until = time_column(tuple, 4, 0);
		listed->app.resumed_at = time_column(tuple, 5, 0);
		listed->app.circuit_until = time_column(tuple, 6, 0);
		listed->app.has_circuit = DatumGetBool(column(tuple, 7, BoolGetDatum(false)));
		listed->app.pace = DatumGetFloat8(column(tuple, 8, Float8GetDatum(-1)));
		listed->app.is_of_lane = DatumGetBool(column(tuple, 9, BoolGetDatum(false)));
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
	row->message_id = *DatumGetUUIDP(column(tuple, 2, (Datum) 0));
	row->send_after = time_column(tuple, 3, DT_NOBEGIN);
	row->requested_at = time_column(tuple, 4, 0);
	row->next_attempt_at = time_column(tuple, 5, 0);
	row->first_attempt_at = time_column(tuple, 6, 0);
	row->attempts = DatumGetInt32(column(tuple, 7, Int32GetDatum(0)));
	row->unanswered = DatumGetBool(column(tuple, 8, BoolGetDatum(false)));
	row->last_attempt_at = time_column(tuple, 9, 0);
	row->http_status = DatumGetInt32(column(tuple, 10, Int32GetDatum(0)));
}

void
queue_fetch(const QueueLane **lanes, const QueuePosition *positions, int count,
			QueueRow *rows, int *row_counts, int max)
{
	StatementRows parameters;

	statement_rows_begin(&parameters, STATEMENT_FETCH, count);
	for (int i = 0; i < count; i++)
	{
		Datum		values[] = {
			UUIDPGetDatum(&lanes[i]->app_id),
			NameGetDatum(&lanes[i]->requested_by),
			TimestampTzGetDatum(positions[i].send_after),
			UUIDPGetDatum(&positions[i].message_id),
			Int32GetDatum(max),
		};

		statement_rows_add(&parameters, values, NULL);
		row_counts[i] = 0;
	}
	count = (int) statement_rows_run(&parameters, transaction.installation.schema);
	for (int i = 0; i < count; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		int			lane = (int) DatumGetInt64(column(tuple, 1, Int64GetDatum(1))) - 1;

		read_row(tuple, &rows[lane * max + row_counts[lane]++]);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* ---- writing ---- */

void
queue_record(const QueueOutcome *outcomes, int count, QueueRecorded *recorded, char **error)
{
	record_outcomes(transaction.installation.schema, outcomes, count, recorded, error);
}

int
queue_expire(const QueueLane *lane, TimestampTz before, const char *reason)
{
	return record_expired(transaction.installation.schema, lane, before, reason);
}

void
queue_save_apps(QueueApp *apps, int count)
{
	record_apps(transaction.installation.schema, apps, count);
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
	if (statement_run(STATEMENT_ENQUEUE, schema, values, nulls) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the cancel was not requested"),
				 errdetail("Another trigger or rule of table onesignal_message has left the row out.")));
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
