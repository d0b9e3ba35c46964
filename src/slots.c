/*
 * slots.c
 *		Which databases have a worker: a few kB of shared memory.
 *
 * The memory is there whether or not the library was preloaded: the first
 * process that needs it makes it.  It holds oids, times and proc numbers, no
 * pointers.  A spinlock guards it, since what runs after a commit must not
 * throw, and an LWLock of an extension's own cannot be had the same way in all
 * versions.  Nothing is called while the spinlock is held but what only
 * touches the slots.
 *
 *		FREE ----------> STARTING ----------> RUNNING
 *		  ^   slots_wake     |   slots_enter   |  |
 *		  |   slots_launch   |                 |  | slots_died
 *		  |                  v                 |  v
 *		  |                DIED <--------------|--+
 *		  +------------------------------------+
 *					slots_leave
 *
 * DIED is what could not start or ended without leaving: the launcher starts
 * it again, each time later; without a launcher the next commit does.  A
 * worker that was killed so hard that it could not say so takes the whole
 * server down to crash recovery, which makes this memory anew.
 *
 * How the states keep a wake-up from being lost is in worker.c.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "slots.h"

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

/* The calling worker's own slot, from slots_enter() until it left or died. */
static Slot *mine = NULL;
static Slot *handed_over = NULL;

static void
initialize(void *memory)
{
	Slots	   *slots = memory;

	memset(slots, 0, sizeof(Slots));
	SpinLockInit(&slots->lock);
	slots->launcher = NO_PROC;
	slots->sweep_due = DT_NOEND;

	/*
	 * The crash that made new memory necessary ended all processes, so it came
	 * before this one began.
	 */
	slots->doubt = MyStartTimestamp;
	for (int i = 0; i < SLOTS_COUNT; i++)
		slots->slots[i].proc = NO_PROC;
}

void
slots_reserve(void)
{
	reserve_shared_memory(sizeof(Slots));
}

void
slots_attach(void)
{
	if (shared == NULL)
		shared = get_shared_memory(SLOTS_NAME, sizeof(Slots), initialize);
}

