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
 *				timer: it waits for a row to fall due, a probe, its key, or for ever
 *		app		fetching: it may send, and has hungry lanes
 *				ready: its next row may begin; such apps take turns
 *				crowded: others have too many requests on the wire, or
 *				libcurl has yet to send some of its own
 *				timer: it waits for its pace or for a pause to end
 *				none: its answers, their recording, or a lane bring it back
 *
 * After a wake-up a scan finds from the index, some at a time, which lanes
 * there are.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/timestamp.h"

#include "delivery.h"
#include "settings.h"

/* How many rows one transaction fetches, in 2 ms (with the last lane it may be more), and of how many lanes. */
#define FETCH_ROWS			1000
#define FETCH_LANES			50

/* With so many rows in the buffers of all lanes, 2 MB, a lane gets no more than a few. */
#define FETCH_TOTAL			20000
#define FETCH_FEW			20

/* A row in a buffer may be taken back: what is older than this is read again. */
#define BUFFER_AGE_US		INT64CONST(500000)

/* Lanes that a scan finds in one transaction. */
#define SCAN_LANES			200

/* Lanes without a key for which a scan looks again: no worker stays for them, so a wake-up has to. */
#define RECHECKS_MAX		100

/* Reading takes a fifth of the time at most.  The rest counts from its begin, so what a lock held up has none. */
#define REST_AFTER(began_at) Min(5 * (GetCurrentTimestamp() - (began_at)), 10 * USECS_PER_SEC)

/* Requests of all apps together that are begun and not yet recorded. */
#define RUN_TRUST_MAX		16384

/* How many crowded apps are tried when there is room for one. */
#define RELIEF_TRIES		8

/* How often, and after how long an outage or rejection, rows whose time is over are given up unattempted. */
#define EXPIRE_US			USECS_PER_MINUTE
#define EXPIRE_AFTER		USECS_PER_HOUR

static HTAB *lanes = NULL;
static HTAB *items = NULL;
static Wire wire;
static Trust run_trust;
static int	buffered;			/* rows in all buffers */
static pairingheap ready;		/* who has not had a turn for longest is first */
static int64 turns;
static TimestampTz turn_began;	/* of the run: what was read since is not old */
static int	reserved;			/* apps whose rows are read again in it, though it is their turn */
static dlist_head crowded;
static dlist_head fetching;
static pairingheap lane_timers;
static pairingheap keyless_timers;	/* of lanes without a key: no worker stays for them */
static pairingheap app_timers;

/* The search for lanes that is to run, or that runs. */
static struct LaneScan
{
	bool		wanted;			/* once more, from the first lane on */
	bool		rows_wanted;	/* and not only for pauses */
	bool		runs;
	bool		finds_rows;
	int			rechecks;
	TimestampTz began_at;
	TimestampTz rested_at;		/* the next one does not begin before */
	QueueLane	last;			/* that it has come to */
} scan;

/* ---- places ---- */

int
place_compare(const pairingheap_node *a, const pairingheap_node *b, void *arg pg_attribute_unused())
{
	const Place *left = pairingheap_const_container(Place, heap_node, a);
	const Place *right = pairingheap_const_container(Place, heap_node, b);

	if (left->at != right->at)
		return left->at < right->at ? 1 : -1;
	return (left->turn < right->turn) - (left->turn > right->turn);
}

void
place_leave(Place *place)
{
	if (place->list != NULL)
		dlist_delete(&place->node);
	if (place->heap != NULL)
		pairingheap_remove(place->heap, &place->heap_node);
	place->list = NULL;
	place->heap = NULL;
}

void
place_in_list(Place *place, dlist_head *list)
{
	if (place->list == list)
		return;
	place_leave(place);
	dlist_push_tail(list, &place->node);
	place->list = list;
}

void
place_in_heap(Place *place, pairingheap *heap, TimestampTz at)
{
	place_leave(place);
	place->at = at;
	pairingheap_add(heap, &place->heap_node);
	place->heap = heap;
}

TimestampTz
place_next(pairingheap *heap)
{
	return pairingheap_is_empty(heap) ? DT_NOEND : pairingheap_container(Place, heap_node, pairingheap_first(heap))->at;
}

