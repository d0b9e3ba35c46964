/*
 * lanes.h
 *		What goes next: apps, their lanes, and the rows fetched for each.
 */
#ifndef ONESIGNAL_CANCEL_LANES_H
#define ONESIGNAL_CANCEL_LANES_H

#include "lib/ilist.h"

#include "onesignal.h"
#include "pace.h"
#include "queue.h"

/* The same moment on both clocks: http_clock_us() and the table's. */
typedef struct Moment
{
	int64		us;
	TimestampTz ts;
} Moment;

/* What is kept of why a circuit opened */
#define REASON_SIZE 300

typedef struct DeliveryApp
{
	pg_uuid_t	app_id;			/* hash key: first */
	dlist_node	node;			/* in ready, while rows are fetched for it */
	dlist_head	lanes;
	bool		is_ready;
	int			fetched;		/* rows in its lanes' buffers */
	Pace		pace;
	Oid			server;			/* that stated its pace */
	double		rate_limit;
	Circuit		circuit;
	TimestampTz paused_until;	/* by onesignal_cancel_pause(); 0: not */
	bool		changed;		/* since onesignal_app was written */
	bool		in_doubt;		/* written, but not yet committed */
	int64		saved_us;		/* when that was, or was tried ... */
	int64		refused_us;		/* ... in vain */
	double		saved_pace;
	bool		saved_open;		/* what onesignal_app says of a circuit */
	char		reason[REASON_SIZE];	/* why its own circuit is open */
	char		last_error[REASON_SIZE];
	bool		error_is_new;	/* since that was written */
	struct DeliveryLane *blamed;	/* whose circuit is told of; NULL: the app's own */
} DeliveryApp;

typedef struct DeliveryLane
{
	QueueLane	key;			/* hash key: first */
	dlist_node	node;			/* in app->lanes */
	DeliveryApp *app;
	Circuit		circuit;
	char		reason[REASON_SIZE];	/* why it is open */
	MemoryContext context;		/* of credentials and request; NULL: none yet */
	Credentials credentials;
	CancelRequest request;
	bool		has_key;
	uint64		generation;		/* of the credentials */
	int64		checked_us;		/* when they were looked up */
	int64		adopted_us;		/* when its key was taken over, ... */
	int64		denied_us;		/* ... was last rejected, ... */
	int64		success_us;		/* ... and when the last request began for which it was not */
	bool		key_missing;	/* that is why its circuit is open */
	QueueRow   *rows;			/* fetched and due, not begun */
	int			row_count;
	int			row_next;
	int64		fetched_us;
	QueueCursor cursor;			/* the last row begun */
	QueueCursor fetched_to;		/* the last row fetched */
	bool		exhausted;		/* the scan has come to the end */
	TimestampTz next_due;		/* of the rows passed over; DT_NOEND: none */
	int			passed_over;	/* how many, since it was at the head ... */
	int64		rewound_us;		/* ... which was then */
	bool		rewind_wanted;
	int			items;			/* begun and not yet recorded */
	int			kept;			/* of these: answered, but the row is locked */
	bool		listed;			/* it has pending rows */
} DeliveryLane;

extern Moment lanes_now(void);
extern void lanes_open(void);

/* From the head again, soon: there may be rows that the scans have passed. */
extern void lanes_wake(void);
extern bool lanes_hungry(Moment now);
extern void lanes_fill(Moment now);	/* between queue_begin() and queue_commit() */

extern bool lanes_take(Moment now, DeliveryLane **lane, QueueRow *row);
extern void lanes_put_back(DeliveryLane *lane, const QueueRow *row, int http_status, TimestampTz next_due);
extern void lanes_forget_taken(void);
extern void lanes_forget_keys(void);
extern TimestampTz lanes_next_due(Moment now);

#endif
