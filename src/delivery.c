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
#include "storage/ipc.h"
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

/* An outcome that could not be written is tried again so soon, doubling up to the second figure. */
#define KEEP_MIN_US			INT64CONST(100000)
#define KEEP_MAX_US			INT64CONST(5000000)

/* A 404 may mean that OneSignal does not know the message yet. */
#define NOT_FOUND_WINDOW	(60 * USECS_PER_SEC)

/* OneSignal answers View message once a second for each app.  It is asked again for so long. */
#define VIEW_INTERVAL_US	USECS_PER_SEC
#define VIEW_TURN_US		(11 * USECS_PER_SEC / 10)
#define VIEW_WINDOW_US		(10 * USECS_PER_MINUTE)

/* How long a wait for answers may take before the caller is asked for news. */
#define LOOK_US				INT64CONST(500000)

/* How long answers are waited for when delivery has to stop. */
#define STOP_US				USECS_PER_SEC

/* Shorter waits are spent here, longer ones by the caller. */
#define SHORT_WAIT_US		USECS_PER_SEC

MemoryContext delivery_context = NULL;
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
	place_in_list(&item->place, &answered);
}

/* What the exchange brought waits to be recorded. */
static void
take_answer(const HttpAnswer *answer)
{
	DeliveryItem *item = answer->owner;
	bool		has_status = answer->status != 0;
	HttpAnswer *copy = MemoryContextAlloc(delivery_context, sizeof(HttpAnswer) + answer->body_length + 1);

	*copy = *answer;
	copy->body = memcpy(copy + 1, answer->body, answer->body_length + 1);
	if (item->view_until != 0)
		item->view = copy;
	else
		item->answer = copy;
	/* That we do not wait for an answer tells nothing of OneSignal. */
	if (item->view_until == 0 && (has_status || stopping_since == 0))
		apps_learn(item, answer);
	push_answered(item);
	lanes_end_request(item, has_status);
}

static void
take_waiting(TimestampTz until)
{
	DeliveryItem *item;

	while ((item = place_take(&waiting, until)) != NULL)
		push_answered(item);
}

/* ---- deciding what becomes of the row ---- */

static QueueState
decide_state(const DeliveryItem *item, CancelVerdict verdict, TimestampTz now)
{
	TimestampTz from = item->row.first_attempt_at;

	switch (verdict)
	{
		case CANCEL_DONE:
			return QUEUE_CANCELED;
		case CANCEL_REFUSED:
			return QUEUE_REFUSED;
		case CANCEL_NOT_FOUND:
			if (item->row.send_after <= now && item->row.send_after != DT_NOBEGIN)
				return QUEUE_REFUSED;
			return now - from < NOT_FOUND_WINDOW ? QUEUE_PENDING : QUEUE_REFUSED;
		default:
			if (item->denied)
				return QUEUE_REFUSED;
			/* Its time is over retry_window after its first attempt or send_after, whichever is later. */
			if (item->row.send_after != DT_NOEND)
				from = Max(from, item->row.send_after);
			return now - from > settings_retry_window * USECS_PER_SEC ? QUEUE_FAILED : QUEUE_PENDING;
	}
}

/*
 * A refusal may be the echo of an earlier attempt that canceled the message;
 * then View message is asked.  False: its answer is to come.  When it cannot be
 * asked now, the row stays pending, and the cancel is sent again in its turn.
 */
