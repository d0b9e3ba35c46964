/*
 * delivery.c
 *		The pipeline: begins what lanes.c says is next, judges the answers,
 *		records the outcomes.
 *
 * While some requests wait for an answer, others begin and others are
 * recorded: a request that hangs delays itself alone.  The tables are visited
 * in short transactions of their own (visit_tables), which record what was
 * answered since and fetch what comes next; between them, while requests are
 * on the wire, there is no transaction, and so no snapshot, xid or lock.
 *
 * At least once: a row stays pending until the outcome of its request is
 * committed.  After a crash, or an error in here, it is sent again.
 *
 * An answer is acted upon twice.  At once, by its status alone, for pace and
 * circuits (apps.c).  And within the next transaction in full, for the row
 * (decide): judging needs jsonb, which needs a transaction.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "apps.h"
#include "delivery.h"
#include "lanes.h"
#include "settings.h"

/* One UPDATE's worth of outcomes: 10 to 15 ms; fewer where their bodies are large. */
#define RECORD_MAX			1000
#define RECORD_BYTES_MAX	(1024 * 1024)

/* Answers taken before others are begun, if so many are there. */
#define TAKE_MIN			32

/*
 * While requests are on the wire, outcomes wait this long for company.  When
 * none is, and none can be begun, they are recorded at once.
 */
#define RECORD_DELAY_US		INT64CONST(50000)

/* Outcomes kept for rows that somebody else has locked: at most so many, ... */
#define KEPT_MAX			5000

/* ... tried again so soon, doubling up to the second figure. */
#define KEPT_DELAY_MIN_US	INT64CONST(100000)
#define KEPT_DELAY_MAX_US	INT64CONST(5000000)
#define UNRECORDABLE_DELAY_MAX_US	INT64CONST(60000000)

/* What has to end waits so long for the last of them. */
#define KEPT_GRACE_US		INT64CONST(5000000)

/* A 404 may mean that OneSignal does not know the message yet. */
#define NOT_FOUND_WINDOW	(60 * USECS_PER_SEC)

/* How long a wait for answers may take before the caller is asked for news. */
#define LOOK_US				INT64CONST(1000000)

/* Waits shorter than this are spent here, longer ones by the caller. */
#define SHORT_WAIT			USECS_PER_SEC

#define UNANSWERED_HINT		"an earlier attempt had no answer and may have canceled it"

/* One message from its taking until its outcome is recorded. */
typedef struct DeliveryItem
{
	dlist_node	node;			/* in answered or kept, or on the wire */
	dlist_node	any;			/* in items, always */
	DeliveryLane *lane;
	QueueRow	row;
	char	   *api_key;		/* that it was sent with: to be removed from the answer */
	HttpAnswer	answer;
	char	   *text;			/* what answer points to */
	Moment		begun;			/* when it was decided to send it */
	bool		denied;			/* 401 or 403, and not on account of the key */
	int64		keep_us;		/* how long it is kept until tried again */
	int64		again_us;		/* when that is */
} DeliveryItem;

static HttpGroup group;			/* until each app has its own */
static MemoryContext delivery_context = NULL;	/* items; dropped with them after an error */
static dlist_head items = DLIST_STATIC_INIT(items);
static dlist_head answered;
static int	answered_count = 0;
static size_t answered_bytes = 0;	/* of their bodies */
static int64 answered_since;	/* the oldest of them */
static dlist_head kept;
static int	kept_count = 0;
static int64 kept_next;			/* when the first of them is tried again */
static int64 kept_since;		/* the last of them */

/* ---- beginning ---- */

static void
begin_request(DeliveryLane *lane, const QueueRow *row, Moment now)
{
	DeliveryItem *item = MemoryContextAllocZero(delivery_context, sizeof(DeliveryItem));
	HttpRequest *request = onesignal_request(&lane->request, &row->message_id);

	dlist_push_tail(&items, &item->any);
	item->lane = lane;
	item->row = *row;
	item->begun = now;
	item->api_key = MemoryContextStrdup(delivery_context, lane->credentials.api_key);
	request->group = &group;
	request->timeout_ms = settings_timeout;
	request->connect_timeout_ms = settings_connect_timeout;
	http_submit(request, item);
}

static void
begin_requests(Moment now)
{
	DeliveryLane *lane;
	QueueRow	row;

	while (group.unsent < HTTP_UNSENT_MAX && http_in_flight() < settings_max_in_flight &&
		   kept_count < KEPT_MAX && lanes_take(now, &lane, &row))
		begin_request(lane, &row, now);
}

