/*
 * wakeup.c
 *		Who has a worker, and waking or starting one at commit.
 *
 * Two things that belong together: the slots, a few kB of shared memory that
 * say which databases have a worker; and what a commit does with them.
 *
 * The memory is there whether or not the library was preloaded: the first
 * process that needs it makes it.  It holds oids, times and proc numbers, no
 * pointers.  A spinlock guards it, since what runs after a commit must not
 * throw, and an LWLock of an extension's own cannot be had the same way in all
 * versions.  Nothing is called while the spinlock is held but what only
 * touches the slots.
 *
 *		FREE ----------> STARTING ----------> RUNNING
 *		  ^   commit         |   wakeup_enter  |  |
 *		  |   launcher       |                 |  | wakeup_died
 *		  |                  v                 |  v
 *		  |                DIED <--------------|--+
 *		  +------------------------------------+
 *					wakeup_leave
 *
 * DIED is what could not start or ended without leaving: the launcher starts
 * it again, each time later; without a launcher the next commit does.  A
 * worker that was killed so hard that it could not say so takes the whole
 * server down to crash recovery, which makes this memory anew.  How the states
 * keep a wake-up from being lost is in worker.c.
 *
 * A transaction that requests cancels notes that here; its commit wakes the
 * worker, its rollback nobody.  The commit callback runs when the transaction
 * can no longer be undone: an error there would be a PANIC and take all
 * sessions down.  So whatever can fail, attaching to shared memory above all,
 * is done when the request is made; the callback takes a spinlock, sets a
 * latch, or hands a struct on its stack to the postmaster.  If no worker can
 * start it warns: the rows are there, and the next commit, the launcher or a
 * CALL takes them.
 *
 * COMMIT PREPARED runs no callback of ours, and may come from anywhere, years
 * later.  So PREPARE wakes the worker and says that it is only a PREPARE; the
 * worker asks again and again, until no prepared transaction holds a lock on
 * onesignal_message any more (worker.c).  Whoever requested has that lock
 * already; who only changed a server takes it before PREPARE.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "settings.h"
#include "statements.h"
#include "wakeup.h"

/* The number grows with each change of the layout: a library of another version may be loaded beside. */
#define SLOTS_NAME		"onesignal_cancel slots 2"

/*
 * Databases that can have a worker, a retry that is due, or one that died, at
 * one time.  Were there more, the launcher would look into all databases
 * instead of those it has to.
 */
#define SLOTS_COUNT		128

#define NO_PROC			(-1)

/* A registered worker that has not shown up by then never will: its fork failed, say. */
#define STARTING_FOR	(10 * USECS_PER_SEC)

/* Between two starts of a worker that dies: doubling, in seconds. */
#define RESTART_MAX		60

typedef enum SlotState
{
	SLOT_FREE,
	SLOT_STARTING,
	SLOT_RUNNING,
	SLOT_DIED
} SlotState;

typedef struct Slot
{
	Oid			database;		/* InvalidOid: never used */
	SlotState	state;
	int			proc;			/* of a running worker */
	bool		wake;			/* a commit asks for a look */
	bool		looking;		/* the launcher's sweep waits for this worker's look */
	int			deaths;			/* in a row */
	TimestampTz since;			/* when it entered this state */
	TimestampTz next_due;		/* of a free slot: start a worker then; 0: no need */
	TimestampTz prepared_at;	/* the last PREPARE TRANSACTION with requests; 0: all have ended */
} Slot;

typedef struct Slots
{
	slock_t		lock;
	int			launcher;
	TimestampTz sweep_due;		/* when a slot was lost to another database */
	TimestampTz doubt;			/* requests older than this may have been sent without a record */
	Slot		slots[SLOTS_COUNT];
} Slots;

static Slots *shared = NULL;

/* The calling worker's own slot, from wakeup_enter() until it left or died. */
static Slot *mine = NULL;

/*
 * The outermost subtransaction level that a request of this transaction
 * belongs to, 0: none.  Rolling that level back takes all requests back that
 * are not older.
 */
static int	request_level = 0;
static bool poked = false;

/* ---- the memory ---- */

static void
initialize_slots(void *memory)
{
	Slots	   *slots = memory;

	memset(slots, 0, sizeof(Slots));
	SpinLockInit(&slots->lock);
	slots->launcher = NO_PROC;
	slots->sweep_due = DT_NOEND;

	/* A crash, or a promotion, that made new memory necessary came before now. */
	slots->doubt = GetCurrentTimestamp();
	for (int i = 0; i < SLOTS_COUNT; i++)
		slots->slots[i].proc = NO_PROC;
}