static bool
check_refusal(DeliveryItem *item, QueueOutcome *outcome, TimestampTz now)
{
	DeliveryApp *app = item->lane->app;
	CancelVerdict verdict = item->view != NULL ? onesignal_judge_view(item->view) : CANCEL_UNAVAILABLE;
	bool		was_asked = item->view_until != 0;

	if (!item->row.unanswered && !item->answer->sent_before &&
		item->row.requested_at >= wakeup_doubt() && item->row.requested_at <= now)
		return true;
	if (verdict == CANCEL_DONE)
	{
		outcome->state = QUEUE_CANCELED;
		outcome->judged.errors = NIL;
		return true;
	}
	if (verdict == CANCEL_REFUSED)
		return true;
	if (verdict == CANCEL_UNAUTHORIZED)
		outcome->next_attempt_at = now + CIRCUIT_KEY_PAUSE;
	else if (verdict != CANCEL_UNAVAILABLE || (was_asked && now >= item->view_until))
	{
		onesignal_hint_doubt(&outcome->judged, item->row.unanswered || item->answer->sent_before);
		return true;
	}
	else
	{
		if (item->view != NULL)
		{
			app->view_at = Max(app->view_at, now + item->view->retry_after * USECS_PER_SEC);
			pfree(item->view);
			item->view = NULL;
		}
		if (may_send && now >= app->view_at && lanes_take_again(item, now))
		{
			app->view_at = now + VIEW_INTERVAL_US;
			item->view_until = was_asked ? item->view_until : now + VIEW_WINDOW_US;
			http_submit(onesignal_request(item->credentials, "GET", &item->row.message_id), item);
			return false;
		}
		if (was_asked && may_send && app->paused_until <= now)
		{
			place_in_heap(&item->place, &waiting, now + VIEW_INTERVAL_US);
			return false;
		}
		outcome->next_attempt_at = app->view_turn_at = Max(app->view_turn_at, now) + VIEW_TURN_US;
	}
	outcome->state = QUEUE_PENDING;
	outcome->unanswered = true;
	return true;
}

/* False: View message is to be asked first. */
static bool
decide(DeliveryItem *item, QueueOutcome *outcome)
{
	CancelOutcome *judged = &outcome->judged;
	TimestampTz now = GetCurrentTimestamp();

	onesignal_judge(judged, item->answer, item->credentials->api_key);
	outcome->owner = item;
	outcome->app_id = item->id.app_id;
	outcome->row = &item->row;
	outcome->last_attempt_at = item->begun;
	outcome->state = decide_state(item, judged->verdict, now);
	/* When the message is canceled, nobody needs to know. */
	outcome->unanswered = outcome->state != QUEUE_CANCELED &&
		(item->answer->sent_before || onesignal_may_have_worked(judged, item->answer));
	if (judged->verdict == CANCEL_UNAUTHORIZED)
		outcome->next_attempt_at = now + CIRCUIT_KEY_PAUSE + USECS_PER_SEC; /* others are probed first */
	else
		outcome->next_attempt_at = now +
			backoff_delay(item->row.attempts + 1, pg_prng_double(&pg_global_prng_state),
						  Max(item->row.send_after, now) - now, item->answer->retry_after * USECS_PER_SEC);
	return outcome->state != QUEUE_REFUSED || item->denied || check_refusal(item, outcome, now);
}

/* ---- recording ---- */

/* After the commit: what could not be written is tried again. */
static void
settle(DeliveryItem *item, const QueueOutcome *outcome)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		again = outcome->state == QUEUE_PENDING && outcome->recorded == QUEUE_RECORDED;
	const CancelOutcome *judged = &outcome->judged;
	const char *error = judged->errors != NIL ? linitial(judged->errors) : "";

	/* A locked row makes room for another; one that cannot be written has taken it. */
	if (outcome->recorded != QUEUE_UNRECORDABLE && (outcome->recorded != QUEUE_LOCKED || item->keep_us == 0))
		lanes_trust(item->lane->app, true);
	if (outcome->recorded == QUEUE_LOCKED || outcome->recorded == QUEUE_UNRECORDABLE)
	{
		item->keep_us = Min(KEEP_MAX_US, Max(KEEP_MIN_US, 2 * item->keep_us));
		place_in_heap(&item->place, &waiting, now + item->keep_us);
		return;
	}
	if (outcome->state == QUEUE_FAILED && outcome->recorded == QUEUE_RECORDED)
		ereport(LOG,
				(errmsg("onesignal_cancel: giving up on message %s of %s after %d attempts in %d s: %s",
						DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&item->row.message_id))),
						apps_label(item->lane->app), item->row.attempts + 1,
						(int) ((now - item->row.first_attempt_at) / USECS_PER_SEC),
						judged->status != 0 ? psprintf("HTTP %d (%s)", judged->status, error) : error),
				 errhidecontext(true)));
	/* It may have been requested again, by another role or in a new row, too. */
	if (outcome->recorded == QUEUE_DROPPED)
		lanes_look(true, true, now);
	if (outcome->recorded == QUEUE_DROPPED && outcome->unanswered)
		wakeup_raise_doubt();
	lanes_settle(item, again ? outcome->next_attempt_at : DT_NOEND);
}

