/*
 * lanes.c
 *		What goes next: apps, their lanes, and the rows fetched for each.
 *
 * A lane is the pending rows of one app that one role requested, for the key
 * depends on both.  Each lane has a cursor in the order of the queue's index,
 * soonest send_after first, and a small buffer of rows behind it, so that
 * memory does not grow with the queue and the head, where an old snapshot may
 * hold many dead entries, is not read again for each fetch.  Back to the head
 * goes a lane only when somebody committed more, when a row it has passed over
 * falls due, or when its key changed; and that takes at most a fifth of the
 * time (SCAN_SHARE).
 *
 * Whose turn is it?  Apps take turns.  Within an app it is the lane whose
 * first row is sent soonest.  An app that is paused or whose pace is used up,
 * and a lane whose circuit is open, is passed over and holds up nobody.
 *
 * A row that was begun stays in the table as it is until its outcome is
 * recorded; "taken" keeps a scan from beginning it twice.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "apps.h"
#include "lanes.h"

/* Rows fetched at once for one lane: 2 ms' worth of reading. */
#define FETCH_MAX			1000
#define FETCH_MIN			16

/* All lanes' buffers together: what many lanes share */
#define FETCH_TOTAL			8000

/*
 * A row may be taken back while it waits in the buffer.  What was not begun
 * after this long is read again before it is.
 */
#define BUFFER_AGE_US		INT64CONST(500000)

/* After a scan from the head, the next one waits that many times as long as it took. */
#define SCAN_SHARE			4

/* Reading so many rows that are not due takes about 0.2 and 20 ms: then only so often. */
#define PASSED_OVER_SOME	100
#define REWIND_SOME_US		INT64CONST(200000)
#define PASSED_OVER_MANY	10000
#define REWIND_MANY_US		INT64CONST(2000000)

/* Outcomes that wait for locked rows: with so many, a lane begins no more. */
#define LANE_KEPT_MAX		200

/* One visit passes over at most this many fetches' rows, lest it become a long transaction. */
#define FETCHES_MAX			20

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
static dlist_head ready;		/* apps with fetched rows, in the order of their turns */
static bool scan_wanted;
static int64 scan_not_before;

Moment
lanes_now(void)
{
	Moment		now;

	now.us = http_clock_us();
	now.ts = GetCurrentTimestamp();
	return now;
}

