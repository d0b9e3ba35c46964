/*
 * worker.c
 *		The database's worker: when it delivers, waits, makes way and leaves.
 *
 * The protocol of starting, waking and leaving, with its steps, is in wakeup.c.
 *
 * While a prepared transaction holds a lock on onesignal_message, the worker
 * stays and looks for rows again and again: after a sixtieth of the time since
 * the set of them changed, at most a minute.  It asks about the lock first: locks
 * go after rows are visible.  After a crash nobody told it: it asks at its start.
 *
 * A session that drops, renames or copies the database locks it, and waits up
 * to five seconds for all others to leave.  The worker then hands over to a
 * successor, which waits for that lock before it connects.
 *
 * After SIGTERM answers to requests on the wire must not be lost: the worker
 * ends by itself, as soon as delivery has stopped, which takes about a second.
 */
#include "postgres.h"

#include "access/twophase.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "compat.h"
#include "delivery.h"
#include "queue.h"
#include "settings.h"
#include "wakeup.h"

/* How often a waiting worker looks at the database's lock. */
#define LOOK			USECS_PER_SEC

/* Seconds after SIGTERM: what goes on longer, a trigger for example, is ended. */
#define STOP_WITHIN		4

extern PGDLLEXPORT void worker_main(Datum arg);

static emit_log_hook_type previous_log_hook = NULL;

/* After a failed run: its error message, and the pause in seconds, up to a minute; 0: it did not fail. */
static char last_failure[256];
static int	pause_s = 0;

/* When to deliver next, if the worker is not woken; DT_NOEND: never. */
static TimestampTz next_run = 0;
static TimestampTz seen_at = 0; /* the clock at the last look, before the last run */

/* Does it stay for worker_idle_timeout?  Not before it knows of something pending. */
static bool stays = false;

static MemoryContext worker_context;

/* The sum of the prepared transactions' ids, and since when; when to ask about them, DT_NOEND: there are none. */
static uint64 prepared = 0;
static TimestampTz prepared_at = 0;
static TimestampTz ask_at = 0;

/* ---- waiting, for all processes of ours ---- */

void
wakeup_serve_signals(void)
{
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

void
wakeup_wait(TimestampTz until, const char *wait_event)
{
	TimestampTz now = GetCurrentTimestamp();
	/* WaitLatch() takes no more than 24 days. */
	long		timeout = TimestampDifferenceMilliseconds(now, Min(until, now + USECS_PER_DAY));

	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout,
					 wait_event_named(wait_event));
	ResetLatch(MyLatch);
	wakeup_serve_signals();
}

/* ---- the deliverer's lock ---- */

/*
 * The lock is on sub-object 1 of no extension, so that SQL's advisory locks do not
 * meet it, and CREATE EXTENSION makes no other.  It outlives a run's transactions.
 */
int
deliverer_lock(bool wait)
{
	Installation installation;
	LOCKTAG		tag;

	if (!owner_find(&installation, true))
		return -1;
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, InvalidOid, 1);

	/* A CALL may have the lock for hours, and this wait must not hold back VACUUM. */
	InvalidateCatalogSnapshot();
	while (LockAcquire(&tag, ExclusiveLock, true, !wait) == LOCKACQUIRE_NOT_AVAIL)
	{
		LockData   *locks = GetLockStatusData();

		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < locks->nelements; i++)
			if (locks->locks[i].holdMask != 0 && memcmp(&locks->locks[i].locktag, &tag, sizeof(tag)) == 0)
				return locks->locks[i].pid;
	}
	return 0;
}

/* However often it was taken.  Neither a worker nor a CALL has other locks that belong to the session. */
void
deliverer_unlock(void)
{
	LockReleaseSession(DEFAULT_LOCKMETHOD);
}

/* ---- stopping, and making way ---- */

static void
worker_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	disable_all_timeouts(false);	/* on_second() reads MyProc, which soon is there no more */
	wakeup_leave(GetCurrentTimestamp() + WAKEUP_RESTART_AFTER, true);
	deliverer_unlock();
}

/* Each second.  After SIGTERM the wait for a lock is ended at once: it may take hours. */
static void
on_second(void)
{
	static int	seconds = 0;

	if (!ShutdownRequestPending || (++seconds <= STOP_WITHIN && MyProc->waitStatus != PROC_WAIT_STATUS_WAITING))
		return;
	/* As PostgreSQL's own handler of SIGTERM does. */
	InterruptPending = true;
	ProcDiePending = true;
}

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

bool
worker_was_woken(void)
{
	TimestampTz now = GetCurrentTimestamp();
	const Installation *installation;

	if (wakeup_take())
		ask_at = now;
	if (now < ask_at)
		return false;
	ask_at = DT_NOEND;
	if (max_prepared_xacts > 0 && (installation = queue_begin()) != NULL)
	{
		VirtualTransactionId *holder;
		LOCKTAG		tag;
		uint64		sum = 0;
		bool		more;

		/* Who has a lock that changing the table takes?  Prepared before the last start of the server, or since. */
		SET_LOCKTAG_RELATION(tag, MyDatabaseId, installation->message_table);
		holder = GetLockConflicts(&tag, ShareLock, NULL);
		for (; VirtualTransactionIdIsValid(*holder); holder++)
			sum += VirtualTransactionIdIsRecoveredPreparedXact(*holder) ? holder->localTransactionId :
				TwoPhaseGetXidByVirtualXID(*holder, &more);
		queue_commit();
		prepared_at = sum == prepared ? Min(prepared_at, now) : now;
		/* Once more after the last: rows are visible before COMMIT PREPARED announces changes of the catalogs. */
		if (sum != 0 || prepared != 0)
			ask_at = now + Min(Max((now - prepared_at) / 60, INT64CONST(10000)), USECS_PER_MINUTE);
		prepared = sum;
	}
	return true;
}