/* One short transaction: records what one statement takes, and fetches.  False: the extension is gone. */
static bool
visit_tables(void)
{
	const Installation *installation = queue_begin();
	QueueOutcome *outcomes = palloc(sizeof(QueueOutcome) * RECORD_MAX);
	const char *problem;
	size_t		bytes = 0;
	int			count = 0;

	if (installation == NULL)
		return false;
	for (int left = answered_count; left > 0 && count < RECORD_MAX && bytes < RECORD_BYTES_MAX; left--)
	{
		DeliveryItem *item = dlist_head_element(DeliveryItem, place.node, &answered);

		place_leave(&item->place);
		answered_count--;
		bytes += item->answer->body_length;
		if (decide(item, &outcomes[count]))
			count++;
	}
	answered_since = GetCurrentTimestamp();
	problem = queue_record(outcomes, count);
	for (int i = 0; i < count; i++)
	{
		DeliveryItem *item = outcomes[i].owner;
		DeliveryApp *app = item->lane->app;

		if (outcomes[i].recorded == QUEUE_RECORDED && outcomes[i].state != QUEUE_PENDING)
			apps_count(app, outcomes[i].state, 1);
		if (outcomes[i].recorded != QUEUE_UNRECORDABLE)
			continue;
		apps_note_unrecordable(app, problem);
		if (item->keep_us == 0)
			lanes_trust(app, false);
	}
	if (may_send)
		lanes_fill(installation, GetCurrentTimestamp());
	apps_save();
	queue_commit();
	for (int i = 0; i < count; i++)
		settle(outcomes[i].owner, &outcomes[i]);
	return true;
}

/* ---- the run ---- */

void
delivery_end(void)
{
	if (lanes_taken() > 0)
		wakeup_raise_doubt();
	http_abandon();
	if (delivery_context != NULL)
		MemoryContextDelete(delivery_context);
	delivery_context = NULL;
}

/* When the tables must be visited next. */
static TimestampTz
visit_at(TimestampTz now)
{
	if ((may_send && lanes_are_hungry(now)) || answered_count >= RECORD_MAX ||
		(answered_count > 0 && !http_in_flight()))
		return now;
	return Min(apps_save_at(), answered_count > 0 ? answered_since + RECORD_DELAY_US : DT_NOEND);
}

/* Takes what has been answered, after waiting for something to do. */
static void
wait_for_answers(TimestampTz now, TimestampTz next_due)
{
	TimestampTz until = Min(now + LOOK_US, Min(visit_at(now), Min(next_due, place_next(&waiting))));
	int64		until_us;

	if (stopping_since != 0)
		until = Min(now + LOOK_US, stopping_since + STOP_US);
	until_us = http_clock_us() + Max(until - GetCurrentTimestamp(), 0);
	for (const HttpAnswer *answer = http_wait(until_us); answer != NULL; answer = http_next())
		take_answer(answer);
}

/* A CALL without duration, and what may begin nothing more, does not wait for long for rows that are locked. */
static bool
is_done(TimestampTz until, TimestampTz now, TimestampTz next_due)
{
	if (http_in_flight() || answered_count > 0 || next_due - now <= SHORT_WAIT_US)
	{
		ending_since = 0;
		return false;
	}
	if (lanes_taken() == 0 && apps_save_at() == DT_NOEND)
		return true;
	if (may_send && (owner_is_worker || until != 0))
		return false;
	if (ending_since == 0)
		ending_since = now;
	return now - ending_since >= KEEP_MAX_US;
}

