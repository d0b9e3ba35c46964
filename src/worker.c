/*
 * worker.c
 *		The database's worker: when it delivers, waits and leaves.
 *
 * The protocol of starting, waking and leaving is in wakeup.c; the steps that
 * are named below are those of its header.
 *
 * COMMIT PREPARED wakes nobody.  So while a prepared transaction holds a lock
 * on onesignal_message, the worker looks for rows again and again: each time
 * after a sixtieth of the time that has passed since the PREPARE, but after
 * 10 ms at least and a minute at most.  It asks about the lock before it looks
 * for rows, and locks are released after rows are visible: when there is no
 * lock any more, the look sees all rows.  Shared memory forgets in a crash, so
 * a worker also asks when it starts.
 *
 * A session that drops, renames or copies the database waits up to five
 * seconds for all others to leave.  The worker regularly looks whether
 * somebody has locked the database.  If so, it hands over to a successor,
 * which waits for that lock before it connects, when it is not yet a session
 * of the database.
 *
 * SIGTERM ends the worker at once, except while it delivers: answers to
 * requests on the wire would be lost.  Then delivery is told to stop, which
 * takes it about a second.  Another SIGTERM, half a second later or more, does
 * not wait for that.
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
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "delivery.h"
#include "queue.h"
#include "settings.h"
#include "wakeup.h"
#include "worker.h"

/* How often it looks at the database's lock; of the five seconds, delivery needs one to stop. */
#define LOOK_MS			1000

/* How often a new worker looks whether that lock is gone. */
#define LOOK_NEW_MS		100

/* How soon it looks for what a prepared transaction requested; see above. */
#define PREPARED_SHARE	60
#define PREPARED_MIN	INT64CONST(10000)
#define PREPARED_MAX	(60 * USECS_PER_SEC)

/* Between two runs: should the first be wrong about a row that is due, they must not take all of a CPU. */
#define TURN_MS			10

/* Seconds to wait after a failed run: they double up to this. */
#define PAUSE_MAX		60

/* SIGTERM: a second one that comes later ends delivery at once, and a statement that goes on longer is ended. */
#define IMPATIENT_AFTER	INT64CONST(500000)
#define STOP_WITHIN		(4 * USECS_PER_SEC)

static bool preloaded = false;
static emit_log_hook_type previous_log_hook = NULL;

/* After a failed run: its error message, the pause in seconds, and when that ends. */
static char last_failure[256] = "";
static int	pause_s = 0;
static TimestampTz pause_end = 0;

/* Does it know that something is pending? */
static bool looked = false;

/* When a transaction with requests was last prepared; 0: none is prepared. */
static TimestampTz prepared_at = 0;

/* When the worker last asked whether one is; 0: never. */
static TimestampTz asked_at = 0;

/* Is delivery_run() at work, and did SIGTERM come? */
static volatile sig_atomic_t delivering = false;
static volatile sig_atomic_t told_to_stop = false;
static volatile TimestampTz told_at;
static TimeoutId stop_look;

/* ---- loading the library ---- */

void
worker_init(void)
{
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	preloaded = true;
	launcher_register();
}

bool
worker_preloaded(void)
{
	return preloaded;
}

/* ---- stopping ---- */

static void
worker_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	if (delivering)
		wakeup_raise_doubt();
	wakeup_died();
	deliverer_unlock();
}

/* As die() does: the next CHECK_FOR_INTERRUPTS() ends the process. */
static void
die_soon(void)
{
	InterruptPending = true;
	ProcDiePending = true;
	SetLatch(MyLatch);
}

/* A second SIGTERM is an impatient one, unless it is the postmaster's, which sends each one twice. */
static bool
is_impatient(void)
{
	return told_to_stop && GetCurrentTimestamp() - told_at > IMPATIENT_AFTER;
}

/* SIGTERM.  The wait for a lock may take hours, so it ends at once. */
static void
on_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	if (!delivering || is_impatient() || MyProc->waitStatus == PROC_WAIT_STATUS_WAITING)
		die_soon();
	if (!told_to_stop)
		told_at = GetCurrentTimestamp();
	told_to_stop = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/* A statement may hang where no lock is waited for, in a trigger, say. */
static void
on_stop_look(void)
{
	if (told_to_stop && GetCurrentTimestamp() - told_at > STOP_WITHIN)
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

/* Is somebody about to drop, rename, move or copy the database?  Needs no transaction. */
static bool
is_locked(Oid database)
{
	LOCKTAG		tag;
	int			count;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, database, 0);
	/* The lock that connecting takes. */
	pfree(GetLockConflicts(&tag, RowExclusiveLock, &count));
	return count > 0;
}

