/*
 * lanes.c
 *		What goes next: apps and lanes that are ready, fetch rows, or wait.
 *
 * The pending rows of a lane are read in the order of delivery, some at a
 * time, from a position on.  Rows that are not due are skipped; the lane goes
 * back to its head when one of them falls due, or when somebody commits more.
 *
 * Thousands of apps and lanes may wait, so nothing here walks over all of
 * them: each has one place, which lane_place() and app_place() decide.
 *
 *		lane	queue of its app: it has rows
 *				hungry, a list of its app: rows are to be fetched for it
 *				timer: it waits for a row to fall due, a probe, or its key
 *		app		ready: its next row may begin; such apps take turns
 *				crowded: others have too many requests on the wire, or
 *				libcurl has yet to send some of its own
 *				timer: it waits for its pace, or for a pause to end
 *				none: its own answers, or their recording, bring it back
 *
 * An app that may send is also in the list "fetching" if it has hungry lanes.
 * A lane that has nothing pending is forgotten.  After a wake-up a scan finds
 * from the index, some at a time, which lanes there are.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "lanes.h"
#include "settings.h"
#include "worker.h"

/* What one statement fetches, in 2 ms: rows, of how many lanes, and of one lane at least. */
#define FETCH_ROWS			1000
#define FETCH_LANES			50
#define FETCH_MIN			(FETCH_ROWS / FETCH_LANES)

/* Rows in the buffers of all lanes, as far as FETCH_MIN permits: 2 MB. */
#define FETCH_TOTAL			20000

/* A row in a buffer may be taken back: what is older than this is read again. */
#define BUFFER_AGE_US		INT64CONST(500000)

/* Lanes that a scan finds in one transaction. */
#define SCAN_LANES			200

/* Lanes without a key for which a scan looks again. */
#define RECHECKS_MAX		100

/* After reading that took longer than CHEAP_US we rest, so that it takes a fifth of the time at most. */
#define CHEAP_US			1000
#define REST				4

/* Requests of all apps together that are begun and not yet recorded. */
#define RUN_TRUST_MAX		16384

/* How many crowded apps are tried when there is room for one. */
#define RELIEF_TRIES		8

/* How soon a pause is seen where no wake-up tells of it. */
#define REFRESH_US			USECS_PER_SEC

/* How often, and after how long an outage or rejection, rows whose time is over are given up unattempted. */
#define EXPIRE_US			USECS_PER_MINUTE
#define EXPIRE_AFTER		USECS_PER_HOUR

static MemoryContext lanes_context;
static HTAB *lanes = NULL;
static HTAB *items = NULL;
static Wire wire;
static Trust run_trust;
static int	buffered;			/* rows in all buffers */
static dlist_head ready;
static dlist_head crowded;
static dlist_head fetching;
static pairingheap timers[TIMER_KINDS];

/* What is to be found out: pauses, and rows; and the scan that runs. */
static struct
{
	bool		wanted;
	bool		rows_wanted;
	bool		runs;
	bool		finds_rows;
	TimestampTz began_at;
	int64		took_us;
	int			rechecks;
	TimestampTz rested_at;		/* no slice before */
	QueueLane	last;			/* that it has come to */
}			scan;

/* ---- times ---- */

static int
compare_timers(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz left = pairingheap_const_container(Timer, node, a)->at;
	TimestampTz right = pairingheap_const_container(Timer, node, b)->at;

	(void) arg;
	return left < right ? 1 : left > right ? -1 : 0;
}

static int
compare_lanes(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const DeliveryLane *left = pairingheap_const_container(DeliveryLane, queue_node, a);
	const DeliveryLane *right = pairingheap_const_container(DeliveryLane, queue_node, b);
	TimestampTz left_at = left->rows[left->row_next].send_after;
	TimestampTz right_at = right->rows[right->row_next].send_after;

	(void) arg;
	return left_at < right_at ? 1 : left_at > right_at ? -1 : 0;
}

void
lanes_set_timer(Timer *timer, TimestampTz at)
{
	if (timer->is_set)
		pairingheap_remove(&timers[timer->kind], &timer->node);
	timer->is_set = at != DT_NOEND;
	timer->at = at;
	if (timer->is_set)
		pairingheap_add(&timers[timer->kind], &timer->node);
}