static HTAB *
make_hash(MemoryContext context, const char *name, Size key_size, Size entry_size)
{
	HASHCTL		control = {0};

	control.keysize = key_size;
	control.entrysize = entry_size;
	control.hcxt = context;
	return hash_create(name, 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* At the start of each run: another deliverer may have been at work in between. */
void
lanes_open(void)
{
	if (lanes_context == NULL)
	{
		MemoryContext context = AllocSetContextCreate(TopMemoryContext, "onesignal lanes", ALLOCSET_DEFAULT_SIZES);

		apps_open(context);
		lanes = make_hash(context, "onesignal lanes", sizeof(QueueLane), sizeof(DeliveryLane));
		taken = make_hash(context, "onesignal taken", sizeof(TakenKey), sizeof(TakenRow));
		dlist_init(&ready);
		lanes_context = context;
	}
	scan_wanted = true;
	scan_not_before = 0;
}

void
lanes_wake(void)
{
	scan_wanted = true;
}

/* ---- lanes ---- */

static DeliveryLane *
get_lane(const QueueLane *key)
{
	QueueLane	blob;
	bool		found;
	DeliveryLane *lane;

	/* Behind a name's end there may be anything. */
	memset(&blob, 0, sizeof(blob));
	blob.app_id = key->app_id;
	strlcpy(NameStr(blob.requested_by), NameStr(key->requested_by), NAMEDATALEN);
	lane = hash_search(lanes, &blob, HASH_ENTER, &found);
	if (found)
		return lane;
	memset((char *) lane + sizeof(QueueLane), 0, sizeof(*lane) - sizeof(QueueLane));
	circuit_init(&lane->circuit);
	lane->next_due = DT_NOEND;
	lane->app = apps_get(&key->app_id);
	dlist_push_tail(&lane->app->lanes, &lane->node);
	return lane;
}

/* What was not begun is fetched again, from the cursor on. */
static void
drop_buffer(DeliveryLane *lane)
{
	if (lane->row_next < lane->row_count)
		lane->exhausted = false;
	lane->app->fetched -= lane->row_count - lane->row_next;
	lane->row_count = lane->row_next = 0;
	if (lane->app->fetched == 0 && lane->app->is_ready)
	{
		dlist_delete(&lane->app->node);
		lane->app->is_ready = false;
	}
}

static void
remove_lane(DeliveryLane *lane)
{
	drop_buffer(lane);
	apps_drop_key(lane);
	if (lane->rows != NULL)
		pfree(lane->rows);
	dlist_delete(&lane->node);
	apps_forget_lane(lane);
	hash_search(lanes, &lane->key, HASH_REMOVE, NULL);
}

static void
rewind_lane(DeliveryLane *lane, int64 now_us)
{
	drop_buffer(lane);
	memset(&lane->cursor, 0, sizeof(lane->cursor));
	lane->exhausted = false;
	lane->rewind_wanted = false;
	lane->next_due = DT_NOEND;
	lane->passed_over = 0;
	lane->rewound_us = now_us;
}

/* Somebody committed more, maybe something that is sent sooner; or a row that was passed over is due. */
static bool
wants_rewind(const DeliveryLane *lane, Moment now)
{
	return lane->rewind_wanted || lane->next_due <= now.ts;
}

/*
 * When it may go back to the head.  Where many rows there wait for their time,
 * going back for each commit or each of them would read the same rows again
 * and again, and never come to those behind; and a lane that has far to go
 * does not go back for every single retry.
 */
static int64
rewind_after_us(const DeliveryLane *lane)
{
	if (lane->passed_over >= PASSED_OVER_MANY || (!lane->exhausted && !lane->rewind_wanted))
		return lane->rewound_us + REWIND_MANY_US;
	if (lane->passed_over >= PASSED_OVER_SOME)
		return lane->rewound_us + REWIND_SOME_US;
	return 0;
}


/* ---- fetching ---- */

static void
list_lanes(void)
{
	HASH_SEQ_STATUS status;
	DeliveryLane *lane;
	ListCell   *cell;

	hash_seq_init(&status, lanes);
	while ((lane = hash_seq_search(&status)) != NULL)
		lane->listed = false;
	foreach(cell, queue_lanes())
	{
		lane = get_lane(lfirst(cell));
		lane->listed = true;
		lane->rewind_wanted = true;
	}
	hash_seq_init(&status, lanes);
	while ((lane = hash_seq_search(&status)) != NULL)
	{
		if (!lane->listed && lane->items == 0)
			remove_lane(lane);
	}
}

/* Could a request of this lane start soon, were there a row? */
static bool
may_start(DeliveryLane *lane, Moment now)
{
	return lane->app->paused_until <= now.ts &&
		circuit_next(&lane->app->circuit, now.us) <= now.us &&
		circuit_next(&lane->circuit, now.us) <= now.us;
}

static bool
is_stale(const DeliveryLane *lane, Moment now)
{
	return lane->row_next < lane->row_count && now.us - lane->fetched_us > BUFFER_AGE_US;
}

static bool
is_hungry(DeliveryLane *lane, Moment now)
{
	if (!lane->has_key || !may_start(lane, now))
		return false;
	if (wants_rewind(lane, now) && now.us >= rewind_after_us(lane))
		rewind_lane(lane, now.us);
	return lane->row_next >= lane->row_count && !lane->exhausted;
}

/* Rejected with its key, a row lets others be the next probe; when the lane is open, it is due. */
static bool
waited_for_the_key(const DeliveryLane *lane, int http_status)
{
	return (http_status == 401 || http_status == 403) && !lane->circuit.open;
}

/* Rows that wait for their time, or whose outcome is being had, stay behind. */
static void
keep_due_rows(DeliveryLane *lane, int count, Moment now)
{
	for (int i = 0; i < count; i++)
	{
		TakenKey	key = {lane->rows[i].message_id, lane->key.app_id};
		TakenRow   *row = hash_search(taken, &key, HASH_FIND, NULL);

		if (row != NULL)
			row->renewed |= row->requested_at != lane->rows[i].requested_at;
		else if (lane->rows[i].next_attempt_at > now.ts && !waited_for_the_key(lane, lane->rows[i].http_status))
		{
			lane->next_due = Min(lane->next_due, lane->rows[i].next_attempt_at);
			lane->passed_over++;
		}
		else
			lane->rows[lane->row_count++] = lane->rows[i];
	}
	lane->app->fetched += lane->row_count;
	if (lane->row_count > 0 && !lane->app->is_ready)
	{
		dlist_push_tail(&ready, &lane->app->node);
		lane->app->is_ready = true;
	}
}

/* As many as can be begun soon: the rest would only grow stale. */
static int
fetch_size(const DeliveryLane *lane)
{
	int			size = Min(FETCH_MAX, FETCH_TOTAL / Max(1, (int) hash_get_num_entries(lanes)));

	if (lane->app->pace.rate > 0)
		size = Min(size, (int) (lane->app->pace.rate * BUFFER_AGE_US / 2000000));
	if (lane->app->circuit.open || lane->circuit.open)
		size = FETCH_MIN;		/* for a probe */
	return Max(size, FETCH_MIN);
}

/*
 * In a visit that is made anyway: will it be hungry soon?  Not where rows that
 * wait for their time would be read again.
 */
static bool
runs_low(DeliveryLane *lane, Moment now)
{
	return lane->has_key && may_start(lane, now) && !lane->exhausted &&
		lane->row_count > fetch_size(lane) / 2 &&
		lane->row_count - lane->row_next < lane->row_count / 2;
}

static void
fetch_lane(DeliveryLane *lane, Moment now)
{
	int			size = fetch_size(lane);
	int			fetches = 0;
	int			count;

	if (lane->rows == NULL)
		lane->rows = MemoryContextAlloc(lanes_context, sizeof(QueueRow) * FETCH_MIN);
	lane->rows = repalloc(lane->rows, sizeof(QueueRow) * size);
	lane->fetched_to = lane->cursor;
	lane->row_count = lane->row_next = 0;
	for (;;)
	{
		count = queue_fetch(&lane->key, &lane->fetched_to, lane->rows, size);
		keep_due_rows(lane, count, now);
		if (count < size || lane->row_count > 0 || ++fetches >= FETCHES_MAX)
			break;
		/* None of these was due: larger steps lead to those that are. */
		size = FETCH_MAX;
		lane->rows = repalloc(lane->rows, sizeof(QueueRow) * size);
	}
	lane->exhausted = count < size;
	lane->fetched_us = now.us;
	if (lane->row_count == 0)
		lane->cursor = lane->fetched_to;
}

/* Is there something to read from the tables? */
bool
lanes_hungry(Moment now)
{
	HASH_SEQ_STATUS status;
	DeliveryLane *lane;
	bool		hungry = apps_are_old(now);

	if (scan_wanted && now.us >= scan_not_before)
		return true;
	hash_seq_init(&status, lanes);
	while ((lane = hash_seq_search(&status)) != NULL)
	{
		if (is_stale(lane, now))
			drop_buffer(lane);
		hungry |= is_hungry(lane, now) || apps_needs_key_check(lane, now) ||
			apps_wants_saving(lane->app, now);
	}
	return hungry;
}

/*
 * Reads what can be begun next.  Between queue_begin() and queue_commit().
 */
void
lanes_fill(Moment now)
{
	HASH_SEQ_STATUS status;
	DeliveryLane *lane;
	bool		scan = scan_wanted && now.us >= scan_not_before;

	if (scan)
	{
		scan_wanted = false;
		list_lanes();
	}
	if (scan || apps_are_old(now))
		apps_read(now);
	hash_seq_init(&status, lanes);
	while ((lane = hash_seq_search(&status)) != NULL)
	{
		if (lane->listed)
			apps_check_key(lane, now);
		if (is_hungry(lane, now) || runs_low(lane, now))
		{
			drop_buffer(lane);
			fetch_lane(lane, now);
		}
	}
	apps_save(now);
	if (scan)
		scan_not_before = now.us + (1 + SCAN_SHARE) * (http_clock_us() - now.us);
}

/* ---- taking ---- */

/* The lane of this app whose first row is sent soonest. */
static DeliveryLane *
soonest_lane(DeliveryApp *app, Moment now)
{
	DeliveryLane *soonest = NULL;
	dlist_iter	iter;

	dlist_foreach(iter, &app->lanes)
	{
		DeliveryLane *lane = dlist_container(DeliveryLane, node, iter.cur);

		if (lane->row_next >= lane->row_count || !lane->has_key || lane->kept >= LANE_KEPT_MAX ||
			circuit_next(&lane->circuit, now.us) > now.us)
			continue;
		if (soonest == NULL ||
			lane->rows[lane->row_next].send_after < soonest->rows[soonest->row_next].send_after)
			soonest = lane;
	}
	return soonest;
}

static void
take_row(DeliveryLane *lane, QueueRow *row)
{
	DeliveryApp *app = lane->app;
	TakenKey	key;
	TakenRow   *begun;

	*row = lane->rows[lane->row_next++];
	lane->cursor.started = true;
	lane->cursor.send_after = row->send_after;
	lane->cursor.message_id = row->message_id;
	if (lane->row_next >= lane->row_count)
		lane->cursor = lane->fetched_to;
	if (--app->fetched == 0)
	{
		dlist_delete(&app->node);
		app->is_ready = false;
	}
	key.message_id = row->message_id;
	key.app_id = app->app_id;
	begun = hash_search(taken, &key, HASH_ENTER, NULL);
	begun->requested_at = row->requested_at;
	begun->renewed = false;
	lane->items++;
	circuit_begin(&app->circuit);
	circuit_begin(&lane->circuit);
}

/* The next row to begin, if any may start now. */
bool
lanes_take(Moment now, DeliveryLane **lane, QueueRow *row)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &ready)
	{
		DeliveryApp *app = dlist_container(DeliveryApp, node, iter.cur);

		if (app->paused_until > now.ts || circuit_next(&app->circuit, now.us) > now.us)
			continue;
		*lane = soonest_lane(app, now);
		if (*lane == NULL || !pace_take(&app->pace, now.us))
			continue;
		dlist_delete(&app->node);	/* the others first, next time */
		dlist_push_tail(&ready, &app->node);
		take_row(*lane, row);
		return true;
	}
	return false;
}

