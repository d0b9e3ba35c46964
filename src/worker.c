/*
 * worker.c
 *		The database's worker: when it delivers, waits, makes way and leaves.
 *
 * The protocol of starting, waking and leaving, with its steps, is in wakeup.c.
 *
 * COMMIT PREPARED wakes nobody.  So while a prepared transaction holds a lock
 * on onesignal_message, the worker stays and looks for rows again and again:
 * each time after a sixtieth of the time that has passed since the PREPARE.  It
 * asks about the lock before it looks for rows, and locks are released after
 * rows are visible: when there is no lock any more, the look sees all rows.
 * Shared memory forgets in a crash, so a worker also asks when it starts.
 *
 * A session that drops, renames or copies the database locks it, and waits up
 * to five seconds for all others to leave.  The worker then hands over to a
 * successor, which waits for that lock before it connects.
 *
 * SIGTERM ends the worker at once, except while it delivers: answers to
 * requests on the wire would be lost.  Then delivery is told to stop, which
 * takes it about a second.
 */
#include "postgres.h"

#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "delivery.h"
#include "queue.h"
#include "settings.h"
#include "wakeup.h"

/* How often an idle worker looks at the database's lock, and a new one. */
#define LOOK			USECS_PER_SEC
#define LOOK_NEW		INT64CONST(100000)

/* How soon it looks for what a prepared transaction requested; see above. */
#define PREPARED_SHARE	60
#define PREPARED_MIN	INT64CONST(10000)
#define PREPARED_MAX	(60 * USECS_PER_SEC)

/* Between two runs: should the first be wrong about a row that is due, they must not take all of a CPU. */
#define TURN			INT64CONST(10000)

/* Seconds to wait after a failed run: they double up to this. */
#define PAUSE_MAX		60

/* Seconds after SIGTERM: a statement that goes on longer, in a trigger, say, is ended. */
#define STOP_WITHIN		4

extern PGDLLEXPORT void worker_main(Datum arg);

static emit_log_hook_type previous_log_hook = NULL;

/* After a failed run: its error message, the pause in seconds, and when that ends. */
static char last_failure[256] = "";
static int	pause_s = 0;
static TimestampTz pause_end = 0;

/* Does it know that something is pending? */
static bool looked = false;

/* When a transaction with requests was last prepared, and when to ask next; 0, DT_NOEND: none is prepared. */
static TimestampTz prepared_at = 0;
static TimestampTz ask_at = 0;

/* Is delivery_run() at work, and did SIGTERM come? */
static volatile sig_atomic_t delivering = false;
static volatile sig_atomic_t told_to_stop = false;
static TimeoutId stop_look;

/* ---- stopping ---- */

static void
worker_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	wakeup_end(true);
	deliverer_unlock();
}

/* As PostgreSQL's own handler does. */
static void
die_soon(void)
{
	InterruptPending = true;
	ProcDiePending = true;
	SetLatch(MyLatch);
}

/* SIGTERM.  The wait for a lock may take hours, so it ends at once. */
static void
on_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	told_to_stop = true;
	if (!delivering || MyProc->waitStatus == PROC_WAIT_STATUS_WAITING)
		die_soon();
	SetLatch(MyLatch);
	errno = save_errno;
}

/* Each second, while it delivers. */
static void
on_stop_look(void)
{
	static int	seconds = 0;

	if (told_to_stop && ++seconds > STOP_WITHIN)
		die_soon();
}

/* Delivery has ended, or failed: nothing of it needs time any more. */
static void
end_delivering(void)
{
	delivering = false;
	disable_timeout(stop_look, false);
	if (told_to_stop)
		die_soon();
}

static bool
is_wanted(void)
{
	return settings_enabled && settings_background_delivery;
}

/* ---- making way ---- */

/* Does somebody have a lock against which connecting would wait?  Needs no transaction. */
static bool
is_locked(Oid database)
{
	LOCKTAG		tag;
	int			count;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, database, 0);
	pfree(GetLockConflicts(&tag, RowExclusiveLock, &count));
	return count > 0;
}

static void
worker_idle(TimestampTz until)
{
	wakeup_wait(Min(until, GetCurrentTimestamp() + LOOK), "OnesignalCancelWorker");
}

/* ---- being woken, and prepared transactions ---- */

/* True: something was requested or changed. */
static bool
take_wake(void)
{
	int			wake = wakeup_take();

	if ((wake & WAKEUP_PREPARE) != 0)
		prepared_at = ask_at = GetCurrentTimestamp();
	return wake != 0;
}

/* Does a prepared transaction hold a lock that changing the table takes? */
static bool
is_prepared(Oid table)
{
	LOCKTAG		tag;
	VirtualTransactionId *holder;
	bool		more;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, table);
	holder = GetLockConflicts(&tag, ShareLock, NULL);
	for (; VirtualTransactionIdIsValid(*holder); holder++)
	{
		/* Prepared before the last start of the server, or since. */
		if (VirtualTransactionIdIsRecoveredPreparedXact(*holder) ||
			TransactionIdIsValid(TwoPhaseGetXidByVirtualXID(*holder, &more)))
			return true;
	}
	return false;
}

/* Call it before looking for rows.  True: the worker must look. */
static bool
ask_about_prepared(void)
{
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();
	Installation installation;

	if (now < ask_at)
		return false;
	ask_at = DT_NOEND;
	if (max_prepared_xacts == 0)
		return false;
	StartTransactionCommand();
	if (owner_find(&installation) && is_prepared(installation.message_table))
	{
		prepared_at = prepared_at != 0 ? prepared_at : now;
		ask_at = now + Min(Max((now - prepared_at) / PREPARED_SHARE, PREPARED_MIN), PREPARED_MAX);
	}
	else
		prepared_at = 0;
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return true;
}