TimestampTz
lanes_next_timer(TimerKind kind)
{
	return pairingheap_is_empty(&timers[kind]) ? DT_NOEND :
		pairingheap_container(Timer, node, pairingheap_first(&timers[kind]))->at;
}

Timer *
lanes_take_timer(TimerKind kind, TimestampTz until)
{
	Timer	   *timer;

	if (pairingheap_is_empty(&timers[kind]) || lanes_next_timer(kind) > until)
		return NULL;
	timer = pairingheap_container(Timer, node, pairingheap_first(&timers[kind]));
	lanes_set_timer(timer, DT_NOEND);
	return timer;
}

/* When reading that took so long may be done again. */
static TimestampTz
rest_until(int64 took_us)
{
	return GetCurrentTimestamp() + (took_us > CHEAP_US ? REST * took_us : 0);
}

/* ---- where a lane stands ---- */

/* What was not begun is fetched again. */
static void
drop_rows(DeliveryLane *lane)
{
	if (lane->row_next < lane->row_count)
	{
		lane->position.send_after = lane->rows[lane->row_next].send_after;
		lane->position.message_id = lane->rows[lane->row_next].message_id;
		lane->exhausted = false;
	}
	buffered -= lane->row_count;
	lane->row_count = lane->row_next = 0;
	if (lane->rows != NULL)
		pfree(lane->rows);
	lane->rows = NULL;
}

static void
lane_leave(DeliveryLane *lane)
{
	if (lane->in_queue)
		pairingheap_remove(&lane->app->queue, &lane->queue_node);
	if (lane->hungry)
		dlist_delete(&lane->hungry_node);
	lane->in_queue = lane->hungry = false;
	lanes_set_timer(&lane->timer, DT_NOEND);
}

static void
lane_starve(DeliveryLane *lane)
{
	drop_rows(lane);
	lane->hungry = true;
	dlist_push_tail(&lane->app->hungry, &lane->hungry_node);
}

static void
remove_lane(DeliveryLane *lane)
{
	drop_rows(lane);
	apps_drop_key(lane);
	if (lane->reason != NULL)
		pfree(lane->reason);
	if (lane->app->paused_lane == lane)
		lane->app->paused_lane = NULL;
	dlist_delete(&lane->node);
	hash_search(lanes, &lane->key, HASH_REMOVE, NULL);
}

static void
rewind_lane(DeliveryLane *lane)
{
	drop_rows(lane);
	lane->position.send_after = DT_NOBEGIN;
	memset(&lane->position.message_id, 0, sizeof(pg_uuid_t));
	lane->exhausted = lane->found_due = false;
	lane->rewind_at = DT_NOEND;
	lane->read_us = 0;
}

/* Its rows and its key are not needed before then. */
static void
lane_wait(DeliveryLane *lane, TimerKind kind, TimestampTz until)
{
	drop_rows(lane);
	apps_drop_key(lane);
	lane->timer.kind = kind;
	lanes_set_timer(&lane->timer, until);
}

/* Puts the lane where it belongs now; it may be gone afterwards.  app_place() has to follow. */
static void
lane_place(DeliveryLane *lane, TimestampTz now)
{
	TimestampTz probe_at = lane->key_missing ? DT_NOEND : circuit_next(&lane->circuit, now);

	lane_leave(lane);
	if (probe_at > now && apps_next_key_check(lane) > now)
	{
		lane_wait(lane, lane->key_missing && lane->checks > 0 ? TIMER_KEYLESS : TIMER_LANE,
				  Min(probe_at, apps_next_key_check(lane)));
		return;
	}
	if (lane->rewind_at <= now && lane->rested_at <= now)
		rewind_lane(lane);
	if (probe_at <= now && lane->row_next < lane->row_count)
	{
		lane->in_queue = true;
		pairingheap_add(&lane->app->queue, &lane->queue_node);
	}
	else if (probe_at > now || !lane->exhausted)
		lane_starve(lane);
	else if (lane->items > 0 || lane->rewind_at != DT_NOEND)
		lane_wait(lane, TIMER_LANE, Max(lane->rewind_at, lane->rested_at));
	else
		remove_lane(lane);
}

/* ---- where an app stands ---- */

static void
app_leave(DeliveryApp *app)
{
	if (app->list != NULL)
		dlist_delete(&app->list_node);
	app->list = NULL;
	lanes_set_timer(&app->timer, DT_NOEND);
}

