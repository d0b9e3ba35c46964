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
#include "storage/block.h"
#include "utils/uuid.h"

/* ---- statements.c ---- */

/* Where the extension is installed now. */
typedef struct Installation
{
	Oid			extension;
	Oid			schema;
	Oid			message_table;
	Oid			owner;			/* of onesignal_message */

	/* What owner_leave() puts back. */
	Oid			user;
	int			sec_context;
	int			guc_level;		/* 0: no setting was made */
} Installation;

/* False if the extension does not exist (any more).  Needs a transaction. */
extern bool owner_find(Installation *installation);

/* The same, but it raises 42P01. */
extern void owner_get(Installation *installation);

/*
 * Is the trigger of onesignal_message the extension's own?  TRIGGER on the table
 * is enough to replace it, and what another trigger lets through must not be
 * delivered.  allow_off: it may be disabled.  While the caller has the table
 * locked for writing, the answer stays true.
 */
extern bool owner_has_trigger(const Installation *installation, bool allow_off);

#define OWNER_TRIGGER_PROBLEM \
	"trigger \"zz_onesignal_message\" of table \"onesignal_message\" is not the extension's own, or is disabled"

/* Raises 55000 if it is not. */
extern void owner_require_trigger(const Installation *installation, bool allow_off);

/*
 * Becomes the table's owner with fixed settings.  Call owner_leave() before the
 * transaction ends: a user switch that survives a commit would be the caller's to
 * keep.  After an error, the abort of the (sub)transaction restores user and
 * settings.
 */
extern void owner_enter(Installation *installation);
extern void owner_leave(const Installation *installation);

/* Makes the settings for the rest of this background worker; owner_enter() then only switches the user. */
extern void owner_settle(void);

/*
 * An SQL statement, prepared when it first runs.  "@" stands for the
 * extension's schema.  Operators and functions are qualified, for some
 * statements run with the caller's search_path.
 */
typedef struct Statement
{
	const char *sql;
	Oid			types[12];		/* of the parameters, ended by a 0 */
	SPIPlanPtr	plan;			/* NULL, or prepared for the schema of that name */
	NameData	schema;
} Statement;

/*
 * Runs it over the caller's SPI connection.  nulls: as for SPI_execute_plan().
 * Returns how many rows it changed or returned; the latter are in SPI_tuptable,
 * which the caller frees.  CurrentMemoryContext stays what it is.
 */
extern uint64 statement_run(Statement *statement, Oid schema, Datum *values, const char *nulls);

/*
 * Runs it in a subtransaction.  Returns NULL, with SPI_processed and
 * SPI_tuptable set, or the error that rolled it back.  Raises interrupts, and
 * errors after which nothing else would work in this transaction.
 */
extern ErrorData *statement_try(Statement *statement, Oid schema, Datum *values, const char *nulls);

/* ---- message.c ---- */

/* When the library is loaded: the trigger has to know which statement fires it. */
extern void message_init(void);

/* ---- queue.c ---- */

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
	TimestampTz paused_until;	/* by onesignal_cancel_pause(); 0: not */
	TimestampTz resumed_at;		/* 0: never */
	TimestampTz circuit_until;	/* of the app itself, not of a lane; 0: closed */
	bool		has_circuit;	/* some circuit of the app is open */
	bool		is_of_lane;		/* that circuit is this lane's */
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

/* The statement that records returns these numbers: do not change the order. */
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
 * settings.  in_procedure: one of SPI's non-atomic ones in a CALL, after
 * queue_call_begin(); else the worker's own.  Returns false, with nothing open,
 * if the extension does not exist (any more).
 *
 * All of these leave CurrentMemoryContext as it was, which must outlive the
 * transaction: what is returned is palloc'd there.
 */
extern bool queue_begin(bool in_procedure);
extern void queue_commit(void);

/* After an error: restores the user; the caller aborts the transaction, which does the rest. */
extern void queue_abandon(void);

/*
 * For a procedure that commits: raises 2D000 where it cannot, connects to SPI,
 * and ends the transaction that CALL began.
 */
extern void queue_call_begin(FunctionCallInfo fcinfo);

/* ---- queue.c, between queue_begin() and queue_commit() ---- */

/* Why nothing of the table may be delivered; NULL: it may. */
extern const char *queue_problem(void);

/* The next lanes with pending rows, by app and role, as a List of QueueListed; all zeros: from the first one on. */
extern List *queue_lanes(const QueueLane *after, int max);
extern bool queue_has_pending(void);

/*
 * Reads the lane's next pending rows in the order of delivery, from a position
 * on (including it), also those that are not yet due.  Returns how many; fewer
 * than max: the lane's end.
 */
extern int	queue_fetch(const QueueLane *lane, const QueuePosition *from, QueueRow *rows, int max);

/*
 * Writes the outcomes of attempts without waiting for locked rows.  A row that
 * cannot be written keeps no other from it: *error is then why, palloc'd, or
 * else NULL.
 */
extern void queue_record(const QueueOutcome *outcomes, int count, QueueRecorded *recorded, char **error);

/* Gives up what was requested, and was to be sent, before a time; returns how many. */
extern int	queue_expire(const QueueLane *lane, TimestampTz before, const char *reason);

/* Saves what is known of apps, and sets saved of each. */
extern void queue_save_apps(QueueApp *apps, int count);

/*
 * Deletes finished rows in the blocks [block, block + count), and adds how many.
 * Returns whether the table has more blocks: it may be truncated meanwhile.
 * Raises 0A000 if a foreign key references the table.
 */
extern bool queue_purge(TimestampTz before, BlockNumber block, BlockNumber count, uint64 *purged);

/* ---- queue.c, in anybody's transaction, as the table's owner ---- */

extern bool queue_knows_app(const pg_uuid_t *app_id);	/* has it a row in either table? */
extern void queue_pause(const pg_uuid_t *app_id, TimestampTz until, text *reason);
extern void queue_resume(const pg_uuid_t *app_id);

#endif
