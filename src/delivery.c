/*
 * delivery.c
 *		The pipeline: begins requests, judges the answers, records the outcomes.
 *
 * While some requests wait for an answer, others begin and others are
 * recorded, so a request that hangs delays only itself.  Short transactions
 * (visit_tables) record what was answered and fetch what comes next; between
 * them, while requests are on the wire, there is no transaction, and so no
 * snapshot, xid or lock.
 *
 * A row stays pending until the outcome of its request is committed.  After a
 * crash, or an error in here, it is sent again.  OneSignal may then refuse what
 * it has already canceled, so View message is asked before such a refusal is
 * believed.
 *
 * An answer is used twice: at once, by its status alone, for pace and circuits
 * (apps.c); and in the next transaction, which its text needs, for the row.
 *
 *		begin_requests           take_answer            record_answers
 *		    -> on the wire ------> answered ----------------> recorded
 *		           ^                 ^   |
 *		           | begin_view      |   | locked, unrecordable, or to be checked
 *		           +-------------- a timer
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

/* One UPDATE's worth of outcomes takes 6 to 7 ms; fewer where their bodies are large. */
#define RECORD_MAX			500
#define RECORD_BYTES_MAX	(1024 * 1024)

/* How often requests are handed over before outcomes are looked at again. */
#define BEGIN_ROUNDS		16

/* While requests are on the wire, outcomes wait this long for company. */
#define RECORD_DELAY_US		INT64CONST(20000)

/* An outcome that could not be written is tried again so soon, doubling up to the second or third figure. */
#define KEEP_MIN_US			INT64CONST(100000)
#define KEEP_LOCKED_US		INT64CONST(5000000)
#define KEEP_UNRECORDABLE_US	INT64CONST(15000000)

/* A run that has nothing else to do waits so long for these. */
#define GRACE_US			INT64CONST(5000000)

/* A 404 may mean that OneSignal does not know the message yet. */
#define NOT_FOUND_WINDOW	(60 * USECS_PER_SEC)

/* OneSignal answers View message once a second for each app; a refusal waits so long for it. */
#define VIEW_INTERVAL_US	USECS_PER_SEC
#define CHECK_WINDOW_US		(10 * USECS_PER_MINUTE)

/* How long a wait for answers may take before the caller is asked for news. */
#define LOOK_US				INT64CONST(500000)

/* How long answers are waited for when delivery has to stop. */
#define STOP_US				USECS_PER_SEC

/* Shorter waits are spent here, longer ones by the caller. */
#define SHORT_WAIT_US		USECS_PER_SEC

static MemoryContext delivery_context = NULL;	/* all that is known, until it is forgotten */
static MemoryContext turn_context;	/* what one turn of the run needs */
static dlist_head answered;
static int	answered_count;
static TimestampTz answered_since;	/* the oldest of them */
static int	kept_count;			/* items whose outcome could not be written */
static TimestampTz ending_since;	/* when nothing was left but to wait for these; 0: not yet */
static TimestampTz stopping_since;	/* 0: it need not stop */
static TimestampTz turn_at = 0; /* when the last turn began */
static bool cautious = false;	/* the last run ended in an error */

/* ---- beginning ---- */

static void
push_answered(DeliveryItem *item)
{
	if (answered_count++ == 0)
		answered_since = GetCurrentTimestamp();
	dlist_push_tail(&answered, &item->node);
}

static void
submit(DeliveryItem *item, HttpRequest *request)
{
	request->timeout_ms = settings_delivery_timeout;
	request->connect_timeout_ms = settings_delivery_connect_timeout;
	http_submit(request, item);
}

static void
begin_requests(TimestampTz now)
{
	DeliveryItem *item;

	while ((item = lanes_take(now)) != NULL)
		submit(item, onesignal_request(&item->key->request, "DELETE", &item->row.message_id));
}

/* ---- checking a refusal ---- */

/* May an earlier attempt have canceled the message? */
static bool
is_in_doubt(const DeliveryItem *item)
{
	return item->row.unanswered || item->answer.sent_before || item->row.requested_at < wakeup_doubt();
}

