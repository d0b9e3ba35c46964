/*
 * cancel.c
 *		The SQL functions that cancel now.
 *
 * One message is a batch of one: the same run starts requests while there is
 * room, takes whichever has finished, and tries those again that may succeed
 * later.  Nothing is written to any table, and a rollback takes nothing back.
 *
 * A message may be refused because an earlier attempt, whose answer was lost,
 * has canceled it.  Then OneSignal is asked (View message) whether it is
 * canceled, at the pace that it allows, while the message's time lasts.
 *
 * A message's time runs from its first request.  Waiting for its turn in the
 * batch costs it nothing; waiting to be tried again does.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "funcapi.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "credentials.h"
#include "onesignal.h"
#include "pace.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(onesignal_cancel);
PG_FUNCTION_INFO_V1(onesignal_cancel_batch);
PG_FUNCTION_INFO_V1(onesignal_cancel_version);

/* View message may be asked so often within so long; half a second more, since requests do not travel evenly. */
#define VIEWS_MAX			10
#define VIEWS_WINDOW_US		INT64CONST(10500000)

/* How often a batch shows how far it is. */
#define SHOW_US				INT64CONST(1000000)

/* What is handed back for one message. */
typedef struct CancelResult
{
	int			status;			/* 0: NULL */
	bool		success;
	ArrayType  *errors;
} CancelResult;

/* A message that is on the wire, waits to be tried again, or was refused and is to be checked. */
typedef struct CancelItem
{
	dlist_node	node;			/* in run.waiting, .unchecked or .unused, or on the wire */
	int			index;			/* of the message */
	int			attempts;
	bool		unanswered;		/* an attempt left this machine and had no answer */
	bool		checking;		/* View message is asked whether that attempt canceled it */
	int64		started_us;		/* when it was decided to send this one */
	int64		begun_us;		/* when its first request was sent */
	int64		retry_us;		/* while it waits: when it is tried again */
	ArrayType  *refusal;		/* while checking: OneSignal's own errors */
} CancelItem;

typedef struct CancelRun
{
	const pg_uuid_t *message_ids;
	int			count;
	CancelResult *results;		/* of an unfinished message: what it is if nothing better comes */
	int			next;			/* the first message not begun */
	int			done;

	const Credentials *credentials;
	CancelRequest request;
	HttpGroup	group;
	Pace		pace;
	int64		not_before_us;	/* OneSignal asked us to wait until then (429) */
	bool		stopped;		/* the rest is reported, unsent */
	int64		show_us;		/* when progress is shown next */

	int			views;			/* how often View message was asked, ... */
	int64		viewed_us[VIEWS_MAX];	/* ... when, the last times, ... */
	int64		view_not_before_us; /* ... and when it may be again, after a 429 */

	CancelItem *items;
	dlist_head	unused;
	dlist_head	waiting;
	dlist_head	unchecked;
	MemoryContext context;		/* results */
	MemoryContext scratch;		/* one answer */
	ArrayType  *no_errors;
} CancelRun;

static void
run_begin(CancelRun *run, const pg_uuid_t *app_id, const Credentials *credentials,
		  const pg_uuid_t *message_ids, int count)
{
	int			item_count = Min(count, settings_max_in_flight);

	run->message_ids = message_ids;
	run->count = count;
	run->credentials = credentials;
	run->context = CurrentMemoryContext;
	run->scratch = AllocSetContextCreate(CurrentMemoryContext, "onesignal answer", ALLOCSET_DEFAULT_SIZES);
	run->results = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(CancelResult) * (Size) Max(count, 1));
	run->no_errors = construct_empty_array(TEXTOID);
	run->items = palloc(sizeof(CancelItem) * Max(item_count, 1));
	dlist_init(&run->unused);
	dlist_init(&run->waiting);
	dlist_init(&run->unchecked);
	run->show_us = count > 1 ? http_clock_us() + SHOW_US : PG_INT64_MAX;
	for (int i = 0; i < item_count; i++)
		dlist_push_tail(&run->unused, &run->items[i].node);
	pace_init(&run->pace, count == 1 ? 0 : credentials->rate_limit);
	onesignal_request_begin(&run->request, app_id, credentials);
}

