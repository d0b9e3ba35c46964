/*
 * worker.c
 *		The database's worker: when it delivers, waits and leaves.
 *
 * There is one worker for a database that has something to deliver, and none
 * for any other.  A commit starts it, so it needs no preload; when nothing
 * falls due any more it leaves.  What could go wrong is that a commit comes
 * just when it leaves: the rows are there, and nobody is.  This is how it does
 * not, with wakeup.c's word for each state of the database's slot:
 *
 * Commit (wakeup.c), once its rows are visible: in one critical section it
 * sets "wake" and reads the state.  RUNNING: it sets that worker's latch.
 * STARTING for less than ten seconds: nothing more, the worker has yet to
 * look.  FREE, DIED, or STARTING for longer: it makes it STARTING and
 * registers a worker; if that fails, DIED.
 *
 * Worker:
 *	1. Arms its exit callback: whatever ends it but step 5 makes the slot DIED,
 *	   wakes the launcher, and lets go of the deliverer's lock.
 *	2. Makes the slot RUNNING; if another one has, it ends: that one sees "wake".
 *	   Only then connects, so that a commit meanwhile finds it.
 *	3. Waits for the deliverer's lock.  A CALL may have it, or a worker that
 *	   has left and not ended yet.  If it left instead, commits that came too
 *	   late for those would stay.
 *	4. Clears "wake", then looks for rows and delivers until nothing is due.
 *	   Waits for the latch, for the next row to fall due, or for its idle time
 *	   to end; woken or due, it goes back to 3.
 *	5. To leave: in one critical section, if "wake" is set it goes back to 3,
 *	   else it makes the slot FREE and notes when a retry falls due.
 *
 *		commit            commit             idle, no wake
 *		FREE ---> STARTING ---> RUNNING (looks, delivers, idles) ---> FREE
 *		           ^  |            |  ^                         |
 *		           |  | fork or    |  +--- wake, due -----------+
 *		           |  | connection | error, SIGTERM
 *		           |  v            v
 *		          DIED <-----------+     (launcher after a while, or a commit)
 *
 * Nothing is lost: rows are visible before "wake" is set.  If that happens
 * before the worker's section of step 5, it sees "wake" and looks again, and
 * the look's snapshot comes after the clearing of step 4.  If it happens
 * after, the commit finds FREE and starts a successor.
 *
 * A retry outlives the worker only where a launcher notes when it falls due;
 * without one the worker stays.
 *
 * PREPARE TRANSACTION (wakeup.c) sets "wake", too, and notes the time, but
 * COMMIT PREPARED wakes nobody.  While a prepared transaction holds a lock on
 * onesignal_message the worker looks for rows again and again: at first after
 * 10 ms, then when as much time has passed as since the PREPARE, but after a
 * second at most, later after a sixtieth of that time, but after a minute at
 * most.  It asks about the lock before it looks for rows, and locks go after
 * rows are visible: once there is no such lock, the look sees all rows.  Shared
 * memory forgets in a crash, and so a worker that starts asks as well.
 *
 * Whoever drops, renames or copies the database waits for five seconds at most
 * for all sessions to leave.  The worker looks now and then whether somebody
 * has locked the database, and if so hands over to a successor, which waits
 * for that lock before it connects and so is not a session of the database.
 *
 * SIGTERM ends the worker at once, but not while it delivers: answers to what
 * is on the wire would be lost.  Then it is only told to stop, and ends with the
 * next SIGTERM or when STOP_MS have passed.
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
#include "deliverer.h"
#include "delivery.h"
#include "launcher.h"
#include "queue.h"
#include "settings.h"
#include "statements.h"
#include "wakeup.h"
#include "worker.h"

/*
 * How often the worker looks at the database's lock.  Others wait 5 s for it to
 * leave, of which delivery needs one to come to an end.
 */
#define LOOK_IDLE_MS	2000
#define LOOK_BUSY_MS	500

/* How often a new worker looks whether the lock is gone. */
#define LOOK_NEW_MS		100

/* How long delivery may take to come to an end after SIGTERM, in ticks of so many ms. */
#define STOP_MS			2000
#define STOP_TICK_MS	500

/* How soon it looks for what a prepared transaction requested; see above. */
#define PREPARED_MIN	INT64CONST(10000)
#define PREPARED_MAX	USECS_PER_SEC
#define PREPARED_SHARE	60
#define PREPARED_LONGEST	(60 * USECS_PER_SEC)

