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
 * committed.  After a crash, or an error in here, it is sent again.  OneSignal
 * may then refuse what it has already canceled: such a refusal is checked by
 * View message before it is believed.
 *
 * An answer is acted upon twice.  At once, by its status alone, for pace and
 * circuits (apps.c).  And within the next transaction in full, for the row
 * (decide): its text has to become text of the database.
 *
 *		begin_request           take_answer            record_answers
 *		    -> on the wire ------> answered ----------------> recorded
 *		           ^                 ^   |
 *		           | begin_view      |   | locked, unrecordable, or to be checked
 *		           +---------------- later
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "delivery.h"
#include "lanes.h"
#include "settings.h"
#include "wakeup.h"

/* One UPDATE's worth of outcomes: 6 to 7 ms; fewer where their bodies are large. */
#define RECORD_MAX			500
#define RECORD_BYTES_MAX	(1024 * 1024)

/* Answers taken before others are begun, if so many are there. */
#define TAKE_MIN			32

/* How often requests are handed over before outcomes are looked at again. */
#define BEGIN_ROUNDS		16

/*
 * While requests are on the wire, outcomes wait this long for company.  When
 * none is, and none can be begun, they are recorded at once.
 */
#define RECORD_DELAY_US		INT64CONST(20000)

/* An outcome that could not be written is tried again so soon, doubling up to the second or third figure. */
#define KEPT_DELAY_MIN_US	INT64CONST(100000)
#define KEPT_DELAY_MAX_US	INT64CONST(5000000)
#define UNRECORDABLE_DELAY_MAX_US	INT64CONST(15000000)

/* What has to end waits so long for the last of them. */
#define KEPT_GRACE_US		INT64CONST(5000000)

/* A 404 may mean that OneSignal does not know the message yet. */
#define NOT_FOUND_WINDOW	(60 * USECS_PER_SEC)

/* OneSignal answers View message once a second and app; a refusal waits so long for it. */
#define VIEW_INTERVAL_US	USECS_PER_SEC
#define CHECK_WINDOW_US		(10 * USECS_PER_MINUTE)

/* How long a wait for answers may take before the caller is asked for news. */
#define LOOK_US				INT64CONST(500000)

/* How long answers are waited for when delivery has to stop. */
#define STOP_US				USECS_PER_SEC

/* Waits shorter than this are spent here, longer ones by the caller. */
#define SHORT_WAIT			USECS_PER_SEC

typedef enum ItemPlace
{
	ITEM_ON_WIRE,
	ITEM_ANSWERED,
	ITEM_LATER
} ItemPlace;

/* Is a refusal to be believed? */
typedef enum ItemCheck
{
	CHECK_NONE,					/* not asked for */
	CHECK_WANTED,
	CHECK_CONFIRMED,			/* the message is canceled */
	CHECK_DENIED,				/* it is not */
	CHECK_GIVEN_UP				/* View message could not be had in time */
} ItemCheck;

/* One message from its taking until its outcome is recorded. */
typedef struct DeliveryItem
{
	dlist_node	any;			/* in items, always */
	ItemPlace	place;
	dlist_node	node;			/* in answered */
	pairingheap_node later_node;	/* in later, ... */
	int64		again_us;		/* ... until then */
	DeliveryLane *lane;
	LaneKey    *key;			/* that it is sent with */
	QueueRow	row;
	HttpAnswer	answer;			/* to the DELETE */
	char	   *text;			/* what answer points to */
	HttpAnswer	view;			/* to View message, as long as it is to be judged */
	char	   *view_text;		/* what view points to, or NULL */
	Moment		begun;			/* when it was decided to send it */
	bool		denied;			/* 401 or 403, and not on account of the key */
	ItemCheck	check;
	int64		check_until_us;
	bool		aside;			/* it does not count as unrecorded */
	bool		kept;			/* it waits since its outcome could not be written, ... */
	int64		keep_us;		/* ... for so long; 0: that was not tried yet */
} DeliveryItem;

