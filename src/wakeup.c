/*
 * wakeup.c
 *		Who delivers in a database, and how a commit wakes or starts its worker.
 *
 * There is one worker for a database that has something to deliver, and none
 * for any other.  A commit starts it; when nothing falls due any more it
 * leaves.  The danger is a commit that comes just when the worker leaves: the
 * rows would be there, and nobody would deliver them.  The slots, a few kB of
 * shared memory, prevent that.  Each slot has a state and a flag "wake":
 *
 *		commit             worker has         nothing is due,
 *		or launcher        looked             "wake" is not set
 *		FREE ---> STARTING --------> RUNNING ------------------> FREE
 *		             |                  |
 *		             | cannot start     | error, SIGTERM
 *		             v                  v
 *		            DIED <--------------+     (launcher or commit: STARTING)
 *
 * Commit, when its rows are visible: one critical section sets "wake" and
 * reads the state.  If a worker has entered the slot, the commit sets that
 * worker's latch.  If the slot has been STARTING for less than ten seconds, a
 * worker is on its way and has yet to look.  Otherwise the commit makes the
 * slot STARTING and registers a worker; if that fails, it makes the slot DIED.
 *
 * Worker:
 *	1. It arms its exit callback: unless it leaves by step 5, its slot becomes
 *	   DIED and the launcher is woken.
 *	2. It enters the slot.  If another worker has, it ends: the other one sees
 *	   "wake".  Only then it connects, so a commit in between finds it.
 *	3. It waits for the deliverer's lock.  A CALL may have the lock, or a
 *	   worker that left but has not ended.  Those may have looked already, so a
 *	   later commit needs this worker: it must not leave here.
 *	4. It clears "wake", and then looks for rows and delivers until nothing is
 *	   due.  It waits for its latch, for the next row to fall due or for its
 *	   idle time to end.  If it was woken or a row is due, it goes to step 3.
 *	5. To leave, one critical section reads "wake".  If it is set, the worker
 *	   goes to step 3.  If not, the slot becomes FREE with the time when a
 *	   worker has to be back.
 *
 * Why no wake-up is lost: rows are visible before "wake" is set.  If "wake" is
 * set before the section of step 5, the worker sees it there and looks again,
 * with a snapshot that is younger than the clearing of step 4.  If "wake" is
 * set after that section, the commit finds FREE and starts another worker.
 *
 * A retry that is due later needs a launcher, which knows its time from the
 * slot.  Without a launcher the worker stays.  The launcher also replaces a
 * worker that died.  A worker that is killed so hard that its callback does
 * not run makes the whole server restart, with new shared memory.
 *
 * The commit callback runs when the transaction can no longer be undone: an
 * error there would be a PANIC.  What can fail, above all attaching to shared
 * memory, is done when the request is made.  The callback takes a spinlock,
 * sets a latch, or hands a struct on its stack to the postmaster.
 *
 * COMMIT PREPARED runs no callback of ours and may come years later.  So
 * PREPARE wakes the worker and says that it is a PREPARE; the worker then
 * looks again and again while a prepared transaction holds a lock on
 * onesignal_message (worker.c).  A transaction that requested has that lock;
 * one that only changed a server takes it before PREPARE.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "queue.h"
#include "settings.h"
#include "wakeup.h"

/* Change the number with the layout: sessions with a library of another version may be there. */
#define SLOTS_NAME		"onesignal_cancel slots 3"

/*
 * Databases that can have a worker, a retry that is due, or a worker that
 * died, at one time.  If there are more, the launcher looks into all databases.
 */
#define SLOTS_COUNT		128

#define NO_PROC			(-1)

/* A registered worker that has not entered by then never will: its fork failed, for example. */
#define STARTING_FOR	(10 * USECS_PER_SEC)

/* How soon the launcher replaces a worker that died or could not start. */
#define RESTART_AFTER	(5 * USECS_PER_SEC)

/* Objects have sub-object 0, and only those of pg_class have columns. */
#define DELIVERER_SUBOBJECT 1

typedef enum SlotState
{
	SLOT_FREE,
	SLOT_STARTING,				/* a worker was registered, and has not looked for rows */
	SLOT_RUNNING,
	SLOT_DIED
} SlotState;

typedef struct Slot
{
	Oid			database;		/* InvalidOid: never used */
	SlotState	state;
	int			proc;			/* of the worker that entered, or NO_PROC */
	int			wake;			/* WAKEUP_ bits */
	TimestampTz due;			/* when the launcher starts a worker, if none has entered; DT_NOEND: never */
} Slot;

typedef struct Slots
{
	slock_t		lock;
	int			launcher;
	TimestampTz sweep_due;
	TimestampTz doubt;
	Slot		slots[SLOTS_COUNT];
} Slots;