/* ---- one turn: steps 3 to 5 ---- */

bool
worker_must_stop(void)
{
	return ShutdownRequestPending || !settings_enabled || !settings_worker_delivers || is_locked(MyDatabaseId);
}

/* False: it left. */
static bool
wait_for_work(void)
{
	TimestampTz idle_end = ask_at != DT_NOEND ? DT_NOEND :
		GetCurrentTimestamp() + (stays ? settings_worker_idle_timeout * INT64CONST(1000) : 0);

	pgstat_report_activity(STATE_IDLE, NULL);
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();

		if (now < seen_at)		/* the clock was set back */
			next_run = ask_at = now + pause_s * USECS_PER_SEC;
		seen_at = now;
		/* Commits must not shorten the pause after a failed run. */
		if (now >= next_run || worker_must_stop() || (pause_s == 0 && worker_was_woken()))
			return true;
		if (now >= idle_end)
		{
			if (wakeup_leave(next_run, false))
				return false;
			idle_end = DT_NOEND;
		}
		wakeup_wait(Min(Min(next_run, ask_at), Min(idle_end, now + LOOK)), "OnesignalCancelWorker");
	}
}

/* False: it left, or was told to stop. */
static bool
take_turn(void)
{
	static const QueueLane first;
	QueueListed lane;

	MemoryContextSwitchTo(worker_context);
	MemoryContextReset(worker_context);
	wakeup_serve_signals();
	if (!wait_for_work() || ShutdownRequestPending)
		return false;
	if (is_locked(MyDatabaseId))
	{
		wakeup_leave(DT_NOEND, true);
		wakeup_worker(MyDatabaseId, true);
		return false;
	}
	worker_was_woken();			/* and what came during the pause is served now */
	if (!settings_enabled || !settings_worker_delivers)
		return !wakeup_leave(DT_NOEND, false);
	pgstat_report_activity(STATE_RUNNING, "delivering requested cancels");
	if (!stays && queue_begin() != NULL)
	{
		stays = queue_lanes(&first, &lane, 1) > 0;
		queue_commit();
	}
	if (stays)
	{
		StartTransactionCommand();
		stays = deliverer_lock(true) == 0;
		CommitTransactionCommand();
	}
	next_run = stays ? delivery_run(0) : DT_NOBEGIN;
	stays = next_run != DT_NOBEGIN;
	if (!stays)
		next_run = DT_NOEND;
	pause_s = 0;
	return true;
}

/* ---- the process ---- */

/* Logs the error, unless the last run failed with the same, and ends all that the run has left open. */
static void
recover(void)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	PG_exception_stack = NULL;	/* an error in here ends the worker */
	error_context_stack = NULL;
	deliverer_unlock();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(worker_context);
	/* Only now, since it allocates memory: lack of memory may have been the error. */
	error = CopyErrorData();
	if (pause_s == 0 || strncmp(last_failure, error->message, sizeof(last_failure) - 1) != 0)
		EmitErrorReport();
	strlcpy(last_failure, error->message, sizeof(last_failure));
	FlushErrorState();
	/* If nothing is pending any more, there is no reason to go on failing. */
	stays = false;
	pause_s = Min(SECS_PER_MINUTE, Max(1, pause_s * 2));
	next_run = ask_at = GetCurrentTimestamp() + pause_s * USECS_PER_SEC;
	RESUME_INTERRUPTS();
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
	sigjmp_buf	after_error;

	before_shmem_exit(worker_exit, 0);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	enable_timeout_every(RegisterTimeout(USER_TIMEOUT, on_second), GetCurrentTimestamp() + USECS_PER_SEC, 1000);

	wakeup_attach();
	if (!wakeup_enter(database))
		proc_exit(0);
	/* PostgreSQL 15 looks the name up before it waits for this lock, and gives up when the name has changed. */
	while (is_locked(database) && !ShutdownRequestPending)
		wakeup_wait(GetCurrentTimestamp() + LOOK, "OnesignalCancelWorker");
	previous_log_hook = emit_log_hook;
	emit_log_hook = hide_missing_database;
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	emit_log_hook = previous_log_hook;

	pgstat_report_appname(MyBgworkerEntry->bgw_name);
	owner_settle();
	/* An outcome that a crash undoes is delivered again: no need to wait for standbys. */
	if (synchronous_commit > SYNCHRONOUS_COMMIT_LOCAL_FLUSH)
		SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);
	worker_context = AllocSetContextCreate(TopMemoryContext, "onesignal_cancel worker", ALLOCSET_DEFAULT_SIZES);
	if (sigsetjmp(after_error, 1) != 0)
		recover();
	PG_exception_stack = &after_error;
	while (take_turn())
		;
	proc_exit(0);
}
