/*
 * admin.c
 *		The SQL functions of an administrator: deliver, purge, pause, resume, status.
 *
 * CALL onesignal_cancel_deliver() delivers with the rights of the table's
 * owner, but only within the transactions of queue.c: each of them returns to
 * the caller's rights before it commits.
 *
 * Purging scans the table from its first block to its last and commits every
 * few hundred.  An index on finished rows would cost time for each message and
 * each outcome, and a nightly job has to read those blocks anyway.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "credentials.h"
#include "delivery.h"
#include "queue.h"
#include "settings.h"
#include "wakeup.h"

PG_FUNCTION_INFO_V1(onesignal_cancel_deliver);
PG_FUNCTION_INFO_V1(onesignal_cancel_delivery);
PG_FUNCTION_INFO_V1(onesignal_cancel_pause);
PG_FUNCTION_INFO_V1(onesignal_cancel_preloaded);
PG_FUNCTION_INFO_V1(onesignal_cancel_purge);
PG_FUNCTION_INFO_V1(onesignal_cancel_resume);

/* How soon a CALL with a duration sees a commit. */
#define CALL_LOOK		USECS_PER_SEC

/* 2 MB: one transaction deletes, and locks, some 10,000 rows at most. */
#define PURGE_BLOCKS	256

/* Is a CALL at work?  When does it end, 0: when nothing is due?  When did it last look for rows? */
static bool call_running = false;
static TimestampTz call_until;
static TimestampTz call_looked_at;

static void
require_not_null(FunctionCallInfo fcinfo, int number, const char *name)
{
	if (PG_ARGISNULL(number))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
}

/* ---- CALL onesignal_cancel_deliver(max_duration) ---- */

static TimestampTz
end_of_duration(FunctionCallInfo fcinfo)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until;

	if (PG_ARGISNULL(0))
		return 0;
	until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													TimestampTzGetDatum(now),
													PG_GETARG_DATUM(0)));
	if (until < now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_duration must not be negative")));
	return until;
}

/*
 * Commits wake only workers, so a CALL with a duration looks for rows now and
 * then.  Without one it does not, and so comes to an end.
 */
static bool
call_looks_again(void)
{
	TimestampTz now = GetCurrentTimestamp();

	wakeup_serve_signals();
	if (call_until == 0 || now - call_looked_at < CALL_LOOK)
		return false;
	call_looked_at = now;
	return true;
}

static void
deliver_all(void)
{
	const DeliveryOptions options = {.in_procedure = true, .until = call_until, .woken = call_looks_again};
	int			other = deliverer_lock(false);

	/* So that no lock on a catalog is held while it waits for answers. */
	SPI_commit();
	if (other > 0)
		ereport(NOTICE,
				(errmsg("nothing to do: session %d is already delivering in this database", other)));
	while (other == 0)
	{
		TimestampTz due;
		TimestampTz now;

		/* Where no outcome could be recorded, nothing must be sent. */
		PreventCommandIfReadOnly("CALL onesignal_cancel_deliver()");
		due = delivery_run(&options);
		settings_require_enabled();
		now = GetCurrentTimestamp();
		if (due == DT_NOBEGIN || now >= call_until)
			break;
		wakeup_wait(Min(Min(due, now + CALL_LOOK), call_until), "OnesignalCancelDeliver");
		settings_require_enabled();
	}
}

/* PG_FINALLY() does not see that a session is terminated. */
static void
call_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	if (call_running)
		wakeup_raise_doubt();
}

/* What can fail fails before anything is sent. */
static void
call_begin(FunctionCallInfo fcinfo)
{
	static bool registered = false;

	settings_require_enabled();
	PreventCommandDuringRecovery("CALL onesignal_cancel_deliver()");
	call_until = end_of_duration(fcinfo);
	call_looked_at = 0;
	wakeup_attach();
	if (!registered)
		before_shmem_exit(call_exit, 0);
	registered = true;
	queue_call_begin(fcinfo);
	call_running = true;
}