/*
 * A spinlock guards them, since code that runs after a commit must not throw.
 * While it is held nothing is called but functions that only touch the slots.
 */
static Slots *shared = NULL;

/* The calling worker's own slot, from wakeup_enter() until it left or died. */
static Slot *mine = NULL;

/*
 * The outermost subtransaction level that a request of this transaction
 * belongs to, 0: none.  A rollback of that level undoes all requests that are
 * not older.
 */
static int	request_level = 0;

/* ---- the memory ---- */

static void
clear_slot(Slot *slot, Oid database)
{
	memset(slot, 0, sizeof(Slot));
	slot->database = database;
	slot->proc = NO_PROC;
	slot->due = DT_NOEND;
}

static void
initialize_slots(void *memory)
{
	Slots	   *slots = memory;

	memset(slots, 0, sizeof(Slots));
	SpinLockInit(&slots->lock);
	slots->launcher = NO_PROC;
	slots->sweep_due = DT_NOEND;

	/* The crash that made new memory necessary, if there was one, came before now. */
	slots->doubt = GetCurrentTimestamp();
	for (int i = 0; i < SLOTS_COUNT; i++)
		clear_slot(&slots->slots[i], InvalidOid);
}

void
wakeup_attach(void)
{
	if (shared == NULL)
		shared = get_shared_memory(SLOTS_NAME, sizeof(Slots), initialize_slots);
}

/* By now the number may be another process's: a latch that is set in vain does no harm. */
static void
wake_proc(int proc)
{
	if (proc != NO_PROC)
		SetLatch(&GetPGProcByNumber(proc)->procLatch);
}

static void
wake_launcher(void)
{
	wake_proc(shared->launcher);	/* no lock: an int is read in one piece */
}

/* ---- the slots, with the lock held ---- */

static void
set_slot(Slot *slot, SlotState state, int proc, TimestampTz due)
{
	slot->state = state;
	slot->proc = proc;
	slot->due = due;
}

/* Is a worker there or on its way?  A clock that was set back must not keep a slot starting for an hour. */
static bool
has_worker(const Slot *slot, TimestampTz now)
{
	return slot->proc != NO_PROC ||
		(slot->state == SLOT_STARTING && now < slot->due && now >= slot->due - STARTING_FOR);
}

static Slot *
find_slot(Oid database)
{
	for (int i = 0; i < SLOTS_COUNT; i++)
		if (shared->slots[i].database == database)
			return &shared->slots[i];
	return NULL;
}

/*
 * The database's slot, or else the one whose database needs a worker last: a
 * sweep finds that database again.  NULL: all have a worker.
 */
static Slot *
find_or_take_slot(Oid database)
{
	Slot	   *slot = find_slot(database);

	if (slot != NULL)
		return slot;
	for (int i = 0; i < SLOTS_COUNT; i++)
	{
		Slot	   *other = &shared->slots[i];

		if (other->state != SLOT_STARTING && other->state != SLOT_RUNNING &&
			(slot == NULL || other->due > slot->due))
			slot = other;
	}
	if (slot != NULL)
	{
		shared->sweep_due = Min(shared->sweep_due, slot->due);
		clear_slot(slot, database);
	}
	return slot;
}

/* ---- starting and waking ---- */

/*
 * RegisterDynamicBackgroundWorker() raises an error only for mistakes in the
 * struct, and allocates memory only when it is asked for a handle.
 *
 * The postmaster must not restart the worker: in a dropped database it would
 * do so for ever, and after a crash it would not.  The launcher does.
 */
static bool
register_worker(Oid database)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	snprintf(worker.bgw_name, BGW_MAXLEN, "onesignal_cancel worker for database %u", database);
	strlcpy(worker.bgw_type, "onesignal_cancel worker", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "onesignal_cancel", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "worker_main", BGW_MAXLEN);
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	return RegisterDynamicBackgroundWorker(&worker, NULL);
}

/* At most once a minute: one for each commit would hide all other messages. */
static void
warn_of_no_worker(void)
{
	static TimestampTz warned_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (warned_at != 0 && !TimestampDifferenceExceeds(warned_at, now, 60 * 1000))
		return;
	warned_at = now;
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("could not start a background worker to deliver requested cancels"),
			 errdetail("The requests are kept until a worker can start."),
			 errhint("Increase max_worker_processes, or deliver with CALL onesignal_cancel_deliver().")));
}

