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

/* Where a lane's scan goes on: strictly after this row.  All zero: from the head. */
typedef struct QueueCursor
{
	bool		started;
	TimestampTz send_after;		/* DT_NOBEGIN for NULL */
	pg_uuid_t	message_id;
} QueueCursor;

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

/* What one attempt came to. */
typedef struct QueueOutcome
{
	pg_uuid_t	app_id;
	pg_uuid_t	message_id;
	TimestampTz requested_at;
	QueueState	state;
	int			http_status;	/* 0: NULL */
	int			error_count;
	char	  **errors;
	const char *response;		/* JSON text, or NULL */
	TimestampTz last_attempt_at;
	TimestampTz next_attempt_at;	/* of QUEUE_PENDING */
} QueueOutcome;

typedef enum QueueRecorded
{
	QUEUE_RECORDED,				/* written, or rightly dropped (taken back, deleted) */
	QUEUE_LOCKED,				/* somebody holds the row: try again */
	QUEUE_UNRECORDABLE			/* the UPDATE itself failed (a user's constraint): logged, try later */
} QueueRecorded;

/* What delivery knows of an app, kept in onesignal_app. */
typedef struct QueueApp
{
	pg_uuid_t	app_id;
	TimestampTz paused_until;	/* by onesignal_cancel_pause(); 0: not; not saved */
	TimestampTz circuit_until;	/* by a circuit; 0: closed, maybe by onesignal_cancel_resume() */
	NameData	circuit_role;	/* the lane that it concerns; "": the whole app */
	char	   *circuit_reason; /* or NULL */
	double		pace;			/* requests a second; 0: unpaced; negative: not known yet */
	char	   *last_error;		/* or NULL, which when saved keeps what is there */
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

/* The extension's oid, for the deliverer's lock; InvalidOid: not installed. Needs a transaction. */
extern Oid	queue_extension(void);

/* ---- Between queue_begin() and queue_commit() ---- */

/* Of palloc'd QueueLane, by app and role: all that have pending rows. */
extern List *queue_lanes(void);

/*
 * The lane's next pending rows in the order of delivery, also those whose
 * next_attempt_at lies ahead; moves the cursor behind them.  Returns how many,
 * fewer than max at the lane's end.
 */
extern int	queue_fetch(const QueueLane *lane, QueueCursor *cursor, QueueRow *rows, int max);

/*
 * Writes what came of attempts, waiting a millisecond at most for a lock.  A cancel that
 * worked is written whatever the row says now; any other outcome only while
 * its request still stands, else it is dropped.  One row that cannot be
 * written keeps no other from it.  What is recorded is so once queue_commit()
 * has returned.
 */
extern void queue_record(const QueueOutcome *outcomes, int count, QueueRecorded *recorded);

/* Of palloc'd QueueApp: those that have a row. */
extern List *queue_apps(void);

/* Writes circuit, pace and last error. False: somebody has the row locked; try again later. */
extern bool queue_save_app(const QueueApp *app);

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