/* ---- reporting ---- */

/* The array alone is in the results' context. */
static ArrayType *
errors_array(CancelRun *run, const CancelOutcome *outcome)
{
	Datum	   *elements = palloc(sizeof(Datum) * (outcome->error_count + 1));
	MemoryContext old;
	ArrayType  *array;

	if (outcome->error_count == 0)
		return run->no_errors;
	for (int i = 0; i < outcome->error_count; i++)
		elements[i] = CStringGetTextDatum(outcome->errors[i]);
	old = MemoryContextSwitchTo(run->context);
	array = construct_array(elements, outcome->error_count, TEXTOID, -1, false, TYPALIGN_INT);
	MemoryContextSwitchTo(old);
	return array;
}

static void
set_result(CancelRun *run, CancelItem *item, const CancelOutcome *outcome)
{
	CancelResult *result = &run->results[item->index];

	if (item->attempts > 1 && result->errors != run->no_errors)
		pfree(result->errors);
	result->status = outcome->status;
	result->success = outcome->verdict == CANCEL_DONE;
	result->errors = errors_array(run, outcome);
}

static void
report(CancelRun *run, CancelItem *item)
{
	run->done++;
	dlist_push_head(&run->unused, &item->node);
}

static bool
is_in_time(const CancelItem *item, int64 when_us)
{
	return when_us - item->begun_us < settings_timeout * INT64CONST(1000);
}

/*
 * Another's 429, or the pace, may have made all wait longer than some can: their
 * last answer is the one that counts.
 */
static void
report_late(CancelRun *run, int64 now)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &run->waiting)
	{
		CancelItem *item = dlist_container(CancelItem, node, iter.cur);

		if (is_in_time(item, Max(now, Max(item->retry_us, run->not_before_us))))
			continue;
		dlist_delete(&item->node);
		report(run, item);
	}
}

/* ---- starting ---- */

static void
submit(CancelRun *run, CancelItem *item, HttpRequest *request, int64 now)
{
	int64		left_ms = settings_timeout;

	if (item->attempts > 0)
		left_ms -= (now - item->begun_us) / 1000;
	request->group = &run->group;
	request->timeout_ms = (int) Max(left_ms, 1);
	request->connect_timeout_ms = settings_connect_timeout;
	item->started_us = now;
	http_submit(request, item);
}

/* A message whose retry is due, or else the next one; NULL: none now. */
static CancelItem *
startable_item(CancelRun *run, int64 now)
{
	dlist_iter	iter;
	CancelItem *item;

	dlist_foreach(iter, &run->waiting)
	{
		item = dlist_container(CancelItem, node, iter.cur);
		if (item->retry_us <= now)
			return item;
	}
	if (run->next >= run->count || dlist_is_empty(&run->unused))
		return NULL;
	item = dlist_head_element(CancelItem, node, &run->unused);
	item->index = run->next;
	item->attempts = 0;
	item->unanswered = item->checking = false;
	return item;
}

static bool
has_room(const CancelRun *run)
{
	return run->group.unsent < HTTP_UNSENT_MAX && http_in_flight() < settings_max_in_flight;
}

static void
start_requests(CancelRun *run)
{
	int64		now = http_clock_us();
	CancelItem *item;

	if (run->stopped || now < run->not_before_us)
		return;
	report_late(run, now);
	while (has_room(run) &&
		   (item = startable_item(run, now)) != NULL && pace_take(&run->pace, now))
	{
		dlist_delete(&item->node);
		if (item->index == run->next)
			run->next++;
		submit(run, item, onesignal_request(&run->request, &run->message_ids[item->index]), now);
		item->attempts++;
	}
}

/* When View message may be asked, once others have been asked that come before. */
static int64
view_due_us(const CancelRun *run, int others, int64 now)
{
	int64		due = run->viewed_us[(run->views + others) % VIEWS_MAX] + VIEWS_WINDOW_US;

	return Max(due, Max(now, run->view_not_before_us)) + others / VIEWS_MAX * VIEWS_WINDOW_US;
}