/* The row stays pending: at this time the cancel is sent, and its refusal checked, again. */
static void
postpone_check(DeliveryItem *item, TimestampTz until)
{
	item->check = CHECK_POSTPONED;
	item->check_until = until;
}

/* Takes a turn to ask View message.  Where that is not soon, it postpones a first check and gives up another. */
static void
schedule_check(DeliveryItem *item, TimestampTz not_before)
{
	DeliveryApp *app = item->lane->app;
	TimestampTz at = Max(app->view_next_at, not_before);
	bool		is_first = item->check == CHECK_NONE;

	if (is_first)
		item->check_until = GetCurrentTimestamp() + CHECK_WINDOW_US;
	if (at <= item->check_until)
	{
		item->check = CHECK_WANTED;
		app->view_next_at = at + VIEW_INTERVAL_US;
		lanes_set_timer(&item->timer, at);
	}
	else if (is_first)
	{
		app->postponed_at = Max(app->postponed_at, at) + VIEW_INTERVAL_US;
		postpone_check(item, app->postponed_at);
	}
	else
		item->check = CHECK_GIVEN_UP;
}

/* The lane may have another key since the message was canceled with this one. */
static void
renew_key(DeliveryItem *item)
{
	LaneKey    *key = item->lane->credentials;

	if (key == NULL || key == item->key)
		return;
	apps_release_key(item->key);
	item->key = key;
	key->refs++;
}

static void
begin_view(DeliveryItem *item, TimestampTz now)
{
	if (lanes_take_again(item, now))
	{
		renew_key(item);
		submit(item, onesignal_request(&item->key->request, "GET", &item->row.message_id));
		return;
	}
	if (item->lane->app->paused_until > now)
		postpone_check(item, now + CIRCUIT_KEY_PAUSE);
	else
		schedule_check(item, now + VIEW_INTERVAL_US);
	if (item->check != CHECK_WANTED)
		push_answered(item);
}

/* What View message said, if it is of use. */
static void
judge_view(DeliveryItem *item)
{
	CancelVerdict verdict = onesignal_judge_view(&item->view);

	pfree(item->view_text);
	item->view_text = NULL;
	if (verdict == CANCEL_DONE)
		item->check = CHECK_CONFIRMED;
	else if (verdict == CANCEL_REFUSED)
		item->check = CHECK_DENIED;
	else if (apps_was_rejected(item->view.status))
		postpone_check(item, GetCurrentTimestamp() + CIRCUIT_KEY_PAUSE);
	else if (verdict == CANCEL_UNEXPECTED)
		item->check = CHECK_GIVEN_UP;
}

/* In a transaction.  False: View message is to be asked first, in its turn. */
static bool
may_believe(DeliveryItem *item)
{
	int			wait = 0;

	if (item->view_text != NULL)
	{
		judge_view(item);
		wait = Max(item->view.retry_after, 1);
		if (item->check != CHECK_WANTED || stopping_since != 0)
			return true;
	}
	else if (item->check != CHECK_NONE || !is_in_doubt(item))
		return true;

	if (stopping_since == 0)
		schedule_check(item, GetCurrentTimestamp() + wait * USECS_PER_SEC);
	else
		item->check = CHECK_WANTED;
	return item->check != CHECK_WANTED || stopping_since != 0;
}

/* ---- taking answers ---- */

/* Returns the copy's body. */
static char *
copy_answer(HttpAnswer *copy, const HttpAnswer *answer)
{
	char	   *body = MemoryContextAlloc(delivery_context, answer->body_length + 1);

	*copy = *answer;
	copy->body = memcpy(body, answer->body, answer->body_length + 1);
	return body;
}

/* What the exchange brought waits to be recorded. */
static void
take_answer(const HttpAnswer *answer)
{
	DeliveryItem *item = answer->owner;
	bool		has_status = answer->status != 0;

	if (item->check == CHECK_WANTED)
		item->view_text = copy_answer(&item->view, answer);
	else
	{
		item->text = copy_answer(&item->answer, answer);
		/* That we do not wait for an answer tells nothing of OneSignal. */
		if (has_status || stopping_since == 0)
			apps_learn(item, answer);
	}
	push_answered(item);
	lanes_end_request(item, has_status);
}