static void
free_item(DeliveryItem *item)
{
	dlist_delete(&item->any);
	if (item->api_key != NULL)
	{
		explicit_bzero(item->api_key, strlen(item->api_key));
		pfree(item->api_key);
	}
	if (item->text != NULL)
		pfree(item->text);
	pfree(item);
}

static void
copy_answer(DeliveryItem *item, const HttpAnswer *answer)
{
	size_t		body_size = answer->body_length + 1;
	size_t		error_size = strlen(answer->error) + 1;
	size_t		host_size = strlen(answer->redirect_host) + 1;

	item->text = MemoryContextAlloc(delivery_context, body_size + error_size + host_size);
	item->answer = *answer;
	item->answer.body = memcpy(item->text, answer->body, body_size);
	item->answer.error = memcpy(item->text + body_size, answer->error, error_size);
	item->answer.redirect_host = memcpy(item->text + body_size + error_size, answer->redirect_host, host_size);
}

/* The exchange goes back to the engine; what it brought waits to be recorded. */
static void
take_answer(HttpExchange *exchange)
{
	DeliveryItem *item = http_owner(exchange);
	const HttpAnswer *answer = http_answer(exchange);

	copy_answer(item, answer);
	item->denied = (answer->status == 401 || answer->status == 403) &&
		apps_denies(item->lane, &item->row, lanes_now());
	if (item->denied)
		apps_excuse(item->lane, item->begun.us);
	else
		apps_learn(item->lane, answer, item->begun.us);
	http_release(exchange);

	if (answered_count++ == 0)
		answered_since = http_clock_us();
	answered_bytes += item->answer.body_length;
	dlist_push_tail(&answered, &item->node);
}

/* ---- deciding what becomes of the row ---- */

static void
add_unanswered_hint(QueueOutcome *outcome, CancelOutcome *judged)
{
	char	  **errors = palloc(sizeof(char *) * (judged->error_count + 1));

	memcpy(errors, judged->errors != NULL ? judged->errors : errors, sizeof(char *) * judged->error_count);
	errors[judged->error_count] = UNANSWERED_HINT;
	outcome->errors = errors;
	outcome->error_count = judged->error_count + 1;
}

static TimestampTz
first_attempt(const DeliveryItem *item)
{
	return item->row.first_attempt_at != 0 ? item->row.first_attempt_at : item->begun.ts;
}

/* Its time is over: retry_window after its first attempt or send_after, whichever is later. */
static bool
is_over(const DeliveryItem *item, TimestampTz now)
{
	TimestampTz from = Max(first_attempt(item), item->row.send_after);

	return now - from > settings_retry_window * USECS_PER_SEC;
}

static TimestampTz
next_attempt(const DeliveryItem *item, const CancelOutcome *judged, TimestampTz now)
{
	TimestampTz send_after = item->row.send_after;
	int64		time_left = send_after == DT_NOBEGIN ? 0 :
		send_after == DT_NOEND ? PG_INT64_MAX : send_after - now;

	return now + backoff_delay(item->row.attempts + 1, pg_prng_double(&pg_global_prng_state),
							   time_left, judged->retry_after * INT64CONST(1000000));
}

static QueueState
decide_state(const DeliveryItem *item, const CancelOutcome *judged, TimestampTz now)
{
	switch (judged->verdict)
	{
		case CANCEL_DONE:
			return QUEUE_CANCELED;
		case CANCEL_REFUSED:
			return QUEUE_REFUSED;
		case CANCEL_NOT_FOUND:
			return item->row.send_after > now && now - first_attempt(item) < NOT_FOUND_WINDOW ?
				QUEUE_PENDING : QUEUE_REFUSED;
		case CANCEL_UNAUTHORIZED:
			return item->denied ? QUEUE_REFUSED : QUEUE_PENDING;
		default:
			return is_over(item, now) ? QUEUE_FAILED : QUEUE_PENDING;
	}
}

static void
decide(const DeliveryItem *item, QueueOutcome *outcome)
{
	CancelOutcome judged;
	TimestampTz now = GetCurrentTimestamp();

	onesignal_judge(&judged, &item->answer, item->api_key);
	memset(outcome, 0, sizeof(*outcome));
	outcome->app_id = item->lane->key.app_id;
	outcome->message_id = item->row.message_id;
	outcome->requested_at = item->row.requested_at;
	outcome->http_status = judged.status;
	outcome->errors = judged.errors;
	outcome->error_count = judged.error_count;
	outcome->response = judged.response;
	outcome->last_attempt_at = item->begun.ts;
	outcome->state = decide_state(item, &judged, now);
	if (outcome->state == QUEUE_PENDING)
		outcome->next_attempt_at = judged.verdict == CANCEL_UNAUTHORIZED ?
			now + CIRCUIT_KEY_PAUSE + USECS_PER_SEC :	/* others are probed first */
			next_attempt(item, &judged, now);
	if (outcome->state == QUEUE_REFUSED && item->row.unanswered)
		add_unanswered_hint(outcome, &judged);
}