static int	compare_items(const pairingheap_node *a, const pairingheap_node *b, void *arg);

static MemoryContext delivery_context = NULL;	/* items; dropped with them after an error */
static MemoryContext turn_context = NULL;	/* what one turn of the run needs */
static dlist_head items = DLIST_STATIC_INIT(items);
static dlist_head answered;
static int	answered_count = 0;
static size_t answered_bytes = 0;	/* of their bodies */
static int64 answered_since;	/* the oldest of them */
static pairingheap later = {.ph_compare = compare_items};
static int	kept_count = 0;		/* of these: could not be written */
static int64 kept_since;		/* the last of them */
static int64 stopping_since = 0;	/* 0: it need not stop */
static bool cautious = false;	/* the last run ended in an error */

/* ---- items ---- */

static int
compare_items(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	int64		left = pairingheap_const_container(DeliveryItem, later_node, a)->again_us;
	int64		right = pairingheap_const_container(DeliveryItem, later_node, b)->again_us;

	(void) arg;
	return left < right ? 1 : left > right ? -1 : 0;
}

static void
push_answered(DeliveryItem *item)
{
	item->place = ITEM_ANSWERED;
	if (answered_count++ == 0)
		answered_since = http_clock_us();
	answered_bytes += item->answer.body_length;
	dlist_push_tail(&answered, &item->node);
}

static DeliveryItem *
pop_answered(void)
{
	DeliveryItem *item = dlist_container(DeliveryItem, node, dlist_pop_head_node(&answered));

	answered_count--;
	answered_bytes -= item->answer.body_length;
	return item;
}

static void
push_later(DeliveryItem *item, int64 again_us)
{
	item->place = ITEM_LATER;
	item->again_us = again_us;
	pairingheap_add(&later, &item->later_node);
}

static void
free_item(DeliveryItem *item)
{
	dlist_delete(&item->any);
	if (item->key != NULL)
		apps_release_key(item->key);
	if (item->text != NULL)
		pfree(item->text);
	if (item->view_text != NULL)
		pfree(item->view_text);
	pfree(item);
}

/* ---- beginning ---- */

static void
submit(DeliveryItem *item, HttpRequest *request)
{
	request->timeout_ms = settings_delivery_timeout;
	request->connect_timeout_ms = settings_delivery_connect_timeout;
	item->place = ITEM_ON_WIRE;
	http_submit(request, item);
}

static void
begin_requests(Moment now)
{
	LaneTurn	turn;

	while (lanes_take(now, &turn))
	{
		DeliveryItem *item = MemoryContextAllocZero(delivery_context, sizeof(DeliveryItem));

		dlist_push_tail(&items, &item->any);
		item->lane = turn.lane;
		item->key = turn.key;
		item->row = turn.row;
		item->begun = now;
		submit(item, onesignal_request(&item->key->request, &item->row.message_id));
	}
}

/* ---- checking a refusal ---- */

/* May it be that an earlier attempt canceled the message? */
static bool
is_in_doubt(const DeliveryItem *item)
{
	return item->row.unanswered || item->answer.sent_before || item->row.requested_at < wakeup_doubt();
}

/* Each takes its place in the app's line; who would wait too long is told at once.  False: it does. */
static bool
schedule_check(DeliveryItem *item, int64 not_before_us)
{
	DeliveryApp *app = item->lane->app;
	int64		at_us = Max(app->view_next_us, not_before_us);

	if (item->check != CHECK_WANTED)
		item->check_until_us = http_clock_us() + CHECK_WINDOW_US;
	item->check = CHECK_WANTED;
	if (at_us > item->check_until_us)
	{
		item->check = CHECK_GIVEN_UP;
		return false;
	}
	app->view_next_us = at_us + VIEW_INTERVAL_US;
	if (!item->aside)
		lanes_count_unrecorded(item->lane, -1);
	item->aside = true;
	push_later(item, at_us);
	return true;
}

