/*
 * queue.h
 *		The extension's tables: statements.c runs SQL on them as their owner,
 *		queue.c fetches and records for the deliverer, message.c is their trigger.
 */
#ifndef ONESIGNAL_CANCEL_QUEUE_H
#define ONESIGNAL_CANCEL_QUEUE_H

#include "datatype/timestamp.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "onesignal.h"
#include "utils/uuid.h"

/* When the library is loaded. */
extern void message_init(void);
extern void owner_init(void);

/* ---- statements.c ---- */

/* Where the extension is installed now, and what owner_leave() puts back. */
typedef struct Installation
{
	Oid			schema;
	Oid			message_table;
	Oid			owner;			/* of onesignal_message */
	Oid			user;
	int			sec_context;
	int			guc_level;
} Installation;

/* The extension may not exist (any more): that is false, or 42P01 without missing_ok.  Needs a transaction. */
extern bool owner_find(Installation *installation, bool missing_ok);

/*
 * NULL if the last trigger of onesignal_message is the extension's own, or how
 * it is not.  TRIGGER on the table is enough to replace it or to add one, and
 * what these let through must not be delivered.  A trigger's maker can replace
 * what it does in the middle of a statement: so any other one must come before.
 * allow_off: ours may be disabled.  The answer holds while the caller has the
 * table locked for writing.  owner_require_trigger() raises 55000 with it.
 */
extern const char *owner_trigger_problem(const Installation *installation, bool allow_off);
extern void owner_require_trigger(const Installation *installation, bool allow_off);

/*
 * Becomes the table's owner with fixed settings.  Call owner_leave() before the
 * transaction ends: a user switch that survives a commit would be the caller's to
 * keep.  After an error, the abort of the (sub)transaction restores both.
 */
extern void owner_enter(Installation *installation);
extern void owner_leave(const Installation *installation);

/* Makes the settings for the rest of this process, a worker or the launcher; what delivers elsewhere is a CALL. */
extern void owner_settle(void);
extern bool owner_is_worker;	/* it was called */

/* Statements qualify operators and functions, for some run with the caller's search_path. */
#define EQ " OPERATOR(pg_catalog.=) "
#define NE " OPERATOR(pg_catalog.<>) "
#define GT " OPERATOR(pg_catalog.>) "
#define LT " OPERATOR(pg_catalog.<) "
#define GE " OPERATOR(pg_catalog.>=) "
#define PLUS " OPERATOR(pg_catalog.+) "
#define MINUS " OPERATOR(pg_catalog.-) "

/* An SQL statement, prepared when it first runs.  "@" stands for the extension's schema. */
typedef struct Statement
{
	const char *sql;
	Oid			types[12];		/* of the parameters, ended by a 0 */
	SPIPlanPtr	plan;			/* NULL, or prepared for the schema of that name */
	NameData	schema;
} Statement;

/*
 * Runs it over the caller's SPI connection, and keeps CurrentMemoryContext.
 * Returns how many rows it changed or returned; the caller frees SPI_tuptable.
 */
extern uint64 statement_run(Statement *statement, Oid schema, Datum *values, const char *nulls);

/*
 * The same in a subtransaction.  Returns NULL, with SPI_processed set, or the
 * error that rolled it back.  Raises interrupts, and errors after which nothing
 * else would work in this transaction.
 */
extern ErrorData *statement_try(Statement *statement, Oid schema, Datum *values);

/* ---- queue.c ---- */

/* What one role requested for one app: the key depends on both. */
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

/* A lane that has pending rows, and what onesignal_app says of its app. */
typedef struct QueueListed
{
	QueueLane	lane;
	TimestampTz paused_until;	/* by onesignal_cancel_pause(); 0: not */
	TimestampTz resumed_at;		/* 0: never */
	TimestampTz circuit_until;	/* 0: closed */
	NameData	circuit_role;	/* "": it is the app's, and not of one of its lanes */
	double		pace;			/* that was saved lately; negative: none */
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

/* The statement that records returns these numbers: do not change the order. */
typedef enum QueueRecorded
{
	QUEUE_RECORDED,				/* written */
	QUEUE_DROPPED,				/* taken back or deleted meanwhile: not written; or moved: to be read again */
	QUEUE_LOCKED,				/* somebody holds the row: try again */
	QUEUE_UNRECORDABLE			/* the UPDATE itself failed: try again later */
} QueueRecorded;

/* The result of one attempt.  QUEUE_PENDING: another one follows. */
typedef struct QueueOutcome
{
	void	   *owner;			/* the caller's */
	pg_uuid_t	app_id;
	const QueueRow *row;
	CancelOutcome judged;
	QueueState	state;
	bool		unanswered;		/* an attempt was sent and had no answer */
	TimestampTz last_attempt_at;
	TimestampTz next_attempt_at;	/* of QUEUE_PENDING */
	QueueRecorded recorded;		/* by queue_record() */
} QueueOutcome;

/* What delivery knows of an app, to be saved in onesignal_app. */
typedef struct QueueApp
{
	pg_uuid_t	app_id;
	TimestampTz circuit_until;	/* DT_NOBEGIN: closed */
	const char *circuit_role;	/* the lane that it concerns; "": the whole app */
	const char *circuit_reason; /* "": closed */
	double		pace;			/* requests a second; 0: unlimited */
	char	   *last_error;		/* NULL keeps what is there */
	int64		totals[QUEUE_STATES];	/* to be added, of finished states */
} QueueApp;

/* For a procedure that commits: raises 2D000 where it cannot, connects to SPI, and ends CALL's transaction. */
extern void queue_call_begin(FunctionCallInfo fcinfo);

/*
 * A short transaction of the deliverer, as the table's owner: the worker's own,
 * or in a CALL one of SPI's.  queue_begin() returns NULL, with nothing open, if
 * the extension does not exist (any more).  CurrentMemoryContext stays what it
 * is and must outlive the transaction: what is returned is palloc'd there.
 */
extern const Installation *queue_begin(void);
extern void queue_commit(void);

/* ---- queue.c, between queue_begin() and queue_commit() ---- */

/* The next lanes with pending rows, by app and role; after all zeros: from the first one on.  Returns how many. */
extern int	queue_lanes(const QueueLane *after, QueueListed *listed, int max);

/* The lane's next pending rows, due or not, from a position on.  Returns how many; fewer than max: its end. */
extern int	queue_fetch(const QueueLane *lane, const QueuePosition *from, QueueRow *rows, int max);

/* Writes the outcomes of attempts, without waiting.  Returns NULL, or why one or more could not be written. */
extern const char *queue_record(QueueOutcome *outcomes, int count);

/* Gives up what was requested, and was to be sent, before a time; returns how many. */
extern int	queue_expire(const QueueLane *lane, TimestampTz before, const char *reason);

/* False: somebody has the app's row locked, or it failed, and the log says why. */
extern bool queue_save_app(const QueueApp *app);

#endif