/* ---- recording ---- */

static void
log_given_up(const DeliveryItem *item, const QueueOutcome *outcome)
{
	char	   *message_id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&outcome->message_id)));

	ereport(LOG,
			(errmsg("onesignal_cancel: giving up message %s after %d attempts: %s", message_id,
					item->row.attempts + 1, outcome->error_count > 0 ? outcome->errors[0] : "")));
}

static void
keep(DeliveryItem *item, QueueRecorded recorded, int64 now_us)
{
	/* What cannot be written is logged each time, and waits for somebody to act. */
	int64		longest_us = recorded == QUEUE_LOCKED ? KEPT_DELAY_MAX_US : UNRECORDABLE_DELAY_MAX_US;

	if (item->keep_us == 0)
		kept_since = now_us;
	item->keep_us = Min(longest_us, Max(KEPT_DELAY_MIN_US, 2 * item->keep_us));
	item->again_us = now_us + item->keep_us;
	kept_next = kept_count == 0 ? item->again_us : Min(kept_next, item->again_us);
	dlist_push_tail(&kept, &item->node);
	kept_count++;
	item->lane->kept++;
}

static void
settle(DeliveryItem *item, const QueueOutcome *outcome, QueueRecorded recorded)
{
	if (recorded != QUEUE_RECORDED)
	{
		keep(item, recorded, http_clock_us());
		return;
	}
	if (outcome->state == QUEUE_FAILED)
		log_given_up(item, outcome);
	lanes_put_back(item->lane, &item->row, outcome->http_status,
				   outcome->state == QUEUE_PENDING ? outcome->next_attempt_at : DT_NOEND);
	free_item(item);
}

/* The kept ones whose time has come go to the front of the answered. */
static void
take_kept(int64 now_us)
{
	dlist_mutable_iter iter;
	int64		next = PG_INT64_MAX;

	if (kept_count == 0 || now_us < kept_next)
		return;
	dlist_foreach_modify(iter, &kept)
	{
		DeliveryItem *item = dlist_container(DeliveryItem, node, iter.cur);

		if (item->again_us > now_us)
		{
			next = Min(next, item->again_us);
			continue;
		}
		dlist_delete(&item->node);
		dlist_push_head(&answered, &item->node);
		answered_bytes += item->answer.body_length;
		kept_count--;
		item->lane->kept--;
		if (answered_count++ == 0)
			answered_since = now_us;
	}
	kept_next = next;
}

/*
 * Records up to RECORD_MAX answers.  Only when the transaction has committed
 * are they settled: an error before leaves them to be sent again.
 */
static int
record_answers(DeliveryItem **batch, QueueOutcome *outcomes, QueueRecorded *recorded)
{
	size_t		bytes = 0;
	int			count = 0;

	while (count < RECORD_MAX && bytes < RECORD_BYTES_MAX && !dlist_is_empty(&answered))
	{
		batch[count] = dlist_container(DeliveryItem, node, dlist_pop_head_node(&answered));
		bytes += batch[count]->answer.body_length;
		answered_count--;
		decide(batch[count], &outcomes[count]);
		count++;
	}
	answered_since = http_clock_us();
	answered_bytes -= bytes;
	if (count > 0)
		queue_record(outcomes, count, recorded);
	return count;
}

/* One short transaction: records and fetches.  False: the extension is gone. */
static bool
visit_tables(bool in_procedure)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext scratch;
	DeliveryItem *batch[RECORD_MAX];
	QueueRecorded recorded[RECORD_MAX];
	QueueOutcome *outcomes;
	int			count;

	scratch = AllocSetContextCreate(delivery_context, "onesignal outcomes", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(scratch);
	if (!queue_begin(in_procedure))
	{
		MemoryContextSwitchTo(old);
		MemoryContextDelete(scratch);
		return false;
	}
	outcomes = palloc(sizeof(QueueOutcome) * RECORD_MAX);
	count = record_answers(batch, outcomes, recorded);
	lanes_fill(lanes_now());
	queue_commit();
	apps_end_saving(true);

	MemoryContextSwitchTo(scratch);
	for (int i = 0; i < count; i++)
		settle(batch[i], &outcomes[i], recorded[i]);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	return true;
}