void *
place_take(pairingheap *heap, TimestampTz until)
{
	Place	   *place;

	if (pairingheap_is_empty(heap) || place_next(heap) > until)
		return NULL;
	place = pairingheap_container(Place, heap_node, pairingheap_first(heap));
	place_leave(place);
	return place->owner;
}

/* ---- where lanes and apps stand ---- */

/* They and their key are not needed now.  What was not begun is fetched again. */
static void
drop_rows(DeliveryLane *lane)
{
	if (lane->row_next < lane->row_count)
	{
		const QueueRow *row = &lane->rows[lane->row_next];

		lane->position = (QueuePosition) {row->send_after, row->message_id};
		lane->exhausted = false;
	}
	buffered -= lane->row_count;
	lane->row_count = lane->row_next = 0;
	if (lane->rows != NULL)
		pfree(lane->rows);
	lane->rows = NULL;
	if (lane->credentials != NULL)
		apps_release_key(lane->credentials);
	lane->credentials = NULL;
}

/* Its next row is taken, here or for another role. */
static void
pass_row(DeliveryLane *lane)
{
	if (++lane->row_next == lane->row_count)
		drop_rows(lane);
}

static void
lane_starve(DeliveryLane *lane)
{
	drop_rows(lane);
	place_in_list(&lane->place, &lane->app->hungry);
}

/* Puts the lane where it belongs now; one that is hungry keeps its place.  app_place() has to follow. */
static void
lane_place(DeliveryLane *lane, TimestampTz now)
{
	TimestampTz opens_at = circuit_next(&lane->circuit, now);
	bool		is_paused = opens_at > now && !lane->check_key;

	if (lane->rows != NULL && turn_began - lane->fetched_at > BUFFER_AGE_US)
		drop_rows(lane);
	if (!is_paused && !lane->searching && lane->rewind_at <= now && lane->rested_at <= now)
	{
		drop_rows(lane);
		lane->position = (QueuePosition) {.send_after = DT_NOBEGIN};
		lane->exhausted = false;
		lane->rewind_at = DT_NOEND;
	}
	if (opens_at <= now && lane->row_next < lane->row_count)
		place_in_heap(&lane->place, &lane->app->queue, lane->rows[lane->row_next].send_after);
	else if (!is_paused && (lane->check_key || lane->key_missing || !lane->exhausted))
		lane_starve(lane);
	else
	{
		drop_rows(lane);
		place_in_heap(&lane->place, lane->key_missing ? &keyless_timers : &lane_timers,
					  is_paused ? opens_at : Max(lane->rewind_at, lane->rested_at));
	}
}

/* When the app may send, as far as pauses go; <= now: at once. */
static TimestampTz
app_opens_at(DeliveryApp *app, TimestampTz now)
{
	return Max(circuit_next(&app->circuit, now), Max(app->paused_until, app->trust.paused_until));
}

static void
app_place(DeliveryApp *app, TimestampTz now)
{
	TimestampTz opens_at = app_opens_at(app, now);
	bool		has_rows = !pairingheap_is_empty(&app->queue);
	/* One lane will do for a probe. */
	bool		fetches = opens_at <= now && !dlist_is_empty(&app->hungry) && (!app->circuit.open || !has_rows);
	DeliveryLane *lane;

	/* However often a scan finds it, it keeps its place among those that fetch. */
	if (!fetches)
		place_leave(&app->place);
	if (opens_at > now)
	{
		/* It may not send: its lanes give up their rows and keys. */
		while ((lane = place_take(&app->queue, DT_NOEND)) != NULL)
			lane_starve(lane);
		if (!dlist_is_empty(&app->hungry))
			place_in_heap(&app->place, &app_timers, opens_at);
	}
	else if (fetches)
		place_in_list(&app->place, &fetching);
	/* Others have as many left: outcomes of locked rows may be kept for long. */
	else if (has_rows && trust_permits(&app->trust, now) && app->allowance.in_flight < app->allowance.limit &&
			 app->trust.unrecorded <= run_trust.max - run_trust.unrecorded)
	{
		if (app->group.unsent < HTTP_UNSENT_MAX && allowance_permits(&app->allowance, &wire))
			place_in_heap(&app->place, &ready, 0);
		else
			place_in_list(&app->place, &crowded);
	}
}

