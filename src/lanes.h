/*
 * lanes.h
 *		What delivery knows of apps and lanes (apps.c), and what goes next (lanes.c).
 *
 * A lane is what one role requested for one app.
 */
#ifndef ONESIGNAL_CANCEL_LANES_H
#define ONESIGNAL_CANCEL_LANES_H

#include "lib/ilist.h"
#include "lib/pairingheap.h"

#include "onesignal.h"
#include "pace.h"
#include "queue.h"

/* What waits for a time; each kind has its own heap. */
typedef enum TimerKind
{
	TIMER_LANE,
	TIMER_KEYLESS,				/* a lane without a key: no worker stays for it */
	TIMER_APP,
	TIMER_ITEM
} TimerKind;

#define TIMER_KINDS (TIMER_ITEM + 1)

typedef struct Timer
{
	pairingheap_node node;
	TimerKind	kind;
	bool		is_set;
	TimestampTz at;
} Timer;

/* What requests of a lane are made with.  Requests that are on the wire share it. */
typedef struct LaneKey
{
	int			refs;
	MemoryContext context;
	Credentials credentials;
	CancelRequest request;
} LaneKey;

typedef struct DeliveryLane DeliveryLane;

typedef struct DeliveryApp
{
	pg_uuid_t	app_id;			/* hash key: first */
	char		server[NAMEDATALEN];	/* for messages; "": not known */

	Pace		pace;
	double		rate_limit;
	Oid			rate_server;	/* the server that states it */
	Circuit		circuit;
	char	   *reason;			/* why the circuit opened last, or NULL */
	Allowance	allowance;
	Trust		trust;
	HttpGroup	group;
	TimestampTz paused_until;	/* by onesignal_cancel_pause(); 0: not */
	TimestampTz resumed_at;
	TimestampTz view_next_at;	/* when View message may be asked next */
	TimestampTz postponed_at;	/* when the last row is due that found too many waiting for that */
	char	   *unrecordable;	/* why its outcomes cannot be recorded, or NULL */
	TimestampTz unrecordable_at;	/* when that last happened */
	int			visit;			/* the last visit of the tables that changed trust */

	/* its row in onesignal_app */
	bool		unsaved;		/* it is in the list of those to be saved */
	dlist_node	unsaved_node;
	int64		totals[QUEUE_STATES];	/* to be added */
	char	   *last_error;		/* to be saved, or NULL */

	/* its place (lanes.c) */
	dlist_head	lanes;
	DeliveryLane *paused_lane;	/* one whose circuit is open, for onesignal_app; or NULL */
	pairingheap queue;			/* lanes that have rows, soonest first */
	dlist_head	hungry;			/* lanes that need rows */
	bool		fetching;		/* it is in the list of apps with such lanes */
	dlist_node	fetching_node;
	dlist_head *list;			/* ready or crowded, or NULL */
	dlist_node	list_node;
	Timer		timer;
} DeliveryApp;

struct DeliveryLane
{
	QueueLane	key;			/* hash key: first */
	DeliveryApp *app;
	dlist_node	node;			/* in app->lanes */

	/* its key */
	Circuit		circuit;
	char	   *reason;			/* why the circuit opened last, or NULL */
	bool		key_missing;
	bool		told;			/* the log says already that the key is missing */
	bool		judged;			/* this process knows whether OneSignal takes the key */
	LaneKey    *credentials;	/* NULL: to be looked up when they are needed */
	uint64		fingerprint;	/* of the last credentials; 0: none */
	uint64		generation;		/* of all credentials when they were looked up */
	TimestampTz checked_at;		/* when they were looked up; 0: look again */
	int			checks;			/* how often since they changed */
	TimestampTz adopted_at;		/* when they changed */
	TimestampTz accepted_at;	/* begin of the last request that was accepted since a rejection; 0: none */

	/* its rows (lanes.c) */
	QueueRow   *rows;			/* fetched and due; NULL: none */
	int			row_count;
	int			row_next;
	TimestampTz fetched_at;
	QueuePosition position;		/* where the next fetch begins */
	bool		exhausted;		/* the end has been read */
	TimestampTz rewind_at;		/* when to read from the head again; DT_NOEND: no need */
	TimestampTz rested_at;		/* not before, since reading took long */
	int64		read_us;		/* time spent on reading from the head to the first due row */
	bool		found_due;
	TimestampTz failing_since;	/* the oldest first attempt of a row that still waits; 0: none */
	TimestampTz expired_at;		/* when rows whose time is over were last given up */
	int			items;			/* rows taken and not yet settled */
	bool		in_queue;
	pairingheap_node queue_node;
	bool		hungry;
	dlist_node	hungry_node;
	Timer		timer;
};

/* Is a refusal to be believed? */
typedef enum ItemCheck
{
	CHECK_NONE,					/* nobody has asked */
	CHECK_WANTED,				/* View message is to be asked */
	CHECK_CONFIRMED,			/* the message is canceled */
	CHECK_DENIED,				/* it is not */
	CHECK_POSTPONED,			/* the row stays pending until check_until */
	CHECK_GIVEN_UP				/* View message could not be had in time */
} ItemCheck;

