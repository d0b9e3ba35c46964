/*
 * wakeup.c
 *		Who delivers in a database, and how a commit wakes or starts its worker.
 *
 * A commit starts the database's worker, which leaves when nothing falls due
 * any more.  The danger is a commit that comes just when the worker leaves:
 * nobody would deliver its rows.  So each database has a slot in shared memory,
 * with a state and a flag "wake".  Rows are visible before "wake" is set.
 *
 * Commit: one critical section sets "wake" and reads the state.  RUNNING: the
 * commit sets the worker's latch.  STARTING, for less than ten seconds: a
 * worker is on its way and has yet to look.  Otherwise the slot becomes
 * STARTING and the commit registers a worker; if that fails, FREE again.
 *
 * Worker:
 *	1. It arms its exit callback: unless it leaves by step 5, its slot becomes
 *	   FREE, and the launcher replaces it soon.
 *	2. It makes the slot RUNNING.  If another worker has, it ends: the other one
 *	   sees "wake".  Only then it connects, so a commit in between finds it.
 *	3. It clears "wake" and waits for the deliverer's lock.  A CALL may have the
 *	   lock, or a worker that left but has not ended.  Those may have looked
 *	   already, so a later commit needs this worker: it must not leave here.
 *	4. It looks for rows and delivers until nothing is due.  If it is woken, or
 *	   a row falls due, it goes to step 3.
 *	5. To leave, one critical section reads "wake".  If it is set, the worker
 *	   goes to step 3.  If not, the slot becomes FREE, with the time when a
 *	   worker has to be back.  Without a launcher it stays for that time.
 *
 * Why no wake-up is lost: if "wake" is set before the section of step 5, the
 * worker sees it there and looks again, with a snapshot that is younger than
 * the clearing of step 3.  If it is set after that section, the commit finds
 * FREE and starts another worker.  If a worker is killed so hard that its exit
 * callback does not run, the whole server restarts with new shared memory.
 *
 * An error in the commit callback would be a PANIC, as the transaction cannot
 * be undone any more.  What can fail, above all attaching to shared memory, is
 * done when the request is made.  The callback takes a spinlock, sets a latch,
 * or hands a struct on its stack to the postmaster.
 *
 * COMMIT PREPARED runs no callback of ours.  So PREPARE wakes the worker, which
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

/* When more databases have a worker or wait for one, the launcher looks into all. */
#define SLOTS_COUNT		128

#define NO_PROC			(-1)

/* A registered worker that has not entered by then never will: its fork failed, for example. */
#define STARTING_FOR	(10 * USECS_PER_SEC)

/* How soon the launcher replaces a worker that could not start, or ended without leaving. */
#define RESTART_AFTER	(5 * USECS_PER_SEC)

/* Seconds until the postmaster restarts a launcher that was terminated. */
#define LAUNCHER_RESTART	5

/* Objects have sub-object 0, and only those of pg_class have columns. */
#define DELIVERER_SUBOBJECT 1

typedef enum SlotState
{
	SLOT_FREE,
	SLOT_STARTING,				/* a worker was registered, and must be there by "due" */
	SLOT_RUNNING
} SlotState;

typedef struct Slot
{
	Oid			database;		/* InvalidOid: never used */
	SlotState	state;
	int			proc;			/* of the RUNNING worker, or NO_PROC */
	int			wake;			/* WAKEUP_ bits; FREE with some: a worker could not start */
	TimestampTz due;			/* when the launcher starts a worker, unless it is RUNNING; DT_NOEND: never */
} Slot;

typedef struct Slots
{
	slock_t		lock;
	int			launcher;
	TimestampTz sweep_due;		/* when the launcher looks into all databases; DT_NOEND: never */
	pg_atomic_uint64 doubt;		/* needs no lock */
	Slot		slots[SLOTS_COUNT];
} Slots;

/*
 * A spinlock guards them, since code that runs after a commit must not throw.
 * While it is held nothing is called but functions that only touch the slots.
 */
static Slots *shared = NULL;

/* The calling worker's own slot, from wakeup_enter() until it left or ended. */
static Slot *mine = NULL;

/* ---- the memory ---- */

/* Only the worker itself makes it RUNNING. */
static void
set_slot(Slot *slot, SlotState state, TimestampTz due)
{
	slot->state = state;
	slot->proc = state == SLOT_RUNNING ? my_proc_number() : NO_PROC;
	slot->due = due;
}