/* Wakes the database's worker, or starts one if that is allowed. */
static void
wake_worker(Oid database, int wake, bool may_start)
{
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot;
	int			proc = NO_PROC;
	bool		starts = false;
	bool		failed;

	SpinLockAcquire(&shared->lock);
	slot = may_start ? find_or_take_slot(database) : find_slot(database);
	if (slot != NULL)
	{
		slot->wake |= wake;
		proc = slot->proc;
		starts = may_start && !has_worker(slot, now);
		if (starts)
			set_slot(slot, SLOT_STARTING, NO_PROC, now + STARTING_FOR);
	}
	SpinLockRelease(&shared->lock);

	wake_proc(proc);
	failed = may_start && slot == NULL;
	if (starts)
	{
		failed = !register_worker(database);
		SpinLockAcquire(&shared->lock);
		/* Nobody else takes a slot that is STARTING, but a worker that is very late may have entered it. */
		if (failed && slot->proc == NO_PROC)
			set_slot(slot, SLOT_DIED, NO_PROC, now + RESTART_AFTER);
		SpinLockRelease(&shared->lock);
		/* It also has to watch over a worker that was registered: the fork may fail. */
		wake_launcher();
	}
	if (failed)
		warn_of_no_worker();
}

/* ---- the end of a transaction ---- */

/* So that the worker finds the prepared transaction. */
static void
lock_table_for_prepare(void)
{
	Installation installation;

	if (owner_find(&installation))
		LockRelationOid(installation.message_table, RowExclusiveLock);
}

static void
on_transaction_end(XactEvent event, void *arg)
{
	bool		requested = request_level > 0;
	bool		may_start = settings_enabled && settings_background_delivery;

	(void) arg;
	if (event == XACT_EVENT_PRE_PREPARE && requested)
		lock_table_for_prepare();
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_PREPARE && event != XACT_EVENT_ABORT)
		return;
	request_level = 0;
	if (requested && event != XACT_EVENT_ABORT)
		wake_worker(MyDatabaseId, event == XACT_EVENT_PREPARE ? WAKEUP_PREPARE : WAKEUP_COMMIT, may_start);
}

static void
on_subtransaction_end(SubXactEvent event, SubTransactionId mySubid,
					  SubTransactionId parentSubid, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	(void) mySubid;
	(void) parentSubid;
	(void) arg;
	if (event == SUBXACT_EVENT_ABORT_SUB && request_level >= level)
		request_level = 0;
	else if (event == SUBXACT_EVENT_COMMIT_SUB && request_level == level)
		request_level = level - 1;
}

void
wakeup_poke(void)
{
	static bool registered = false;
	int			level = GetCurrentTransactionNestLevel();

	/* In these processes there is nobody to wake. */
	if (IsBinaryUpgrade || !IsUnderPostmaster || !OidIsValid(MyDatabaseId))
		return;
	wakeup_attach();
	if (!registered)
	{
		/* PostgreSQL would keep a second registration beside the first. */
		RegisterXactCallback(on_transaction_end, NULL);
		RegisterSubXactCallback(on_subtransaction_end, NULL);
		registered = true;
	}
	if (request_level == 0 || request_level > level)
		request_level = level;
}

void
wakeup_request(void)
{
	/*
	 * The worker may cancel the message as soon as the commit is visible.  A
	 * crash must not undo such a commit.
	 */
	ForceSyncCommit();
	wakeup_poke();
}

/* ---- the deliverer's lock ---- */

/*
 * It is on the extension, with a sub-object number that nobody else uses:
 * neither SQL's advisory lock functions nor DROP EXTENSION meet it.  It belongs
 * to the session, so it outlives the short transactions of a run.
 */
static LOCKTAG
lock_tag(Oid extension)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, extension, DELIVERER_SUBOBJECT);
	return tag;
}

DelivererLock
deliverer_lock(bool wait)
{
	Installation installation;
	LOCKTAG		tag;

	if (!owner_find(&installation))
		return DELIVERER_NO_EXTENSION;
	tag = lock_tag(installation.extension);

	/* A CALL may have the lock for hours, and this wait must not hold back VACUUM. */
	InvalidateCatalogSnapshot();
	if (LockAcquire(&tag, ExclusiveLock, true, !wait) == LOCKACQUIRE_NOT_AVAIL)
		return DELIVERER_BUSY;
	return DELIVERER_LOCKED;
}

/* However often it was taken.  Neither a worker nor a CALL has other locks that belong to the session. */
void
deliverer_unlock(void)
{
	LockReleaseSession(DEFAULT_LOCKMETHOD);
}

int
deliverer_pid(void)
{
	Installation installation;
	LOCKTAG		tag = lock_tag(owner_find(&installation) ? installation.extension : InvalidOid);
	LockData   *locks = GetLockStatusData();

	for (int i = 0; i < locks->nelements; i++)
	{
		LockInstanceData *lock = &locks->locks[i];

		if (lock->holdMask != 0 && memcmp(&lock->locktag, &tag, sizeof(tag)) == 0)
			return lock->pid;
	}
	return 0;
}

/* ---- for the worker ---- */