void
wakeup_reserve(void)
{
	reserve_shared_memory(sizeof(Slots));
}

void
wakeup_attach(void)
{
	if (shared == NULL)
		shared = get_shared_memory(SLOTS_NAME, sizeof(Slots), initialize_slots);
}

static void
wake_proc(int proc)
{
	/* The process may be another one by now: a latch set in vain does no harm. */
	if (proc != NO_PROC)
		SetLatch(&GetPGProcByNumber(proc)->procLatch);
}

static void
wake_launcher(void)
{
	int			launcher;

	SpinLockAcquire(&shared->lock);
	launcher = shared->launcher;
	SpinLockRelease(&shared->lock);
	wake_proc(launcher);
}

/* ---- the slots, with the lock held ---- */

static void
set_state(Slot *slot, SlotState state, TimestampTz now)
{
	slot->state = state;
	slot->since = now;
	slot->proc = NO_PROC;
	slot->looking = false;
}

/* Somebody who set the clock back must not keep a slot starting for an hour. */
static bool
is_late(const Slot *slot, TimestampTz now)
{
	return slot->state == SLOT_STARTING &&
		(now >= slot->since + STARTING_FOR || now < slot->since);
}

/* When the launcher has to start a worker for it; DT_NOEND: never. */
static TimestampTz
due_of(const Slot *slot)
{
	int			delay;

	switch (slot->state)
	{
		case SLOT_FREE:
			return slot->next_due == 0 ? DT_NOEND : slot->next_due;
		case SLOT_STARTING:
			return slot->since + STARTING_FOR;
		case SLOT_DIED:
			delay = Min(RESTART_MAX, 1 << Min(slot->deaths - 1, 6));
			return slot->since + delay * USECS_PER_SEC;
		case SLOT_RUNNING:
			break;
	}
	return DT_NOEND;
}

static Slot *
find_slot(Oid database)
{
	for (int i = 0; i < SLOTS_COUNT; i++)
	{
		if (shared->slots[i].database == database)
			return &shared->slots[i];
	}
	return NULL;
}

/*
 * The database's slot, or else one that was never used, or else the one whose
 * database needs a worker last: what it was due for is left to a sweep.
 */
static Slot *
find_or_take_slot(Oid database)
{
	Slot	   *slot = find_slot(database);

	if (slot == NULL)
		slot = find_slot(InvalidOid);
	for (int i = 0; slot == NULL && i < SLOTS_COUNT; i++)
	{
		if (shared->slots[i].state == SLOT_FREE && shared->slots[i].next_due == 0)
			slot = &shared->slots[i];
	}
	for (int i = 0; slot == NULL && i < SLOTS_COUNT; i++)
	{
		if (shared->slots[i].state == SLOT_FREE || shared->slots[i].state == SLOT_DIED)
		{
			slot = &shared->slots[i];
			shared->sweep_due = Min(shared->sweep_due, due_of(slot));
		}
	}
	if (slot != NULL && slot->database != database)
	{
		memset(slot, 0, sizeof(Slot));
		slot->proc = NO_PROC;
		slot->database = database;
	}
	return slot;
}

/*
 * Makes it STARTING unless a worker is there or on its way.  True: the caller
 * has to register one, once it has let go of the lock.
 */
static bool
begin_start(Slot *slot, TimestampTz now)
{
	if (slot->state == SLOT_RUNNING || (slot->state == SLOT_STARTING && !is_late(slot, now)))
		return false;
	set_state(slot, SLOT_STARTING, now);
	return true;
}

/* ---- starting and waking ---- */

/*
 * All that RegisterDynamicBackgroundWorker() could throw is a flaw in this
 * struct, which has none; only with a handle would it allocate.
 *
 * The postmaster never restarts such a worker: in a dropped database it would
 * go on doing so for ever, and after a crash it would not.  The launcher does.
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

/* At most once a minute: a warning per commit would bury everything else. */
static void
complain(bool slots_are_full)
{
	static TimestampTz complained_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (complained_at != 0 && !TimestampDifferenceExceeds(complained_at, now, 60 * 1000))
		return;
	complained_at = now;
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("could not start a background worker to deliver requested cancels"),
			 errdetail("The requests are kept until a worker can start."),
			 slots_are_full
			 ? errhint("Too many databases have one. Deliver with CALL onesignal_cancel_deliver().")
			 : errhint("Increase max_worker_processes, or deliver with CALL onesignal_cancel_deliver().")));
}