static void
begin_view(DeliveryItem *item, Moment now)
{
	if (lanes_take_again(item->lane, now))
		submit(item, onesignal_view_request(&item->key->request, &item->row.message_id));
	else if (item->lane->app->paused_until > now.ts)
		push_answered(item);	/* it stays pending, and is refused and checked when the pause is over */
	else
	{
		item->check_until_us += VIEW_INTERVAL_US;
		push_later(item, now.us + VIEW_INTERVAL_US);
	}
}

/* What View message said.  In a transaction.  False: it is to be asked again. */
static bool
judge_view(DeliveryItem *item)
{
	ViewVerdict verdict = onesignal_judge_view(&item->view);

	pfree(item->view_text);
	item->view_text = NULL;
	if (verdict == VIEW_UNAVAILABLE)
		return stopping_since != 0 ||
			!schedule_check(item, http_clock_us() + Max(item->view.retry_after, 1) * USECS_PER_SEC);
	item->check = verdict == VIEW_CANCELED ? CHECK_CONFIRMED : CHECK_DENIED;
	return true;
}

/* ---- taking answers ---- */

/* Returns what the copy points to. */
static char *
copy_answer(HttpAnswer *copy, const HttpAnswer *answer)
{
	size_t		body_size = answer->body_length + 1;
	size_t		error_size = strlen(answer->error) + 1;
	size_t		host_size = strlen(answer->redirect_host) + 1;
	char	   *text = MemoryContextAlloc(delivery_context, body_size + error_size + host_size);

	*copy = *answer;
	copy->body = memcpy(text, answer->body, body_size);
	copy->error = memcpy(text + body_size, answer->error, error_size);
	copy->redirect_host = memcpy(text + body_size + error_size, answer->redirect_host, host_size);
	return text;
}

static void
take_cancel(DeliveryItem *item, const HttpAnswer *answer)
{
	item->text = copy_answer(&item->answer, answer);
	item->denied = (answer->status == 401 || answer->status == 403) &&
		apps_denies(item->lane, &item->row, apps_now());
	if (item->denied || (answer->status == 0 && stopping_since != 0))
		apps_excuse(item->lane, item->begun.us, item->denied);
	else
		apps_learn(item->lane, answer, item->begun.us);
}

/* The exchange goes back to the engine; what it brought waits to be recorded. */
static void
take_answer(HttpExchange *exchange)
{
	DeliveryItem *item = http_owner(exchange);
	const HttpAnswer *answer = http_answer(exchange);
	bool		has_status = answer->status != 0;

	if (item->check == CHECK_WANTED)
		item->view_text = copy_answer(&item->view, answer);
	else
		take_cancel(item, answer);
	push_answered(item);
	http_release(exchange);
	lanes_end_request(item->lane, has_status, apps_now());
}

/* ---- deciding what becomes of the row ---- */

static TimestampTz
first_attempt(const DeliveryItem *item)
{
	return item->row.first_attempt_at != 0 ? item->row.first_attempt_at : item->begun.ts;
}

/* Its time is over: retry_window after its first attempt or send_after, whichever is later. */
static bool
is_over(const DeliveryItem *item, TimestampTz now)
{
	TimestampTz from = first_attempt(item);

	if (item->row.send_after != DT_NOEND)
		from = Max(from, item->row.send_after);
	return now - from > settings_retry_window * USECS_PER_SEC;
}

static TimestampTz
next_attempt(const DeliveryItem *item, const CancelOutcome *judged, TimestampTz now)
{
	TimestampTz send_after = item->row.send_after;
	int64		time_left = send_after == DT_NOBEGIN ? 0 :
		send_after == DT_NOEND ? PG_INT64_MAX : send_after - now;

	if (judged->verdict == CANCEL_UNAUTHORIZED)
		return now + CIRCUIT_KEY_PAUSE + USECS_PER_SEC; /* others are probed first */
	return now + backoff_delay(item->row.attempts + 1, pg_prng_double(&pg_global_prng_state),
							   time_left, judged->retry_after * USECS_PER_SEC);
}

