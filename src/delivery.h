/*
 * delivery.h
 *		The pipeline (delivery.c), what goes next (lanes.c), and what is known of
 *		apps and lanes (apps.c).
 *
 * A lane is what one role requested for one app.
 */
#ifndef ONESIGNAL_CANCEL_DELIVERY_H
#define ONESIGNAL_CANCEL_DELIVERY_H

#include "lib/ilist.h"
#include "lib/pairingheap.h"

#include "onesignal.h"
#include "pace.h"
#include "queue.h"

/* ---- delivery.c ---- */

/*
 * Delivers until nothing is due and nothing is on the wire, or it has to stop.
 * Returns when the next row falls due, DT_NOEND when nothing is pending, and
 * DT_NOBEGIN when the extension is gone.  A CALL does not wait for rows that stay
 * locked: their messages are sent again.  The next run of the process knows what
 * this one learned.  The caller holds the deliverer's lock.  until: no request
 * begins after it; 0: no end.
 */
extern TimestampTz delivery_run(TimestampTz until);

/* For a session that goes on to other things: forgets all, and wipes the keys.  Never throws. */
extern void delivery_end(void);

/* ---- what the three know of ---- */

/* All that is known, until it is forgotten. */
extern MemoryContext delivery_context;

/* Where something stands: in one list, in one heap, or nowhere. */
typedef struct Place
{
	void	   *owner;			/* what stands here */
	dlist_node	node;
	pairingheap_node heap_node;
	dlist_head *list;			/* NULL: in none */
	pairingheap *heap;			/* NULL: in none */
	TimestampTz at;				/* its order in the heap */
	int64		turn;			/* its order among equals: the number of its last request, of all that began */
} Place;

typedef struct DeliveryLane DeliveryLane;

typedef struct DeliveryApp
{
	QueueApp	row;			/* what is to be saved; hash key: app_id, first */
	Place		unsaved;		/* in the list of those to be saved */
	char		server[NAMEDATALEN];	/* for messages; "": not known */

	Pace		pace;
	Oid			rate_server;	/* the server that states it */
	Circuit		circuit;
	char	   *reason;			/* why the circuit opened last, or NULL */
	Allowance	allowance;
	Trust		trust;
	HttpGroup	group;
	TimestampTz paused_until;	/* by onesignal_cancel_pause(); 0: not */
	TimestampTz resumed_at;
	TimestampTz view_at;		/* when View message may be asked next */
	TimestampTz view_turn_at;	/* when the last row is due that waits for its turn */
	TimestampTz unrecordable_at;	/* when its outcomes could last not be recorded; 0: they could */

	/* its lanes */
	dlist_head	lanes;			/* all of them */
	DeliveryLane *paused_lane;	/* one whose circuit is open, or NULL */
	bool		lane_was_paused;	/* when this process began; no resume since */
	pairingheap queue;			/* those that have rows */
	dlist_head	hungry;			/* those that need rows */
	Place		place;			/* lanes.c says where */
} DeliveryApp;

struct DeliveryLane
{
	QueueLane	key;			/* hash key: first */
	DeliveryApp *app;
	dlist_node	node;			/* in app->lanes */
	Place		place;			/* lanes.c says where */

	/* its key */
	Circuit		circuit;
	char	   *reason;			/* why the circuit opened last, or NULL */
	bool		key_missing;
	bool		check_key;		/* look it up again, even while the circuit is open */
	bool		told;			/* the log says already that the key is missing */
	Credentials *credentials;	/* that its rows are sent with; NULL: it has no rows */
	uint64		fingerprint;	/* of the last credentials; 0: none */
	uint64		generation;		/* of all credentials when they were looked up */
	TimestampTz adopted_at;		/* when they changed */
	TimestampTz accepted_at;	/* begin of the last request that was accepted since a rejection; 0: none */