static void
place_both(DeliveryLane *lane, TimestampTz now)
{
	lane_place(lane, now);
	app_place(lane->app, now);
}

void
lanes_tick(TimestampTz now)
{
	DeliveryLane *lane;
	DeliveryApp *app;

	wire.max = settings_max_in_flight;
	turn_began = now;
	reserved = 0;
	while ((lane = place_take(&lane_timers, now)) != NULL || (lane = place_take(&keyless_timers, now)) != NULL)
		place_both(lane, now);
	while ((app = place_take(&app_timers, now)) != NULL)
		app_place(app, now);
}

void
lanes_open(bool cautious)
{
	HASHCTL		lane_control = {.keysize = sizeof(QueueLane), .entrysize = sizeof(DeliveryLane)};
	HASHCTL		item_control = {.keysize = sizeof(MessageId), .entrysize = sizeof(DeliveryItem)};

	lane_control.hcxt = item_control.hcxt = delivery_context;
	apps_open();
	lanes = hash_create("onesignal lanes", 64, &lane_control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	items = hash_create("onesignal items", 64, &item_control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	dlist_init(&crowded);
	dlist_init(&fetching);
	ready = lane_timers = keyless_timers = app_timers = (pairingheap) {.ph_compare = place_compare};
	memset(&wire, 0, sizeof(wire));
	memset(&scan, 0, sizeof(scan));
	run_trust = (Trust) {.limit = cautious ? 1 : RUN_TRUST_MAX, .max = RUN_TRUST_MAX};
	turns = buffered = 0;
}

void
lanes_look(bool at_once, bool for_rows, TimestampTz now)
{
	if (!at_once && now - scan.began_at < USECS_PER_SEC)
		return;
	scan.wanted = true;
	scan.rows_wanted |= for_rows;
}

/* ---- which lanes there are ---- */

/* When the next slice of a scan is due; DT_NOEND: never. */
static TimestampTz
scan_at(void)
{
	if (scan.runs)
		return 0;
	return scan.wanted ? scan.rested_at : DT_NOEND;
}

/* One slice of a scan.  A wake-up that comes meanwhile has another one follow. */
static void
scan_lanes(TimestampTz now)
{
	QueueListed *listed = palloc(sizeof(QueueListed) * SCAN_LANES);
	int			count;

	if (!scan.runs)
		scan = (struct LaneScan){.finds_rows = scan.rows_wanted, .began_at = now, .rested_at = now};
	count = queue_lanes(&scan.last, listed, SCAN_LANES);
	for (int i = 0; i < count; i++)
	{
		QueueListed *entry = &listed[i];
		DeliveryApp *app = apps_get(entry, now);

		if (scan.finds_rows)
		{
			bool		found;
			DeliveryLane *lane = hash_search(lanes, &entry->lane, HASH_ENTER, &found);

			if (!found)
			{
				*lane = (DeliveryLane) {.key = entry->lane, .app = app, .place.owner = lane};
				dlist_push_tail(&app->lanes, &lane->node);
			}
			lane->rewind_at = 0;
			lane->told |= strcmp(NameStr(entry->circuit_role), NameStr(entry->lane.requested_by)) == 0;
			/* There may be another key, or one at last. */
			lane->check_key |= lane->generation != credentials_generation() ||
				(lane->key_missing && scan.rechecks++ < RECHECKS_MAX);
			lane_place(lane, now);
		}
		app_place(app, now);
		scan.last = entry->lane;
	}
	scan.runs = count == SCAN_LANES;
	scan.rested_at = Max(scan.rested_at, now) + REST_AFTER(now);
}

/* ---- fetching ---- */

/* Reads the lane's next rows; those that are due, and not taken, go into its buffer.  Returns how many were read. */
static int
fetch_rows(DeliveryLane *lane, TimestampTz now)
{
	TimestampTz began_at = GetCurrentTimestamp();
	double		rate = lane->app->pace.rate;
	int			max = buffered < FETCH_TOTAL ? FETCH_ROWS : FETCH_FEW;
	QueueRow   *rows;
	QueueRow	rejected = {.last_attempt_at = 0};
	bool		is_new = lane->circuit.changed_at == 0 && lane->circuit.success_at == 0;
	bool		is_paused = is_new || lane->circuit.open;
	int			count;
	int			due = 0;

	/* Not many more than may be sent before they are old. */
	if (rate > 0 && rate < FETCH_ROWS && !lane->searching)
		max = Min(max, FETCH_FEW + (int) (rate * BUFFER_AGE_US / USECS_PER_SEC));
	rows = MemoryContextAlloc(delivery_context, sizeof(QueueRow) * max);
	count = queue_fetch(&lane->key, &lane->position, rows, max);
	lane->rested_at = Max(lane->rested_at, began_at) + REST_AFTER(began_at);
	lane->exhausted = count < max;
	if (count > 0)
		lane->position = (QueuePosition) {rows[count - 1].send_after, rows[count - 1].message_id};
	for (int i = 0; i < count; i++)
	{
		const QueueRow *row = &rows[i];
		MessageId	id = {row->message_id, lane->key.app_id};
		bool		was_rejected = apps_was_rejected(row->http_status);

		if (hash_search(items, &id, HASH_FIND, NULL) != NULL)
			continue;
		if (is_new && was_rejected && row->last_attempt_at > rejected.last_attempt_at)
			rejected = *row;
		if (row->first_attempt_at != 0 && (lane->failing_since == 0 || row->first_attempt_at < lane->failing_since))
			lane->failing_since = row->first_attempt_at;
		/* A rejected row is due, unless its lane is paused: others probe first.  The clock may have been ahead. */
		if (row->next_attempt_at <= now || (row->attempts == 0 ? row->requested_at : row->last_attempt_at) > now ||
			(was_rejected && !(is_paused && row->last_attempt_at > lane->app->resumed_at)))
			rows[due++] = *row;
		else
			lane->rewind_at = Min(lane->rewind_at, row->next_attempt_at);
	}
	if (rejected.last_attempt_at != 0)
		apps_remember_rejection(lane, rejected.http_status, rejected.last_attempt_at, now);
	/* Or what is due at the lane's end would never be reached while others commit all the time. */
	lane->searching = due == 0 && !lane->exhausted;
	if (due == 0)
	{
		pfree(rows);
		return count;
	}
	lane->rows = repalloc(rows, sizeof(QueueRow) * due);
	lane->row_count = due;
	lane->fetched_at = now;
	buffered += due;
	return count;
}

/* Gives up rows that could not be attempted until their time was over, and for long. */
static void
expire_rows(DeliveryLane *lane, TimestampTz now)
{
	const DeliveryApp *app = lane->app;
	const char *reason = NULL;
	/* A pause ended then, or delivery may have been switched on, or the server was started. */
	TimestampTz since = Max(Max(app->paused_until, app->resumed_at), Max(lane->failing_since, PgReloadTime));
	bool		for_long = lane->key_missing || (lane->failing_since != 0 && now - since > EXPIRE_AFTER);
	int			count;

	if (lane->key_missing || lane->circuit.open)
		reason = lane->reason;
	else if (app->circuit.open && app->circuit.probes > 0)
		reason = app->reason;
	if (reason == NULL || !for_long || now - lane->expired_at < EXPIRE_US)
		return;
	lane->expired_at = now;
	count = queue_expire(&lane->key, now - settings_retry_window * USECS_PER_SEC, reason);
	if (count == 0)
		return;
	apps_count(lane->app, QUEUE_FAILED, count);
	ereport(LOG,
			(errmsg("onesignal_cancel: giving up on %d messages of %s for role \"%s\": %s",
					count, apps_label(app), NameStr(lane->key.requested_by), reason),
			 errhidecontext(true)));
}

bool
lanes_are_hungry(TimestampTz now)
{
	return !dlist_is_empty(&fetching) || now >= scan_at();
}

void
lanes_fill(const Installation *installation, TimestampTz now)
{
	const char *problem = NULL;
	int			rows = 0;

	if (now >= scan_at())
		scan_lanes(now);
	if (!dlist_is_empty(&fetching))
		problem = owner_trigger_problem(installation, false);
	for (int i = 0; i < FETCH_LANES && rows < FETCH_ROWS && !dlist_is_empty(&fetching); i++)
	{
		DeliveryApp *app = dlist_head_element(DeliveryApp, place.node, &fetching);
		DeliveryLane *lane = dlist_head_element(DeliveryLane, place.node, &app->hungry);

		apps_check_key(lane, problem, now);
		expire_rows(lane, now);
		if (!lane->key_missing && circuit_next(&lane->circuit, now) <= now)
			rows += fetch_rows(lane, now);
		place_leave(&lane->place);
		place_leave(&app->place);
		place_both(lane, now);	/* behind the others */
	}
}

/* ---- taking ---- */

DeliveryItem *
lanes_take(TimestampTz now)
{
	int			tries = wire.in_flight < wire.max ? RELIEF_TRIES : 0;
	DeliveryItem *item;

	/* When nothing is on the wire, whoever has something to send is let in, however many have not. */
	while (!dlist_is_empty(&crowded) && (tries-- > 0 || (wire.in_flight == 0 && pairingheap_is_empty(&ready))))
		app_place(dlist_head_element(DeliveryApp, place.node, &crowded), now);
	while (!pairingheap_is_empty(&ready) && trust_permits(&run_trust, now))
	{
		DeliveryApp *app = pairingheap_container(DeliveryApp, place.heap_node, pairingheap_first(&ready));
		DeliveryLane *lane = pairingheap_container(DeliveryLane, place.heap_node, pairingheap_first(&app->queue));
		MessageId	id = {.app_id = app->row.app_id};

		place_both(lane, now);
		if (app->place.list == &fetching)
			reserved++;
		/* Its turn is not another's while its rows are read again. */
		if (reserved > 0 && reserved >= Min(run_trust.limit - run_trust.unrecorded, wire.max - wire.in_flight))
			return NULL;
		if (app->place.heap != &ready || lane->place.heap != &app->queue)
			continue;
		id.message_id = lane->rows[lane->row_next].message_id;
		/* On the wire for another role, whose request it was: that outcome has the row read again. */
		if (hash_search(items, &id, HASH_FIND, NULL) != NULL)
		{
			pass_row(lane);
			place_both(lane, now);
			continue;
		}
		if (!pace_take(&app->pace, now))
		{
			place_in_heap(&app->place, &app_timers, pace_next(&app->pace, now));
			continue;
		}
		item = hash_search(items, &id, HASH_ENTER, NULL);
		*item = (DeliveryItem) {.id = id, .place.owner = item, .lane = lane, .begun = now};
		item->credentials = lane->credentials;
		item->row = lane->rows[lane->row_next];
		if (item->row.first_attempt_at == 0)
			item->row.first_attempt_at = now;
		item->credentials->refs++;
		pass_row(lane);
		app->trust.unrecorded++;
		run_trust.unrecorded++;
		circuit_begin(&app->circuit);
		circuit_begin(&lane->circuit);
		allowance_begin(&app->allowance, &wire);
		app->place.turn = lane->place.turn = ++turns;
		place_both(lane, now);	/* behind the others */
		return item;
	}
	return NULL;
}

int
lanes_taken(void)
{
	return delivery_context != NULL ? run_trust.unrecorded : 0;
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
	place_both(item->lane, GetCurrentTimestamp());
}

void
lanes_settle(DeliveryItem *item, TimestampTz next_due)
{
	DeliveryLane *lane = item->lane;

	apps_release_key(item->credentials);
	pfree(item->answer);
	if (item->view != NULL)
		pfree(item->view);
	hash_search(items, &item->id, HASH_REMOVE, NULL);
	lane->app->trust.unrecorded--;
	run_trust.unrecorded--;
	lane->rewind_at = Min(lane->rewind_at, next_due);
	place_both(lane, GetCurrentTimestamp());
}

void
lanes_trust(DeliveryApp *app, bool recorded)
{
	TimestampTz now = GetCurrentTimestamp();

	trust_learn(&app->trust, recorded, now);
	trust_learn(&run_trust, recorded, now);
	app_place(app, now);
}

TimestampTz
lanes_next_due(TimestampTz now)
{
	TimestampTz next = Min(Min(place_next(&lane_timers), place_next(&app_timers)), scan_at());

	if (!dlist_is_empty(&fetching))
		return now;
	if (!pairingheap_is_empty(&ready) && run_trust.unrecorded < run_trust.limit)
		next = Min(next, Max(run_trust.paused_until, now));
	if (settings_preloaded)
		next = Min(next, place_next(&keyless_timers));
	return next;
}
