/*
 * queue.h
 *		Every SQL statement on onesignal_message and onesignal_app, and the
 *		owner's context they run in.
 */
#ifndef ONESIGNAL_CANCEL_QUEUE_H
#define ONESIGNAL_CANCEL_QUEUE_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "nodes/pg_list.h"
#include "storage/block.h"
#include "utils/uuid.h"

/* Rows that one lane's requests come from: the key depends on both. */
typedef struct QueueLane
{
	pg_uuid_t	app_id;
	NameData	requested_by;
} QueueLane;

/* A place in a lane's order of delivery.  All zeros, but for DT_NOBEGIN: its head. */
typedef struct QueuePosition
{
	TimestampTz send_after;		/* DT_NOBEGIN for NULL */
	pg_uuid_t	message_id;
} QueuePosition;

/* What onesignal_app says of the app of a lane. */
typedef struct QueueAppState
{
	bool		exists;			/* it has a row */
	TimestampTz paused_until;	/* by onesignal_cancel_pause(); 0: not */
	TimestampTz resumed_at;		/* 0: never */
	TimestampTz circuit_until;	/* of the app itself, not of a lane; 0: closed */
	bool		has_circuit;	/* it says that some circuit is open, ... */
	bool		is_of_lane;		/* ... and that it is this lane's */
	double		pace;			/* that was saved lately; negative: none */
} QueueAppState;

typedef struct QueueListed
{
	QueueLane	lane;
	QueueAppState app;
} QueueListed;

typedef struct QueueRow
{
	pg_uuid_t	message_id;
	TimestampTz send_after;		/* DT_NOBEGIN for NULL: it may be going out now */
	TimestampTz requested_at;	/* which request of this message: a take-back makes another one */
	TimestampTz next_attempt_at;	/* 0: now */
	TimestampTz first_attempt_at;	/* 0: none yet */
	TimestampTz last_attempt_at;	/* 0: none yet */
	int			http_status;	/* of the last attempt; 0: none, or no answer */
	int			attempts;
	bool		unanswered;		/* an earlier attempt had no answer */
} QueueRow;

typedef enum QueueState
{
	QUEUE_PENDING,				/* another attempt follows */
	QUEUE_CANCELED,
	QUEUE_REFUSED,
	QUEUE_FAILED
} QueueState;

#define QUEUE_STATES (QUEUE_FAILED + 1)

/* What one attempt came to. */
typedef struct QueueOutcome
{
	pg_uuid_t	app_id;
	pg_uuid_t	message_id;
	TimestampTz requested_at;
	QueueState	state;
	bool		unanswered;		/* an attempt was sent and had no answer */
	int			http_status;	/* 0: NULL */
	int			error_count;
	char	  **errors;
	const char *response;		/* JSON text, or NULL */
	TimestampTz last_attempt_at;
	TimestampTz next_attempt_at;	/* of QUEUE_PENDING */
} QueueOutcome;

typedef enum QueueRecorded
{
	QUEUE_RECORDED,				/* written */
	QUEUE_DROPPED,				/* taken back or deleted meanwhile: rightly not written */
	QUEUE_LOCKED,				/* somebody holds the row: try again */
	QUEUE_UNRECORDABLE			/* the UPDATE itself failed: try again later */
} QueueRecorded;

/* What delivery knows of an app, to be saved in onesignal_app. */
typedef struct QueueApp
{
	pg_uuid_t	app_id;
	bool		exists;			/* it has a row there */
	TimestampTz circuit_until;	/* 0: closed */
	const char *circuit_role;	/* the lane that it concerns, or NULL: the whole app */
	const char *circuit_reason;
	double		pace;			/* requests a second; 0: unlimited */
	const char *last_error;		/* NULL keeps what is there */
	int64		totals[QUEUE_STATES];	/* to be added; of QUEUE_PENDING unused */
	bool		saved;			/* false: somebody has its row locked; try again later */
} QueueApp;

/*
 * One short transaction of the deliverer, as the table's owner with fixed
 * settings.  in_procedure: SPI's non-atomic transactions of a CALL, between
 * queue_call_begin() and queue_call_end(); else the worker's own.
 * queue_begin() returns false, and nothing is open, when the extension is not
 * there (any more).
 *
 * All of these leave CurrentMemoryContext as it was, which must be one that
 * survives a transaction: what is returned is palloc'd there.
 */
extern bool queue_begin(bool in_procedure);
extern void queue_commit(void);
/* After an error: puts the user back; the caller aborts, which does the rest. */
extern void queue_abandon(void);

/*
 * Of a procedure that commits: raises 2D000 where it cannot, and ends the
 * transaction whose snapshot the caller's portal holds.
 */
extern void queue_call_begin(FunctionCallInfo fcinfo);
extern void queue_call_end(void);

/* ---- Between queue_begin() and queue_commit() ---- */

/* Why nothing of the table may be delivered, palloc'd; NULL: it may. */
extern char *queue_problem(void);

/*
 * Of palloc'd QueueListed: the lanes that have pending rows, at most max of
 * those after this one, by app and role.  All zeros: from the first one on.
 */
extern List *queue_lanes(const QueueLane *after, int max);

/* Is anything pending? */
extern bool queue_has_pending(void);

/*
 * Of each lane the next pending rows in the order of delivery, from positions[i]
 * on (including it), at most max a lane, also those whose next_attempt_at lies
 * ahead.  rows has room for count * max; lane i's begin at rows[i * max], and
 * row_counts[i] says how many there are: fewer than max at the lane's end.
 */
extern void queue_fetch(const QueueLane **lanes, const QueuePosition *positions, int count,
						QueueRow *rows, int *row_counts, int max);

/*
 * Writes the outcomes of attempts, and never waits for a row that somebody has
 * locked.  A cancel that worked is written whatever the row says now; any other outcome only while
 * its request still stands, else it is dropped.  One row that cannot be
 * written keeps no other from it; *error is then why, palloc'd, or NULL.
 * What is recorded is so once queue_commit() has returned.
 */
extern void queue_record(const QueueOutcome *outcomes, int count, QueueRecorded *recorded, char **error);

/*
 * Gives up what was requested, and was to be sent, before a time, and could
 * not be attempted for the reason given; returns how many.
 */
extern int	queue_expire(const QueueLane *lane, TimestampTz before, const char *reason);

/* Saves what is known of apps, and says of each whether it was. */
extern void queue_save_apps(QueueApp *apps, int count);

/* Deletes finished rows; returns how many of the blocks [block, block + count) it purged. */
extern uint64 queue_purge(TimestampTz before, BlockNumber block, BlockNumber count);

/* The table to purge: its size in blocks now. Raises 0A000 when foreign keys reference it. */
extern BlockNumber queue_purge_size(void);

/* ---- In anybody's transaction; schema: where our functions are ---- */

/* As the current user; send_after and reason may be NULL. Raises what the table's trigger does. */
extern void queue_enqueue(Oid schema, const pg_uuid_t *app_id, const pg_uuid_t *message_id,
						  const TimestampTz *send_after, text *reason);

/* As the table's owner. */
extern bool queue_knows_app(const pg_uuid_t *app_id);	/* has it a row in either table? */
extern void queue_pause(const pg_uuid_t *app_id, TimestampTz until, text *reason);
extern void queue_resume(const pg_uuid_t *app_id);

#endif