static QueueState
decide_state(const DeliveryItem *item, const CancelOutcome *judged, TimestampTz now)
{
	bool		may_appear;

	switch (judged->verdict)
	{
		case CANCEL_DONE:
			return QUEUE_CANCELED;
		case CANCEL_REFUSED:
			return QUEUE_REFUSED;
		case CANCEL_NOT_FOUND:
			may_appear = item->row.send_after > now || item->row.send_after == DT_NOBEGIN;
			return may_appear && now - first_attempt(item) < NOT_FOUND_WINDOW ? QUEUE_PENDING : QUEUE_REFUSED;
		default:
			if (item->denied)
				return QUEUE_REFUSED;
			return is_over(item, now) ? QUEUE_FAILED : QUEUE_PENDING;
	}
}

/* What View message said of a refusal that was in doubt; stopping, the next deliverer has to ask. */
static void
apply_check(const DeliveryItem *item, QueueOutcome *outcome, CancelOutcome *judged)
{
	switch (item->check)
	{
		case CHECK_CONFIRMED:
			outcome->state = QUEUE_CANCELED;
			judged->error_count = 0;
			break;
		case CHECK_WANTED:
			outcome->state = QUEUE_PENDING;
			outcome->unanswered = true;
			outcome->next_attempt_at = GetCurrentTimestamp();
			break;
		case CHECK_GIVEN_UP:
			onesignal_hint_unanswered(judged);
			break;
		default:
			break;
	}
}

/* False: a refusal is to be checked first, and waits for that. */
static bool
may_believe(DeliveryItem *item)
{
	if (item->view_text != NULL)
		return judge_view(item);
	if (item->check != CHECK_NONE || !is_in_doubt(item))
		return true;
	if (stopping_since == 0)
		return !schedule_check(item, http_clock_us());
	item->check = CHECK_WANTED;
	return true;
}

/* False: it is to be checked first. */
static bool
decide(DeliveryItem *item, QueueOutcome *outcome)
{
	CancelOutcome judged;
	TimestampTz now = GetCurrentTimestamp();

	onesignal_judge(&judged, &item->answer, item->key->credentials.api_key);
	memset(outcome, 0, sizeof(*outcome));
	outcome->app_id = item->lane->key.app_id;
	outcome->message_id = item->row.message_id;
	outcome->requested_at = item->row.requested_at;
	outcome->http_status = judged.status;
	outcome->response = judged.response;
	outcome->last_attempt_at = item->begun.ts;
	outcome->state = decide_state(item, &judged, now);
	/* Of a message that is canceled nobody asks any more. */
	outcome->unanswered = outcome->state != QUEUE_CANCELED &&
		(item->answer.sent_before || (judged.status == 0 && item->answer.sent));
	if (outcome->state == QUEUE_PENDING)
		outcome->next_attempt_at = next_attempt(item, &judged, now);
	if (outcome->state == QUEUE_REFUSED && !item->denied)
	{
		if (!may_believe(item))
			return false;
		apply_check(item, outcome, &judged);
	}
	outcome->errors = judged.errors;
	outcome->error_count = judged.error_count;
	return true;
}

/* ---- recording ---- */

static void
log_given_up(const DeliveryItem *item, const QueueOutcome *outcome)
{
	char	   *message_id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&outcome->message_id)));
	const char *error = outcome->error_count > 0 ? outcome->errors[0] : "";

	ereport(LOG,
			(errmsg("onesignal_cancel: giving up on message %s of %s after %d attempts in %d s: %s",
					message_id, apps_label(item->lane->app), item->row.attempts + 1,
					(int) ((GetCurrentTimestamp() - first_attempt(item)) / USECS_PER_SEC),
					outcome->http_status != 0 ? psprintf("HTTP %d (%s)", outcome->http_status, error) : error),
			 errhidecontext(true)));
}