static void
wake_proc(int proc)
{
	/* The process may be another one by now: a latch set in vain does no harm. */
	if (proc != NO_PROC)
		SetLatch(&GetPGProcByNumber(proc)->procLatch);
}

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
find(Oid database)
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
find_or_take(Oid database)
{
	Slot	   *slot = find(database);

	if (slot == NULL)
		slot = find(InvalidOid);
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
 * Makes it STARTING unless a worker is there or on its way.  The lock is held;
 * true: the caller has to register one, once it has let go of the lock.
 */
static bool
begin_start(Slot *slot, TimestampTz now)
{
	if (slot->state == SLOT_RUNNING || (slot->state == SLOT_STARTING && !is_late(slot, now)))
		return false;
	set_state(slot, SLOT_STARTING, now);
	return true;
}

SlotsAnswer
slots_wake(Oid database, bool may_start, bool prepared)
{
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot;
	int			proc = NO_PROC;
	bool		starts = false;

	SpinLockAcquire(&shared->lock);
	slot = may_start ? find_or_take(database) : find(database);
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
		return SLOTS_START;
	return slot != NULL || !may_start ? SLOTS_SERVED : SLOTS_FULL;
}

SlotsAnswer
slots_launch(Oid database, bool look)
{
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot;
	bool		starts = false;

	SpinLockAcquire(&shared->lock);
	slot = find_or_take(database);
	if (slot != NULL && begin_start(slot, now))
	{
		slot->looking = look;
		starts = true;
	}
	SpinLockRelease(&shared->lock);

	if (starts)
		return SLOTS_START;
	return slot != NULL ? SLOTS_SERVED : SLOTS_FULL;
}

void
slots_started(Oid database, bool registered)
{
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot;
	int			launcher;

	SpinLockAcquire(&shared->lock);
	slot = find(database);
	if (!registered && slot != NULL && slot->state == SLOT_STARTING)
	{
		set_state(slot, SLOT_DIED, now);
		slot->deaths++;
	}
	launcher = shared->launcher;
	SpinLockRelease(&shared->lock);

	/* It watches over what was registered, too: a fork may fail. */
	wake_proc(launcher);
}

SlotsDelivery
slots_delivery(Oid database)
{
	TimestampTz now = GetCurrentTimestamp();
	SlotsDelivery delivery = SLOTS_NOBODY;
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find(database);
	if (slot != NULL && (slot->state == SLOT_DIED || is_late(slot, now)))
		delivery = SLOTS_NO_WORKER;
	else if (slot != NULL && (slot->state != SLOT_FREE ||
							  (slot->next_due != 0 && shared->launcher != NO_PROC)))
		delivery = SLOTS_AT_WORK;
	SpinLockRelease(&shared->lock);
	return delivery;
}

bool
slots_enter(Oid database)
{
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot;
	bool		looking;

	SpinLockAcquire(&shared->lock);
	slot = find_or_take(database);
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
slots_take_wake(void)
{
	bool		wake;

	SpinLockAcquire(&shared->lock);
	wake = mine->wake;
	mine->wake = false;
	SpinLockRelease(&shared->lock);
	return wake;
}

void
slots_looked(void)
{
	int			launcher;

	SpinLockAcquire(&shared->lock);
	launcher = mine->looking ? shared->launcher : NO_PROC;
	mine->looking = false;
	SpinLockRelease(&shared->lock);
	wake_proc(launcher);
}

/*
 * next_due: when a worker has to be back, 0: not before the next commit.  The
 * worker has to stay when a commit woke it meanwhile, and when it has to be
 * back but nobody would start it.
 */
bool
slots_leave(TimestampTz next_due)
{
	TimestampTz now = GetCurrentTimestamp();
	int			launcher;

	SpinLockAcquire(&shared->lock);
	launcher = shared->launcher;
	if (!mine->wake && (next_due == 0 || launcher != NO_PROC))
	{
		set_state(mine, SLOT_FREE, now);
		mine->deaths = 0;
		mine->next_due = next_due;
		mine = NULL;
	}
	SpinLockRelease(&shared->lock);

	if (mine == NULL)
		wake_proc(launcher);
	return mine == NULL;
}

void
slots_hand_over(void)
{
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&shared->lock);
	set_state(mine, SLOT_STARTING, now);
	SpinLockRelease(&shared->lock);
	handed_over = mine;
	mine = NULL;
}

/* Nobody has touched the slot: it has not been STARTING for long enough. */
void
slots_take_back(void)
{
	TimestampTz now = GetCurrentTimestamp();

	mine = handed_over;
	SpinLockAcquire(&shared->lock);
	set_state(mine, SLOT_RUNNING, now);
	mine->proc = my_proc_number();
	SpinLockRelease(&shared->lock);
}

void
slots_died(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int			launcher;

	if (mine == NULL)
		return;
	SpinLockAcquire(&shared->lock);
	if (now - mine->since > RESTART_MAX * USECS_PER_SEC)
		mine->deaths = 0;
	set_state(mine, SLOT_DIED, now);
	mine->deaths++;
	launcher = shared->launcher;
	SpinLockRelease(&shared->lock);

	mine = NULL;
	wake_proc(launcher);
}

TimestampTz
slots_prepared_at(void)
{
	TimestampTz prepared_at;

	SpinLockAcquire(&shared->lock);
	prepared_at = mine->prepared_at;
	SpinLockRelease(&shared->lock);
	return prepared_at;
}

/* A PREPARE since the question makes another time, and so another question. */
void
slots_note_prepared(TimestampTz prepared_at, bool still)
{
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&shared->lock);
	if (mine->prepared_at == prepared_at && !(still && prepared_at != 0))
		mine->prepared_at = still ? now : 0;
	SpinLockRelease(&shared->lock);
}

TimestampTz
slots_doubt(void)
{
	TimestampTz doubt;

	SpinLockAcquire(&shared->lock);
	doubt = shared->doubt;
	SpinLockRelease(&shared->lock);
	return doubt;
}

void
slots_raise_doubt(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (shared == NULL)
		return;
	SpinLockAcquire(&shared->lock);
	shared->doubt = Max(shared->doubt, now);
	SpinLockRelease(&shared->lock);
}

void
slots_set_launcher(bool here)
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
slots_due(Oid *database)
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

/* Until when a sweep has to wait for this database's worker to have looked; 0: it has, or will not. */
TimestampTz
slots_looks_until(Oid database)
{
	TimestampTz until = 0;
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find(database);
	if (slot != NULL && slot->looking)
		until = slot->since + STARTING_FOR;
	SpinLockRelease(&shared->lock);
	return until;
}

/* The database is gone, or takes no connections. */
void
slots_forget(Oid database)
{
	Slot	   *slot;

	SpinLockAcquire(&shared->lock);
	slot = find(database);
	if (slot != NULL && slot->state != SLOT_RUNNING)
	{
		memset(slot, 0, sizeof(Slot));
		slot->proc = NO_PROC;
	}
	SpinLockRelease(&shared->lock);
}

void
slots_swept(void)
{
	SpinLockAcquire(&shared->lock);
	shared->sweep_due = DT_NOEND;
	SpinLockRelease(&shared->lock);
}