static void
initialize_slots(INITIALIZE_PARAMETERS)
{
	Slots	   *slots = memory;

	memset(slots, 0, sizeof(Slots));
	SpinLockInit(&slots->lock);
	slots->launcher = NO_PROC;
	slots->sweep_due = DT_NOEND;

	/* The crash that made new memory necessary, if there was one, came before now. */
	pg_atomic_init_u64(&slots->doubt, (uint64) GetCurrentTimestamp());
	for (int i = 0; i < SLOTS_COUNT; i++)
		set_slot(&slots->slots[i], SLOT_FREE, DT_NOEND);
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

/* ---- the slots, with the lock held ---- */

/* Is a worker there or on its way?  A clock that was set back must not keep a slot starting for an hour. */
static bool
has_worker(const Slot *slot, TimestampTz now)
{
	return slot->state == SLOT_RUNNING ||
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

		if (other->state == SLOT_FREE && (slot == NULL || other->due > slot->due))
			slot = other;
	}
	if (slot != NULL)
	{
		shared->sweep_due = Min(shared->sweep_due, slot->due);
		slot->database = database;
		slot->wake = 0;
		set_slot(slot, SLOT_FREE, DT_NOEND);
	}
	return slot;
}

/* ---- starting and waking ---- */

/* A process of ours; role: "launcher" or "worker". */
static void
describe_process(BackgroundWorker *process, const char *role)
{
	memset(process, 0, sizeof(*process));
	snprintf(process->bgw_name, BGW_MAXLEN, "onesignal_cancel %s", role);
	snprintf(process->bgw_type, BGW_MAXLEN, "onesignal_cancel %s", role);
	process->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	process->bgw_start_time = BgWorkerStart_RecoveryFinished;
	strlcpy(process->bgw_library_name, "onesignal_cancel", BGW_MAXLEN);
	snprintf(process->bgw_function_name, BGW_MAXLEN, "%s_main", role);
}

/*
 * Throws nothing: PostgreSQL would raise an error only for mistakes in the
 * struct, and allocate memory only for a handle.  The postmaster must not
 * restart the worker: in a dropped database it would do so for ever, and after
 * a crash it would not.  The launcher does.
 */
static bool
register_worker(Oid database)
{
	BackgroundWorker process;

	describe_process(&process, "worker");
	snprintf(process.bgw_name, BGW_MAXLEN, "onesignal_cancel worker for database %u", database);
	process.bgw_restart_time = BGW_NEVER_RESTART;
	process.bgw_main_arg = ObjectIdGetDatum(database);
	return RegisterDynamicBackgroundWorker(&process, NULL);
}

/* At most once a minute: one for each commit would hide all other messages. */
static void
warn_of_no_worker(void)
{
	static TimestampTz warned_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (now - warned_at < USECS_PER_MINUTE)
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
		starts = may_start && !has_worker(slot, now);
		if (starts)
			set_slot(slot, SLOT_STARTING, now + STARTING_FOR);
		if (slot->state != SLOT_FREE)
			slot->wake |= wake;
		proc = slot->proc;
	}
	SpinLockRelease(&shared->lock);

	wake_proc(proc);
	failed = may_start && slot == NULL;
	if (starts)
	{
		failed = !register_worker(database);
		SpinLockAcquire(&shared->lock);
		/* Nobody else takes a slot that is STARTING, but a worker that is very late may have entered it. */
		if (failed && slot->state == SLOT_STARTING)
			set_slot(slot, SLOT_FREE, now + RESTART_AFTER);
		SpinLockRelease(&shared->lock);
		/* It also has to watch over a worker that was registered: the fork may fail. */
		wake_proc(shared->launcher);
	}
	if (failed)
		warn_of_no_worker();
}

/* ---- the end of a transaction ---- */

/*
 * The (sub)transaction that first requested something.  What was requested
 * after it is undone together with it: that came in the same one, within it, or
 * after it had become part of its parent.
 */
static TransactionId requested_in = InvalidTransactionId;

static void
on_transaction_end(XactEvent event, void *arg)
{
	bool		may_start = settings_enabled && settings_background_delivery;
	Installation installation;

	(void) arg;
	/* It was rolled back, or belongs to an earlier transaction. */
	if (!TransactionIdIsCurrentTransactionId(requested_in))
		return;
	/* So that the worker finds the prepared transaction. */
	if (event == XACT_EVENT_PRE_PREPARE && owner_find(&installation))
		LockRelationOid(installation.message_table, RowExclusiveLock);
	if (event == XACT_EVENT_PREPARE)
		wake_worker(MyDatabaseId, WAKEUP_PREPARE, may_start);
	else if (event == XACT_EVENT_COMMIT)
		wake_worker(MyDatabaseId, WAKEUP_COMMIT, may_start);
}