/* Those that cannot be had in time are reported at once. */
static void
start_checks(CancelRun *run)
{
	int64		now = http_clock_us();
	int			others = 0;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &run->unchecked)
	{
		CancelItem *item = dlist_container(CancelItem, node, iter.cur);
		int64		due = view_due_us(run, others, now);

		if (!is_in_time(item, due))
		{
			dlist_delete(&item->node);
			report(run, item);
		}
		else if (due > now || !has_room(run))
			others++;
		else
		{
			dlist_delete(&item->node);
			run->viewed_us[run->views++ % VIEWS_MAX] = now;
			submit(run, item, onesignal_view_request(&run->request, &run->message_ids[item->index]), now);
		}
	}
}

/* When there may be something to start, if no answer comes before. */
static int64
next_start_us(CancelRun *run)
{
	int64		now = http_clock_us();
	int64		next = PG_INT64_MAX;
	dlist_iter	iter;

	if (!has_room(run))
		return PG_INT64_MAX;
	dlist_foreach(iter, &run->waiting)
		next = Min(next, dlist_container(CancelItem, node, iter.cur)->retry_us);
	if (run->next < run->count && !dlist_is_empty(&run->unused))
		next = 0;
	if (next != PG_INT64_MAX)
		next = Max(next, Max(run->not_before_us, pace_next(&run->pace, now)));
	if (!dlist_is_empty(&run->unchecked))
		next = Min(next, view_due_us(run, 0, now));
	return next;
}

/* ---- finishing ---- */

/* No further request: whatever was not begun or waits reports the same, and what was refused, that. */
static void
stop(CancelRun *run, CancelResult result)
{
	run->stopped = true;
	while (!dlist_is_empty(&run->waiting))
	{
		CancelItem *item = dlist_container(CancelItem, node, dlist_pop_head_node(&run->waiting));

		run->results[item->index] = result;
		report(run, item);
	}
	while (!dlist_is_empty(&run->unchecked))
		report(run, dlist_container(CancelItem, node, dlist_pop_head_node(&run->unchecked)));
	for (; run->next < run->count; run->next++, run->done++)
		run->results[run->next] = result;
}

static bool
may_retry(const CancelItem *item, const CancelOutcome *outcome, int64 retry_us)
{
	return (outcome->verdict == CANCEL_THROTTLED || outcome->verdict == CANCEL_UNAVAILABLE ||
			outcome->verdict == CANCEL_UNANSWERED) &&
		item->attempts <= settings_max_retries && is_in_time(item, retry_us);
}

static void
learn(CancelRun *run, const CancelOutcome *outcome, int64 started_us, int64 now)
{
	if (outcome->verdict == CANCEL_THROTTLED)
		pace_throttled(&run->pace, started_us, now);
	else if (outcome->status != 0)
		pace_answered(&run->pace, now);
}

/* It was refused, maybe since an attempt had canceled it before: View message knows. */
static void
check_later(CancelRun *run, CancelItem *item, CancelOutcome *outcome)
{
	item->refusal = errors_array(run, outcome);
	onesignal_hint_unanswered(outcome);
	set_result(run, item, outcome);
	item->checking = true;
	if (run->stopped)
		report(run, item);
	else
		dlist_push_tail(&run->unchecked, &item->node);
}

static void
finish_check(CancelRun *run, CancelItem *item, const HttpAnswer *answer)
{
	CancelResult *result = &run->results[item->index];
	int			retry_after;
	ViewVerdict verdict = onesignal_judge_view(answer, &retry_after);

	if (verdict == VIEW_UNAVAILABLE && !run->stopped)
	{
		run->view_not_before_us = http_clock_us() + Max(retry_after, 1) * INT64CONST(1000000);
		dlist_push_head(&run->unchecked, &item->node);
		return;
	}
	result->success = verdict == VIEW_CANCELED;
	if (verdict == VIEW_CANCELED)
		result->errors = run->no_errors;
	else if (verdict == VIEW_NOT_CANCELED)
		result->errors = item->refusal;
	report(run, item);
}