/* Between a run that found something due and the next, should delivery err about it. */
#define TURN_MS			10

/* After a failed run: doubling, in seconds. */
#define PAUSE_MAX		60

static bool preloaded = false;
static shmem_request_hook_type previous_shmem_request_hook = NULL;

/* Runs that failed one after the other, and what the last one said. */
static int	failures = 0;
static char last_failure[256] = "";

/* Does it know that something is pending? */
static bool looked = false;

/* When it last asked whether there are prepared transactions; 0: never. */
static TimestampTz asked_at = 0;

/* Is delivery_run() at work, and has SIGTERM come meanwhile? */
static volatile sig_atomic_t delivering = false;
static volatile sig_atomic_t told_to_stop = false;
static TimeoutId stop_timeout;

static void
on_shmem_request(void)
{
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();
	wakeup_reserve();
}

void
worker_init(void)
{
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	preloaded = true;
	previous_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = on_shmem_request;
	launcher_register();
}

bool
worker_preloaded(void)
{
	return preloaded;
}

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

/* ---- stopping ---- */

/* As die() does; the next CHECK_FOR_INTERRUPTS() ends the process. */
static void
die_soon(void)
{
	InterruptPending = true;
	ProcDiePending = true;
}

/* SIGTERM.  A lock may be waited for for hours: such a wait ends at once. */
static void
on_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	if (!delivering || told_to_stop || MyProc->waitStatus == PROC_WAIT_STATUS_WAITING)
		die_soon();
	told_to_stop = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/* SIGALRM, every STOP_TICK_MS while it delivers. */
static void
on_stop_tick(void)
{
	static int	ticks = 0;

	if (told_to_stop && ++ticks >= STOP_MS / STOP_TICK_MS)
	{
		die_soon();
		SetLatch(MyLatch);
	}
}

/* Delivery has come to an end, if with an error: nothing of it needs time any more. */
static void
end_of_delivery(void)
{
	disable_timeout(stop_timeout, false);
	delivering = false;
	if (told_to_stop)
		die_soon();
}

static void
override_settings(void)
{
	owner_settle();

	/* An outcome that a crash undoes is delivered again: no need to wait for standbys. */
	if (synchronous_commit > SYNCHRONOUS_COMMIT_LOCAL_FLUSH)
		SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);
}

static bool
is_wanted(void)
{
	return settings_enabled && settings_background_delivery;
}

/* ---- making way ---- */

/* Is somebody about to drop, rename, move or copy the database? Needs no transaction. */
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

/* The same for the worker's database, and at most every so often. */
static bool
must_make_way(int every_ms)
{
	static TimestampTz looked_at = 0;
	static bool locked = false;
	TimestampTz now = GetCurrentTimestamp();

	if (now < looked_at || TimestampDifferenceExceeds(looked_at, now, every_ms))
	{
		looked_at = now;
		locked = is_locked(MyDatabaseId);
	}
	return locked;
}

/* True: a successor is on its way. */
static bool
makes_way(void)
{
	return must_make_way(LOOK_IDLE_MS) && wakeup_hand_over();
}

static void
worker_idle(TimestampTz until)
{
	static uint32 wait_event = 0;

	until = Min(until, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_IDLE_MS));
	wakeup_wait(until, wait_event_named(&wait_event, "OnesignalCancelWorkerIdle"));
	wakeup_serve_signals();
}

/* ---- prepared transactions ---- */

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
	TimestampTz prepared_at = wakeup_prepared_at();
	TimestampTz passed = asked_at - prepared_at;

	if (prepared_at == 0)
		return DT_NOEND;
	if (passed > PREPARED_MAX)
		passed = Min(Max(passed / PREPARED_SHARE, PREPARED_MAX), PREPARED_LONGEST);
	return asked_at + Max(passed, PREPARED_MIN);
}

/* Called before rows are looked for.  True: they have to be. */
static bool
ask_about_prepared(void)
{
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz prepared_at = wakeup_prepared_at();
	Installation installation;

	if (max_prepared_xacts == 0 || (asked_at != 0 && now < prepared_due()))
		return false;
	asked_at = now;
	StartTransactionCommand();
	wakeup_note_prepared(prepared_at, owner_find(&installation) && is_prepared(installation.message_table));
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return true;
}