static bool
must_record(int64 now_us)
{
	return answered_count > 0 &&
		(answered_count >= RECORD_MAX || answered_bytes >= RECORD_BYTES_MAX ||
		 now_us - answered_since >= RECORD_DELAY_US);
}

/* ---- the run ---- */

/* After an error anything may be half done: all that was begun is begun again. */
static void
forget_everything(void)
{
	http_abandon();
	while (!dlist_is_empty(&items))
		free_item(dlist_head_element(DeliveryItem, any, &items));
	lanes_forget_taken();
	if (delivery_context != NULL)
		MemoryContextReset(delivery_context);
	dlist_init(&answered);
	dlist_init(&kept);
	answered_count = kept_count = 0;
	answered_bytes = 0;
}

static int64
on_engine_clock(TimestampTz when, Moment now)
{
	return when == DT_NOEND ? PG_INT64_MAX : now.us + Max(when - now.ts, 0);
}

/* How long the wire may be waited for: the next row, record or kept outcome. */
static int64
wait_until(Moment now, TimestampTz next_due)
{
	int64		until = PG_INT64_MAX;

	/* Without room no row can begin, however due it is. */
	if (group.unsent < HTTP_UNSENT_MAX && http_in_flight() < settings_max_in_flight && kept_count < KEPT_MAX)
		until = on_engine_clock(next_due, now);
	if (answered_count > 0)
		until = Min(until, answered_since + RECORD_DELAY_US);
	if (kept_count > 0)
		until = Min(until, kept_next);
	return until;
}

/* The settings may have been reloaded since. */
static bool
may_begin(const DeliveryOptions *options, Moment now)
{
	return settings_enabled && (options->in_procedure || settings_background_delivery) &&
		(options->until == 0 || now.ts <= options->until);
}

static bool
is_idle(Moment now, TimestampTz next_due)
{
	return http_in_flight() == 0 && answered_count == 0 &&
		(kept_count >= KEPT_MAX || next_due - now.ts > SHORT_WAIT);
}

/*
 * Is there reason to stay for outcomes whose rows are locked?  A CALL whose
 * duration is over or that has none, and a worker that was switched off, end:
 * whoever has a row locked for long must not hold up all others.  It will be
 * sent again.
 */
static bool
stays_for_kept(const DeliveryOptions *options, bool may, Moment now)
{
	bool		has_end = options->in_procedure && options->until == 0;

	return kept_count > 0 &&
		((may && !has_end) || now.us - kept_since < KEPT_GRACE_US);
}

/* Takes what has been answered, after waiting for something to do. */
static void
wait_for_answers(Moment now, TimestampTz next_due)
{
	HttpExchange *exchange = http_wait(Min(wait_until(now, next_due), now.us + LOOK_US));

	for (int taken = 1; exchange != NULL; taken++)
	{
		take_answer(exchange);
		exchange = taken < TAKE_MIN ? http_wait(0) : http_next();
	}
}

static TimestampTz
run(const DeliveryOptions *options)
{
	bool		last_answers = false;	/* nothing is on the wire that could keep them company */

	for (;;)
	{
		Moment		now = lanes_now();
		TimestampTz next_due;
		bool		may;

		if (options->woken != NULL && options->woken())
			lanes_wake();
		may = may_begin(options, now);
		take_kept(now.us);
		if (last_answers || must_record(now.us) || (may && lanes_hungry(now)))
		{
			if (!visit_tables(options->in_procedure))
				return DT_NOBEGIN;
			now = lanes_now();
		}
		if (may)
			begin_requests(now);

		last_answers = answered_count > 0 && http_in_flight() == 0;
		if (last_answers)
			continue;

		next_due = may ? lanes_next_due(now) : DT_NOEND;
		if (is_idle(now, next_due) && !stays_for_kept(options, may, now))
			return next_due;
		wait_for_answers(now, next_due);
	}
}

TimestampTz
delivery_run(const DeliveryOptions *options)
{
	TimestampTz next_due;

	if (delivery_context == NULL)
		delivery_context = AllocSetContextCreate(TopMemoryContext, "onesignal delivery",
												 ALLOCSET_DEFAULT_SIZES);
	forget_everything();
	lanes_open();
	PG_TRY();
	{
		next_due = run(options);
		if (next_due == DT_NOBEGIN || kept_count > 0)
			forget_everything();	/* some may be on the wire, too */
	}
	PG_CATCH();
	{
		forget_everything();
		apps_end_saving(false);
		lanes_forget_keys();
		PG_RE_THROW();
	}
	PG_END_TRY();
	return next_due;
}

void
delivery_end(void)
{
	lanes_forget_keys();
}