static void
keep(DeliveryItem *item, QueueRecorded recorded)
{
	int64		longest_us = recorded == QUEUE_LOCKED ? KEPT_DELAY_MAX_US : UNRECORDABLE_DELAY_MAX_US;
	int64		now_us = http_clock_us();

	if (item->keep_us == 0)
		kept_since = now_us;
	item->keep_us = Min(longest_us, Max(KEPT_DELAY_MIN_US, 2 * item->keep_us));
	item->kept = true;
	kept_count++;
	push_later(item, now_us + item->keep_us);
}

static void
settle(DeliveryItem *item, const QueueOutcome *outcome, QueueRecorded recorded)
{
	if (recorded == QUEUE_LOCKED || recorded == QUEUE_UNRECORDABLE)
	{
		keep(item, recorded);
		return;
	}
	if (outcome->state == QUEUE_FAILED)
		log_given_up(item, outcome);
	if (item->aside)
		lanes_count_unrecorded(item->lane, 1);
	lanes_settle(item->lane, &item->row, outcome->http_status,
				 outcome->state == QUEUE_PENDING && recorded == QUEUE_RECORDED ? outcome->next_attempt_at : DT_NOEND);
	free_item(item);
}

/* A batch of outcomes on its way into the table. */
typedef struct Recording
{
	int			count;
	DeliveryItem *items[RECORD_MAX];
	QueueOutcome outcomes[RECORD_MAX];
	QueueRecorded recorded[RECORD_MAX];
	char	   *error;			/* why some could not be written, or NULL */
} Recording;

static void
record_answers(Recording *recording)
{
	size_t		bytes = 0;
	int			left = answered_count;

	while (left-- > 0 && recording->count < RECORD_MAX && bytes < RECORD_BYTES_MAX)
	{
		DeliveryItem *item = pop_answered();

		recording->items[recording->count] = item;
		if (decide(item, &recording->outcomes[recording->count]))
		{
			bytes += item->answer.body_length;
			recording->count++;
		}
	}
	answered_since = http_clock_us();
	queue_record(recording->outcomes, recording->count, recording->recorded, &recording->error);
	for (int i = 0; i < recording->count; i++)
		if (recording->recorded[i] == QUEUE_RECORDED && recording->outcomes[i].state != QUEUE_PENDING)
			apps_count(recording->items[i]->lane->app, recording->outcomes[i].state, 1);
}

/* The transaction has committed: who may send more, and who less? */
static void
learn_from_recording(const Recording *recording)
{
	int64		now_us = http_clock_us();
	bool		recorded_some = false;
	bool		lost_new = false;

	for (int i = 0; i < recording->count; i++)
	{
		DeliveryApp *app = recording->items[i]->lane->app;

		if (recording->recorded[i] == QUEUE_UNRECORDABLE || app->recorded_us == now_us)
			continue;
		app->recorded_us = now_us;
		recorded_some = true;
		if (kept_count == 0)
			apps_note_recording(app, NULL);
		lanes_grow_trust(app);
	}
	for (int i = 0; i < recording->count; i++)
	{
		DeliveryItem *item = recording->items[i];
		DeliveryApp *app = item->lane->app;

		if (recording->recorded[i] != QUEUE_UNRECORDABLE)
			continue;
		apps_note_recording(app, recording->error);
		lost_new |= item->keep_us == 0;
		if (item->keep_us != 0 || app->recorded_us == now_us || app->distrusted_us == now_us)
			continue;
		app->distrusted_us = now_us;
		lanes_lose_trust(app);
	}
	if (recorded_some || lost_new)
		lanes_note_visit(recorded_some);
}