/* When the app may send, as far as pauses go; <= now: at once. */
static TimestampTz
app_opens_at(DeliveryApp *app, TimestampTz now)
{
	if (app->paused_until > now)
		return app->paused_until;
	return circuit_next(&app->circuit, now);
}

static void
app_set_fetching(DeliveryApp *app, bool is_fetching)
{
	if (is_fetching && !app->fetching)
		dlist_push_tail(&fetching, &app->fetching_node);
	else if (!is_fetching && app->fetching)
		dlist_delete(&app->fetching_node);
	app->fetching = is_fetching;
}

/* The app may not send: its lanes give up their rows and keys. */
static void
app_close(DeliveryApp *app, TimestampTz opens_at)
{
	app_set_fetching(app, false);
	while (!pairingheap_is_empty(&app->queue))
	{
		DeliveryLane *lane = pairingheap_container(DeliveryLane, queue_node, pairingheap_first(&app->queue));

		lane_leave(lane);
		apps_drop_key(lane);
		lane_starve(lane);
	}
	if (!dlist_is_empty(&app->hungry))
		lanes_set_timer(&app->timer, opens_at);
}

static void
app_place(DeliveryApp *app, TimestampTz now)
{
	TimestampTz opens_at = app_opens_at(app, now);
	bool		has_rows = !pairingheap_is_empty(&app->queue);

	app_leave(app);
	if (opens_at > now)
	{
		app_close(app, opens_at);
		return;
	}
	/* One lane will do for a probe. */
	app_set_fetching(app, !dlist_is_empty(&app->hungry) && (!app->circuit.open || !has_rows));
	if (!has_rows)
		return;
	if (app->trust.paused_until > now)
		lanes_set_timer(&app->timer, app->trust.paused_until);
	else if (trust_permits(&app->trust, now) && !allowance_is_full(&app->allowance))
	{
		bool		has_room = app->group.unsent < HTTP_UNSENT_MAX && allowance_permits(&app->allowance, &wire);

		app->list = has_room ? &ready : &crowded;
		dlist_push_tail(app->list, &app->list_node);
	}
}

static void
place(DeliveryLane *lane, TimestampTz now)
{
	DeliveryApp *app = lane->app;

	lane_place(lane, now);
	app_place(app, now);
}

/* When nothing is on the wire, whoever has something to send is let in, however many have not. */
static void
relieve_crowd(TimestampTz now)
{
	int			tries = RELIEF_TRIES;

	while (!dlist_is_empty(&crowded) && dlist_is_empty(&ready) && (wire.in_flight == 0 || tries-- > 0))
		app_place(dlist_head_element(DeliveryApp, list_node, &crowded), now);
}

void
lanes_tick(TimestampTz now)
{
	Timer	   *timer;

	wire.max = settings_max_in_flight;
	while ((timer = lanes_take_timer(TIMER_LANE, now)) != NULL ||
		   (timer = lanes_take_timer(TIMER_KEYLESS, now)) != NULL)
		place(pairingheap_container(DeliveryLane, timer.node, &timer->node), now);
	while ((timer = lanes_take_timer(TIMER_APP, now)) != NULL)
		app_place(pairingheap_container(DeliveryApp, timer.node, &timer->node), now);
}

/* ---- opening and forgetting ---- */

