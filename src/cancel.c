/*
 * cancel.c
 *		The SQL functions that cancel now.
 *
 * One message is a batch of one.  A run starts requests while there is room,
 * takes whichever has finished, and tries again those that may succeed later.
 * It writes to no table, and a rollback undoes nothing of it.
 *
 * OneSignal may refuse a message because an earlier attempt, whose answer was
 * lost, has canceled it.  Then View message tells whether it is canceled; it
 * is asked at the pace that OneSignal allows, while the message's time lasts.
 *
 * A message's time begins with its first request.  It includes waiting for
 * another try, and not waiting for its turn in the batch.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/objectaddress.h"
#include "common/pg_prng.h"
#include "funcapi.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "onesignal.h"
#include "pace.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(onesignal_cancel);
PG_FUNCTION_INFO_V1(onesignal_cancel_batch);
PG_FUNCTION_INFO_V1(onesignal_cancel_version);

/* OneSignal allows one View message a second; a little more, since requests do not travel evenly. */
#define VIEW_PAUSE_US		INT64CONST(1050000)

/* How often a batch shows its progress. */
#define SHOW_US				INT64CONST(1000000)

/* One message and its result, which is final when nothing better comes. */
typedef struct CancelItem
{
	dlist_node	node;			/* in run.waiting */
	int			attempts;
	bool		unanswered;		/* an attempt left this machine and had no answer */
	bool		checking;		/* View message tells whether that attempt canceled it */
	int64		started_us;		/* when it was decided to send the present request */
	int64		begun_us;		/* when its time began */
	int64		retry_us;		/* when it may be tried again */
	ArrayType  *refusal;		/* while checking: OneSignal's own errors */
	int			status;			/* 0: NULL */
	bool		success;
	ArrayType  *errors;			/* NULL: none */
} CancelItem;

typedef struct CancelRun
{
	const pg_uuid_t *message_ids;
	CancelItem *items;
	int			count;
	int			next;			/* the first item that was not begun */
	int			done;			/* how many results are final */
	dlist_head	waiting;		/* to be tried again, or for View message */
	Credentials credentials;
	HttpGroup	group;
	Pace		pace;
	int64		not_before_us;	/* OneSignal asked us to wait until then (429) */
	int64		view_next_us;	/* no View message before */
	bool		stopped;		/* nothing more is started */
	int64		show_us;		/* when progress is shown next */
	MemoryContext context;		/* of the results */
} CancelRun;

/* NULL without errors.  Only the array is in the results' context. */
static ArrayType *
keep_errors(CancelRun *run, const CancelOutcome *outcome)
{
	ArrayType  *array = strlist_to_textarray(outcome->errors);

	if (outcome->errors == NIL)
		return NULL;
	return memcpy(MemoryContextAlloc(run->context, VARSIZE(array)), array, VARSIZE(array));
}

/* ---- starting ---- */

/* A waiting item whose time has come, or else a new one.  NULL: none before *next. */
static CancelItem *
next_item(CancelRun *run, int64 now, int64 *next)
{
	int			checks = 0;
	dlist_mutable_iter iter;

	*next = PG_INT64_MAX;
	dlist_foreach_modify(iter, &run->waiting)
	{
		CancelItem *item = dlist_container(CancelItem, node, iter.cur);
		int64		due = Max(item->retry_us, run->not_before_us);

		if (item->checking)
			due = Max(now, run->view_next_us) + checks * VIEW_PAUSE_US;
		/* The pace, a 429 to another message or other checks made it wait too long: its last answer is its result. */
		if (Max(now, due) - item->begun_us >= settings_timeout * INT64CONST(1000))
		{
			dlist_delete(&item->node);
			run->done++;
			continue;
		}
		if (due <= now)
			return item;
		checks += item->checking;
		*next = Min(*next, due);
	}

	/* So many may be in flight or wait: all that wait are looked through. */
	if (run->next == run->count || run->next - run->done >= settings_call_max_in_flight)
		return NULL;
	*next = Min(*next, run->not_before_us);
	return run->not_before_us <= now ? &run->items[run->next] : NULL;
}