/* One short transaction: records and fetches.  False: the extension is gone. */
static bool
visit_tables(const DeliveryOptions *options, bool may_begin)
{
	Recording  *recording = palloc(sizeof(Recording));

	recording->count = 0;
	if (!queue_begin(options->in_procedure))
		return false;
	record_answers(recording);
	if (may_begin)
		lanes_fill(apps_now());
	apps_save(apps_now());
	queue_commit();
	apps_saved();
	learn_from_recording(recording);
	for (int i = 0; i < recording->count; i++)
		settle(recording->items[i], &recording->outcomes[i], recording->recorded[i]);
	return true;
}

static bool
must_visit(bool may, Moment now)
{
	if (answered_count > 0 &&
		(answered_count >= RECORD_MAX || answered_bytes >= RECORD_BYTES_MAX ||
		 http_in_flight() == 0 || lanes_await_record() ||
		 now.us - answered_since >= RECORD_DELAY_US))
		return true;
	return (may && lanes_hungry(now)) || apps_want_saving(now, http_in_flight() == 0);
}

/* ---- the run ---- */

/* After an error anything may be half done: all that was begun is begun again. */
static void
forget_everything(void)
{
	http_abandon();
	while (!dlist_is_empty(&items))
		free_item(dlist_head_element(DeliveryItem, any, &items));
	if (delivery_context != NULL)
		MemoryContextReset(delivery_context);
	dlist_init(&answered);
	pairingheap_reset(&later);
	answered_count = kept_count = 0;
	answered_bytes = 0;
	stopping_since = 0;
}

/* What waited for a time that has come. */
static void
take_later(bool may, Moment now)
{
	while (!pairingheap_is_empty(&later))
	{
		DeliveryItem *item = pairingheap_container(DeliveryItem, later_node, pairingheap_first(&later));

		if (item->again_us > now.us && stopping_since == 0)
			break;
		(void) pairingheap_remove_first(&later);
		kept_count -= item->kept ? 1 : 0;
		item->kept = false;
		if (item->check == CHECK_WANTED && may)
			begin_view(item, now);
		else
			push_answered(item);
	}
}

/* How long the wire may be waited for: the next row, record or later item. */
static int64
wait_until(Moment now, TimestampTz next_due)
{
	int64		until = now.us + LOOK_US;

	if (stopping_since != 0)
		return Min(until, stopping_since + STOP_US);
	if (next_due != DT_NOEND)
		until = Min(until, now.us + Max(next_due - now.ts, 0));
	if (answered_count > 0)
		until = Min(until, answered_since + RECORD_DELAY_US);
	if (!pairingheap_is_empty(&later))
		until = Min(until, pairingheap_container(DeliveryItem, later_node, pairingheap_first(&later))->again_us);
	return until;
}

/* The settings may have been reloaded since. */
static bool
may_begin(const DeliveryOptions *options, Moment now)
{
	if (options->must_stop != NULL && stopping_since == 0 && options->must_stop())
		stopping_since = now.us;
	return stopping_since == 0 && settings_enabled &&
		(options->in_procedure || settings_background_delivery) &&
		(options->until == 0 || now.ts <= options->until);
}

/*
 * Is there reason to stay for outcomes that could not be written yet, or for
 * checks?  A CALL whose duration is over or that has none ends: whoever has a
 * row locked for long must not hold up all others.  It will be sent again.
 */
static bool
stays_for_later(const DeliveryOptions *options, bool may, Moment now)
{
	bool		has_end = options->in_procedure && options->until == 0;

	if (pairingheap_is_empty(&later))
		return may && !has_end && apps_are_unsaved();
	return (may && (!has_end || kept_count == 0)) || now.us - kept_since < KEPT_GRACE_US;
}

static bool
is_done(const DeliveryOptions *options, bool may, Moment now, TimestampTz next_due)
{
	return http_in_flight() == 0 && answered_count == 0 &&
		next_due - now.ts > SHORT_WAIT && !stays_for_later(options, may, now);
}