/* Takes what has been answered, after waiting for something to do. */
static void
wait_for_answers(TimestampTz until)
{
	int64		until_us = http_clock_us() + Max(until - GetCurrentTimestamp(), 0);

	for (const HttpAnswer *answer = http_wait(until_us); answer != NULL; answer = http_next())
		take_answer(answer);
}

/* Checks begin, and outcomes are recorded, that waited for a time that has come. */
static void
take_waiting(bool may, TimestampTz until)
{
	Timer	   *timer;

	while ((timer = lanes_take_timer(TIMER_ITEM, until)) != NULL)
	{
		DeliveryItem *item = pairingheap_container(DeliveryItem, timer.node, &timer->node);

		kept_count -= item->kept ? 1 : 0;
		if (item->check == CHECK_WANTED && !item->kept && may)
			begin_view(item, GetCurrentTimestamp());
		else
			push_answered(item);
		item->kept = false;
	}
}

/* ---- deciding what becomes of the row ---- */

static TimestampTz
first_attempt(const DeliveryItem *item)
{
	return item->row.first_attempt_at != 0 ? item->row.first_attempt_at : item->begun;
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
	bool		may_appear = item->row.send_after > now || item->row.send_after == DT_NOBEGIN;

	switch (judged->verdict)
	{
		case CANCEL_DONE:
			return QUEUE_CANCELED;
		case CANCEL_REFUSED:
			return QUEUE_REFUSED;
		case CANCEL_NOT_FOUND:
			return may_appear && now - first_attempt(item) < NOT_FOUND_WINDOW ? QUEUE_PENDING : QUEUE_REFUSED;
		default:
			if (item->denied)
				return QUEUE_REFUSED;
			return is_over(item, now) ? QUEUE_FAILED : QUEUE_PENDING;
	}
}

/* What View message said of a refusal that was in doubt; when we stop, the next deliverer has to ask. */
static void
apply_check(const DeliveryItem *item, QueueOutcome *outcome, CancelOutcome *judged)
{
	if (item->check == CHECK_CONFIRMED)
	{
		outcome->state = QUEUE_CANCELED;
		judged->error_count = 0;
	}
	else if (item->check == CHECK_WANTED || item->check == CHECK_POSTPONED)
	{
		outcome->state = QUEUE_PENDING;
		outcome->unanswered = true;
		outcome->next_attempt_at = item->check == CHECK_POSTPONED ? item->check_until : GetCurrentTimestamp();
	}
	else if (item->check == CHECK_GIVEN_UP)
		onesignal_hint_doubt(judged, item->row.unanswered || item->answer.sent_before);
}