bool
wakeup_enter(Oid database)
{
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find_or_take_slot(database);
	if (slot != NULL && slot->proc == NO_PROC)
	{
		set_slot(slot, SLOT_STARTING, my_proc_number(), now + STARTING_FOR);
		mine = slot;
	}
	SpinLockRelease(&shared->lock);
	return mine != NULL;
}

int
wakeup_take(void)
{
	int			wake;

	SpinLockAcquire(&shared->lock);
	wake = mine->wake;
	mine->wake = 0;
	SpinLockRelease(&shared->lock);
	return wake;
}

void
wakeup_looked(void)
{
	SpinLockAcquire(&shared->lock);
	mine->state = SLOT_RUNNING;
	SpinLockRelease(&shared->lock);
	wake_launcher();
}

static void
quit_slot(SlotState state, TimestampTz due)
{
	SpinLockAcquire(&shared->lock);
	set_slot(mine, state, NO_PROC, due);
	SpinLockRelease(&shared->lock);
	mine = NULL;
	wake_launcher();
}

bool
wakeup_leave(TimestampTz due)
{
	bool		may_leave;

	SpinLockAcquire(&shared->lock);
	may_leave = mine->wake == 0 && (due == DT_NOEND || shared->launcher != NO_PROC);
	if (may_leave)
		set_slot(mine, SLOT_FREE, NO_PROC, due);
	SpinLockRelease(&shared->lock);
	if (may_leave)
	{
		mine = NULL;
		wake_launcher();
	}
	return may_leave;
}

void
wakeup_hand_over(void)
{
	quit_slot(SLOT_FREE, DT_NOEND);
	wake_worker(MyDatabaseId, 0, true);
}

void
wakeup_died(void)
{
	if (mine != NULL)
		quit_slot(SLOT_DIED, GetCurrentTimestamp() + RESTART_AFTER);
}

/* ---- for all deliverers, and for the status view ---- */

TimestampTz
wakeup_doubt(void)
{
	TimestampTz doubt;

	SpinLockAcquire(&shared->lock);
	doubt = shared->doubt;
	SpinLockRelease(&shared->lock);
	return doubt;
}

void
wakeup_raise_doubt(void)
{
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&shared->lock);
	shared->doubt = Max(shared->doubt, now);
	SpinLockRelease(&shared->lock);
}

const char *
wakeup_status(void)
{
	TimestampTz now = GetCurrentTimestamp();
	const char *status = "waits for a request";
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find_slot(MyDatabaseId);
	if (slot != NULL && (has_worker(slot, now) ||
						 (slot->state == SLOT_FREE && slot->due != DT_NOEND && shared->launcher != NO_PROC)))
		status = "working";
	else if (slot != NULL && slot->state != SLOT_FREE)
		status = "no free worker";
	SpinLockRelease(&shared->lock);
	return status;
}

/* ---- for the launcher ---- */

void
wakeup_begin_launcher(void)
{
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&shared->lock);
	/* It stays so: the postmaster restarts a launcher that ends. */
	shared->launcher = my_proc_number();
	shared->sweep_due = now;
	SpinLockRelease(&shared->lock);

	/* After a promotion, what the old primary recorded may not have been replicated. */
	wakeup_raise_doubt();
}

TimestampTz
wakeup_due(Oid *database)
{
	TimestampTz due;

	*database = InvalidOid;
	SpinLockAcquire(&shared->lock);
	due = shared->sweep_due;
	for (int i = 0; i < SLOTS_COUNT; i++)
	{
		Slot	   *slot = &shared->slots[i];

		if (slot->proc == NO_PROC && slot->due < due)
		{
			due = slot->due;
			*database = slot->database;
		}
	}
	SpinLockRelease(&shared->lock);
	return due;
}

void
wakeup_sweep_at(TimestampTz due)
{
	SpinLockAcquire(&shared->lock);
	shared->sweep_due = due;
	SpinLockRelease(&shared->lock);
}

void
wakeup_launch(Oid database)
{
	wake_worker(database, 0, true);
}

TimestampTz
wakeup_looks_until(Oid database)
{
	TimestampTz until = 0;
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find_slot(database);
	if (slot != NULL && slot->state == SLOT_STARTING)
		until = slot->due;
	SpinLockRelease(&shared->lock);
	return until;
}

void
wakeup_forget(Oid database)
{
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find_slot(database);
	if (slot != NULL && slot->proc == NO_PROC)
		clear_slot(slot, InvalidOid);
	SpinLockRelease(&shared->lock);
}

/* ---- waiting ---- */

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
wakeup_wait(TimestampTz until, uint32 wait_event)
{
	TimestampTz now = GetCurrentTimestamp();
	/* WaitLatch() takes no more than 24 days. */
	long		timeout = TimestampDifferenceMilliseconds(now, Min(until, now + USECS_PER_DAY));

	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout, wait_event);
	ResetLatch(MyLatch);
	wakeup_serve_signals();
}