/* Takes what has been answered, after waiting for something to do. */
static void
wait_for_answers(int64 until_us)
{
	HttpExchange *exchange = http_wait(until_us);

	for (int taken = 1; exchange != NULL; taken++)
	{
		take_answer(exchange);
		exchange = taken < TAKE_MIN ? http_wait(0) : http_next();
	}
}

/*
 * libcurl is given an app's requests some at a time (HTTP_UNSENT_MAX).  It is
 * called between them, so that the peer works while others are begun.
 */
static void
fill_wire(Moment now)
{
	for (int round = 0; round < BEGIN_ROUNDS; round++)
	{
		int			before = http_in_flight();

		begin_requests(now);
		if (http_in_flight() - before < HTTP_UNSENT_MAX / 2)
			break;
		wait_for_answers(0);
	}
}

/*
 * The last visit of a run that has to stop: what is on the wire has had no
 * answer, and what waits is tried once more.
 */
static void
stop(const DeliveryOptions *options, Moment now)
{
	HttpExchange *exchange;

	http_give_up("delivery was stopped while it waited for an answer");
	while ((exchange = http_next()) != NULL)
		take_answer(exchange);
	take_later(false, now);
	while (answered_count > 0 && visit_tables(options, false))
		;
}

static TimestampTz
run(const DeliveryOptions *options)
{
	for (;;)
	{
		Moment		now = apps_now();
		TimestampTz next_due;
		bool		may;

		MemoryContextReset(turn_context);
		if (options->woken != NULL && options->woken())
			lanes_wake();
		else if (options->in_procedure)
			lanes_refresh(now);
		may = may_begin(options, now);
		if (stopping_since != 0 && (http_in_flight() == 0 || now.us - stopping_since >= STOP_US))
		{
			stop(options, now);
			return now.ts;
		}
		lanes_tick(now);
		if (stopping_since == 0)
			take_later(may, now);
		if (must_visit(may, now))
		{
			if (!visit_tables(options, may))
				return DT_NOBEGIN;
			now = apps_now();
		}
		if (may)
			fill_wire(now);
		next_due = may ? lanes_next_due(now) : DT_NOEND;
		if (is_done(options, may, now, next_due))
			return next_due;
		if (answered_count == 0 || http_in_flight() > 0)
			wait_for_answers(wait_until(now, next_due));
	}
}

static void
delivery_error_context(void *arg)
{
	(void) arg;
	errcontext("onesignal_cancel delivering requested cancels");
}

TimestampTz
delivery_run(const DeliveryOptions *options)
{
	MemoryContext old = CurrentMemoryContext;
	ErrorContextCallback context = {.previous = error_context_stack, .callback = delivery_error_context};
	TimestampTz next_due;

	if (delivery_context == NULL)
		delivery_context = AllocSetContextCreate(TopMemoryContext, "onesignal delivery", ALLOCSET_DEFAULT_SIZES);
	if (turn_context == NULL)
		turn_context = AllocSetContextCreate(TopMemoryContext, "onesignal turn", ALLOCSET_DEFAULT_SIZES);
	forget_everything();
	error_context_stack = &context;
	PG_TRY();
	{
		lanes_open(cautious);
		cautious = false;
		MemoryContextSwitchTo(turn_context);
		next_due = run(options);
		http_tidy();
		if (!dlist_is_empty(&items))	/* the extension is gone, or rows stay locked */
		{
			wakeup_raise_doubt();
			forget_everything();
			lanes_forget();
		}
	}
	PG_CATCH();
	{
		if (!dlist_is_empty(&items))
			wakeup_raise_doubt();
		forget_everything();
		lanes_forget();
		cautious = true;
		PG_RE_THROW();
	}
	PG_END_TRY();
	error_context_stack = context.previous;
	MemoryContextSwitchTo(old);
	MemoryContextReset(turn_context);
	return next_due;
}

void
delivery_end(void)
{
	lanes_forget();
}
