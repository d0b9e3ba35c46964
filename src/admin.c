/*
 * admin.c
 *		The SQL functions of an administrator: deliver, purge, pause, resume.
 *
 * Purging scans the table from its first block to its last and commits every
 * few hundred.  An index on finished rows would cost time for each message and
 * each outcome, and a nightly job has to read those blocks anyway.
 */
#include "postgres.h"

#include "access/relation.h"
#include "commands/extension.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "delivery.h"
#include "queue.h"
#include "settings.h"
#include "wakeup.h"

PG_FUNCTION_INFO_V1(onesignal_cancel_deliver);
PG_FUNCTION_INFO_V1(onesignal_cancel_pause);
PG_FUNCTION_INFO_V1(onesignal_cancel_preloaded);
PG_FUNCTION_INFO_V1(onesignal_cancel_purge);
PG_FUNCTION_INFO_V1(onesignal_cancel_resume);

/* 2 MB: one transaction deletes, and locks, some 10,000 rows at most. */
#define PURGE_BLOCKS	256

/* CALL onesignal_cancel_deliver(max_duration): what can fail fails before anything is sent. */
Datum
onesignal_cancel_deliver(PG_FUNCTION_ARGS)
{
	TimestampTz began = GetCurrentTimestamp();
	TimestampTz until = 0;

	settings_require_enabled();
	PreventCommandDuringRecovery("CALL onesignal_cancel_deliver()");
	if (!PG_ARGISNULL(0))
		until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(began),
														PG_GETARG_DATUM(0)));
	if (!PG_ARGISNULL(0) && until < began)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_duration must not be negative")));
	wakeup_attach();
	queue_call_begin(fcinfo);
	PG_TRY();
	{
		int			other = deliverer_lock(false);

		if (other > 0)
			ereport(NOTICE,
					(errmsg("nothing to do: session %d is already delivering in this database", other)));
		while (other == 0)
		{
			TimestampTz due;
			TimestampTz now;

			/* Where no outcome could be recorded, nothing must be sent. */
			PreventCommandIfReadOnly("CALL onesignal_cancel_deliver()");
			due = delivery_run(until);
			settings_require_enabled();
			now = GetCurrentTimestamp();
			if (due == DT_NOBEGIN || now >= until || now < began)	/* the clock was set back */
				break;
			/* Commits do not wake a CALL. */
			wakeup_wait(Min(Min(due, now + USECS_PER_SEC), until), "OnesignalCancelDeliver");
		}
	}
	PG_FINALLY();
	{
		deliverer_unlock();
		delivery_end();
	}
	PG_END_TRY();
	SPI_finish();
	PG_RETURN_VOID();
}

/* Deletes finished rows as the table's owner, some blocks in each transaction; it may be truncated meanwhile. */
static int64
purge_all(TimestampTz before)
{
	static Statement purge = {
		.sql = "DELETE FROM ONLY @onesignal_message WHERE ctid" EQ "ANY (ARRAY("
			   "SELECT m.ctid FROM ONLY @onesignal_message AS m"
			   " WHERE m.ctid" GE "$2 AND m.ctid" LT "$3 AND m.state" NE "'pending'"
			   " AND CASE WHEN m.state" EQ "'scheduled' THEN COALESCE(m.send_after, m.created_at)"
			   " ELSE COALESCE(m.finished_at, m.created_at) END" LT "$1"
			   " FOR UPDATE SKIP LOCKED))",
		.types = {TIMESTAMPTZOID, TIDOID, TIDOID}
	};
	ItemPointerData from;
	ItemPointerData to;
	Datum		values[] = {TimestampTzGetDatum(before), PointerGetDatum(&from), PointerGetDatum(&to)};
	const Installation *installation;
	uint64		blocks = 1;
	int64		purged = 0;

	for (uint64 block = 0; block < blocks && (installation = queue_begin()) != NULL; block += PURGE_BLOCKS)
	{
		Relation	relation = relation_open(installation->message_table, NoLock);
		const TriggerDesc *triggers = relation->trigdesc;

		/* Foreign keys do not fire for us: the rows that reference ours would be left dangling. */
		for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
			if (RI_FKey_trigger_type(triggers->triggers[i].tgfoid) == RI_TRIGGER_PK)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot purge onesignal_message while a foreign key references it"),
						 errdetail("Table \"%s\" has such a foreign key.",
								   get_rel_name(triggers->triggers[i].tgconstrrelid)),
						 errhint("Drop the foreign key, or delete the rows with DELETE.")));
		blocks = RelationGetNumberOfBlocks(relation);
		relation_close(relation, NoLock);
		ItemPointerSet(&from, block, 0);
		ItemPointerSet(&to, Min(block + PURGE_BLOCKS, MaxBlockNumber), 0);
		purged += (int64) statement_run(&purge, installation->schema, values, NULL);
		queue_commit();
		CHECK_FOR_INTERRUPTS();
	}
	return purged;
}

