/*
 * apps.h
 *		What delivery knows of each app and of its lanes: pace, circuits, keys.
 */
#ifndef ONESIGNAL_CANCEL_APPS_H
#define ONESIGNAL_CANCEL_APPS_H

#include "lib/ilist.h"
#include "lib/pairingheap.h"

#include "onesignal.h"
#include "pace.h"
#include "queue.h"

/* The same moment on both clocks: http_clock_us() and the table's. */
typedef struct Moment
{
	int64		us;
	TimestampTz ts;
} Moment;

/* Something that waits for a time; owned by lanes.c. */
typedef struct Timer
{
	pairingheap_node node;
	pairingheap *heap;			/* that it is in, or NULL */
	int64		at_us;
	bool		is_lane;		/* of a DeliveryLane, else of a DeliveryApp */
} Timer;

/* What a lane's requests are made with; requests on the wire share it. */
typedef struct LaneKey
{
	int			refs;
	MemoryContext context;
	Credentials credentials;
	CancelRequest request;
} LaneKey;

typedef struct DeliveryApp
{
	pg_uuid_t	app_id;			/* hash key: first */
	char		server[NAMEDATALEN];	/* for messages; "": not known */

	/* how fast, and whether */
	Pace		pace;
	double		rate_limit;
	Oid			server_oid;		/* that stated it */
	Circuit		circuit;
	char	   *reason;			/* why it is open, or NULL */
	Allowance	allowance;
	Trust		trust;
	HttpGroup	group;
	TimestampTz paused_until;	/* by onesignal_cancel_pause(); 0: not */
	TimestampTz resumed_at;
	int64		view_next_us;	/* no View request before */
	int64		recorded_us;	/* the visit that last recorded an outcome of it */
	int64		distrusted_us;	/* the visit that last could not */
	char	   *unrecordable;	/* why its outcomes could not be recorded, or NULL */

	/* its row in onesignal_app */
	bool		has_row;
	bool		unsaved;		/* in the list of those to be saved */
	dlist_node	unsaved_node;
	int64		unsaved_totals[QUEUE_STATES];	/* of transactions that were committed */
	int64		change[QUEUE_STATES];	/* by the open transaction */
	char	   *last_error;		/* not saved yet, or NULL */

	/* its turn (lanes.c) */
	dlist_head	lanes;
	pairingheap queue;			/* its lanes that have rows, soonest first */
	dlist_head	dormant;		/* those that wait until it may send */
	dlist_head *list;			/* that it is in, or NULL */
	dlist_node	list_node;
	Timer		timer;
} DeliveryApp;

typedef struct DeliveryLane
{
	QueueLane	key;			/* hash key: first */
	DeliveryApp *app;
	dlist_node	node;			/* in app->lanes */

	/* its key */
	Circuit		circuit;
	char	   *reason;			/* why it is open, or NULL */
	bool		told;			/* onesignal_app says already that it is */
	TimestampTz rejected_since; /* the first attempt of those that its key was rejected for; 0: none */
	LaneKey    *credentials;	/* NULL: not looked up, or not needed now */
	Oid			server;
	uint64		fingerprint;	/* of the credentials that it had last; 0: none */
	uint64		generation;		/* of all credentials when they were looked up */
	int64		checked_us;		/* when that was; 0: look again */
	int			checks;			/* in vain, one after the other */
	bool		key_missing;
	bool		has_new_key;	/* it was found after another one, or none */
	int64		adopted_us;		/* when the key was found for the first time */
	int64		denied_us;		/* when OneSignal last rejected it */
	int64		success_us;		/* when the last request began that it did not reject */
	int64		expired_us;		/* when rows that cannot be attempted were last given up */

	/* its rows (lanes.c) */
	QueueRow   *rows;			/* fetched and due, not begun; NULL: none */
	int			row_count;
	int			row_next;
	int64		fetched_us;
	QueuePosition position;		/* where the next fetch begins */
	bool		exhausted;		/* the scan has come to the end */
	bool		rewind_wanted;	/* there may be rows before the position */
	int64		rewind_at_us;	/* not before */
	int64		scan_us;		/* spent on reading from the head to the first due row ... */
	bool		scan_found;		/* ... which has been found */
	int64		next_due_us;	/* of the rows that were not due yet; PG_INT64_MAX: none */
	int			items;			/* rows begun and not yet recorded */
	bool		in_queue;		/* of the app */
	pairingheap_node queue_node;
	bool		hungry;			/* in the list of those to be fetched */
	dlist_node	hungry_node;
	bool		dormant;		/* in the app's list of those */
	dlist_node	dormant_node;
	Timer		timer;
} DeliveryLane;

/* The next row to begin. */
typedef struct LaneTurn
{
	DeliveryLane *lane;
	LaneKey    *key;			/* the caller owes apps_release_key() */
	QueueRow	row;
} LaneTurn;

extern Moment apps_now(void);
extern void apps_open(MemoryContext context);

/* The app; a new one begins with what its row in onesignal_app says. */
extern DeliveryApp *apps_get(const pg_uuid_t *app_id, const QueueAppState *state, Moment now);

/* Takes over what onesignal_app says of pauses. */
extern void apps_update(DeliveryApp *app, const QueueAppState *state, Moment now);

/* "server "clinic" (app 5e60...)", palloc'd */
extern char *apps_label(const DeliveryApp *app);

/*
 * Looks the lane's credentials up where they may have changed.  False: there
 * are none, and its circuit is open.  A transaction is open.
 */
extern bool apps_check_key(DeliveryLane *lane, Moment now);
extern void apps_drop_key(DeliveryLane *lane);
extern void apps_release_key(LaneKey *key);

/* When a lane whose circuit is open looks for another key: less and less often. */
extern int64 apps_next_key_check(const DeliveryLane *lane);

/* Nothing may be sent for the lane, for the reason given: pauses it without a request. */
extern void apps_miss_key(DeliveryLane *lane, const char *reason, bool log, Moment now);

/*
 * A row of the lane says that OneSignal rejected its key, under a deliverer
 * before this one: begins with a probe, unless the key has been taken since.
 */
extern void apps_suspect(DeliveryLane *lane, int http_status, Moment now);

/* Is it this message that OneSignal denies, and not the key?  Ask before apps_learn(). */
extern bool apps_denies(const DeliveryLane *lane, const QueueRow *row, Moment now);

/*
 * An answer, or the lack of one, that tells nothing of the key: OneSignal
 * denied the message (apps_denies), or we did not wait for it.
 */
extern void apps_excuse(DeliveryLane *lane, int64 begun_us, bool answered);

/* An answer, or the lack of one, to a request that was decided on at begun_us. */
extern void apps_learn(DeliveryLane *lane, const HttpAnswer *answer, int64 begun_us);

/* Outcomes of an app could not be recorded, for this reason; NULL: they could. */
extern void apps_note_recording(DeliveryApp *app, const char *error);

/* ---- onesignal_app ---- */

/* One of its messages has reached this state, in the open transaction. */
extern void apps_count(DeliveryApp *app, QueueState state, int count);

/* Is there something to be saved: at all, or by a transaction of its own, now? */
extern bool apps_are_unsaved(void);
extern bool apps_want_saving(Moment now, bool idle);

/* Between queue_begin() and queue_commit(), and after that. */
extern void apps_save(Moment now);
extern void apps_saved(void);

#endif
