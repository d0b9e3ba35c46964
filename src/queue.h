/*
 * queue.h
 *		The deliverer's short transactions: what it fetches, records and saves.
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

/* A message's state, in the order of the enum onesignal_message_state. */
typedef enum QueueState
{
	QUEUE_SCHEDULED,
	QUEUE_PENDING,
	QUEUE_CANCELED,
	QUEUE_REFUSED,
	QUEUE_FAILED
} QueueState;

#define QUEUE_STATES (QUEUE_FAILED + 1)

extern const char *const queue_state_names[QUEUE_STATES];

/* The result of one attempt.  QUEUE_PENDING: another one follows. */
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
	int64		totals[QUEUE_STATES];	/* to be added, of finished states */
	bool		saved;			/* false: somebody has its row locked; try again later */
} QueueApp;

/*
 * Begins a short transaction of the deliverer, as the table's owner with fixed
 * settings.  in_procedure: one of SPI's non-atomic ones in a CALL, between
 * queue_call_begin() and queue_call_end(); else the worker's own.  Returns
 * false, with nothing open, if the extension does not exist (any more).
 *
 * All of these leave CurrentMemoryContext as it was, which must outlive the
 * transaction: what is returned is palloc'd there.
 */
extern bool queue_begin(bool in_procedure);
extern void queue_commit(void);

/* After an error: restores the user; the caller aborts the transaction, which does the rest. */
extern void queue_abandon(void);

/* For a procedure that commits: raises 2D000 where it cannot, and ends the transaction that CALL began. */
extern void queue_call_begin(FunctionCallInfo fcinfo);
extern void queue_call_end(void);

/* ---- Between queue_begin() and queue_commit() ---- */

/* Why nothing of the table may be delivered, palloc'd; NULL: it may. */
extern char *queue_problem(void);

/* The next lanes with pending rows, by app and role, as a List of QueueListed; all zeros: from the first one on. */
extern List *queue_lanes(const QueueLane *after, int max);
extern bool queue_has_pending(void);

/*
 * Reads the lane's next pending rows in the order of delivery, also those that
 * are not yet due, from a position on (including it).  Returns how many; fewer
 * than max: the lane's end.
 */
extern int	queue_fetch(const QueueLane *lane, const QueuePosition *from, QueueRow *rows, int max);

/*
 * Writes the outcomes of attempts without waiting for locked rows.  A cancel that
 * worked is written whatever the row says now, any other outcome only while its
 * request still stands.  A row that cannot be written keeps no other from it:
 * *error is then why, palloc'd, or else NULL.
 */
extern void queue_record(const QueueOutcome *outcomes, int count, QueueRecorded *recorded, char **error);

/* Gives up what was requested, and was to be sent, before a time; returns how many. */
extern int	queue_expire(const QueueLane *lane, TimestampTz before, const char *reason);

/* Saves what is known of apps, and sets saved of each. */
extern void queue_save_apps(QueueApp *apps, int count);

/* Deletes finished rows in the blocks [block, block + count); returns how many. */
extern uint64 queue_purge(TimestampTz before, BlockNumber block, BlockNumber count);

/* The table's size in blocks. Raises 0A000 when a foreign key references it. */
extern BlockNumber queue_purge_size(void);

/* ---- In anybody's transaction, as the table's owner ---- */

extern bool queue_knows_app(const pg_uuid_t *app_id);	/* has it a row in either table? */
extern void queue_pause(const pg_uuid_t *app_id, TimestampTz until, text *reason);
extern void queue_resume(const pg_uuid_t *app_id);

#endif