/* ---- one turn: steps 3 to 5 ---- */

/* False: it left. */
static bool
wait_for_work(TimestampTz due)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz idle_end = now + settings_worker_idle_timeout * INT64CONST(1000);

	due = Max(due, now + TURN);
	pgstat_report_activity(STATE_IDLE, NULL);
	while (!is_locked(MyDatabaseId) && !take_wake() && now < Min(due, ask_at) && is_wanted())
	{
		if (now >= idle_end && ask_at == DT_NOEND && wakeup_leave(due))
			return false;
		worker_idle(Min(ask_at, now >= idle_end ? due : Min(due, idle_end)));
		now = GetCurrentTimestamp();
	}
	return true;
}

static bool
something_is_pending(void)
{
	static const QueueLane first;
	QueueListed lane;
	bool		pending = false;

	if (queue_begin(false) != NULL)
	{
		pending = queue_lanes(&first, &lane, 1) > 0;
		queue_commit();
	}
	return pending;
}

/* What delivery asks while it is at work. */
static bool
was_woken(void)
{
	bool		woken = take_wake();

	return ask_about_prepared() || woken;
}

static bool
must_stop(void)
{
	/* Delivery may still have to wait for a lock. */
	if (told_to_stop)
		SetConfigOption("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE);
	return told_to_stop || !is_wanted() || is_locked(MyDatabaseId);
}

static TimestampTz
worker_deliver(void)
{
	const DeliveryOptions options = {.in_procedure = false, .woken = was_woken, .must_stop = must_stop};
	int			lock;
	TimestampTz due;

	StartTransactionCommand();
	lock = deliverer_lock(true);
	CommitTransactionCommand();
	if (lock == DELIVERER_NO_EXTENSION)
		return DT_NOBEGIN;

	delivering = true;
	enable_timeout_every(stop_look, GetCurrentTimestamp() + USECS_PER_SEC, 1000);
	due = delivery_run(&options);
	end_delivering();
	CHECK_FOR_INTERRUPTS();
	return due;
}

/* False: it left. */
static bool
take_turn(void)
{
	TimestampTz due;

	wakeup_serve_signals();
	/* Commits must not shorten the pause, so the worker is not asked whether it was woken. */
	while (GetCurrentTimestamp() < pause_end && is_wanted() && !is_locked(MyDatabaseId))
		worker_idle(pause_end);
	if (is_locked(MyDatabaseId))
	{
		wakeup_end(false);
		wakeup_launch(MyDatabaseId);
		return false;
	}
	take_wake();
	if (!is_wanted())
		return !wakeup_leave(DT_NOEND);
	pgstat_report_activity(STATE_RUNNING, "delivering requested cancels");
	ask_about_prepared();
	if (!looked)
	{
		looked = true;
		if (!something_is_pending() && ask_at == DT_NOEND)
			return !wakeup_leave(DT_NOEND);
	}
	due = worker_deliver();
	pause_s = 0;
	last_failure[0] = '\0';
	return due == DT_NOBEGIN ? !wakeup_leave(DT_NOEND) : wait_for_work(due);
}

/* ---- the process ---- */

/* Logs the error, unless the last run failed with the same, and ends all that the run has left open. */
static void
recover(MemoryContext context)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	queue_abandon();
	deliverer_unlock();
	end_delivering();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(context);
	/* Only now, since it allocates memory: lack of memory may have been the error. */
	error = CopyErrorData();
	if (strncmp(last_failure, error->message, sizeof(last_failure) - 1) != 0)
		EmitErrorReport();
	strlcpy(last_failure, error->message, sizeof(last_failure));
	FlushErrorState();
	/* If nothing is pending any more, there is no reason to go on failing. */
	looked = false;
	pause_s = Min(PAUSE_MAX, Max(1, pause_s * 2));
	pause_end = GetCurrentTimestamp() + pause_s * USECS_PER_SEC;
	pgstat_report_activity(STATE_IDLE, NULL);
	RESUME_INTERRUPTS();
}

static void
work(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "onesignal_cancel worker",
												  ALLOCSET_DEFAULT_SIZES);
	volatile bool stays = true;

	while (stays)
	{
		MemoryContextSwitchTo(context);
		PG_TRY();
		{
			stays = take_turn();
		}
		PG_CATCH();
		{
			recover(context);
		}
		PG_END_TRY();
		MemoryContextReset(context);
	}
}

/* A worker that comes after DROP DATABASE is no error. */
static void
hide_missing_database(ErrorData *error)
{
	if (error->sqlerrcode == ERRCODE_UNDEFINED_DATABASE)
		error->output_to_server = false;
	else if (previous_log_hook)
		previous_log_hook(error);
}

void
worker_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);

	before_shmem_exit(worker_exit, 0);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	stop_look = RegisterTimeout(USER_TIMEOUT, on_stop_look);
	pqsignal(SIGTERM, on_sigterm);
	BackgroundWorkerUnblockSignals();

	wakeup_attach();
	if (!wakeup_enter(database))
		proc_exit(0);
	/* PostgreSQL 15 looks the name up before it waits for this lock, and gives up when the name has changed. */
	while (is_locked(database))
		wakeup_wait(GetCurrentTimestamp() + LOOK_NEW, "OnesignalCancelWorker");
	previous_log_hook = emit_log_hook;
	emit_log_hook = hide_missing_database;
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	emit_log_hook = previous_log_hook;

	pgstat_report_appname(MyBgworkerEntry->bgw_name);
	owner_settle();
	/* An outcome that a crash undoes is delivered again: no need to wait for standbys. */
	if (synchronous_commit > SYNCHRONOUS_COMMIT_LOCAL_FLUSH)
		SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);
	work();
	proc_exit(0);
}