void
wakeup_poke(void)
{
	static bool registered = false;

	/* In these processes there is nobody to wake. */
	if (IsBinaryUpgrade || !IsUnderPostmaster || !OidIsValid(MyDatabaseId))
		return;
	wakeup_attach();
	/* PostgreSQL would keep a second registration beside the first. */
	if (!registered)
		RegisterXactCallback(on_transaction_end, NULL);
	registered = true;
	if (!TransactionIdIsCurrentTransactionId(requested_in))
		requested_in = GetCurrentTransactionId();
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

static int
lock_holder(const LOCKTAG *tag)
{
	LockData   *locks = GetLockStatusData();

	CHECK_FOR_INTERRUPTS();
	for (int i = 0; i < locks->nelements; i++)
		if (locks->locks[i].holdMask != 0 && memcmp(&locks->locks[i].locktag, tag, sizeof(*tag)) == 0)
			return locks->locks[i].pid;
	return 0;
}

/*
 * The lock is on the extension, with a sub-object number that nobody else uses:
 * neither SQL's advisory lock functions nor DROP EXTENSION meet it.  It belongs
 * to the session, so it outlives the short transactions of a run.
 */
int
deliverer_lock(bool wait)
{
	Installation installation;
	LOCKTAG		tag;
	int			holder = 0;

	if (!owner_find(&installation))
		return DELIVERER_NO_EXTENSION;
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, installation.extension, DELIVERER_SUBOBJECT);

	/* A CALL may have the lock for hours, and this wait must not hold back VACUUM. */
	InvalidateCatalogSnapshot();
	while (holder == 0 && LockAcquire(&tag, ExclusiveLock, true, !wait) == LOCKACQUIRE_NOT_AVAIL)
		holder = lock_holder(&tag);
	return holder;
}

/* However often it was taken.  Neither a worker nor a CALL has other locks that belong to the session. */
void
deliverer_unlock(void)
{
	LockReleaseSession(DEFAULT_LOCKMETHOD);
}

/* ---- for the worker ---- */

bool
wakeup_enter(Oid database)
{
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find_or_take_slot(database);
	if (slot != NULL && slot->state != SLOT_RUNNING)
	{
		set_slot(slot, SLOT_RUNNING, DT_NOEND);
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

bool
wakeup_leave(TimestampTz due)
{
	bool		may_leave;

	SpinLockAcquire(&shared->lock);
	may_leave = mine->wake == 0 && (due == DT_NOEND || shared->launcher != NO_PROC);
	if (may_leave)
	{
		set_slot(mine, SLOT_FREE, due);
		mine = NULL;
	}
	SpinLockRelease(&shared->lock);
	wake_proc(shared->launcher);
	return may_leave;
}

void
wakeup_end(bool died)
{
	TimestampTz now = GetCurrentTimestamp();

	if (mine == NULL)
		return;
	SpinLockAcquire(&shared->lock);
	mine->wake = 0;				/* another worker looks anyway, and could start */
	set_slot(mine, SLOT_FREE, died ? now + RESTART_AFTER : DT_NOEND);
	SpinLockRelease(&shared->lock);
	mine = NULL;
	wake_proc(shared->launcher);
}

/* ---- for all deliverers, and for the status view ---- */

TimestampTz
wakeup_doubt(void)
{
	return (TimestampTz) pg_atomic_read_u64(&shared->doubt);
}

void
wakeup_raise_doubt(void)
{
	uint64		now = (uint64) GetCurrentTimestamp();
	uint64		doubt = pg_atomic_read_u64(&shared->doubt);

	while (doubt < now && !pg_atomic_compare_exchange_u64(&shared->doubt, &doubt, now))
		;
}

/* A copy of the database's slot; a FREE one when it has none. */
static Slot
read_slot(Oid database)
{
	Slot		copy = {.state = SLOT_FREE, .due = DT_NOEND};
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find_slot(database);
	if (slot != NULL)
		copy = *slot;
	SpinLockRelease(&shared->lock);
	return copy;
}

bool
wakeup_has_worker(Oid database)
{
	Slot		slot = read_slot(database);

	return has_worker(&slot, GetCurrentTimestamp());
}

const char *
wakeup_status(void)
{
	Slot		slot;

	if (!settings_enabled)
		return "switched off";
	if (!settings_background_delivery)
		return "by CALL only";
	if (RecoveryInProgress())
		return "standby";
	wakeup_attach();
	slot = read_slot(MyDatabaseId);
	if (has_worker(&slot, GetCurrentTimestamp()))
		return "working";
	if (slot.wake != 0)
		return "no free worker";
	/* The launcher starts a worker for the next retry, or in place of one that died. */
	return slot.due != DT_NOEND && shared->launcher != NO_PROC ? "working" : "waits for a request";
}

/* ---- for the launcher ---- */

void
wakeup_register_launcher(void)
{
	BackgroundWorker process;

	describe_process(&process, "launcher");
	process.bgw_restart_time = LAUNCHER_RESTART;
	RegisterBackgroundWorker(&process);
}

void
wakeup_begin_launcher(void)
{
	/* It stays so: the postmaster restarts a launcher that ends. */
	shared->launcher = my_proc_number();
	wakeup_sweep_at(0);

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

		if (slot->due < due)
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
	wake_worker(database, WAKEUP_COMMIT, true);
}

void
wakeup_forget(Oid database)
{
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find_slot(database);
	if (slot != NULL && slot->state != SLOT_RUNNING)
		set_slot(slot, SLOT_FREE, DT_NOEND);
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