/* Registers the worker of a slot that was made STARTING. */
static void
start_worker(Slot *slot, Oid database)
{
	bool		registered = register_worker(database);
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&shared->lock);
	if (!registered && slot->database == database && slot->state == SLOT_STARTING)
	{
		set_state(slot, SLOT_DIED, now);
		slot->deaths++;
	}
	SpinLockRelease(&shared->lock);

	/* It watches over what was registered, too: a fork may fail. */
	wake_launcher();
	if (!registered)
		complain(false);
}

/* At a commit, or a PREPARE. */
static void
wake_worker(bool prepared)
{
	bool		may_start = settings_enabled && settings_background_delivery;
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot;
	int			proc = NO_PROC;
	bool		starts = false;

	SpinLockAcquire(&shared->lock);
	slot = may_start ? find_or_take_slot(MyDatabaseId) : find_slot(MyDatabaseId);
	if (slot != NULL)
	{
		slot->wake = true;
		if (prepared)
			slot->prepared_at = now;
		proc = slot->proc;
		starts = may_start && begin_start(slot, now);
	}
	SpinLockRelease(&shared->lock);

	wake_proc(proc);
	if (starts)
		start_worker(slot, MyDatabaseId);
	else if (slot == NULL && may_start)
		complain(true);
}

/* ---- the end of a transaction ---- */

/* For the worker to find, as long as the transaction is prepared. */
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
	bool		wake = request_level > 0 || poked;

	(void) arg;
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			if (wake)
				lock_table_for_prepare();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
			request_level = 0;
			poked = false;
			if (wake)
				wake_worker(event == XACT_EVENT_PREPARE);
			break;
		case XACT_EVENT_ABORT:
			request_level = 0;
			poked = false;
			break;
		default:
			break;
	}
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

/* False: there is nobody to wake in this kind of process. */
static bool
prepare_for_commit(void)
{
	static bool registered = false;

	if (IsBinaryUpgrade || !IsUnderPostmaster || !OidIsValid(MyDatabaseId))
		return false;
	wakeup_attach();
	if (!registered)
	{
		/* PostgreSQL would keep a second registration beside the first. */
		RegisterXactCallback(on_transaction_end, NULL);
		RegisterSubXactCallback(on_subtransaction_end, NULL);
		registered = true;
	}
	return true;
}

void
wakeup_request(void)
{
	int			level = GetCurrentTransactionNestLevel();

	if (request_level > 0 && request_level <= level)
		return;

	/*
	 * A commit that is visible to the worker but not on disk yet could be
	 * undone by a crash when its message is canceled already.
	 */
	ForceSyncCommit();
	if (prepare_for_commit())
		request_level = level;
}

void
wakeup_poke(void)
{
	if (!poked)
		poked = prepare_for_commit();
}

/* ---- for the worker ---- */

WakeupDelivery
wakeup_delivery(Oid database)
{
	TimestampTz now = GetCurrentTimestamp();
	WakeupDelivery delivery = WAKEUP_NOBODY;
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find_slot(database);
	if (slot != NULL && (slot->state == SLOT_DIED || is_late(slot, now)))
		delivery = WAKEUP_NO_WORKER;
	else if (slot != NULL && (slot->state != SLOT_FREE ||
							  (slot->next_due != 0 && shared->launcher != NO_PROC)))
		delivery = WAKEUP_AT_WORK;
	SpinLockRelease(&shared->lock);
	return delivery;
}

bool
wakeup_enter(Oid database)
{
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot;
	bool		looking;

	SpinLockAcquire(&shared->lock);
	slot = find_or_take_slot(database);
	if (slot != NULL && slot->state != SLOT_RUNNING)
	{
		looking = slot->looking;
		set_state(slot, SLOT_RUNNING, now);
		slot->looking = looking;
		slot->proc = my_proc_number();
		mine = slot;
	}
	SpinLockRelease(&shared->lock);
	return mine != NULL;
}

bool
wakeup_take(void)
{
	bool		wake;

	SpinLockAcquire(&shared->lock);
	wake = mine->wake;
	mine->wake = false;
	SpinLockRelease(&shared->lock);
	return wake;
}

void
wakeup_looked(void)
{
	bool		was_looking;

	SpinLockAcquire(&shared->lock);
	was_looking = mine->looking;
	mine->looking = false;
	SpinLockRelease(&shared->lock);
	if (was_looking)
		wake_launcher();
}

/*
 * next_due: when a worker has to be back, 0: not before the next commit.  The
 * worker has to stay when a commit woke it meanwhile, and when it has to be
 * back but nobody would start it.
 */