static HTAB *
make_hash(const char *name, Size key_size, Size entry_size)
{
	HASHCTL		control = {.keysize = key_size, .entrysize = entry_size, .hcxt = lanes_context};

	return hash_create(name, 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

void
lanes_open(MemoryContext context, bool cautious)
{
	lanes_context = context;
	apps_open(context);
	lanes = make_hash("onesignal lanes", sizeof(QueueLane), sizeof(DeliveryLane));
	items = make_hash("onesignal items", sizeof(MessageId), sizeof(DeliveryItem));
	dlist_init(&ready);
	dlist_init(&crowded);
	dlist_init(&fetching);
	for (int kind = 0; kind < TIMER_KINDS; kind++)
		timers[kind] = (pairingheap) {.ph_compare = compare_timers};
	memset(&wire, 0, sizeof(wire));
	memset(&scan, 0, sizeof(scan));
	trust_init(&run_trust, cautious ? 1 : RUN_TRUST_MAX, RUN_TRUST_MAX);
	buffered = 0;
}

void
lanes_forget(void)
{
	HASH_SEQ_STATUS status;
	DeliveryLane *lane;
	DeliveryItem *item;

	if (lanes != NULL)
	{
		hash_seq_init(&status, lanes);
		while ((lane = hash_seq_search(&status)) != NULL)
			apps_drop_key(lane);
	}
	if (items != NULL)
	{
		hash_seq_init(&status, items);
		while ((item = hash_seq_search(&status)) != NULL)
			apps_release_key(item->key);
	}
	lanes = items = NULL;
}

void
lanes_wake(void)
{
	scan.wanted = scan.rows_wanted = true;
}

void
lanes_refresh(TimestampTz now)
{
	scan.wanted |= now - scan.began_at > REFRESH_US;
}

/* ---- which lanes there are ---- */

static DeliveryLane *
get_lane(const QueueLane *key, DeliveryApp *app)
{
	bool		found;
	DeliveryLane *lane = hash_search(lanes, key, HASH_ENTER, &found);

	if (found)
		return lane;
	memset((char *) lane + sizeof(QueueLane), 0, sizeof(*lane) - sizeof(QueueLane));
	lane->app = app;
	dlist_push_tail(&app->lanes, &lane->node);
	app->queue.ph_compare = compare_lanes;
	rewind_lane(lane);
	return lane;
}

/* One slice of a scan.  A wake-up that comes meanwhile has another one follow. */
static void
scan_lanes(TimestampTz now)
{
	List	   *listed;
	ListCell   *cell;

	if (!scan.runs)
	{
		scan.finds_rows = scan.rows_wanted;
		scan.wanted = scan.rows_wanted = false;
		scan.began_at = now;
		scan.took_us = scan.rechecks = 0;
		memset(&scan.last, 0, sizeof(scan.last));
	}
	listed = queue_lanes(&scan.last, SCAN_LANES);
	foreach(cell, listed)
	{
		QueueListed *entry = lfirst(cell);
		DeliveryApp *app = apps_get(&entry->lane.app_id, &entry->app, now);

		if (scan.finds_rows)
		{
			DeliveryLane *lane = get_lane(&entry->lane, app);

			lane->rewind_at = 0;
			lane->told |= entry->app.is_of_lane;
			/* There may be another key, or one at last. */
			if (lane->generation != credentials_generation())
				lane->checked_at = lane->checks = 0;
			else if (lane->key_missing && scan.rechecks++ < RECHECKS_MAX)
				lane->checks = 0;
			lane_place(lane, now);
		}
		app_place(app, now);
		scan.last = entry->lane;
	}
	scan.runs = list_length(listed) == SCAN_LANES;
	scan.took_us += GetCurrentTimestamp() - now;
	scan.rested_at = scan.runs ? 0 : rest_until(scan.took_us);
}

/* ---- fetching ---- */

/* A row that was rejected lets others be the next probe; when the circuit is closed, it is due. */
static bool
waited_for_the_key(const DeliveryLane *lane, int http_status)
{
	return apps_was_rejected(http_status) && !lane->circuit.open;
}

/* Rows that wait for their time, or are taken, are skipped. */
static bool
is_due(DeliveryLane *lane, const QueueRow *row, TimestampTz now)
{
	MessageId	id = {row->message_id, lane->key.app_id};
	DeliveryItem *item = hash_search(items, &id, HASH_FIND, NULL);

	if (item != NULL)
	{
		item->renewed |= item->row.requested_at != row->requested_at;
		return false;
	}
	if (apps_was_rejected(row->http_status))
		apps_suspect(lane, row->http_status, now);
	if (row->first_attempt_at != 0 && (lane->failing_since == 0 || row->first_attempt_at < lane->failing_since))
		lane->failing_since = row->first_attempt_at;
	if (row->next_attempt_at <= now || waited_for_the_key(lane, row->http_status))
		return true;
	lane->rewind_at = Min(lane->rewind_at, row->next_attempt_at);
	return false;
}

static void
buffer_rows(DeliveryLane *lane, QueueRow *rows, int count, TimestampTz now)
{
	int			due = 0;

	if (count > 0)
	{
		lane->position.send_after = rows[count - 1].send_after;
		lane->position.message_id = rows[count - 1].message_id;
	}
	for (int i = 0; i < count; i++)
		if (is_due(lane, &rows[i], now))
			rows[due++] = rows[i];
	if (due == 0)
		return;
	lane->rows = MemoryContextAlloc(lanes_context, sizeof(QueueRow) * due);
	memcpy(lane->rows, rows, sizeof(QueueRow) * due);
	lane->row_count = due;
	lane->fetched_at = now;
	buffered += due;
}

static void
fetch_lanes(DeliveryLane **batch, int count, TimestampTz now)
{
	int			row_counts[FETCH_LANES];
	int			max = Max(Min(FETCH_ROWS, FETCH_TOTAL - buffered) / count, FETCH_MIN);
	QueueRow   *rows = palloc(sizeof(QueueRow) * max * count);
	TimestampTz began_at = GetCurrentTimestamp();
	int64		took_us;

	for (int i = 0; i < count; i++)
		row_counts[i] = queue_fetch(&batch[i]->key, &batch[i]->position, rows + i * max, max);
	took_us = (GetCurrentTimestamp() - began_at) / count;
	for (int i = 0; i < count; i++)
	{
		DeliveryLane *lane = batch[i];

		buffer_rows(lane, rows + i * max, row_counts[i], now);
		lane->exhausted = row_counts[i] < max;
		if (!lane->found_due)
		{
			lane->read_us += took_us;
			lane->rested_at = rest_until(lane->read_us);
		}
		lane->found_due |= lane->row_count > 0;
		place(lane, now);
	}
	pfree(rows);
}

/* Why rows of the lane cannot be attempted, and have not been for long; or NULL. */
static const char *
reason_to_expire(const DeliveryLane *lane, TimestampTz now)
{
	const Circuit *circuit = &lane->app->circuit;

	if (lane->key_missing)
		return lane->reason;
	if (lane->failing_since == 0 || now - lane->failing_since < EXPIRE_AFTER)
		return NULL;
	if (lane->circuit.open)
		return lane->reason;
	return circuit->open && circuit->probes > 0 ? lane->app->reason : NULL;
}

/* Gives up rows that could not be attempted until their time was over. */
static void
expire_rows(DeliveryLane *lane, TimestampTz now)
{
	const char *reason = reason_to_expire(lane, now);
	int			count;

	if (reason == NULL || lane->items > 0 ||
		(lane->expired_at != 0 && now - lane->expired_at < EXPIRE_US))
		return;
	lane->expired_at = now;
	count = queue_expire(&lane->key, now - settings_retry_window * USECS_PER_SEC, reason);
	if (count == 0)
		return;
	apps_count(lane->app, QUEUE_FAILED, count);
	ereport(LOG,
			(errmsg("onesignal_cancel: giving up on %d messages of %s for role \"%s\": %s",
					count, apps_label(lane->app), NameStr(lane->key.requested_by), reason),
			 errhidecontext(true)));
}

/* Why nothing of the table may be delivered, or NULL.  Logged once. */
static const char *
find_problem(void)
{
	static char logged[256] = "";
	const char *problem = queue_problem();

	if (problem != NULL && strncmp(logged, problem, sizeof(logged) - 1) != 0)
		ereport(LOG, (errmsg("onesignal_cancel: nothing is delivered: %s", problem), errhidecontext(true)));
	strlcpy(logged, problem != NULL ? problem : "", sizeof(logged));
	return problem;
}

bool
lanes_are_hungry(TimestampTz now)
{
	return !dlist_is_empty(&fetching) || ((scan.wanted || scan.runs) && now >= scan.rested_at);
}

void
lanes_fill(TimestampTz now)
{
	DeliveryLane *batch[FETCH_LANES];
	const char *problem;
	int			count = 0;

	if ((scan.wanted || scan.runs) && now >= scan.rested_at)
		scan_lanes(now);
	problem = dlist_is_empty(&fetching) ? NULL : find_problem();
	while (count < FETCH_LANES && !dlist_is_empty(&fetching))
	{
		DeliveryApp *app = dlist_head_element(DeliveryApp, fetching_node, &fetching);
		DeliveryLane *lane = dlist_head_element(DeliveryLane, hungry_node, &app->hungry);

		lane_leave(lane);
		if (problem != NULL)
		{
			lane->told = true;
			apps_miss_key(lane, problem, now);
		}
		else
			apps_check_key(lane, now);
		expire_rows(lane, now);
		if (!lane->key_missing && circuit_next(&lane->circuit, now) <= now)
			batch[count++] = lane;
		else
			lane_place(lane, now);
		app_set_fetching(app, false);	/* behind the others */
		app_place(app, now);
	}
	if (count > 0)
		fetch_lanes(batch, count, now);
}

/* ---- taking ---- */

static DeliveryItem *
take_row(DeliveryLane *lane, TimestampTz now)
{
	DeliveryApp *app = lane->app;
	const QueueRow *row = &lane->rows[lane->row_next];
	MessageId	id = {row->message_id, app->app_id};
	DeliveryItem *item = hash_search(items, &id, HASH_ENTER, NULL);

	memset((char *) item + sizeof(MessageId), 0, sizeof(*item) - sizeof(MessageId));
	item->lane = lane;
	item->key = lane->credentials;
	item->key->refs++;
	item->row = *row;
	item->begun = now;
	item->timer.kind = TIMER_ITEM;
	if (++lane->row_next == lane->row_count)
		drop_rows(lane);
	lane->items++;
	app->trust.unrecorded++;
	run_trust.unrecorded++;
	circuit_begin(&app->circuit);
	circuit_begin(&lane->circuit);
	allowance_begin(&app->allowance, &wire);
	place(lane, now);
	return item;
}

DeliveryItem *
lanes_take(TimestampTz now)
{
	relieve_crowd(now);
	while (!dlist_is_empty(&ready) && trust_permits(&run_trust, now))
	{
		DeliveryApp *app = dlist_head_element(DeliveryApp, list_node, &ready);
		DeliveryLane *lane;

		app_place(app, now);	/* behind all others that are ready, if it still is */
		if (app->list != &ready)
			continue;
		lane = pairingheap_container(DeliveryLane, queue_node, pairingheap_first(&app->queue));
		if (now - lane->fetched_at > BUFFER_AGE_US)
		{
			lane_leave(lane);
			drop_rows(lane);
			place(lane, now);
		}
		else if (pace_take(&app->pace, now))
			return take_row(lane, now);
		else
		{
			app_leave(app);
			lanes_set_timer(&app->timer, pace_next(&app->pace, now));
		}
	}
	return NULL;
}

int
lanes_taken(void)
{
	return items != NULL ? (int) hash_get_num_entries(items) : 0;
}

bool
lanes_take_again(DeliveryItem *item, TimestampTz now)
{
	DeliveryApp *app = item->lane->app;

	if (app_opens_at(app, now) > now || !allowance_permits(&app->allowance, &wire))
		return false;
	allowance_begin(&app->allowance, &wire);
	return true;
}

void
lanes_end_request(DeliveryItem *item, bool answered)
{
	allowance_end(&item->lane->app->allowance, &wire, answered);
	place(item->lane, GetCurrentTimestamp());
}

void
lanes_settle(DeliveryItem *item, int http_status, TimestampTz next_due)
{
	TimestampTz now = GetCurrentTimestamp();
	DeliveryLane *lane = item->lane;

	/* It may have been requested by another role, and so be in another lane. */
	if (item->renewed)
		lanes_wake();
	apps_release_key(item->key);
	if (item->text != NULL)
		pfree(item->text);
	hash_search(items, &item->id, HASH_REMOVE, NULL);
	lane->items--;
	lane->app->trust.unrecorded--;
	run_trust.unrecorded--;
	lane->rewind_at = Min(lane->rewind_at, next_due);
	/* It was rejected with a key that is no longer the lane's. */
	if (next_due != DT_NOEND && waited_for_the_key(lane, http_status))
		lane->rewind_at = 0;
	place(lane, now);
}

void
lanes_trust(DeliveryApp *app, bool recorded)
{
	TimestampTz now = GetCurrentTimestamp();
	Trust	   *trust = app != NULL ? &app->trust : &run_trust;

	if (recorded)
		trust_grow(trust);
	else
		trust_lose(trust, now);
	if (app != NULL)
		app_place(app, now);
}

TimestampTz
lanes_next_due(TimestampTz now)
{
	TimestampTz next = Min(lanes_next_timer(TIMER_LANE), lanes_next_timer(TIMER_APP));

	if (!dlist_is_empty(&fetching) || (!dlist_is_empty(&ready) && trust_permits(&run_trust, now)))
		return now;
	if (scan.wanted || scan.runs)
		next = Min(next, scan.rested_at);
	if (!dlist_is_empty(&ready) && run_trust.paused_until > now)
		next = Min(next, run_trust.paused_until);
	if (!pairingheap_is_empty(&timers[TIMER_KEYLESS]) && worker_preloaded())
		next = Min(next, now + CIRCUIT_KEY_PAUSE);
	return next;
}