/* What is on the wire has had no answer, and what waits is tried once more. */
static void
stop(void)
{
	const HttpAnswer *answer;

	http_give_up("delivery was stopped while it waited for an answer");
	while ((answer = http_next()) != NULL)
		take_answer(answer);
	take_waiting(DT_NOEND);
	while (answered_count > 0 && visit_tables())
		;
}

static TimestampTz
run(TimestampTz until)
{
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz next_due;
		DeliveryItem *item;
		int			begun;

		MemoryContextReset(turn_context);
		wakeup_serve_signals();
		/* Commits do not wake a CALL: it looks each second, for rows only if it has an end. */
		if (!owner_is_worker)
			lanes_look(false, until != 0, now);
		else if (worker_was_woken())
			lanes_look(true, true, now);
		/* When the clock was set back, all would wait too long: the run stops, and all is forgotten. */
		if (stopping_since == 0 && (now < turn_at - USECS_PER_SEC || (owner_is_worker && worker_must_stop())))
			stopping_since = now;
		turn_at = now;
		may_send = stopping_since == 0 && settings_enabled && (until == 0 || now <= until);
		if (stopping_since != 0 && (!http_in_flight() || now - stopping_since >= STOP_US))
		{
			stop();
			return now;
		}
		lanes_tick(now);
		take_waiting(now);
		if (visit_at(now) <= now)
		{
			if (!visit_tables())
				return DT_NOBEGIN;
			now = GetCurrentTimestamp();
		}
		for (begun = 0; may_send && (item = lanes_take(now)) != NULL; begun++)
			http_submit(onesignal_request(item->credentials, "DELETE", &item->row.message_id), item);
		next_due = may_send ? lanes_next_due(now) : DT_NOEND;
		if (is_done(until, now, next_due))
			return next_due;
		/* libcurl takes an app's requests some at a time (HTTP_UNSENT_MAX): the peer works while others are begun. */
		if (answered_count == 0 || http_in_flight())
			wait_for_answers(now, begun >= HTTP_UNSENT_MAX / 2 ? now : next_due);
	}
}

static void
delivery_error_context(void *arg pg_attribute_unused())
{
	errcontext("onesignal_cancel delivering requested cancels");
}

/* PG_CATCH() does not see that a session is terminated. */
static void
delivery_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	if (lanes_taken() > 0)
		wakeup_raise_doubt();
}

static void
begin_run(void)
{
	static bool registered = false;

	if (!registered)
		before_shmem_exit(delivery_exit, 0);
	registered = true;
	dlist_init(&answered);
	answered_count = 0;
	waiting = (pairingheap) {.ph_compare = place_compare};
	ending_since = stopping_since = 0;
	if (delivery_context == NULL)
	{
		delivery_context = AllocSetContextCreate(TopMemoryContext, "onesignal delivery", ALLOCSET_DEFAULT_SIZES);
		turn_context = AllocSetContextCreate(delivery_context, "onesignal turn", ALLOCSET_DEFAULT_SIZES);
		lanes_open(cautious);
		cautious = false;
	}
	lanes_look(true, true, 0);	/* another deliverer may have been at work */
	MemoryContextSwitchTo(turn_context);
}

TimestampTz
delivery_run(TimestampTz until)
{
	MemoryContext old = CurrentMemoryContext;
	ErrorContextCallback context = {.previous = error_context_stack, .callback = delivery_error_context};
	TimestampTz next_due;

	error_context_stack = &context;
	PG_TRY();
	{
		begin_run();
		next_due = run(until);
		http_abandon();
	}
	PG_CATCH();
	{
		delivery_end();
		cautious = true;
		PG_RE_THROW();
	}
	PG_END_TRY();
	error_context_stack = context.previous;
	MemoryContextSwitchTo(old);
	/* The extension is gone, rows stay locked, or it had to stop. */
	if (lanes_taken() > 0 || stopping_since != 0)
		delivery_end();
	else
		MemoryContextReset(turn_context);
	return next_due;
}