bool
wakeup_leave(TimestampTz next_due)
{
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot = mine;

	SpinLockAcquire(&shared->lock);
	if (!slot->wake && (next_due == 0 || shared->launcher != NO_PROC))
	{
		set_state(slot, SLOT_FREE, now);
		slot->deaths = 0;
		slot->next_due = next_due;
		mine = NULL;
	}
	SpinLockRelease(&shared->lock);

	if (mine == NULL)
		wake_launcher();
	return mine == NULL;
}

bool
wakeup_hand_over(void)
{
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot = mine;

	SpinLockAcquire(&shared->lock);
	set_state(slot, SLOT_STARTING, now);
	SpinLockRelease(&shared->lock);
	mine = NULL;
	if (register_worker(MyDatabaseId))
	{
		wake_launcher();
		return true;
	}

	/* Nobody has touched the slot: it has not been STARTING for long enough. */
	SpinLockAcquire(&shared->lock);
	set_state(slot, SLOT_RUNNING, now);
	slot->proc = my_proc_number();
	SpinLockRelease(&shared->lock);
	mine = slot;
	return false;
}

void
wakeup_died(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (mine == NULL)
		return;
	SpinLockAcquire(&shared->lock);
	if (now - mine->since > RESTART_MAX * USECS_PER_SEC)
		mine->deaths = 0;
	set_state(mine, SLOT_DIED, now);
	mine->deaths++;
	SpinLockRelease(&shared->lock);

	mine = NULL;
	wake_launcher();
}

TimestampTz
wakeup_prepared_at(void)
{
	TimestampTz prepared_at;

	SpinLockAcquire(&shared->lock);
	prepared_at = mine->prepared_at;
	SpinLockRelease(&shared->lock);
	return prepared_at;
}

/* A PREPARE since the question makes another time, and so another question. */
void
wakeup_note_prepared(TimestampTz prepared_at, bool still)
{
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&shared->lock);
	if (mine->prepared_at == prepared_at && !(still && prepared_at != 0))
		mine->prepared_at = still ? now : 0;
	SpinLockRelease(&shared->lock);
}

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

	if (shared == NULL)
		return;
	SpinLockAcquire(&shared->lock);
	shared->doubt = Max(shared->doubt, now);
	SpinLockRelease(&shared->lock);
}

/* ---- for the launcher ---- */

void
wakeup_set_launcher(bool here)
{
	int			me = my_proc_number();

	if (shared == NULL)
		return;
	SpinLockAcquire(&shared->lock);
	if (here)
		shared->launcher = me;
	else if (shared->launcher == me)
		shared->launcher = NO_PROC;
	SpinLockRelease(&shared->lock);
}

/* When the launcher has something to do, and for which database (InvalidOid: all); DT_NOEND: nothing. */
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

		if (OidIsValid(slot->database) && due_of(slot) < due)
		{
			due = due_of(slot);
			*database = slot->database;
		}
	}
	SpinLockRelease(&shared->lock);
	return due;
}

void
wakeup_launch(Oid database, bool look)
{
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot;
	bool		starts = false;

	SpinLockAcquire(&shared->lock);
	slot = find_or_take_slot(database);
	if (slot != NULL && begin_start(slot, now))
	{
		slot->looking = look;
		starts = true;
	}
	SpinLockRelease(&shared->lock);

	if (starts)
		start_worker(slot, database);
	else if (slot == NULL)
		complain(true);
}

/* Until when a sweep has to wait for this database's worker to have looked; 0: it has, or will not. */
TimestampTz
wakeup_looks_until(Oid database)
{
	TimestampTz until = 0;
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find_slot(database);
	if (slot != NULL && slot->looking)
		until = slot->since + STARTING_FOR;
	SpinLockRelease(&shared->lock);
	return until;
}

/* The database is gone, or takes no connections. */
void
wakeup_forget(Oid database)
{
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find_slot(database);
	if (slot != NULL && slot->state != SLOT_RUNNING)
	{
		memset(slot, 0, sizeof(Slot));
		slot->proc = NO_PROC;
	}
	SpinLockRelease(&shared->lock);
}

void
wakeup_swept(void)
{
	SpinLockAcquire(&shared->lock);
	shared->sweep_due = DT_NOEND;
	SpinLockRelease(&shared->lock);
}

/* ---- waiting ---- */

void
wakeup_wait(TimestampTz until, uint32 wait_event)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	long		timeout = -1;

	if (until != DT_NOEND)
	{
		events |= WL_TIMEOUT;
		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
	}
	(void) WaitLatch(MyLatch, events, timeout, wait_event);
	ResetLatch(MyLatch);
}

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
