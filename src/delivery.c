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
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "delivery.h"
#include "settings.h"
#include "wakeup.h"

/* One UPDATE's worth of outcomes takes 6 to 7 ms; fewer where their bodies are large. */
#define RECORD_MAX			500
#define RECORD_BYTES_MAX	(1024 * 1024)

/* While requests are on the wire, outcomes wait this long for company. */
#define RECORD_DELAY_US		INT64CONST(20000)

/*
 * An outcome that could not be written is tried again so soon, doubling up to
 * the second figure.  A run that has nothing else to do waits so long for it.
 */
#define KEEP_MIN_US			INT64CONST(100000)
#define KEEP_MAX_US			INT64CONST(5000000)

/* A 404 may mean that OneSignal does not know the message yet. */
#define NOT_FOUND_WINDOW	(60 * USECS_PER_SEC)

/*
 * OneSignal answers View message once a second for each app.  Rows whose turn
 * it is not come back later, a little less often.  View message is asked again
 * for so long.
 */
#define VIEW_INTERVAL_US	USECS_PER_SEC
#define VIEW_TURN_US		(11 * USECS_PER_SEC / 10)
#define VIEW_WINDOW_US		(10 * USECS_PER_MINUTE)

/* How long a wait for answers may take before the caller is asked for news. */
#define LOOK_US				INT64CONST(500000)

/* How long answers are waited for when delivery has to stop. */
#define STOP_US				USECS_PER_SEC

/* Shorter waits are spent here, longer ones by the caller. */
#define SHORT_WAIT_US		USECS_PER_SEC

/*
 * What judging RECORD_MAX answers takes.  Memory that went back to the system
 * would have to be cleared for each turn.
 */
#define TURN_SIZE			(4 * 1024 * 1024)

/* A batch of outcomes on its way into the table. */
typedef struct Recording
{
	int			count;
	DeliveryItem *items[RECORD_MAX];
	QueueOutcome outcomes[RECORD_MAX];
	QueueRecorded recorded[RECORD_MAX];
	char	   *error;			/* why some could not be written, or NULL */
} Recording;

static MemoryContext delivery_context = NULL;	/* all that is known, until it is forgotten */
static MemoryContext turn_context;	/* what one turn of the run needs */
static dlist_head answered;
static int	answered_count;
static TimestampTz answered_since;	/* the oldest of them */
static pairingheap waiting;		/* items that are to be judged or recorded once more */
static bool may_send;			/* requests may begin in this turn */
static TimestampTz ending_since;	/* when nothing was left but to wait for these; 0: not yet */
static TimestampTz stopping_since;	/* 0: it need not stop */
static TimestampTz turn_at = 0; /* when the last turn began */
static bool cautious = false;	/* the last run ended in an error */

/* ---- taking answers ---- */

static void
push_answered(DeliveryItem *item)
{
	if (answered_count++ == 0)
		answered_since = GetCurrentTimestamp();
	dlist_push_tail(&answered, &item->node);
}

static HttpAnswer *
copy_answer(const HttpAnswer *answer)
{
	HttpAnswer *copy = MemoryContextAlloc(delivery_context, sizeof(HttpAnswer) + answer->body_length + 1);

	*copy = *answer;
	copy->body = memcpy(copy + 1, answer->body, answer->body_length + 1);
	return copy;
}