/* The same for the worker's database, looked up at most every LOOK_MS. */
static bool
must_make_way(void)
{
	static TimestampTz looked_at = 0;
	static bool locked = false;
	TimestampTz now = GetCurrentTimestamp();

	if (now < looked_at || TimestampDifferenceExceeds(looked_at, now, LOOK_MS))
	{
		looked_at = now;
		locked = is_locked(MyDatabaseId);
	}
	return locked;
}

static void
worker_idle(TimestampTz until)
{
	static uint32 wait_event = 0;

	until = Min(until, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_MS));
	wakeup_wait(until, wait_event_named(&wait_event, "OnesignalCancelWorkerIdle"));
}

/* ---- being woken, and prepared transactions ---- */

/* True: something was requested or changed. */
static bool
take_wake(void)
{
	int			wake = wakeup_take();

	if ((wake & WAKEUP_PREPARE) != 0)
		prepared_at = GetCurrentTimestamp();
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

/* When it has to look again for what a prepared transaction requested; DT_NOEND: there is none. */
static TimestampTz
prepared_due(void)
{
	if (prepared_at == 0)
		return DT_NOEND;
	return asked_at + Min(Max((asked_at - prepared_at) / PREPARED_SHARE, PREPARED_MIN), PREPARED_MAX);
}

/* Call it before looking for rows.  True: the worker must look. */
static bool
ask_about_prepared(void)
{
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();
	Installation installation;

	if (max_prepared_xacts == 0 || (asked_at != 0 && now < prepared_due()))
		return false;
	asked_at = now;
	StartTransactionCommand();
	if (!owner_find(&installation) || !is_prepared(installation.message_table))
		prepared_at = 0;
	else if (prepared_at == 0)
		prepared_at = now;
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
	TimestampTz idle_end = TimestampTzPlusMilliseconds(now, settings_worker_idle_timeout);

	due = Max(due, TimestampTzPlusMilliseconds(now, TURN_MS));
	due = Min(due, prepared_due());
	pgstat_report_activity(STATE_IDLE, NULL);
	while (!must_make_way() && !take_wake() && now < due && is_wanted())
	{
		if (now >= idle_end && wakeup_leave(due))
			return false;
		worker_idle(now >= idle_end ? due : Min(due, idle_end));
		now = GetCurrentTimestamp();
	}
	return true;
}

static bool
something_is_pending(void)
{
	bool		pending;

	if (!queue_begin(false))
		return false;
	pending = queue_has_pending();
	queue_commit();
	return pending;
}

/* What delivery asks while it is at work. */
static bool
was_woken(void)
{
	bool		woken;

	wakeup_serve_signals();
	woken = take_wake();
	return ask_about_prepared() || woken;
}

static bool
must_stop(void)
{
	/* Delivery may still have to wait for a lock. */
	if (told_to_stop)
		SetConfigOption("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE);
	return told_to_stop || !is_wanted() || must_make_way();
}

static TimestampTz
worker_deliver(void)
{
	const DeliveryOptions options = {.in_procedure = false, .woken = was_woken, .must_stop = must_stop};
	DelivererLock lock;
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
	while (GetCurrentTimestamp() < pause_end && is_wanted() && !must_make_way())
		worker_idle(pause_end);
	if (must_make_way())
	{
		wakeup_hand_over();
		return false;
	}
	take_wake();
	if (!is_wanted())
		return !wakeup_leave(DT_NOEND);
	pgstat_report_activity(STATE_RUNNING, "delivering requested cancels");
	ask_about_prepared();
	if (!looked)
	{
		bool		pending = something_is_pending();

		looked = true;
		wakeup_looked();
		if (!pending && prepared_at == 0)
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
		MemoryContextSwitchTo(TopMemoryContext);
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

/*
 * Waits until the database is not locked: PostgreSQL 15 looks its name up
 * before it waits for that lock, and gives up when the name has changed.
 */
static void
connect_to(Oid database)
{
	static uint32 wait_event = 0;

	while (is_locked(database))
		wakeup_wait(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_NEW_MS),
					wait_event_named(&wait_event, "OnesignalCancelWorkerStart"));
	previous_log_hook = emit_log_hook;
	emit_log_hook = hide_missing_database;
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	emit_log_hook = previous_log_hook;
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
	connect_to(database);
	pgstat_report_appname(MyBgworkerEntry->bgw_name);
	owner_settle();
	/* An outcome that a crash undoes is delivered again: no need to wait for standbys. */
	if (synchronous_commit > SYNCHRONOUS_COMMIT_LOCAL_FLUSH)
		SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);
	work();
	proc_exit(0);
}
