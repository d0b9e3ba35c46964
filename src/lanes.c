/*
 * lanes.c
 *		What goes next: apps and lanes that are ready, fetch rows, or wait.
 *
 * A lane is what one role requested for one app.  Its pending rows are read in
 * the order of delivery, from a position on, some at a time; rows that are not
 * due yet are passed over, and the lane goes back to its head when one of them
 * falls due or somebody commits more.
 *
 * Nothing here walks over all apps or lanes, for thousands of them may wait.
 * Each stands in one place:
 *
 *		lane	hungry: rows are to be fetched for it
 *				queue of its app: it has rows
 *				dormant: its app may not send now
 *				timer: it waits for a row to fall due, a probe, or its key
 *		app		ready: its next row may begin; they take turns
 *				crowded: others have too many requests on the wire, or
 *				libcurl has yet to send some of its own
 *				timer: it waits for its pace, or for a pause to end
 *				none: its own answers, or their recording, bring it back
 *
 * lane_place() and app_place() decide which.  A lane that has nothing pending
 * is forgotten.  Which lanes there are is found out from the index, slice by
 * slice, after each wake-up.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "lanes.h"
#include "settings.h"
#include "worker.h"

/* Rows fetched by one statement: 2 ms' worth of reading; of how many lanes; and of one lane at least. */
#define FETCH_ROWS			1000
#define FETCH_LANES			50
#define FETCH_MIN			(FETCH_ROWS / FETCH_LANES)

/* All lanes' buffers together, as far as FETCH_MIN permits: 2 MB */
#define FETCH_TOTAL			20000

/*
 * A row may be taken back while it waits in the buffer.  What was not begun
 * after this long is read again before it is.
 */
#define BUFFER_AGE_US		INT64CONST(500000)

/* Lanes that one visit finds out about. */
#define SCAN_LANES			200

/*
 * Reading that takes longer than CHEAP_US is not done again before so many
 * times as long have passed: rows a tenth of the time at most, lanes a fifth.
 */
#define CHEAP_US			1000
#define REST				9
#define SCAN_REST			4

/* Requests begun and not yet recorded, of all apps together. */
#define RUN_TRUST_MAX		16384

/* Apps that are looked at for one that may use the room of a request that has ended. */
#define RELIEF_TRIES		8

/* Lanes whose missing key one scan looks for again. */
#define RECHECKS_MAX		100

/* How soon a pause is seen where no wake-up tells of it. */
#define REFRESH_US			USECS_PER_SEC

/*
 * Rows that cannot be attempted are looked through so often for those whose
 * time is over.  A rejected key, or an outage, has to last for an hour first
 * (of probes, every 15 s): what ends soon is no reason to give up.
 */
#define EXPIRE_US			USECS_PER_MINUTE
#define EXPIRE_REJECTED		USECS_PER_HOUR
#define EXPIRE_PROBES		240

typedef struct TakenKey
{
	pg_uuid_t	message_id;
	pg_uuid_t	app_id;
} TakenKey;

typedef struct TakenRow
{
	TakenKey	key;
	TimestampTz requested_at;
	bool		renewed;		/* taken back and requested once more: a scan has seen it */
} TakenRow;

static MemoryContext lanes_context = NULL;
static HTAB *lanes;
static HTAB *taken;
static Wire wire;
static Trust run_trust;
static bool record_awaited;
static int	buffered;			/* rows in all lanes' buffers */

static dlist_head ready;
static dlist_head crowded;
static dlist_head hungry;

static int	compare_timers(const pairingheap_node *a, const pairingheap_node *b, void *arg);
static int	compare_lanes(const pairingheap_node *a, const pairingheap_node *b, void *arg);

static pairingheap timers = {.ph_compare = compare_timers};

/* Of lanes whose key was missing when it was last looked for: no worker stays for these. */
static pairingheap keyless = {.ph_compare = compare_timers};