/* What the exchange brought waits to be recorded. */
static void
take_answer(const HttpAnswer *answer)
{
	DeliveryItem *item = answer->owner;
	bool		has_status = answer->status != 0;

	if (item->view_until != 0)
		item->view = copy_answer(answer);
	else
	{
		item->answer = copy_answer(answer);
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

static void
take_waiting(TimestampTz until)
{
	Timer	   *timer;

	while ((timer = timer_take(&waiting, until)) != NULL)
		push_answered(pairingheap_container(DeliveryItem, timer.node, &timer->node));
}

/* ---- deciding what becomes of the row ---- */

/* Its time is over: retry_window after its first attempt or send_after, whichever is later. */
static bool
is_over(const DeliveryItem *item, TimestampTz now)
{
	TimestampTz from = item->row.first_attempt_at;

	if (item->row.send_after != DT_NOEND)
		from = Max(from, item->row.send_after);
	return now - from > settings_retry_window * USECS_PER_SEC;
}

static TimestampTz
next_attempt(const DeliveryItem *item, const CancelOutcome *judged, TimestampTz now)
{
	int64		time_left = Max(item->row.send_after, now) - now;
	double		random = pg_prng_double(&pg_global_prng_state);

	if (judged->verdict == CANCEL_UNAUTHORIZED)
		return now + CIRCUIT_KEY_PAUSE + USECS_PER_SEC; /* others are probed first */
	return now + backoff_delay(item->row.attempts + 1, random, time_left, judged->retry_after * USECS_PER_SEC);
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
			return may_appear && now - item->row.first_attempt_at < NOT_FOUND_WINDOW ? QUEUE_PENDING : QUEUE_REFUSED;
		default:
			if (item->denied)
				return QUEUE_REFUSED;
			return is_over(item, now) ? QUEUE_FAILED : QUEUE_PENDING;
	}
}

/* False: it is not the app's turn, or nothing may be sent. */
static bool
ask_view(DeliveryItem *item, TimestampTz now)
{
	DeliveryApp *app = item->lane->app;

	if (!may_send || now < app->view_at || !lanes_take_again(item, now))
		return false;
	app->view_at = now + VIEW_INTERVAL_US;
	if (item->view_until == 0)
		item->view_until = now + VIEW_WINDOW_US;
	http_submit(onesignal_request(&item->key->credentials, "GET", &item->row.message_id), item);
	return true;
}

/*
 * A refusal may be the echo of an earlier attempt that canceled the message;
 * then View message is asked.  False: its answer is to come.  When it cannot be
 * asked now, the row stays pending, and the cancel is sent again in its turn.
 */
static bool
check_refusal(DeliveryItem *item, QueueOutcome *outcome, CancelOutcome *judged, TimestampTz now)
{
	DeliveryApp *app = item->lane->app;
	CancelVerdict verdict = item->view != NULL ? onesignal_judge_view(item->view) : CANCEL_UNAVAILABLE;
	bool		was_asked = item->view_until != 0;
	bool		is_open = verdict == CANCEL_UNAVAILABLE && (!was_asked || now < item->view_until);
	TimestampTz again_at = 0;

	if (!item->row.unanswered && !item->answer->sent_before && item->row.requested_at >= wakeup_doubt())
		return true;
	if (is_open && item->view != NULL)
	{
		app->view_at = Max(app->view_at, now + item->view->retry_after * USECS_PER_SEC);
		pfree(item->view);
		item->view = NULL;
	}
	if (is_open && ask_view(item, now))
		return false;
	if (is_open && was_asked && may_send && app->paused_until <= now)
	{
		timer_set(&item->timer, &waiting, now + VIEW_INTERVAL_US);
		return false;
	}
	if (is_open)
		again_at = app->view_turn_at = Max(app->view_turn_at, now) + VIEW_TURN_US;
	else if (verdict == CANCEL_UNAUTHORIZED)
		again_at = now + CIRCUIT_KEY_PAUSE;
	else if (verdict == CANCEL_DONE)
	{
		outcome->state = QUEUE_CANCELED;
		judged->error_count = 0;
	}
	else if (verdict != CANCEL_REFUSED)
		onesignal_hint_doubt(judged, item->row.unanswered || item->answer->sent_before);
	if (again_at != 0)
	{
		outcome->state = QUEUE_PENDING;
		outcome->unanswered = true;
		outcome->next_attempt_at = again_at;
	}
	return true;
}

/* False: View message is to be asked first. */
static bool
decide(DeliveryItem *item, QueueOutcome *outcome)
{
	CancelOutcome judged;
	TimestampTz now = GetCurrentTimestamp();

	onesignal_judge(&judged, item->answer, item->key->credentials.api_key);
	*outcome = (QueueOutcome) {.app_id = item->id.app_id, .message_id = item->id.message_id};
	outcome->requested_at = item->row.requested_at;
	outcome->http_status = judged.status;
	outcome->response = judged.response;
	outcome->last_attempt_at = item->begun;
	outcome->state = decide_state(item, &judged, now);
	/* When the message is canceled, nobody needs to know. */
	outcome->unanswered = outcome->state != QUEUE_CANCELED &&
		(item->answer->sent_before || onesignal_may_have_worked(&judged, item->answer));
	if (outcome->state == QUEUE_PENDING)
		outcome->next_attempt_at = next_attempt(item, &judged, now);
	if (outcome->state == QUEUE_REFUSED && !item->denied && !check_refusal(item, outcome, &judged, now))
		return false;
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
					(int) ((GetCurrentTimestamp() - item->row.first_attempt_at) / USECS_PER_SEC),
					outcome->http_status != 0 ? psprintf("HTTP %d (%s)", outcome->http_status, error) : error),
			 errhidecontext(true)));
}

