/*
 * queue.h
 *		Every SQL statement on onesignal_message and onesignal_app, and the
 *		owner's context they run in.
 */
#ifndef ONESIGNAL_CANCEL_QUEUE_H
#define ONESIGNAL_CANCEL_QUEUE_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/uuid.h"

/* Rows that one lane's requests come from: the key depends on both. */
typedef struct QueueLane
{
	pg_uuid_t	app_id;
	NameData	requested_by;
} QueueLane;

/* Where a lane's scan goes on: strictly after this row. All zero: from the head. */
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
	TimestampTz next_attempt_at;
	TimestampTz first_attempt_at;	/* 0: none yet */
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
	TimestampTz first_attempt_at;
	TimestampTz last_attempt_at;
	TimestampTz next_attempt_at;	/* of QUEUE_PENDING */
	int			attempts;
	bool		unanswered;
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
	TimestampTz paused_until;	/* by onesignal_cancel_pause(); 0: not */
	TimestampTz circuit_until;	/* by a circuit; 0: closed */
	NameData	circuit_role;	/* the lane that it concerns; "": the whole app */
	char	   *circuit_reason; /* or NULL */
	double		pace;			/* requests a second; 0: unpaced */
	char	   *last_error;		/* or NULL */
} QueueApp;

/*
 * One short transaction of the deliverer, as the table's owner with fixed
 * settings.  in_procedure: SPI's non-atomic transactions of a CALL, else the
 * worker's own.  queue_begin() returns false, and nothing is open, when the
 * extension is not there (any more).
 */
extern bool queue_begin(bool in_procedure);
extern void queue_commit(void);
/* After an error: puts user, context and settings back; the caller aborts. */
extern void queue_abandon(void);

/* The extension's oid, for the deliverer's lock; InvalidOid: not installed. */
extern Oid	queue_extension(void);

/* All of these between queue_begin() and queue_commit(). */
extern List *queue_lanes(void); /* of palloc'd QueueLane, all that have pending rows */
extern int	queue_fetch(const QueueLane *lane, QueueCursor *cursor, QueueRow *rows, int max);
extern void queue_record(const QueueOutcome *outcomes, int count, QueueRecorded *recorded);
extern List *queue_apps(void);	/* of palloc'd QueueApp */
extern void queue_save_app(const QueueApp *app);

#endif