typedef struct MessageId
{
	pg_uuid_t	message_id;
	pg_uuid_t	app_id;
} MessageId;

/* One message from its taking until its outcome is recorded or dropped. */
typedef struct DeliveryItem
{
	MessageId	id;				/* hash key: first */
	DeliveryLane *lane;
	LaneKey    *key;			/* that it is sent with */
	QueueRow	row;
	bool		renewed;		/* it was taken back and requested again meanwhile */
	TimestampTz begun;
	dlist_node	node;			/* in the answered ones (delivery.c) */
	Timer		timer;			/* of what waits for its check or to be recorded */
	HttpAnswer	answer;			/* to the DELETE */
	char	   *text;			/* what answer points to, or NULL */
	HttpAnswer	view;			/* to View message, until it is judged */
	char	   *view_text;		/* what view points to, or NULL */
	bool		denied;			/* OneSignal rejected this message, and not the key */
	ItemCheck	check;
	TimestampTz check_until;
	bool		kept;			/* it waits since its outcome could not be written */
	int64		keep_us;		/* how long it waited last; 0: never */
} DeliveryItem;

extern void apps_open(MemoryContext context);

/* The app; a new one begins with what its row in onesignal_app says.  Takes over pauses. */
extern DeliveryApp *apps_get(const pg_uuid_t *app_id, const QueueAppState *state, TimestampTz now);

/* "server "clinic" (app 5e60...)", palloc'd */
extern char *apps_label(const DeliveryApp *app);

/* Looks credentials up where they may have changed, in a transaction. */
extern void apps_check_key(DeliveryLane *lane, TimestampTz now);
extern TimestampTz apps_next_key_check(const DeliveryLane *lane);
extern void apps_miss_key(DeliveryLane *lane, const char *reason, TimestampTz now);
extern void apps_drop_key(DeliveryLane *lane);
extern void apps_release_key(LaneKey *key);

/* Did OneSignal reject the key with this status?  0 is no status. */
extern bool apps_was_rejected(int http_status);

/* A row says that the key was rejected: a process that knows no better begins with a probe. */
extern void apps_suspect(DeliveryLane *lane, int http_status, TimestampTz now);

/* Learns from the status of an answer, or from the lack of one; sets item->denied. */
extern void apps_learn(DeliveryItem *item, const HttpAnswer *answer);

/* Outcomes of the app could not be recorded, for this reason; NULL: they could. */
extern void apps_note_recording(DeliveryApp *app, const char *error);

/* Messages of the app have reached a state, in the open transaction. */
extern void apps_count(DeliveryApp *app, QueueState state, int count);

/* Saves what has changed, in the open transaction; and when to do so, DT_NOEND: nothing has. */
extern void apps_save(void);
extern TimestampTz apps_save_at(void);

/* cautious: begin with one request, since outcomes could not be recorded */
extern void lanes_open(MemoryContext context, bool cautious);

/* Wipes the keys, before the context goes.  Never throws. */
extern void lanes_forget(void);

/* Rows may have been committed in any lane: look for them soon. */
extern void lanes_wake(void);

/* Called now and then, where no wake-up tells that an app was paused or resumed. */
extern void lanes_refresh(TimestampTz now);

/* Takes up lanes and apps whose time has come. */
extern void lanes_tick(TimestampTz now);

/* Is there something to read?  lanes_fill() reads it, between queue_begin() and queue_commit(). */
extern bool lanes_are_hungry(TimestampTz now);
extern void lanes_fill(TimestampTz now);

/* The next row to begin, or NULL.  It is taken until lanes_settle(). */
extern DeliveryItem *lanes_take(TimestampTz now);
extern int	lanes_taken(void);

/* May one more request of a taken row start? */
extern bool lanes_take_again(DeliveryItem *item, TimestampTz now);

/* A request has ended, with an answer or without one; apps_learn() comes before. */
extern void lanes_end_request(DeliveryItem *item, bool answered);

/*
 * The outcome was recorded or dropped; next_due: when the row is to be tried
 * again, DT_NOEND: never.  Frees the item; the lane may be gone, too.
 */
extern void lanes_settle(DeliveryItem *item, int http_status, TimestampTz next_due);

/* Outcomes were committed, or could not be recorded: of an app, or (NULL) of all. */
extern void lanes_trust(DeliveryApp *app, bool recorded);

/* When there may be something to begin; DT_NOEND: not before somebody commits more. */
extern TimestampTz lanes_next_due(TimestampTz now);

/* at DT_NOEND: never */
extern void lanes_set_timer(Timer *timer, TimestampTz at);
extern TimestampTz lanes_next_timer(TimerKind kind);

/* The next one that is due by then, which is stopped; or NULL. */
extern Timer *lanes_take_timer(TimerKind kind, TimestampTz until);

#endif