/* In a transaction: decides and writes as many outcomes as one statement takes. */
static void
record_answers(Recording *recording)
{
	size_t		bytes = 0;
	int			left = answered_count;

	recording->count = 0;
	while (left-- > 0 && recording->count < RECORD_MAX && bytes < RECORD_BYTES_MAX)
	{
		DeliveryItem *item = dlist_container(DeliveryItem, node, dlist_pop_head_node(&answered));

		answered_count--;
		if (!decide(item, &recording->outcomes[recording->count]))
			continue;
		recording->items[recording->count++] = item;
		bytes += item->answer->body_length;
	}
	answered_since = GetCurrentTimestamp();
	queue_record(recording->outcomes, recording->count, recording->recorded, &recording->error);
	for (int i = 0; i < recording->count; i++)
		if (recording->recorded[i] == QUEUE_RECORDED && recording->outcomes[i].state != QUEUE_PENDING)
			apps_count(recording->items[i]->lane->app, recording->outcomes[i].state, 1);
}

/* After the commit: what could not be written is tried again. */
static void
settle(const Recording *recording)
{
	TimestampTz now = GetCurrentTimestamp();

	/* First, so that what was recorded beside it ends the pause. */
	for (int i = 0; i < recording->count; i++)
	{
		DeliveryItem *item = recording->items[i];

		if (recording->recorded[i] == QUEUE_UNRECORDABLE)
			apps_note_unrecordable(item->lane->app, recording->error);
		if (recording->recorded[i] == QUEUE_UNRECORDABLE && item->keep_us == 0)
			lanes_trust(item->lane->app, false);
	}
	for (int i = 0; i < recording->count; i++)
	{
		DeliveryItem *item = recording->items[i];
		const QueueOutcome *outcome = &recording->outcomes[i];
		QueueRecorded recorded = recording->recorded[i];
		bool		again = outcome->state == QUEUE_PENDING && recorded == QUEUE_RECORDED;

		/* A locked row makes room for another; one that cannot be written has taken it. */
		if (recorded != QUEUE_UNRECORDABLE && (recorded != QUEUE_LOCKED || item->keep_us == 0))
			lanes_trust(item->lane->app, true);
		if (recorded == QUEUE_LOCKED || recorded == QUEUE_UNRECORDABLE)
		{
			item->keep_us = Min(KEEP_MAX_US, Max(KEEP_MIN_US, 2 * item->keep_us));
			timer_set(&item->timer, &waiting, now + item->keep_us);
			continue;
		}
		if (outcome->state == QUEUE_FAILED)
			log_given_up(item, outcome);
		/* It may have been requested again, by another role, too. */
		if (recorded == QUEUE_DROPPED)
			lanes_look(true, now);
		lanes_settle(item, again ? outcome->next_attempt_at : DT_NOEND);
	}
}

/* One short transaction: records and fetches.  False: the extension is gone. */
static bool
visit_tables(const DeliveryOptions *options)
{
	Recording  *recording = palloc(sizeof(Recording));

	if (!queue_begin(options->in_procedure))
		return false;
	record_answers(recording);
	if (may_send)
		lanes_fill(GetCurrentTimestamp());
	apps_save();
	queue_commit();
	settle(recording);
	return true;
}

/* ---- the run ---- */