static void
finish_cancel(CancelRun *run, CancelItem *item, const HttpAnswer *answer)
{
	int64		now = http_clock_us();
	int64		wait_us;
	CancelOutcome outcome;

	onesignal_judge(&outcome, answer, run->credentials->api_key);
	learn(run, &outcome, item->started_us, now);
	item->unanswered |= answer->sent_before || (outcome.verdict == CANCEL_UNANSWERED && answer->sent);
	if (item->unanswered && (outcome.verdict == CANCEL_REFUSED || outcome.verdict == CANCEL_NOT_FOUND))
	{
		check_later(run, item, &outcome);
		return;
	}

	wait_us = backoff_direct(item->attempts, pg_prng_double(&pg_global_prng_state),
							 outcome.retry_after * INT64CONST(1000000));
	item->retry_us = now + wait_us;
	if (outcome.verdict == CANCEL_THROTTLED)
		run->not_before_us = Max(run->not_before_us, item->retry_us);
	set_result(run, item, &outcome);
	if (!run->stopped && may_retry(item, &outcome, Max(item->retry_us, run->not_before_us)))
		dlist_push_tail(&run->waiting, &item->node);
	else
	{
		report(run, item);
		if (outcome.verdict == CANCEL_UNAUTHORIZED ||
			(outcome.verdict == CANCEL_THROTTLED && wait_us >= settings_timeout * INT64CONST(1000)))
			stop(run, run->results[item->index]);
	}
	if (outcome.verdict == CANCEL_THROTTLED)
		report_late(run, now);
}

static void
finish_exchange(CancelRun *run, HttpExchange *exchange)
{
	CancelItem *item = http_owner(exchange);
	MemoryContext old = MemoryContextSwitchTo(run->scratch);

	if (item->attempts == 1 && !item->checking)
		item->begun_us = http_begun_us(exchange);
	if (item->checking)
		finish_check(run, item, http_answer(exchange));
	else
		finish_cancel(run, item, http_answer(exchange));
	http_release(exchange);
	MemoryContextSwitchTo(old);
	MemoryContextReset(run->scratch);
}

/* "n of m" in pg_stat_activity. */
static void
show_progress(CancelRun *run)
{
	int64		now = http_clock_us();
	char		activity[128];

	if (now < run->show_us)
		return;
	run->show_us = now + SHOW_US;
	snprintf(activity, sizeof(activity), "onesignal_cancel_batch: %d of %d", run->done, run->count);
	pgstat_report_activity(STATE_RUNNING, activity);
}

static void
run_to_end(CancelRun *run)
{
	for (;;)
	{
		HttpExchange *exchange;

		start_checks(run);
		start_requests(run);
		if (run->done == run->count)
			break;
		exchange = http_wait(Min(next_start_us(run), run->show_us));
		if (exchange != NULL)
			finish_exchange(run, exchange);
		show_progress(run);
	}
	if (run->count > 1)
		pgstat_report_activity(STATE_RUNNING, debug_query_string);
}

/*
 * Cancels all of the messages; one result each, palloc'd in the caller's
 * context.  Interruptible at any time; whatever happens, nothing stays in
 * flight and no key in memory.
 */
static CancelResult *
cancel_messages(const pg_uuid_t *app_id, const pg_uuid_t *message_ids, int count)
{
	CancelRun	run = {0};
	Credentials credentials = {0};

	settings_require_enabled();
	/* A trigger that the table's owner made ENABLE ALWAYS could call us while outcomes are recorded. */
	if (http_in_flight() > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot cancel a message while this session delivers requested ones")));
	credentials_get(app_id, GetUserId(), &credentials);
	PG_TRY();
	{
		run_begin(&run, app_id, &credentials, message_ids, count);
		run_to_end(&run);
		http_tidy();
	}
	PG_FINALLY();
	{
		http_abandon();
		onesignal_request_end(&run.request);
		credentials_wipe(&credentials);
	}
	PG_END_TRY();
	MemoryContextDelete(run.scratch);
	return run.results;
}

/* ---- the SQL functions ---- */

static void
require_argument(FunctionCallInfo fcinfo, int number, const char *name, const char *hint)
{
	if (PG_ARGISNULL(number))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name),
				 errhint("%s", hint)));
}

