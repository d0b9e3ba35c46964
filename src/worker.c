/*
 * worker.c
 *		The database's worker: when it delivers, waits and leaves.
 *
 * There is one worker for a database that has something to deliver, and none
 * for any other.  A commit starts it, so it needs no preload; when nothing
 * falls due any more it leaves.  What could go wrong is that a commit comes
 * just when it leaves: the rows are there, and nobody is.  This is how it does
 * not, with slots.c's word for each state of the database's slot:
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
 * without one the worker stays.  That must not keep anybody from dropping,
 * renaming or copying the database, which waits for five seconds at most for
 * all sessions to leave: an idle worker looks now and then whether somebody
 * locks the database, and if so hands over to a successor, which waits for
 * that lock while it connects and so does not count as a session.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "deliverer.h"
#include "delivery.h"
#include "launcher.h"
#include "owner.h"
#include "queue.h"
#include "settings.h"
#include "slots.h"
#include "wakeup.h"
#include "worker.h"

/* How often an idle worker looks at the database's lock: others wait 5 s for it to leave. */
#define PROBE_MS		3000

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

static void
on_shmem_request(void)
{
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();
	slots_reserve();
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
	slots_died();
	deliverer_unlock();
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

/* Is somebody about to drop, rename, move or copy this database? */
static bool
database_is_locked(void)
{
	LOCKTAG		tag;
	bool		locked;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	StartTransactionCommand();
	/* The lock that connecting takes. */
	locked = LockAcquire(&tag, RowExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL;
	CommitTransactionCommand();
	return locked;
}

/*
 * Waits, and makes way for somebody who needs the database.  False: a
 * successor is on its way.
 */
static bool
idle(TimestampTz until)
{
	static uint32 wait_event = 0;
	static TimestampTz probed_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (TimestampDifferenceExceeds(probed_at, now, PROBE_MS))
	{
		probed_at = now;
		if (database_is_locked() && wakeup_hand_over(MyDatabaseId))
			return false;
	}
	wakeup_wait(Min(until, TimestampTzPlusMilliseconds(now, PROBE_MS)),
				wait_event_named(&wait_event, "OnesignalCancelWorkerIdle"));
	wakeup_serve_signals();
	return true;
}

/* False: it left. */
static bool
wait_for_work(TimestampTz due)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz idle_end = TimestampTzPlusMilliseconds(now, settings_worker_idle_timeout);

	due = Max(due, TimestampTzPlusMilliseconds(now, TURN_MS));
	pgstat_report_activity(STATE_IDLE, NULL);
	for (;;)
	{
		if (slots_take_wake() || now >= due || !is_wanted())
			return true;
		if (now >= idle_end && slots_leave(due == DT_NOEND ? 0 : due))
			return false;
		if (!idle(now >= idle_end ? due : Min(due, idle_end)))
			return false;
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
		if (!idle(until))
			return false;
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
	wakeup_serve_signals();
	return slots_take_wake();
}

static TimestampTz
deliver(void)
{
	const DeliveryOptions options = {.in_procedure = false, .woken = was_woken};
	DelivererLock lock;

	StartTransactionCommand();
	lock = deliverer_lock(true);
	CommitTransactionCommand();
	if (lock == DELIVERER_NO_EXTENSION)
		return DT_NOBEGIN;
	return delivery_run(&options);
}

/* Step 3 to 5 once. False: it left. */
static bool
take_turn(void)
{
	TimestampTz due;

	if (failures > 0 && !wait_after_failure())
		return false;
	wakeup_serve_signals();
	slots_take_wake();
	if (!is_wanted())
		return !slots_leave(0);
	pgstat_report_activity(STATE_RUNNING, "delivering requested cancels");
	if (!looked)
	{
		bool		pending = something_is_pending();

		looked = true;
		slots_looked();
		if (!pending)
			return !slots_leave(0);
	}
	due = deliver();
	failures = 0;
	last_failure[0] = '\0';
	return due == DT_NOBEGIN ? !slots_leave(0) : wait_for_work(due);
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
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (strncmp(last_failure, error->message, sizeof(last_failure) - 1) != 0)
		EmitErrorReport();
	strlcpy(last_failure, error->message, sizeof(last_failure));
	deliverer_abandon();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(context);
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

void
worker_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);

	before_shmem_exit(worker_exit, 0);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	slots_attach();
	if (!slots_enter(database))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	pgstat_report_appname(MyBgworkerEntry->bgw_name);
	override_settings();
	work();
	proc_exit(0);
}
