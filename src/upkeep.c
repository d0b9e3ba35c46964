/*
 * upkeep.c
 *		The SQL functions that keep and watch the queue: purge, pause, resume, delivery.
 *
 * Purging walks the table by address, from its first block to its last, and
 * commits every few hundred: an index on what is finished would be one more to
 * write for each message and each outcome, all year, for the sake of a nightly
 * job that has to touch those blocks anyway.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/extension.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "credentials.h"
#include "queue.h"
#include "settings.h"
#include "wakeup.h"
#include "worker.h"

PG_FUNCTION_INFO_V1(onesignal_cancel_delivery);
PG_FUNCTION_INFO_V1(onesignal_cancel_pause);
PG_FUNCTION_INFO_V1(onesignal_cancel_preloaded);
PG_FUNCTION_INFO_V1(onesignal_cancel_purge);
PG_FUNCTION_INFO_V1(onesignal_cancel_resume);

/* 2 MB: at most some 10,000 rows are deleted, and locked, by one transaction. */
#define PURGE_BLOCKS 256

static void
require_argument(FunctionCallInfo fcinfo, int number, const char *name)
{
	if (PG_ARGISNULL(number))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
}

/* What is older than that is purged. */
static TimestampTz
purge_before(FunctionCallInfo fcinfo)
{
	static const Interval day = {.day = 1};
	Datum		older_than = PG_GETARG_DATUM(0);

	TimestampTz now = GetCurrentTransactionStartTimestamp();
	TimestampTz before = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_mi_interval,
																 TimestampTzGetDatum(now), older_than));

	/* "1 month -29 days" is a day to the one and less to the other. */
	if (before > now - USECS_PER_DAY ||
		DatumGetBool(DirectFunctionCall2(interval_lt, older_than, IntervalPGetDatum(&day))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"older_than\" must be at least one day"),
				 errhint("Write a unit, as in '90 days': '90' means 90 seconds.")));
	return before;
}

static uint64
purge_all(TimestampTz before)
{
	BlockNumber block = 0;
	BlockNumber blocks = 1;
	uint64		purged = 0;

	/* The size is asked for each time: the table may be truncated under us. */
	while (block < blocks && queue_begin(true))
	{
		blocks = queue_purge_size();
		purged += queue_purge(before, block, PURGE_BLOCKS);
		queue_commit();
		block += PURGE_BLOCKS;
		CHECK_FOR_INTERRUPTS();
	}
	return purged;
}

/*
 * onesignal_cancel_purge(older_than interval, INOUT purged bigint)
 *
 * As the table's owner; a row that somebody has locked is left for next time.
 */
Datum
onesignal_cancel_purge(PG_FUNCTION_ARGS)
{
	TupleDesc	descriptor;
	TimestampTz before;
	Datum		purged;
	bool		isnull = false;

	require_argument(fcinfo, 0, "older_than");
	before = purge_before(fcinfo);
	queue_call_begin(fcinfo);
	purged = Int64GetDatum((int64) purge_all(before));
	queue_call_end();

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), &purged, &isnull)));
}

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

/*
 * onesignal_cancel_pause(app_id uuid, until timestamptz, reason text)
 *
 * A running worker is woken to learn of it.
 */
Datum
onesignal_cancel_pause(PG_FUNCTION_ARGS)
{
	TimestampTz until;

	require_argument(fcinfo, 0, "app_id");
	require_argument(fcinfo, 1, "until");
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

/* onesignal_cancel_resume(app_id uuid): ends a pause, and closes the circuit */
Datum
onesignal_cancel_resume(PG_FUNCTION_ARGS)
{
	require_argument(fcinfo, 0, "app_id");
	require_app(PG_GETARG_UUID_P(0));
	queue_resume(PG_GETARG_UUID_P(0));
	wakeup_poke();
	PG_RETURN_VOID();
}

/*
 * onesignal_cancel_preloaded() RETURNS boolean
 *
 * CREATE EXTENSION asks, too, and is told what it misses.
 */
Datum
onesignal_cancel_preloaded(PG_FUNCTION_ARGS)
{
	bool		preloaded = worker_preloaded();

	(void) fcinfo;
	if (creating_extension && !preloaded)
		ereport(WARNING,
				(errmsg("onesignal_cancel is not in shared_preload_libraries"),
				 errdetail("After a restart of the server, pending cancels wait for the next request."),
				 errhint("Add it to shared_preload_libraries and restart the server.")));
	PG_RETURN_BOOL(preloaded);
}

/*
 * onesignal_cancel_delivery() RETURNS text
 *
 * What happens to pending rows of an app that is not paused.
 */
Datum
onesignal_cancel_delivery(PG_FUNCTION_ARGS)
{
	static const char *const words[] = {
		[WAKEUP_NOBODY] = "waits for a request",
		[WAKEUP_AT_WORK] = "working",
		[WAKEUP_NO_WORKER] = "no free worker",
	};
	const char *delivery;

	(void) fcinfo;
	if (!settings_enabled)
		delivery = "switched off";
	else if (!settings_background_delivery)
		delivery = "by CALL only";
	else
	{
		wakeup_attach();
		delivery = words[wakeup_delivery(MyDatabaseId)];
	}
	PG_RETURN_TEXT_P(cstring_to_text(delivery));
}