/* Starts what may be started; returns when there is more to start, if no answer comes before. */
static int64
start_requests(CancelRun *run)
{
	int64		now = http_clock_us();
	int64		next = PG_INT64_MAX;

	while (run->group.unsent < HTTP_UNSENT_MAX)
	{
		CancelItem *item = next_item(run, now, &next);
		HttpRequest *request;

		if (item == NULL)
			return next;
		if (!item->checking && !pace_take(&run->pace, now))
			return pace_next(&run->pace, now);
		if (item->attempts > 0)
			dlist_delete(&item->node);
		else
		{
			run->next++;
			item->begun_us = now;
		}
		if (item->checking)
			run->view_next_us = now + VIEW_PAUSE_US;
		else
			item->attempts++;
		item->started_us = now;
		request = onesignal_request(&run->credentials, item->checking ? "GET" : "DELETE",
									&run->message_ids[item - run->items]);
		request->group = &run->group;
		request->timeout_ms = (int) Max(settings_timeout - (now - item->begun_us) / 1000, 1);
		request->connect_timeout_ms = settings_connect_timeout;
		http_submit(request, item);
	}
	return PG_INT64_MAX;
}

/* ---- finishing ---- */

static void
finish_cancel(CancelRun *run, CancelItem *item, const HttpAnswer *answer)
{
	int64		now = http_clock_us();
	double		random = pg_prng_double(&pg_global_prng_state);
	bool		again;
	CancelOutcome outcome;

	onesignal_judge(&outcome, answer, run->credentials.api_key);
	item->retry_us = now + backoff_delay(item->attempts, random, 0, answer->retry_after * INT64CONST(1000000));
	if (outcome.verdict == CANCEL_THROTTLED)
	{
		pace_throttled(&run->pace, item->started_us, now);
		run->not_before_us = Max(run->not_before_us, item->retry_us);
	}
	else if (outcome.status != 0)
		pace_answered(&run->pace, now);
	again = item->attempts <= settings_max_retries &&
		(outcome.verdict == CANCEL_THROTTLED || outcome.verdict == CANCEL_UNAVAILABLE ||
		 outcome.verdict == CANCEL_UNANSWERED);

	/* Refused, but maybe because an earlier attempt has canceled it */
	item->unanswered |= answer->sent_before || onesignal_may_have_worked(&outcome, answer);
	if (item->unanswered && (outcome.verdict == CANCEL_REFUSED || outcome.verdict == CANCEL_NOT_FOUND))
	{
		item->refusal = keep_errors(run, &outcome);
		onesignal_hint_doubt(&outcome, true);
		item->checking = again = true;
	}
	if (item->errors != NULL)
		pfree(item->errors);
	item->errors = keep_errors(run, &outcome);
	item->status = outcome.status;
	item->success = outcome.verdict == CANCEL_DONE;
	if (again && !run->stopped)
		dlist_push_tail(&run->waiting, &item->node);
	else
		run->done++;

	/* The same would happen to all others: they have the same result; what is to be checked stays refused. */
	if (outcome.verdict == CANCEL_UNAUTHORIZED ||
		(outcome.verdict == CANCEL_THROTTLED && item->retry_us - now >= settings_timeout * INT64CONST(1000)))
	{
		run->stopped = true;
		while (!dlist_is_empty(&run->waiting) || run->next < run->count)
		{
			CancelItem *other = dlist_is_empty(&run->waiting) ? &run->items[run->next++] :
				dlist_container(CancelItem, node, dlist_pop_head_node(&run->waiting));

			run->done++;
			if (!other->checking)
				*other = *item;
		}
	}
}

static void
finish_exchange(CancelRun *run, const HttpAnswer *answer)
{
	CancelItem *item = answer->owner;
	CancelVerdict verdict;

	if (!item->checking)
	{
		if (item->attempts == 1)
			item->begun_us = answer->begun_us;
		finish_cancel(run, item, answer);
	}
	else if ((verdict = onesignal_judge_view(answer)) == CANCEL_UNAVAILABLE && !run->stopped)
	{
		run->view_next_us = http_clock_us() + Max(answer->retry_after, 1) * INT64CONST(1000000);
		dlist_push_head(&run->waiting, &item->node);
	}
	else
	{
		item->success = verdict == CANCEL_DONE;
		if (verdict == CANCEL_DONE || verdict == CANCEL_REFUSED)
			item->errors = item->success ? NULL : item->refusal;
		run->done++;
	}
}

/* pgstat_report_activity() takes it for another query, without an id. */
static void
show_activity(const char *text)
{
	uint64		query_id = pgstat_get_my_query_id();

	pgstat_report_activity(STATE_RUNNING, text);
	pgstat_report_query_id(query_id, true);
}