Datum
onesignal_cancel_deliver(PG_FUNCTION_ARGS)
{
	call_begin(fcinfo);
	PG_TRY();
	{
		deliver_all();
	}
	PG_FINALLY();
	{
		call_running = false;
		queue_abandon();
		deliverer_unlock();
		delivery_end();
	}
	PG_END_TRY();
	SPI_finish();
	PG_RETURN_VOID();
}

/* ---- CALL onesignal_cancel_purge(older_than, purged) ---- */

static TimestampTz
purge_before(FunctionCallInfo fcinfo)
{
	static const Interval day = {.day = 1};
	Datum		older_than = PG_GETARG_DATUM(0);
	TimestampTz now = GetCurrentTransactionStartTimestamp();

	if (DatumGetBool(DirectFunctionCall2(interval_lt, older_than, IntervalPGetDatum(&day))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"older_than\" must be at least one day"),
				 errhint("Write a unit, as in '90 days': '90' means 90 seconds.")));
	/* "1 month -29 days" may be less by the calendar, and so is a day on which clocks are set forward. */
	return Min(now - USECS_PER_DAY,
			   DatumGetTimestampTz(DirectFunctionCall2(timestamptz_mi_interval, TimestampTzGetDatum(now), older_than)));
}

static uint64
purge_all(TimestampTz before)
{
	BlockNumber block = 0;
	bool		more = true;
	uint64		purged = 0;

	while (more && queue_begin(true))
	{
		more = queue_purge(before, block, PURGE_BLOCKS, &purged);
		queue_commit();
		block += PURGE_BLOCKS;
		CHECK_FOR_INTERRUPTS();
	}
	return purged;
}

/* As the table's owner.  A row that somebody has locked is left for the next time. */
Datum
onesignal_cancel_purge(PG_FUNCTION_ARGS)
{
	TupleDesc	descriptor;
	TimestampTz before;
	Datum		purged;
	bool		isnull = false;

	require_not_null(fcinfo, 0, "older_than");
	before = purge_before(fcinfo);
	queue_call_begin(fcinfo);
	purged = Int64GetDatum((int64) purge_all(before));
	SPI_finish();

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), &purged, &isnull)));
}

/* ---- onesignal_cancel_pause(app_id, until, reason), onesignal_cancel_resume(app_id) ---- */

/* A mistyped id must not look like a pause. */
static void
require_app(const pg_uuid_t *app_id)
{
	if (!credentials_app_has_server(app_id) && !queue_knows_app(app_id))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("could not find OneSignal app \"%s\"",
						DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(app_id)))),
				 errdetail("It has neither a server nor messages."),
				 errhint("View onesignal_cancel_status lists the apps.")));
}

Datum
onesignal_cancel_pause(PG_FUNCTION_ARGS)
{
	TimestampTz until;

	require_not_null(fcinfo, 0, "app_id");
	require_not_null(fcinfo, 1, "until");
	until = PG_GETARG_TIMESTAMPTZ(1);
	if (until <= GetCurrentTransactionStartTimestamp())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"until\" must be in the future"),
				 errhint("To end a pause, use onesignal_cancel_resume().")));
	require_app(PG_GETARG_UUID_P(0));
	queue_pause(PG_GETARG_UUID_P(0), until, PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2));
	wakeup_poke();
	PG_RETURN_VOID();
}

/* Ends a pause, and closes the circuit. */
Datum
onesignal_cancel_resume(PG_FUNCTION_ARGS)
{
	require_not_null(fcinfo, 0, "app_id");
	require_app(PG_GETARG_UUID_P(0));
	queue_resume(PG_GETARG_UUID_P(0));
	wakeup_poke();
	PG_RETURN_VOID();
}

/* ---- for view onesignal_cancel_status ---- */

/* CREATE EXTENSION also calls it, and so warns. */
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

/* What happens to pending rows of an app that is not paused. */
Datum
onesignal_cancel_delivery(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_TEXT_P(cstring_to_text(wakeup_status()));
}