/*
 * A begun row's outcome is recorded or dropped; next_due: when it is to be
 * tried again, DT_NOEND: never.
 */
void
lanes_put_back(DeliveryLane *lane, const QueueRow *row, int http_status, TimestampTz next_due)
{
	TakenKey	key = {row->message_id, lane->key.app_id};
	TakenRow   *begun = hash_search(taken, &key, HASH_REMOVE, NULL);

	/* By another role, maybe, and so in another lane. */
	scan_wanted |= begun != NULL && begun->renewed;
	lane->items--;
	lane->next_due = Min(lane->next_due, next_due);
	/* Rejected with a key that is no longer the lane's */
	lane->rewind_wanted |= next_due != DT_NOEND && waited_for_the_key(lane, http_status);
}

/* After an error: what was begun will be begun again. */
void
lanes_forget_taken(void)
{
	HASH_SEQ_STATUS status;
	DeliveryLane *lane;

	if (lanes_context == NULL)
		return;
	if (taken != NULL)
		hash_destroy(taken);
	taken = NULL;				/* should there be no memory for another */
	taken = make_hash(lanes_context, "onesignal taken", sizeof(TakenKey), sizeof(TakenRow));
	hash_seq_init(&status, lanes);
	while ((lane = hash_seq_search(&status)) != NULL)
	{
		lane->items = lane->kept = 0;
		lane->circuit.probing = lane->app->circuit.probing = false;
		rewind_lane(lane, 0);
	}
	scan_wanted = true;
}