/* For a session that goes on to other things, and after an error: what was begun is begun again. */
void
delivery_end(void)
{
	http_abandon();
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

/* When the tables must be visited next. */
static TimestampTz
visit_at(TimestampTz now)
{
	if ((may_send && lanes_are_hungry(now)) || answered_count >= RECORD_MAX ||
		(answered_count > 0 && http_in_flight() == 0))
		return now;
	return Min(apps_save_at(), answered_count > 0 ? answered_since + RECORD_DELAY_US : DT_NOEND);
}

/* How long the wire may be waited for. */
static TimestampTz
wait_until(TimestampTz now, TimestampTz next_due)
{
	if (stopping_since != 0)
		return Min(now + LOOK_US, stopping_since + STOP_US);
	return Min(Min(now + LOOK_US, visit_at(now)), Min(next_due, timer_next(&waiting)));
}

/*
 * A CALL without duration, and what may begin nothing more, does not wait for
 * long for rows that somebody has locked: others may want to deliver.
 */
static bool
is_done(const DeliveryOptions *options, TimestampTz now, TimestampTz next_due)
{
	bool		has_end = options->in_procedure && options->until == 0;

	if (http_in_flight() > 0 || answered_count > 0 || next_due - now <= SHORT_WAIT_US)
	{
		ending_since = 0;
		return false;
	}
	if (lanes_taken() == 0 && apps_save_at() == DT_NOEND)
		return true;
	if (may_send && !has_end)
		return false;
	if (ending_since == 0)
		ending_since = now;
	return now - ending_since >= KEEP_MAX_US;
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
	take_waiting(DT_NOEND);
	while (answered_count > 0 && visit_tables(options))
		;
}

static TimestampTz
run(const DeliveryOptions *options)
{
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz next_due;
		DeliveryItem *item;
		int			begun;

		MemoryContextReset(turn_context);
		if (options->woken())
			lanes_look(true, now);
		else if (options->in_procedure)
			lanes_look(false, now);
		may_send = may_begin(options, now);
		if (stopping_since != 0 && (http_in_flight() == 0 || now - stopping_since >= STOP_US))
		{
			stop(options);
			return now;
		}
		lanes_tick(now);
		take_waiting(now);
		if (visit_at(now) <= now)
		{
			if (!visit_tables(options))
				return DT_NOBEGIN;
			now = GetCurrentTimestamp();
		}
		for (begun = 0; may_send && (item = lanes_take(now)) != NULL; begun++)
			http_submit(onesignal_request(&item->key->credentials, "DELETE", &item->row.message_id), item);
		next_due = may_send ? lanes_next_due(now) : DT_NOEND;
		if (is_done(options, now, next_due))
			return next_due;
		/* libcurl takes an app's requests some at a time (HTTP_UNSENT_MAX): the peer works while others are begun. */
		if (answered_count == 0 || http_in_flight() > 0)
			wait_for_answers(begun >= HTTP_UNSENT_MAX / 2 ? now : wait_until(now, next_due));
	}
}

static void
begin_run(void)
{
	dlist_init(&answered);
	answered_count = 0;
	waiting = (pairingheap) {.ph_compare = timer_compare};
	ending_since = stopping_since = 0;
	if (delivery_context == NULL)
	{
		delivery_context = AllocSetContextCreate(TopMemoryContext, "onesignal delivery", ALLOCSET_DEFAULT_SIZES);
		turn_context = AllocSetContextCreate(delivery_context, "onesignal turn", TURN_SIZE,
											 ALLOCSET_DEFAULT_INITSIZE, ALLOCSET_DEFAULT_MAXSIZE);
		lanes_open(delivery_context, cautious);
		cautious = false;
	}
	lanes_look(true, 0);		/* another deliverer may have been at work */
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
		delivery_end();
		cautious = true;
		PG_RE_THROW();
	}
	PG_END_TRY();
	error_context_stack = context.previous;
	MemoryContextSwitchTo(old);
	if (lanes_taken() > 0)		/* the extension is gone, or rows stay locked */
		wakeup_raise_doubt();
	if (lanes_taken() > 0 || stopping_since != 0)
		delivery_end();
	else
		MemoryContextReset(turn_context);
	return next_due;
}