/* CALL onesignal_cancel_purge(older_than, purged).  A row that somebody has locked is left for the next time. */
Datum
onesignal_cancel_purge(PG_FUNCTION_ARGS)
{
	static const Interval day = {.day = 1};
	TimestampTz now = GetCurrentTransactionStartTimestamp();
	TupleDesc	descriptor;
	TimestampTz before;
	Datum		purged;
	bool		isnull = false;

	settings_require_argument(fcinfo, 0, "older_than", NULL);
	if (DatumGetBool(DirectFunctionCall2(interval_lt, PG_GETARG_DATUM(0), IntervalPGetDatum(&day))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"older_than\" must be at least one day"),
				 errhint("Write a unit, as in '90 days': '90' means 90 seconds.")));
	before = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_mi_interval, TimestampTzGetDatum(now),
													 PG_GETARG_DATUM(0)));
	/* "1 month -29 days" may be less by the calendar, and so is a day on which clocks are set forward. */
	before = Min(before, now - USECS_PER_DAY);
	queue_call_begin(fcinfo);
	purged = Int64GetDatum(purge_all(before));
	SPI_finish();

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), &purged, &isnull)));
}

/* As the table's owner.  until 0 ends the pause, and closes the circuit.  A mistyped id must not look like a pause. */
static void
set_pause(const pg_uuid_t *app_id, TimestampTz until, text *reason)
{
	static Statement pause_or_resume = {
		.sql = "INSERT INTO @onesignal_app AS a (app_id, paused_until, pause_reason, paused_by, resumed_at)"
			   " SELECT $1, $2, $3, CASE WHEN $2 IS NOT NULL THEN $4 END,"
			   " CASE WHEN $2 IS NULL THEN pg_catalog.clock_timestamp() END"
			   " WHERE $5 OR EXISTS (SELECT FROM @onesignal_app AS k WHERE k.app_id" EQ "$1)"
			   " OR EXISTS (SELECT FROM ONLY @onesignal_message AS m WHERE m.app_id" EQ "$1)"
			   " ON CONFLICT (app_id) DO UPDATE SET paused_until = $2, pause_reason = $3,"
			   " paused_by = excluded.paused_by, resumed_at = COALESCE(excluded.resumed_at, a.resumed_at),"
			   " (circuit_until, circuit_role, circuit_reason) ="
			   " (SELECT a.circuit_until, a.circuit_role, a.circuit_reason WHERE $2 IS NOT NULL)",
		.types = {UUIDOID, TIMESTAMPTZOID, TEXTOID, NAMEOID, BOOLOID}
	};
	Datum		values[] = {
		UUIDPGetDatum(app_id),
		TimestampTzGetDatum(until),
		PointerGetDatum(reason),
		DirectFunctionCall1(namein, CStringGetDatum(GetUserNameFromId(GetUserId(), false))),
		BoolGetDatum(credentials_servers(app_id) != NIL),
	};
	char		nulls[] = {' ', until != 0 ? ' ' : 'n', reason != NULL ? ' ' : 'n', ' ', ' '};
	Installation installation;

	owner_find(&installation, false);
	SPI_connect();
	owner_enter(&installation);
	if (statement_run(&pause_or_resume, installation.schema, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("could not find OneSignal app \"%s\"",
						DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(app_id)))),
				 errdetail("It has neither a server nor messages."),
				 errhint("View onesignal_cancel_status lists the apps.")));
	owner_leave(&installation);
	SPI_finish();
	wakeup_request();
}

Datum
onesignal_cancel_pause(PG_FUNCTION_ARGS)
{
	settings_require_argument(fcinfo, 0, "app_id", NULL);
	settings_require_argument(fcinfo, 1, "until", NULL);
	if (PG_GETARG_TIMESTAMPTZ(1) <= GetCurrentTransactionStartTimestamp())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"until\" must be in the future"),
				 errhint("To end a pause, use onesignal_cancel_resume().")));
	set_pause(PG_GETARG_UUID_P(0), PG_GETARG_TIMESTAMPTZ(1), PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2));
	PG_RETURN_VOID();
}

Datum
onesignal_cancel_resume(PG_FUNCTION_ARGS)
{
	settings_require_argument(fcinfo, 0, "app_id", NULL);
	set_pause(PG_GETARG_UUID_P(0), 0, NULL);
	PG_RETURN_VOID();
}

/* For view onesignal_cancel_status.  CREATE EXTENSION also calls it, and so warns. */
Datum
onesignal_cancel_preloaded(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	if (creating_extension && !settings_preloaded)
		ereport(WARNING,
				(errmsg("onesignal_cancel is not in shared_preload_libraries"),
				 errdetail("After a restart of the server, pending cancels wait for the next request."),
				 errhint("Add it to shared_preload_libraries and restart the server.")));
	PG_RETURN_BOOL(settings_preloaded);
}