/* They are looked up again before the next request. */
void
lanes_forget_keys(void)
{
	HASH_SEQ_STATUS status;
	DeliveryLane *lane;

	if (lanes_context == NULL)
		return;
	hash_seq_init(&status, lanes);
	while ((lane = hash_seq_search(&status)) != NULL)
	{
		apps_drop_key(lane);
		lane->checked_us = 0;
	}
}

static TimestampTz
on_table_clock(int64 us, Moment now)
{
	return us == PG_INT64_MAX ? DT_NOEND : now.ts + Max(us - now.us, 0);
}

/* When this lane can go on, if nothing else happens. */
static TimestampTz
lane_next_due(DeliveryLane *lane, Moment now)
{
	TimestampTz next = lane->next_due;
	DeliveryApp *app = lane->app;

	if (!lane->listed)
		return DT_NOEND;
	if (app->paused_until > now.ts)
		return app->paused_until;
	if (lane->kept >= LANE_KEPT_MAX)
		return DT_NOEND;		/* until some are recorded, for which the run stays awake */
	if (lane->row_next < lane->row_count || !lane->exhausted)
		next = now.ts;
	else if (lane->rewind_wanted || lane->next_due != DT_NOEND)
		next = Max(lane->rewind_wanted ? now.ts : lane->next_due,
				   on_table_clock(rewind_after_us(lane), now));
	if (next == DT_NOEND)
		return next;
	next = Max(next, on_table_clock(circuit_next(&app->circuit, now.us), now));
	next = Max(next, on_table_clock(circuit_next(&lane->circuit, now.us), now));
	next = Max(next, on_table_clock(pace_next(&app->pace, now.us), now));
	if (lane->circuit.open || !lane->has_key)
		next = on_table_clock(apps_next_key_check(lane), now);
	return next;
}

/* When there may be something to begin; DT_NOEND: not before somebody commits more. */
TimestampTz
lanes_next_due(Moment now)
{
	TimestampTz next = scan_wanted ? on_table_clock(scan_not_before, now) : DT_NOEND;
	HASH_SEQ_STATUS status;
	DeliveryLane *lane;

	hash_seq_init(&status, lanes);
	while ((lane = hash_seq_search(&status)) != NULL)
		next = Min(next, lane_next_due(lane, now));
	return next;
}