static TupleDesc
result_descriptor(FunctionCallInfo fcinfo)
{
	MemoryContext old;
	TupleDesc	descriptor = fcinfo->flinfo->fn_extra;

	if (descriptor != NULL)
		return descriptor;
	old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	descriptor = BlessTupleDesc(descriptor);
	MemoryContextSwitchTo(old);
	fcinfo->flinfo->fn_extra = descriptor;
	return descriptor;
}

static void
result_values(const CancelResult *result, Datum *values, bool *nulls)
{
	nulls[0] = result->status == 0;
	values[0] = Int32GetDatum(result->status);
	nulls[1] = false;
	values[1] = BoolGetDatum(result->success);
	nulls[2] = false;
	values[2] = PointerGetDatum(result->errors);
}

/*
 * onesignal_cancel(app_id uuid, message_id uuid) RETURNS onesignal_cancel_result
 *
 * One DELETE /notifications/{message_id}?app_id={app_id}, now.  Raises what
 * the caller does wrong; what the other side does is in the row.
 */
Datum
onesignal_cancel(PG_FUNCTION_ARGS)
{
	Datum		values[3];
	bool		nulls[3];
	CancelResult *result;

	require_argument(fcinfo, 0, "app_id", "Where a row may lack it, filter: WHERE app_id IS NOT NULL.");
	require_argument(fcinfo, 1, "message_id", "Where a row may lack it, filter: WHERE message_id IS NOT NULL.");
	result = cancel_messages(PG_GETARG_UUID_P(0), PG_GETARG_UUID_P(1), 1);
	result_values(result, values, nulls);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(result_descriptor(fcinfo), values, nulls)));
}

static ArrayType *
message_ids_argument(FunctionCallInfo fcinfo, int number)
{
	ArrayType  *array;

	require_argument(fcinfo, number, "message_ids",
					 "array_agg() of no rows is null; ARRAY(SELECT ...) is an empty array.");
	array = PG_GETARG_ARRAYTYPE_P(number);
	if (array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("message_ids must not contain nulls"),
				 errdetail("Nothing was sent."),
				 errhint("Use array_remove(message_ids, NULL), or array_agg(id) FILTER (WHERE id IS NOT NULL).")));
	return array;
}

/*
 * onesignal_cancel_batch(app_id uuid, message_ids uuid[])
 * RETURNS TABLE (message_id uuid, status integer, success boolean, errors text[])
 *
 * One row for each element, in the array's order, over multiplexed HTTP/2.
 */
Datum
onesignal_cancel_batch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const pg_uuid_t *message_ids;
	ArrayType  *array;
	CancelResult *results;
	int			count;

	require_argument(fcinfo, 0, "app_id", "Where a row may lack it, filter: WHERE app_id IS NOT NULL.");
	array = message_ids_argument(fcinfo, 1);
	count = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	/* Without nulls the elements, 16 bytes each and unaligned, stand side by side. */
	message_ids = (const pg_uuid_t *) ARR_DATA_PTR(array);
	InitMaterializedSRF(fcinfo, 0);

	results = cancel_messages(PG_GETARG_UUID_P(0), message_ids, count);
	for (int i = 0; i < count; i++)
	{
		Datum		values[4];
		bool		nulls[4];

		CHECK_FOR_INTERRUPTS();
		values[0] = UUIDPGetDatum(&message_ids[i]);
		nulls[0] = false;
		result_values(&results[i], values + 1, nulls + 1);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* onesignal_cancel_version() RETURNS text: what a bug report should say */
Datum
onesignal_cancel_version(PG_FUNCTION_ARGS)
{
	StringInfoData out;

	(void) fcinfo;
	initStringInfo(&out);
	appendStringInfo(&out, "onesignal_cancel %s, PostgreSQL %s, ", ONESIGNAL_CANCEL_VERSION,
					 GetConfigOption("server_version", false, false));
	http_append_versions(&out);
	PG_RETURN_TEXT_P(cstring_to_text(out.data));
}