/* False: a refusal is to be checked first. */
static bool
decide(DeliveryItem *item, QueueOutcome *outcome)
{
	CancelOutcome judged;
	TimestampTz now = GetCurrentTimestamp();

	onesignal_judge(&judged, &item->answer, item->key->credentials.api_key);
	memset(outcome, 0, sizeof(*outcome));
	outcome->app_id = item->id.app_id;
	outcome->message_id = item->id.message_id;
	outcome->requested_at = item->row.requested_at;
	outcome->http_status = judged.status;
	outcome->response = judged.response;
	outcome->last_attempt_at = item->begun;
	outcome->state = decide_state(item, &judged, now);
	/* When the message is canceled, nobody needs to know. */
	outcome->unanswered = outcome->state != QUEUE_CANCELED &&
		(item->answer.sent_before || onesignal_may_have_worked(&judged, &item->answer));
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
settle(DeliveryItem *item, const QueueOutcome *outcome, QueueRecorded recorded)
{
	bool		again = outcome->state == QUEUE_PENDING && recorded == QUEUE_RECORDED;

	if (recorded == QUEUE_LOCKED || recorded == QUEUE_UNRECORDABLE)
	{
		int64		longest_us = recorded == QUEUE_LOCKED ? KEEP_LOCKED_US : KEEP_UNRECORDABLE_US;

		item->keep_us = Min(longest_us, Max(KEEP_MIN_US, 2 * item->keep_us));
		item->kept = true;
		kept_count++;
		lanes_set_timer(&item->timer, GetCurrentTimestamp() + item->keep_us);
		return;
	}
	if (outcome->state == QUEUE_FAILED)
		log_given_up(item, outcome);
	lanes_settle(item, outcome->http_status, again ? outcome->next_attempt_at : DT_NOEND);
}

static void
record_answers(Recording *recording)
{
	size_t		bytes = 0;
	int			left = answered_count;

	while (left-- > 0 && recording->count < RECORD_MAX && bytes < RECORD_BYTES_MAX)
	{
		DeliveryItem *item = dlist_container(DeliveryItem, node, dlist_pop_head_node(&answered));

		answered_count--;
		recording->items[recording->count] = item;
		if (decide(item, &recording->outcomes[recording->count]))
		{
			bytes += item->answer.body_length;
			recording->count++;
		}
	}
	answered_since = GetCurrentTimestamp();
	queue_record(recording->outcomes, recording->count, recording->recorded, &recording->error);
	for (int i = 0; i < recording->count; i++)
		if (recording->recorded[i] == QUEUE_RECORDED && recording->outcomes[i].state != QUEUE_PENDING)
			apps_count(recording->items[i]->lane->app, recording->outcomes[i].state, 1);
}

/*
 * The transaction has committed: apps may begin more requests when it has
 * recorded some of theirs, and fewer when it has not.
 */
static void
learn_from_recording(const Recording *recording)
{
	static int	visit = 0;
	bool		recorded_some = false;
	bool		lost_some = false;

	visit++;
	for (int i = 0; i < recording->count; i++)
	{
		DeliveryApp *app = recording->items[i]->lane->app;

		if (recording->recorded[i] == QUEUE_UNRECORDABLE || app->visit == visit)
			continue;
		app->visit = visit;
		recorded_some = true;
		if (kept_count == 0)
			apps_note_recording(app, NULL);
		lanes_trust(app, true);
	}
	for (int i = 0; i < recording->count; i++)
	{
		DeliveryApp *app = recording->items[i]->lane->app;

		if (recording->recorded[i] != QUEUE_UNRECORDABLE)
			continue;
		apps_note_recording(app, recording->error);
		if (recording->items[i]->keep_us != 0)
			continue;			/* it counted when it was tried first */
		lost_some = true;
		if (app->visit != visit)
			lanes_trust(app, false);
		app->visit = visit;
	}
	if (recorded_some || lost_some)
		lanes_trust(NULL, recorded_some);
}

/* One short transaction: records and fetches.  False: the extension is gone. */
static bool
visit_tables(const DeliveryOptions *options, bool may)
{
	Recording  *recording = palloc(sizeof(Recording));

	recording->count = 0;
	if (!queue_begin(options->in_procedure))
		return false;
	record_answers(recording);
	if (may)
		lanes_fill(GetCurrentTimestamp());
	apps_save();
	queue_commit();
	learn_from_recording(recording);
	for (int i = 0; i < recording->count; i++)
		settle(recording->items[i], &recording->outcomes[i], recording->recorded[i]);
	return true;
}

static bool
must_visit(bool may, TimestampTz now)
{
	if (answered_count > 0 &&
		(answered_count >= RECORD_MAX || http_in_flight() == 0 || now - answered_since >= RECORD_DELAY_US))
		return true;
	return (may && lanes_are_hungry(now)) || now >= apps_save_at();
}

/* ---- the run ---- */

/* What was begun is begun again. */
static void
forget_everything(void)
{
	http_abandon();
	lanes_forget();
	if (delivery_context != NULL)
		MemoryContextDelete(delivery_context);
	delivery_context = NULL;
}

/*
 * May requests begin?  The settings may have been reloaded.  When the clock was
 * set back, all that waits would wait too long: the run stops, and all is
 * forgotten.
 */
static bool
may_begin(const DeliveryOptions *options, TimestampTz now)
{
	bool		set_back = now < turn_at - USECS_PER_SEC;

	turn_at = now;
	if (stopping_since == 0 && (set_back || (options->must_stop != NULL && options->must_stop())))
		stopping_since = now;
	return stopping_since == 0 && settings_enabled &&
		(options->in_procedure || settings_background_delivery) &&
		(options->until == 0 || now <= options->until);
}

/* How long the wire may be waited for. */
static TimestampTz
wait_until(TimestampTz now, TimestampTz next_due)
{
	TimestampTz until = now + LOOK_US;

	if (stopping_since != 0)
		return Min(until, stopping_since + STOP_US);
	if (answered_count > 0)
		until = Min(until, answered_since + RECORD_DELAY_US);
	until = Min(until, Min(next_due, apps_save_at()));
	return Min(until, lanes_next_timer(TIMER_ITEM));
}

/*
 * A CALL without duration, and what may begin nothing more, does not wait for
 * long for rows that somebody has locked: others may want to deliver.
 */
static bool
is_done(const DeliveryOptions *options, bool may, TimestampTz now, TimestampTz next_due)
{
	bool		has_end = options->in_procedure && options->until == 0;

	if (http_in_flight() > 0 || answered_count > 0 || next_due - now <= SHORT_WAIT_US)
	{
		ending_since = 0;
		return false;
	}
	if (lanes_taken() == 0 && apps_save_at() == DT_NOEND)
		return true;
	if (may && (!has_end || (lanes_taken() > 0 && kept_count == 0)))
		return false;
	if (ending_since == 0)
		ending_since = now;
	return now - ending_since >= GRACE_US;
}

/*
 * libcurl takes an app's requests some at a time (HTTP_UNSENT_MAX).  It is
 * called between them, so that the peer works while others are begun.
 */
static void
fill_wire(TimestampTz now)
{
	for (int round = 0; round < BEGIN_ROUNDS; round++)
	{
		int			before = http_in_flight();

		begin_requests(now);
		if (http_in_flight() - before < HTTP_UNSENT_MAX / 2)
			break;
		wait_for_answers(now);
	}
}

/*
 * The last visits of a run that has to stop: what is on the wire has had no
 * answer, and what waits is tried once more.
 */
static void
stop(const DeliveryOptions *options)
{
	const HttpAnswer *answer;

	http_give_up("delivery was stopped while it waited for an answer");
	while ((answer = http_next()) != NULL)
		take_answer(answer);
	take_waiting(false, DT_NOEND);
	while (answered_count > 0 && visit_tables(options, false))
		;
}

static TimestampTz
run(const DeliveryOptions *options)
{
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz next_due;
		bool		may;

		MemoryContextReset(turn_context);
		if (options->woken())
			lanes_wake();
		else if (options->in_procedure)
			lanes_refresh(now);
		may = may_begin(options, now);
		if (stopping_since != 0 && (http_in_flight() == 0 || now - stopping_since >= STOP_US))
		{
			stop(options);
			return now;
		}
		lanes_tick(now);
		if (stopping_since == 0)
			take_waiting(may, now);
		if (must_visit(may, now))
		{
			if (!visit_tables(options, may))
				return DT_NOBEGIN;
			now = GetCurrentTimestamp();
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
begin_run(void)
{
	dlist_init(&answered);
	answered_count = kept_count = 0;
	ending_since = stopping_since = 0;
	if (delivery_context == NULL)
	{
		delivery_context = AllocSetContextCreate(TopMemoryContext, "onesignal delivery", ALLOCSET_DEFAULT_SIZES);
		turn_context = AllocSetContextCreate(delivery_context, "onesignal turn", ALLOCSET_DEFAULT_SIZES);
		lanes_open(delivery_context, cautious);
		cautious = false;
	}
	lanes_wake();				/* another deliverer may have been at work */
	MemoryContextSwitchTo(turn_context);
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

	error_context_stack = &context;
	PG_TRY();
	{
		begin_run();
		next_due = run(options);
		http_abandon();
	}
	PG_CATCH();
	{
		if (lanes_taken() > 0)
			wakeup_raise_doubt();
		forget_everything();
		cautious = true;
		PG_RE_THROW();
	}
	PG_END_TRY();
	error_context_stack = context.previous;
	MemoryContextSwitchTo(old);
	if (lanes_taken() > 0)		/* the extension is gone, or rows stay locked */
		wakeup_raise_doubt();
	if (lanes_taken() > 0 || stopping_since != 0)
		forget_everything();
	else
		MemoryContextReset(turn_context);
	return next_due;
}

void
delivery_end(void)
{
	forget_everything();
}