/* Returns an item with a result for each message, palloc'd in the caller's context.  Interrupts take effect at once. */
static CancelItem *
cancel_messages(const pg_uuid_t *app_id, const pg_uuid_t *message_ids, int count)
{
	MemoryContext context;
	CancelRun	run = {.message_ids = message_ids, .count = count, .context = CurrentMemoryContext};

	settings_require_enabled();
	/* A trigger that the table's owner made ENABLE ALWAYS could call us while outcomes are recorded. */
	if (http_in_flight())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot cancel a message while this session delivers requested cancels")));
	context = AllocSetContextCreate(CurrentMemoryContext, "onesignal cancel", ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(context);
	credentials_get(app_id, GetUserId(), &run.credentials);
	PG_TRY();
	{
		run.items = MemoryContextAllocExtended(run.context, sizeof(CancelItem) * (Size) count,
											   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
		MemoryContextSwitchTo(AllocSetContextCreate(context, "onesignal answer", ALLOCSET_DEFAULT_SIZES));
		run.show_us = count > 1 ? http_clock_us() + SHOW_US : PG_INT64_MAX;
		pace_init(&run.pace, count == 1 ? 0 : run.credentials.rate_limit);
		for (int64 next = start_requests(&run); run.done < count; next = start_requests(&run))
		{
			const HttpAnswer *answer = http_wait(Min(next, run.show_us));

			if (answer != NULL)
				finish_exchange(&run, answer);
			if (http_clock_us() >= run.show_us)
			{
				show_activity(psprintf("onesignal_cancel_batch: %d of %d", run.done, count));
				run.show_us = http_clock_us() + SHOW_US;
			}
			MemoryContextReset(CurrentMemoryContext);
		}
		if (count > 1)
			show_activity(debug_query_string);
		MemoryContextSwitchTo(run.context);
	}
	PG_FINALLY();
	{
		http_abandon();			/* no request stays in flight */
		MemoryContextDelete(context);	/* wipes the key */
	}
	PG_END_TRY();
	return run.items;
}

/* ---- the SQL functions ---- */

static void
result_values(const CancelItem *item, ArrayType *no_errors, Datum *values, bool *nulls)
{
	nulls[0] = item->status == 0;
	values[0] = Int32GetDatum(item->status);
	values[1] = BoolGetDatum(item->success);
	values[2] = PointerGetDatum(item->errors != NULL ? item->errors : no_errors);
}

/* This and the next raise errors only for problems that the caller can fix.  What OneSignal does is in the row. */
Datum
onesignal_cancel(PG_FUNCTION_ARGS)
{
	Datum		values[3];
	bool		nulls[3] = {false};
	CancelItem *item;
	TupleDesc	descriptor;

	settings_require_argument(fcinfo, 0, "app_id", SETTINGS_FILTER_HINT);
	settings_require_argument(fcinfo, 1, "message_id", SETTINGS_FILTER_HINT);
	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	item = cancel_messages(PG_GETARG_UUID_P(0), PG_GETARG_UUID_P(1), 1);
	result_values(item, construct_empty_array(TEXTOID), values, nulls);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}

/* One row for each element, in the array's order. */
Datum
onesignal_cancel_batch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ArrayType  *no_errors = construct_empty_array(TEXTOID);
	ArrayType  *array;
	const pg_uuid_t *message_ids;
	CancelItem *items;
	int			count;

	settings_require_argument(fcinfo, 0, "app_id", SETTINGS_FILTER_HINT);
	settings_require_argument(fcinfo, 1, "message_ids",
							  "array_agg() of no rows is null; ARRAY(SELECT ...) is an empty array.");
	array = PG_GETARG_ARRAYTYPE_P(1);
	if (array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("message_ids must not contain nulls"),
				 errdetail("Nothing was sent."),
				 errhint("Use array_remove(message_ids, NULL), or array_agg(id) FILTER (WHERE id IS NOT NULL).")));
	count = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	/* Without nulls the elements, of 16 bytes and unaligned, are an array in C, too. */
	message_ids = (const pg_uuid_t *) ARR_DATA_PTR(array);
	InitMaterializedSRF(fcinfo, 0);

	items = cancel_messages(PG_GETARG_UUID_P(0), message_ids, count);
	for (int i = 0; i < count; i++)
	{
		Datum		values[4] = {UUIDPGetDatum(&message_ids[i])};
		bool		nulls[4] = {false};

		CHECK_FOR_INTERRUPTS();
		result_values(&items[i], no_errors, values + 1, nulls + 1);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* What a bug report should say. */
Datum
onesignal_cancel_version(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("onesignal_cancel %s, PostgreSQL %s, %s", ONESIGNAL_CANCEL_VERSION,
											  GetConfigOption("server_version", false, false), http_versions())));
}