static bool scan_wanted;
static bool scan_rewinds;		/* the next one looks for rows, too, not for pauses alone */
static bool scan_runs;
static bool scan_finds;			/* the one that runs does */
static int64 scan_began_us;
static int64 scan_took_us;
static int	scan_rechecks;
static QueueLane scanned;		/* the last lane that the scan has come to */
static int64 scan_at_us;		/* the next slice is not read before */

/* ---- times ---- */

static int
compare_timers(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	int64		left = pairingheap_const_container(Timer, node, a)->at_us;
	int64		right = pairingheap_const_container(Timer, node, b)->at_us;

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

static void
timer_stop(Timer *timer)
{
	if (timer->heap != NULL)
		pairingheap_remove(timer->heap, &timer->node);
	timer->heap = NULL;
}

/* at_us PG_INT64_MAX: never */
static void
timer_set(Timer *timer, pairingheap *heap, int64 at_us)
{
	timer_stop(timer);
	if (at_us == PG_INT64_MAX)
		return;
	timer->at_us = at_us;
	timer->heap = heap;
	pairingheap_add(heap, &timer->node);
}

static int64
on_engine_clock(TimestampTz when, Moment now)
{
	return when == DT_NOEND ? PG_INT64_MAX : now.us + Max(when - now.ts, 0);
}

static TimestampTz
on_table_clock(int64 us, Moment now)
{
	return us == PG_INT64_MAX ? DT_NOEND : now.ts + Max(us - now.us, 0);
}

/* When reading that took so long may be done again. */
static int64
rested_at(int64 took_us, int rest)
{
	return http_clock_us() + (took_us > CHEAP_US ? rest * took_us : 0);
}

/* ---- opening and forgetting ---- */

static HTAB *
make_hash(const char *name, Size key_size, Size entry_size)
{
	HASHCTL		control = {0};

	control.keysize = key_size;
	control.entrysize = entry_size;
	control.hcxt = lanes_context;
	return hash_create(name, 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

void
lanes_open(bool cautious)
{
	if (lanes_context == NULL)
	{
		lanes_context = AllocSetContextCreate(TopMemoryContext, "onesignal lanes", ALLOCSET_DEFAULT_SIZES);
		apps_open(lanes_context);
		lanes = make_hash("onesignal lanes", sizeof(QueueLane), sizeof(DeliveryLane));
		taken = make_hash("onesignal taken", sizeof(TakenKey), sizeof(TakenRow));
		dlist_init(&ready);
		dlist_init(&crowded);
		dlist_init(&hungry);
		pairingheap_reset(&timers);
		pairingheap_reset(&keyless);
		memset(&wire, 0, sizeof(wire));
		trust_init(&run_trust, cautious ? 1 : RUN_TRUST_MAX, RUN_TRUST_MAX);
		buffered = 0;
		scan_runs = false;
	}
	/* Another deliverer may have been at work since. */
	lanes_wake();
	scan_at_us = 0;
}

void
lanes_forget(void)
{
	HASH_SEQ_STATUS status;
	DeliveryLane *lane;

	if (lanes_context == NULL)
		return;
	if (lanes != NULL)
	{
		hash_seq_init(&status, lanes);
		while ((lane = hash_seq_search(&status)) != NULL)
			apps_drop_key(lane);
	}
	lanes = taken = NULL;
	MemoryContextDelete(lanes_context);
	lanes_context = NULL;
}

void
lanes_wake(void)
{
	scan_wanted = scan_rewinds = true;
}

void
lanes_refresh(Moment now)
{
	scan_wanted |= now.us - scan_began_us > REFRESH_US;
}

/* ---- where an app stands ---- */

static void
app_leave(DeliveryApp *app)
{
	if (app->list != NULL)
		dlist_delete(&app->list_node);
	app->list = NULL;
	timer_stop(&app->timer);
}

static void
app_enter(DeliveryApp *app, dlist_head *list)
{
	app->list = list;
	dlist_push_tail(list, &app->list_node);
}

/* When the app may send, as far as pauses go; <= now: at once. */
static int64
app_opens_at(DeliveryApp *app, Moment now)
{
	if (app->paused_until > now.ts)
		return on_engine_clock(app->paused_until, now);
	return circuit_next(&app->circuit, now.us);
}

static void
drop_buffer(DeliveryLane *lane)
{
	if (lane->rows == NULL)
		return;
	if (lane->row_next < lane->row_count)
	{
		/* What was not begun is fetched again. */
		lane->position.send_after = lane->rows[lane->row_next].send_after;
		lane->position.message_id = lane->rows[lane->row_next].message_id;
		lane->exhausted = false;
	}
	buffered -= lane->row_count;
	pfree(lane->rows);
	lane->rows = NULL;
	lane->row_count = lane->row_next = 0;
}

static void
lane_leave(DeliveryLane *lane)
{
	if (lane->in_queue)
		pairingheap_remove(&lane->app->queue, &lane->queue_node);
	if (lane->hungry)
		dlist_delete(&lane->hungry_node);
	if (lane->dormant)
		dlist_delete(&lane->dormant_node);
	lane->in_queue = lane->hungry = lane->dormant = false;
	timer_stop(&lane->timer);
}

static void
lane_starve(DeliveryLane *lane)
{
	lane->hungry = true;
	dlist_push_tail(&hungry, &lane->hungry_node);
}

/* Its rows and key are not needed before the app may send again. */
static void
lane_sleep(DeliveryLane *lane)
{
	drop_buffer(lane);
	apps_drop_key(lane);
	lane->dormant = true;
	dlist_push_tail(&lane->app->dormant, &lane->dormant_node);
}

static void
remove_lane(DeliveryLane *lane)
{
	drop_buffer(lane);
	apps_drop_key(lane);
	if (lane->reason != NULL)
		pfree(lane->reason);
	dlist_delete(&lane->node);
	hash_search(lanes, &lane->key, HASH_REMOVE, NULL);
}

static void
rewind_lane(DeliveryLane *lane)
{
	drop_buffer(lane);
	lane->position.send_after = DT_NOBEGIN;
	memset(&lane->position.message_id, 0, sizeof(pg_uuid_t));
	lane->exhausted = false;
	lane->rewind_wanted = false;
	lane->next_due_us = PG_INT64_MAX;
	lane->scan_us = 0;
	lane->scan_found = false;
}

/* Somebody committed more, maybe something that is sent sooner; or a row that was passed over is due. */
static bool
wants_rewind(const DeliveryLane *lane, Moment now)
{
	return lane->rewind_wanted || lane->next_due_us <= now.us;
}

/* It has read all its rows, and none is due. */
static void
lane_wait(DeliveryLane *lane, Moment now)
{
	if (wants_rewind(lane, now))
		timer_set(&lane->timer, &timers, lane->rewind_at_us);
	else if (lane->next_due_us != PG_INT64_MAX)
		timer_set(&lane->timer, &timers, Max(lane->next_due_us, lane->rewind_at_us));
	else if (lane->items == 0)
	{
		remove_lane(lane);
		return;
	}
	apps_drop_key(lane);
}

/* Puts the lane where it belongs now; it may be gone afterwards.  app_place() has to follow. */
static void
lane_place(DeliveryLane *lane, Moment now)
{
	int64		probe_at = circuit_next(&lane->circuit, now.us);

	lane_leave(lane);
	if (lane->key_missing || probe_at > now.us)
	{
		drop_buffer(lane);
		apps_drop_key(lane);
		if (lane->key_missing)
			timer_set(&lane->timer, lane->checks == 0 ? &timers : &keyless, apps_next_key_check(lane));
		else if (!lane->circuit.probing)
			timer_set(&lane->timer, &timers, Min(probe_at, apps_next_key_check(lane)));
		return;
	}
	if (app_opens_at(lane->app, now) > now.us)
	{
		lane_sleep(lane);
		return;
	}
	if (wants_rewind(lane, now) && now.us >= lane->rewind_at_us)
		rewind_lane(lane);
	if (lane->row_next < lane->row_count)
	{
		lane->in_queue = true;
		pairingheap_add(&lane->app->queue, &lane->queue_node);
	}
	else if (!lane->exhausted)
		lane_starve(lane);
	else
		lane_wait(lane, now);
}

/* For a probe one lane will do, each time another one. */
static void
wake_dormant(DeliveryApp *app, Moment now)
{
	bool		probes = app->circuit.open;

	while (!dlist_is_empty(&app->dormant))
	{
		lane_place(dlist_container(DeliveryLane, dormant_node, dlist_head_node(&app->dormant)), now);
		if (probes)
			break;
	}
}

static void
app_place(DeliveryApp *app, Moment now)
{
	int64		opens_at = app_opens_at(app, now);

	app_leave(app);
	if (opens_at > now.us)
	{
		while (!pairingheap_is_empty(&app->queue))
		{
			DeliveryLane *lane = pairingheap_container(DeliveryLane, queue_node, pairingheap_first(&app->queue));

			lane_leave(lane);
			lane_sleep(lane);
		}
		if (!dlist_is_empty(&app->dormant))
			timer_set(&app->timer, &timers, opens_at);
		return;
	}
	if (pairingheap_is_empty(&app->queue) || !app->circuit.open)
		wake_dormant(app, now);
	if (pairingheap_is_empty(&app->queue))
		return;
	if (app->trust.paused_until > now.us)
		timer_set(&app->timer, &timers, app->trust.paused_until);
	else if (!trust_permits(&app->trust, now.us))
		record_awaited = true;
	else if (!allowance_is_full(&app->allowance))
		app_enter(app, app->group.unsent < HTTP_UNSENT_MAX && allowance_permits(&app->allowance, &wire) ? &ready : &crowded);
}

/*
 * There is room on the wire again, for one of those that wait for it; with
 * nothing on the wire, for whoever of them has something to send.
 */
static void
relieve_crowd(Moment now)
{
	int			tries = RELIEF_TRIES;

	while (!dlist_is_empty(&crowded) && dlist_is_empty(&ready) && (wire.in_flight == 0 || tries-- > 0))
		app_place(dlist_container(DeliveryApp, list_node, dlist_head_node(&crowded)), now);
}

void
lanes_tick(Moment now)
{
	static pairingheap *const heaps[] = {&timers, &keyless};

	wire.max = settings_max_in_flight;
	for (size_t i = 0; i < lengthof(heaps); i++)
		while (!pairingheap_is_empty(heaps[i]))
		{
			Timer	   *timer = pairingheap_container(Timer, node, pairingheap_first(heaps[i]));

			if (timer->at_us > now.us)
				break;
			timer_stop(timer);
			if (timer->is_lane)
				lane_starve(pairingheap_container(DeliveryLane, timer.node, &timer->node));
			else
				app_place(pairingheap_container(DeliveryApp, timer.node, &timer->node), now);
		}
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
	circuit_init(&lane->circuit);
	lane->app = app;
	lane->timer.is_lane = true;
	dlist_push_tail(&app->lanes, &lane->node);
	app->queue.ph_compare = compare_lanes;
	rewind_lane(lane);
	return lane;
}

/* One slice of a scan, which begins anew with each wake-up. */
static void
scan_lanes(Moment now)
{
	List	   *listed;
	ListCell   *cell;

	if (!scan_runs)
	{
		scan_finds = scan_rewinds;
		scan_wanted = scan_rewinds = false;
		scan_began_us = now.us;
		scan_took_us = scan_rechecks = 0;
		memset(&scanned, 0, sizeof(scanned));
	}
	listed = queue_lanes(&scanned, SCAN_LANES);
	foreach(cell, listed)
	{
		QueueListed *entry = lfirst(cell);
		DeliveryApp *app = apps_get(&entry->lane.app_id, &entry->app, now);

		apps_update(app, &entry->app, now);
		if (scan_finds)
		{
			DeliveryLane *lane = get_lane(&entry->lane, app);

			lane->rewind_wanted = true;
			lane->told |= entry->app.is_of_lane;
			/* The key may be another one by now, or be there. */
			if (lane->generation != credentials_generation())
				lane->checked_us = lane->checks = 0;
			else if (lane->key_missing && scan_rechecks++ < RECHECKS_MAX)
				lane->checks = 0;
			lane_place(lane, now);
		}
		app_place(app, now);
		scanned = entry->lane;
	}
	scan_runs = list_length(listed) == SCAN_LANES;
	scan_took_us += http_clock_us() - now.us;
	scan_at_us = scan_runs ? 0 : rested_at(scan_took_us, SCAN_REST);
}

/* ---- fetching ---- */

static bool
was_rejected(int http_status)
{
	return http_status == 401 || http_status == 403;
}

/* Rejected with its key, a row lets others be the next probe; when the lane's circuit is closed, it is due. */
static bool
waited_for_the_key(const DeliveryLane *lane, int http_status)
{
	return was_rejected(http_status) && !lane->circuit.open;
}

/* Rows that wait for their time, or whose outcome is being had, stay behind. */
static bool
is_due(DeliveryLane *lane, const QueueRow *row, Moment now)
{
	TakenKey	key = {row->message_id, lane->key.app_id};
	TakenRow   *begun = hash_search(taken, &key, HASH_FIND, NULL);

	if (begun != NULL)
	{
		begun->renewed |= begun->requested_at != row->requested_at;
		return false;
	}
	if (was_rejected(row->http_status))
	{
		apps_suspect(lane, row->http_status, now);
		if (lane->rejected_since == 0 || row->first_attempt_at < lane->rejected_since)
			lane->rejected_since = row->first_attempt_at;
	}
	if (row->next_attempt_at <= now.ts || waited_for_the_key(lane, row->http_status))
		return true;
	lane->next_due_us = Min(lane->next_due_us, on_engine_clock(row->next_attempt_at, now));
	return false;
}

static void
buffer_rows(DeliveryLane *lane, QueueRow *rows, int count, Moment now)
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
	lane->row_next = 0;
	lane->fetched_us = now.us;
	buffered += due;
}

static void
fetch_lanes(DeliveryLane **batch, int count, Moment now)
{
	const QueueLane *keys[FETCH_LANES];
	QueuePosition positions[FETCH_LANES];
	int			row_counts[FETCH_LANES];
	int			max = Max(Min(FETCH_ROWS, FETCH_TOTAL - buffered) / count, FETCH_MIN);
	QueueRow   *rows = palloc(sizeof(QueueRow) * max * count);
	int64		began_us = http_clock_us();
	int64		took_us;

	for (int i = 0; i < count; i++)
	{
		keys[i] = &batch[i]->key;
		positions[i] = batch[i]->position;
	}
	queue_fetch(keys, positions, count, rows, row_counts, max);
	took_us = (http_clock_us() - began_us) / count;
	for (int i = 0; i < count; i++)
	{
		DeliveryLane *lane = batch[i];
		DeliveryApp *app = lane->app;

		buffer_rows(lane, rows + i * max, row_counts[i], now);
		lane->exhausted = row_counts[i] < max;
		if (!lane->scan_found)
		{
			lane->scan_us += took_us;
			lane->rewind_at_us = rested_at(lane->scan_us, REST);
		}
		lane->scan_found |= lane->row_count > 0;
		lane_place(lane, now);
		app_place(app, now);
	}
	pfree(rows);
}

/* Rows that could not be attempted until their time was over are given up. */
static void
expire_rows(DeliveryLane *lane, Moment now)
{
	DeliveryApp *app = lane->app;
	const char *reason = NULL;
	int			count;

	if (lane->key_missing ||
		(lane->circuit.open && lane->rejected_since != 0 && now.ts - lane->rejected_since > EXPIRE_REJECTED))
		reason = lane->reason;
	else if (app->circuit.open && app->circuit.probes >= EXPIRE_PROBES)
		reason = app->reason;
	if (reason == NULL || lane->items > 0 ||
		(lane->expired_us != 0 && now.us - lane->expired_us < EXPIRE_US))
		return;
	lane->expired_us = now.us;
	count = queue_expire(&lane->key, now.ts - settings_retry_window * USECS_PER_SEC, reason);
	if (count == 0)
		return;
	apps_count(app, QUEUE_FAILED, count);
	ereport(LOG,
			(errmsg("onesignal_cancel: giving up on %d messages of %s for role \"%s\": %s",
					count, apps_label(app), NameStr(lane->key.requested_by), reason),
			 errhidecontext(true)));
}

/* Is there anything wrong with the table, so that nothing of it may be delivered?  Logged once. */
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

/* True: rows are to be fetched for it; else it has its place. */
static bool
prepare_fetch(DeliveryLane *lane, const char *problem, Moment now)
{
	DeliveryApp *app = lane->app;
	bool		has_key = false;

	lane_leave(lane);
	if (problem != NULL)
		apps_miss_key(lane, problem, false, now);
	else
		has_key = apps_check_key(lane, now);
	expire_rows(lane, now);
	if (has_key && circuit_next(&lane->circuit, now.us) <= now.us && app_opens_at(app, now) <= now.us)
	{
		if (wants_rewind(lane, now) && now.us >= lane->rewind_at_us)
			rewind_lane(lane);
		return true;
	}
	lane_place(lane, now);
	app_place(app, now);
	return false;
}

bool
lanes_hungry(Moment now)
{
	return !dlist_is_empty(&hungry) || ((scan_wanted || scan_runs) && now.us >= scan_at_us);
}

void
lanes_fill(Moment now)
{
	DeliveryLane *batch[FETCH_LANES];
	const char *problem;
	int			count = 0;

	if ((scan_wanted || scan_runs) && now.us >= scan_at_us)
		scan_lanes(now);
	problem = dlist_is_empty(&hungry) ? NULL : find_problem();
	while (count < FETCH_LANES && !dlist_is_empty(&hungry))
	{
		DeliveryLane *lane = dlist_container(DeliveryLane, hungry_node, dlist_head_node(&hungry));

		if (prepare_fetch(lane, problem, now))
			batch[count++] = lane;
	}
	if (count > 0)
		fetch_lanes(batch, count, now);
}

/* ---- taking ---- */

void
lanes_count_unrecorded(DeliveryLane *lane, int count)
{
	lane->app->trust.unrecorded += count;
	run_trust.unrecorded += count;
}

static void
take_row(DeliveryLane *lane, LaneTurn *turn, Moment now)
{
	DeliveryApp *app = lane->app;
	TakenKey	key;
	TakenRow   *begun;

	turn->lane = lane;
	turn->key = lane->credentials;
	turn->key->refs++;
	turn->row = lane->rows[lane->row_next++];
	if (lane->row_next == lane->row_count)
		drop_buffer(lane);

	key.message_id = turn->row.message_id;
	key.app_id = app->app_id;
	begun = hash_search(taken, &key, HASH_ENTER, NULL);
	begun->requested_at = turn->row.requested_at;
	begun->renewed = false;
	lane->items++;
	lanes_count_unrecorded(lane, 1);
	circuit_begin(&app->circuit);
	circuit_begin(&lane->circuit);
	allowance_begin(&app->allowance, &wire);
	lane_place(lane, now);
	app_place(app, now);
}

bool
lanes_take(Moment now, LaneTurn *turn)
{
	relieve_crowd(now);
	while (!dlist_is_empty(&ready))
	{
		DeliveryApp *app = dlist_container(DeliveryApp, list_node, dlist_head_node(&ready));
		DeliveryLane *lane;

		if (!trust_permits(&run_trust, now.us))
		{
			record_awaited = true;
			return false;
		}
		app_place(app, now);	/* behind all others that are ready, if it still is */
		if (app->list != &ready)
			continue;
		lane = pairingheap_container(DeliveryLane, queue_node, pairingheap_first(&app->queue));
		if (now.us - lane->fetched_us > BUFFER_AGE_US)
		{
			lane_leave(lane);
			drop_buffer(lane);
			lane_place(lane, now);
			app_place(app, now);
		}
		else if (!pace_take(&app->pace, now.us))
		{
			app_leave(app);
			timer_set(&app->timer, &timers, pace_next(&app->pace, now.us));
		}
		else
		{
			take_row(lane, turn, now);
			return true;
		}
	}
	return false;
}

bool
lanes_await_record(void)
{
	return record_awaited;
}

bool
lanes_take_again(DeliveryLane *lane, Moment now)
{
	DeliveryApp *app = lane->app;

	if (app_opens_at(app, now) > now.us || !allowance_permits(&app->allowance, &wire))
		return false;
	allowance_begin(&app->allowance, &wire);
	return true;
}

void
lanes_end_request(DeliveryLane *lane, bool answered, Moment now)
{
	DeliveryApp *app = lane->app;

	allowance_end(&app->allowance, &wire, answered);
	lane_place(lane, now);
	app_place(app, now);
	relieve_crowd(now);
}

void
lanes_settle(DeliveryLane *lane, const QueueRow *row, int http_status, TimestampTz next_due)
{
	Moment		now = apps_now();
	DeliveryApp *app = lane->app;
	TakenKey	key = {row->message_id, lane->key.app_id};
	TakenRow   *begun = hash_search(taken, &key, HASH_REMOVE, NULL);

	/* By another role, maybe, and so in another lane. */
	if (begun != NULL && begun->renewed)
		lanes_wake();
	lane->items--;
	lanes_count_unrecorded(lane, -1);
	record_awaited = false;
	lane->next_due_us = Min(lane->next_due_us, on_engine_clock(next_due, now));
	/* Rejected with a key that is no longer the lane's */
	lane->rewind_wanted |= next_due != DT_NOEND && waited_for_the_key(lane, http_status);
	lane_place(lane, now);
	app_place(app, now);
}

void
lanes_grow_trust(DeliveryApp *app)
{
	trust_grow(&app->trust);
	app_place(app, apps_now());
}

void
lanes_note_visit(bool recorded_some)
{
	if (recorded_some)
		trust_grow(&run_trust);
	else
		trust_lose(&run_trust, http_clock_us());
}

void
lanes_lose_trust(DeliveryApp *app)
{
	Moment		now = apps_now();

	trust_lose(&app->trust, now.us);
	app_place(app, now);
}

TimestampTz
lanes_next_due(Moment now)
{
	int64		next = scan_wanted || scan_runs ? scan_at_us : PG_INT64_MAX;

	if (!dlist_is_empty(&hungry) || (!dlist_is_empty(&ready) && trust_permits(&run_trust, now.us)))
		return now.ts;
	if (!dlist_is_empty(&ready) && run_trust.paused_until > now.us)
		next = Min(next, run_trust.paused_until);
	if (!pairingheap_is_empty(&timers))
		next = Min(next, pairingheap_container(Timer, node, pairingheap_first(&timers))->at_us);
	if (!pairingheap_is_empty(&keyless) && worker_preloaded())
		next = Min(next, now.us + CIRCUIT_KEY_PAUSE);
	return on_table_clock(next, now);
}