/* ---- waiting ---- */

/* False: it left. */
static bool
wait_for_work(TimestampTz due)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz idle_end = TimestampTzPlusMilliseconds(now, settings_worker_idle_timeout);

	due = Max(due, TimestampTzPlusMilliseconds(now, TURN_MS));
	due = Min(due, prepared_due());
	pgstat_report_activity(STATE_IDLE, NULL);
	for (;;)
	{
		if (makes_way())
			return false;
		if (wakeup_take() || now >= due || !is_wanted())
			return true;
		if (now >= idle_end && wakeup_leave(due == DT_NOEND ? 0 : due))
			return false;
		worker_idle(now >= idle_end ? due : Min(due, idle_end));
		now = GetCurrentTimestamp();
	}
}

/* A failure may last, and each commit wakes us: only time counts. False: it left. */
static bool
wait_after_failure(void)
{
	int			pause = Min(PAUSE_MAX, 1 << Min(failures - 1, 6));
	TimestampTz until = GetCurrentTimestamp() + pause * USECS_PER_SEC;

	pgstat_report_activity(STATE_IDLE, NULL);
	while (GetCurrentTimestamp() < until && is_wanted())
	{
		if (makes_way())
			return false;
		worker_idle(until);
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
	woken = wakeup_take();
	return ask_about_prepared() || woken;
}

static bool
must_stop(void)
{
	return told_to_stop || !is_wanted() || must_make_way(LOOK_BUSY_MS);
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

	enable_timeout_every(stop_timeout, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), STOP_TICK_MS), STOP_TICK_MS);
	delivering = true;
	due = delivery_run(&options);
	end_of_delivery();
	CHECK_FOR_INTERRUPTS();
	return due;
}

/* Step 3 to 5 once. False: it left. */
static bool
take_turn(void)
{
	TimestampTz due;

	wakeup_serve_signals();
	if (failures > 0 && !wait_after_failure())
		return false;
	wakeup_take();
	if (!is_wanted())
		return !wakeup_leave(0);
	pgstat_report_activity(STATE_RUNNING, "delivering requested cancels");
	ask_about_prepared();
	if (!looked)
	{
		bool		pending = something_is_pending();

		looked = true;
		wakeup_looked();
		if (!pending && wakeup_prepared_at() == 0)
			return !wakeup_leave(0);
	}
	due = worker_deliver();
	failures = 0;
	last_failure[0] = '\0';
	return due == DT_NOBEGIN ? !wakeup_leave(0) : wait_for_work(due);
}

/*
 * Logs the error, unless it is what the last run said too, and ends all that
 * the run has left open.
 */
static void
recover(MemoryContext context)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	deliverer_abandon();
	end_of_delivery();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(context);
	/* Only now, since it allocates: lack of memory may have been the error. */
	error = CopyErrorData();
	if (strncmp(last_failure, error->message, sizeof(last_failure) - 1) != 0)
		EmitErrorReport();
	strlcpy(last_failure, error->message, sizeof(last_failure));
	FlushErrorState();
	/* Should nothing be pending, there is no reason to go on failing. */
	looked = false;
	failures++;
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

static emit_log_hook_type previous_log_hook = NULL;

/* DROP DATABASE is no fault of the worker that comes too late. */
static void
hide_missing_database(ErrorData *error)
{
	if (error->sqlerrcode == ERRCODE_UNDEFINED_DATABASE)
		error->output_to_server = false;
	else if (previous_log_hook)
		previous_log_hook(error);
}

/*
 * Once the database is not locked any more: PostgreSQL 15 looks its name up
 * before it waits for that lock, and gives up when it has changed.
 */
static void
connect_to(Oid database)
{
	static uint32 wait_event = 0;

	while (is_locked(database))
	{
		wakeup_wait(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_NEW_MS),
					wait_event_named(&wait_event, "OnesignalCancelWorkerStart"));
		CHECK_FOR_INTERRUPTS();
	}
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
	pqsignal(SIGTERM, on_sigterm);
	stop_timeout = RegisterTimeout(USER_TIMEOUT, on_stop_tick);
	BackgroundWorkerUnblockSignals();

	wakeup_attach();
	if (!wakeup_enter(database))
		proc_exit(0);
	connect_to(database);
	pgstat_report_appname(MyBgworkerEntry->bgw_name);
	override_settings();
	work();
	proc_exit(0);
}