	/* its rows */
	QueueRow   *rows;			/* fetched and due; NULL: none */
	int			row_count;
	int			row_next;
	TimestampTz fetched_at;
	QueuePosition position;		/* where the next fetch begins */
	bool		exhausted;		/* the end has been read */
	bool		searching;		/* nothing that was read is due, and there is more to read */
	TimestampTz rewind_at;		/* when to read from the head again; DT_NOEND: no need */
	TimestampTz rested_at;		/* not before, since reading took long */
	TimestampTz failing_since;	/* the oldest first attempt of a row that still waits; 0: none */
	TimestampTz expired_at;		/* when rows whose time is over were last given up */
};

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
	Credentials *credentials;	/* that it is sent with */
	QueueRow	row;
	TimestampTz begun;
	Place		place;			/* among the answered ones, or those that wait (delivery.c) */
	HttpAnswer *answer;			/* to the DELETE, or NULL */
	HttpAnswer *view;			/* to View message, or NULL */
	TimestampTz view_until;		/* how long View message is asked again; 0: it has not been asked */
	bool		denied;			/* OneSignal rejected this message, and not the key */
	int64		keep_us;		/* how long its outcome, which could not be written, waited last; 0: it could */
} DeliveryItem;

/* ---- apps.c ---- */

extern void apps_open(void);

/* The app of the lane; a new one begins with what its row in onesignal_app says.  Takes over pauses. */
extern DeliveryApp *apps_get(const QueueListed *listed, TimestampTz now);

/* "server "clinic" (app 5e60...)", palloc'd */
extern char *apps_label(const DeliveryApp *app);

/* Looks the lane's credentials up, in a transaction.  problem: why nothing may be delivered, or NULL. */
extern void apps_check_key(DeliveryLane *lane, const char *problem, TimestampTz now);
extern void apps_release_key(Credentials *credentials);

/* Did OneSignal reject the key with this status?  0 is no status. */
extern bool apps_was_rejected(int http_status);

/* The deliverer before had this answer to the lane's last attempt: it is paused, or begins with a probe. */
extern void apps_remember_rejection(DeliveryLane *lane, int http_status, TimestampTz at, TimestampTz now);

/* Learns from the status of an answer, or from the lack of one; sets item->denied. */
extern void apps_learn(DeliveryItem *item, const HttpAnswer *answer);

/* Outcomes of the app could not be recorded, for this reason. */
extern void apps_note_unrecordable(DeliveryApp *app, const char *error);

/* Messages of the app have reached a state, in the open transaction. */
extern void apps_count(DeliveryApp *app, QueueState state, int count);

/* Saves what has changed, in the open transaction; and when to do so, DT_NOEND: nothing has. */
extern void apps_save(void);
extern TimestampTz apps_save_at(void);

/* ---- lanes.c ---- */

extern void place_leave(Place *place);
extern void place_in_list(Place *place, dlist_head *list);	/* at its end, unless it is there */
extern void place_in_heap(Place *place, pairingheap *heap, TimestampTz at);
extern int	place_compare(const pairingheap_node *a, const pairingheap_node *b, void *arg);
extern TimestampTz place_next(pairingheap *heap);	/* DT_NOEND: the heap is empty */
extern void *place_take(pairingheap *heap, TimestampTz until);	/* its owner, out of it; NULL: none is due by then */

/* cautious: begin with one request, since outcomes could not be recorded */
extern void lanes_open(bool cautious);

/* Look for pauses, and for_rows also for rows in any lane: soon, or else a second after the last look. */
extern void lanes_look(bool at_once, bool for_rows, TimestampTz now);

/* Takes up lanes and apps whose time has come. */
extern void lanes_tick(TimestampTz now);

/* Is there something to read?  lanes_fill() reads it, in an open transaction. */
extern bool lanes_are_hungry(TimestampTz now);
extern void lanes_fill(const Installation *installation, TimestampTz now);

/* The next row to begin, or NULL.  It is taken until lanes_settle(). */
extern DeliveryItem *lanes_take(TimestampTz now);
extern int	lanes_taken(void);

/* May one more request of a taken row start? */
extern bool lanes_take_again(DeliveryItem *item, TimestampTz now);

/* A request has ended, with an answer or without one; apps_learn() comes before. */
extern void lanes_end_request(DeliveryItem *item, bool answered);

/* An outcome was committed for the first time, or could not be recorded. */
extern void lanes_trust(DeliveryApp *app, bool recorded);

/* The outcome was recorded or dropped.  next_due: when the row is tried again, DT_NOEND: never.  Frees the item. */
extern void lanes_settle(DeliveryItem *item, TimestampTz next_due);

/* When there may be something to begin; DT_NOEND: not before somebody commits more. */
extern TimestampTz lanes_next_due(TimestampTz now);

#endif
