/*
 * wakeup.c
 *		How a commit wakes or starts its database's worker, and the launcher does.
 *
 * A worker leaves when nothing falls due any more.  Nobody would deliver the
 * rows of a commit that comes just then.  So each database has a slot in shared
 * memory, with a state and a flag "wake".
 *
 * Commit: its rows are visible, and changes of the catalogs announced.  One
 * critical section sets "wake" and reads the state.  RUNNING: the commit sets
 * the worker's latch.  STARTING, for less than ten seconds: a worker has yet to
 * look.  Otherwise the slot becomes STARTING and the commit registers a worker;
 * if that fails, FREE again.
 *
 * Worker:
 *	1. It arms its exit callback: unless it leaves by step 5, its slot becomes
 *	   FREE, and the launcher replaces it soon.
 *	2. It makes the slot RUNNING, before it connects.  If another worker has, it
 *	   ends: the other one sees "wake".
 *	3. It clears "wake" and, when rows are pending, waits for the deliverer's lock.
 *	   Who has it, a CALL or a worker that has left but not ended, may have looked
 *	   already; a later commit needs this worker.  So it must not leave here.
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
 * An error after the commit would be a PANIC.  So the request does all that can
 * fail, above all attaching to shared memory.  What is left takes a spinlock,
 * sets a latch, hands a struct on its stack to the postmaster, or warns.
 *
 * COMMIT PREPARED runs no callback of ours: PREPARE wakes the worker (worker.c).
 *
 * The launcher, if the library is preloaded, starts workers where nobody
 * commits: for a retry, after a death, and in each database when the server
 * starts or is promoted, since only a worker can know what is pending there.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "catalog/pg_database.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "queue.h"
#include "settings.h"
#include "wakeup.h"

/* Change the number with the layout: sessions with a library of another version may be there. */
#define SLOTS_NAME		"onesignal_cancel slots 5"

/* When more databases have a worker or wait for one, the launcher looks into all. */
#define SLOTS_COUNT		128

/* A registered worker that has not entered by then never will: maybe its fork failed. */
#define STARTING_FOR	(10 * USECS_PER_SEC)

PG_FUNCTION_INFO_V1(onesignal_cancel_delivery);

extern PGDLLEXPORT void launcher_main(Datum arg);

typedef enum SlotState
{
	SLOT_FREE,
	SLOT_STARTING,				/* a worker is registered, and must be there by "due" */
	SLOT_RUNNING
} SlotState;

typedef struct Slot
{
	Oid			database;		/* InvalidOid: never used */
	SlotState	state;
	Latch	   *latch;			/* of the RUNNING worker, or NULL */
	bool		wake;			/* something was requested or changed; while FREE: no worker could start */
	TimestampTz due;			/* when the launcher starts a worker, unless it is RUNNING; DT_NOEND: never */
} Slot;

typedef struct Slots
{
	slock_t		lock;
	Latch	   *launcher;		/* NULL: there is none */
	pg_atomic_uint64 doubt;		/* needs no lock */
	Slot		slots[1 + SLOTS_COUNT]; /* the first has no database: it is due when the launcher looks into all */
} Slots;

/* While its spinlock is held nothing is called but functions that only touch the slots. */
static Slots *shared = NULL;

/* The calling worker's own slot, from wakeup_enter() until it left or ended. */
static Slot *mine = NULL;

/* ---- the memory ---- */

/* Only the worker itself makes it RUNNING. */
static void
set_slot(Slot *slot, SlotState state, TimestampTz due)
{
	slot->state = state;
	slot->latch = state == SLOT_RUNNING ? MyLatch : NULL;
	slot->due = due;
}

static void
initialize_slots(INITIALIZE_PARAMETERS)
{
	Slots	   *slots = memory;

	memset(slots, 0, sizeof(Slots));
	SpinLockInit(&slots->lock);
	/* The crash that made new memory necessary, if there was one, came before now. */
	pg_atomic_init_u64(&slots->doubt, (uint64) GetCurrentTimestamp());
	for (int i = 0; i <= SLOTS_COUNT; i++)
		slots->slots[i].due = DT_NOEND;
}

void
wakeup_attach(void)
{
	if (shared == NULL)
		shared = get_shared_memory(SLOTS_NAME, sizeof(Slots), initialize_slots);
}

/* By now the latch may be another process's: one that is set in vain does no harm. */
static void
wake_other(Latch *latch)
{
	if (latch != NULL && latch != MyLatch)
		SetLatch(latch);
}

/* ---- the slots, with the lock held ---- */

/* Is a worker there or on its way?  A clock that was set back must not keep a slot starting for an hour. */
static bool
has_worker(const Slot *slot, TimestampTz now)
{
	return slot->state == SLOT_RUNNING ||
		(slot->state == SLOT_STARTING && now < slot->due && now >= slot->due - STARTING_FOR);
}

/* The database's, or the FREE one that is due last: then a sweep will find that one's database.  NULL: none is FREE. */
static Slot *
find_slot(Oid database)
{
	Slot	   *last = NULL;

	for (int i = 1; i <= SLOTS_COUNT; i++)
	{
		Slot	   *slot = &shared->slots[i];

		if (slot->database == database)
			return slot;
		if (slot->state == SLOT_FREE && (last == NULL || slot->due > last->due))
			last = slot;
	}
	if (last == NULL)
		return NULL;
	shared->slots[0].due = Min(shared->slots[0].due, last->due);
	last->database = database;
	last->wake = false;
	set_slot(last, SLOT_FREE, DT_NOEND);
	return last;
}

/* ---- starting and waking ---- */

/* For a worker it throws nothing: PostgreSQL does so for mistakes in the struct, and allocates only for a handle. */
bool
wakeup_register(Oid database)
{
	const char *role = OidIsValid(database) ? "worker" : "launcher";
	BackgroundWorker process = {
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		/* A worker is the launcher's to restart: the postmaster would do so in a dropped database again and again. */
		.bgw_restart_time = OidIsValid(database) ? BGW_NEVER_RESTART : WAKEUP_RESTART_AFTER / USECS_PER_SEC,
		.bgw_library_name = "onesignal_cancel",
		.bgw_main_arg = ObjectIdGetDatum(database)
	};

	snprintf(process.bgw_type, BGW_MAXLEN, "onesignal_cancel %s", role);
	strlcpy(process.bgw_name, process.bgw_type, BGW_MAXLEN);
	snprintf(process.bgw_function_name, BGW_MAXLEN, "%s_main", role);
	if (OidIsValid(database))
	{
		snprintf(process.bgw_name, BGW_MAXLEN, "%s for database %u", process.bgw_type, database);
		return RegisterDynamicBackgroundWorker(&process, NULL);
	}
	RegisterBackgroundWorker(&process);
	return true;
}

void
wakeup_worker(Oid database, bool may_start)
{
	static TimestampTz warned_at = 0;
	TimestampTz now = GetCurrentTimestamp();
	Slot	   *slot;
	Latch	   *latch = NULL;
	bool		starts = false;
	bool		failed;

	SpinLockAcquire(&shared->lock);
	slot = find_slot(database);
	if (slot != NULL)
	{
		starts = may_start && !has_worker(slot, now);
		if (starts)
			set_slot(slot, SLOT_STARTING, now + STARTING_FOR);
		slot->wake |= slot->state != SLOT_FREE;
		latch = slot->latch;
	}
	SpinLockRelease(&shared->lock);

	wake_other(latch);
	failed = starts ? !wakeup_register(database) : may_start && slot == NULL;
	if (starts && failed)
	{
		SpinLockAcquire(&shared->lock);
		/* Nobody else takes a slot that is STARTING, but a worker that is very late may have entered it. */
		if (slot->state == SLOT_STARTING)
			set_slot(slot, SLOT_FREE, now + WAKEUP_RESTART_AFTER);
		SpinLockRelease(&shared->lock);
	}
	/* It also has to watch over a worker that was registered: the fork may fail. */
	if (starts)
		wake_other(shared->launcher);
	/* A warning for each commit would hide all other messages. */
	if (!failed || now - warned_at < USECS_PER_MINUTE)
		return;
	warned_at = now;
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("could not start a background worker to deliver requested cancels"),
			 errdetail("The requests are kept until a worker can start."),
			 errhint("Increase max_worker_processes, or deliver with CALL onesignal_cancel_deliver()."),
			 errhidestmt(true)));	/* it may be one that sets a key */
}

/* ---- the end of a transaction ---- */

/* The (sub)transaction that first requested something.  What undoes it undoes the later requests as well. */
static TransactionId requested_in = InvalidTransactionId;

/* The worker knows by this lock what was prepared.  Who changed a server or a pause has not got it yet. */
static void
on_transaction_end(XactEvent event, void *arg pg_attribute_unused())
{
	Installation installation;

	if (event == XACT_EVENT_PRE_PREPARE && TransactionIdIsCurrentTransactionId(requested_in) &&
		owner_find(&installation, true))
		LockRelationOid(installation.message_table, RowExclusiveLock);
}

/* Called for each resource owner: a library may release one of its own in a transaction. */
static void
on_release(ResourceReleasePhase phase, bool is_commit, bool is_top_level, void *arg pg_attribute_unused())
{
	/* Before this phase a worker may find old credentials in its caches. */
	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !is_commit || !is_top_level || IsTransactionState() ||
		!TransactionIdIsCurrentTransactionId(requested_in))
		return;
	requested_in = InvalidTransactionId;
	/* A reload that waits may switch delivery on. */
	wakeup_worker(MyDatabaseId, ConfigReloadPending || (settings_enabled && settings_background_delivery));
}

void
wakeup_request(void)
{
	static bool registered = false;

	/* In these processes there is nobody to wake. */
	if (IsBinaryUpgrade || !IsUnderPostmaster || TransactionIdIsCurrentTransactionId(requested_in))
		return;
	/* The worker may cancel the message as soon as the commit is visible.  A crash must not undo such a commit. */
	ForceSyncCommit();
	wakeup_attach();
	if (!registered)
	{
		RegisterXactCallback(on_transaction_end, NULL);
		RegisterResourceReleaseCallback(on_release, NULL);
	}
	registered = true;
	requested_in = GetCurrentTransactionId();
}

/* ---- for the worker ---- */

bool
wakeup_enter(Oid database)
{
	SpinLockAcquire(&shared->lock);
	mine = find_slot(database);
	if (mine != NULL && mine->state == SLOT_RUNNING)
		mine = NULL;
	if (mine != NULL)
		set_slot(mine, SLOT_RUNNING, DT_NOEND);
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

bool
wakeup_leave(TimestampTz due, bool must)
{
	bool		leaves;

	if (mine == NULL)
		return true;
	SpinLockAcquire(&shared->lock);
	leaves = must || (!mine->wake && (due == DT_NOEND || shared->launcher != NULL));
	if (leaves)
	{
		mine->wake = false;		/* another worker looks anyway, and could start */
		set_slot(mine, SLOT_FREE, due);
		mine = NULL;
	}
	SpinLockRelease(&shared->lock);
	wake_other(shared->launcher);
	return leaves;
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
	uint64		doubt = shared != NULL ? pg_atomic_read_u64(&shared->doubt) : now;	/* single-user */

	while (doubt < now && !pg_atomic_compare_exchange_u64(&shared->doubt, &doubt, now))
		;
}

/* What happens to pending rows of an app that is not paused. */
Datum
onesignal_cancel_delivery(PG_FUNCTION_ARGS)
{
	Slot		slot = {.state = SLOT_FREE, .due = DT_NOEND};
	bool		is_there;
	const char *delivery = "working";	/* or the launcher will start one: for a retry, or in place of one that died */

	(void) fcinfo;
	if (RecoveryInProgress())
		PG_RETURN_TEXT_P(cstring_to_text("standby"));	/* do not attach: doubt would begin before the promotion */
	wakeup_attach();
	SpinLockAcquire(&shared->lock);
	for (int i = 1; i <= SLOTS_COUNT; i++)
		if (shared->slots[i].database == MyDatabaseId)
			slot = shared->slots[i];
	SpinLockRelease(&shared->lock);

	is_there = has_worker(&slot, GetCurrentTimestamp());
	if (!settings_enabled)
		delivery = "switched off";
	else if (!settings_background_delivery)
		delivery = "by CALL only";
	else if (slot.wake && !is_there)
		delivery = "no free worker";
	else if (!is_there && (slot.due == DT_NOEND || shared->launcher == NULL))
		delivery = "waits for a request";
	PG_RETURN_TEXT_P(cstring_to_text(delivery));
}

/* ---- the launcher ---- */

/* When to start a worker next; DT_NOEND: never.  What is due by now counts as done; InvalidOid: look into all. */
static TimestampTz
take_due(TimestampTz now, Oid *database)
{
	Slot	   *slot = &shared->slots[0];
	TimestampTz due;

	SpinLockAcquire(&shared->lock);
	for (int i = 1; i <= SLOTS_COUNT; i++)
		if (shared->slots[i].due < slot->due)
			slot = &shared->slots[i];
	due = slot->due;
	*database = slot->database;
	if (due <= now)
		set_slot(slot, SLOT_FREE, DT_NOEND);	/* it is not RUNNING: then it would name no time */
	SpinLockRelease(&shared->lock);
	return due;
}

/*
 * Goes to the first database after this one, but not after the last; OID_MAX:
 * there is none, and a worker in a dropped one would fail again and again.  True:
 * it has one now.  A closed one comes later: nothing tells when it is opened.
 */
static bool
launch(Oid *after, Oid last)
{
	TimestampTz later = GetCurrentTimestamp() + USECS_PER_MINUTE;
	Oid			found = OID_MAX;
	bool		is_open = false;
	Slot	   *slot;
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		/* Nobody opens template0; a DROP DATABASE that was interrupted leaves -2 as the limit of connections. */
		if (database->oid <= *after || database->oid > last ||
			(database->datistemplate && !database->datallowconn) || database->datconnlimit == -2)
			continue;
		found = last = database->oid;
		is_open = database->datallowconn;
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();

	*after = found;
	if (is_open)
		wakeup_worker(found, true);
	else if (found != OID_MAX)
	{
		SpinLockAcquire(&shared->lock);
		slot = find_slot(found);
		if (slot != NULL && slot->state == SLOT_FREE)
			slot->due = Min(slot->due, later);
		SpinLockRelease(&shared->lock);
	}
	return is_open;
}

void
launcher_main(Datum arg pg_attribute_unused())
{
	int			delivers = 0;	/* 0: nobody; 1: databases that have background_delivery on; 2: the others, too */
	Oid			swept = OID_MAX;	/* it starts a worker in each database after this one, one after the other */
	TimestampTz turn_at = 0;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_appname(MyBgworkerEntry->bgw_name);
	owner_settle();

	wakeup_attach();
	/* It stays so: the postmaster restarts a launcher that ends. */
	shared->launcher = MyLatch;
	while (!ShutdownRequestPending)
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz due = DT_NOEND;
		int			before = delivers;
		Oid			database = InvalidOid;

		delivers = settings_enabled ? 1 + settings_background_delivery : 0;
		/* Nobody else delivers what came before now, or while it was off, or is due by a clock that was ahead. */
		if (delivers > before || (delivers > 0 && now < turn_at))
		{
			/* An old primary, or a publisher, may have sent what it could not replicate as recorded. */
			wakeup_raise_doubt();
			swept = InvalidOid;
		}
		else if (delivers > 0 && swept == OID_MAX)
		{
			due = take_due(now, &database);
			if (due <= now && !OidIsValid(database))
				swept = InvalidOid;
		}
		turn_at = now;
		if (delivers > 0 && swept != OID_MAX)
		{
			pgstat_report_activity(STATE_RUNNING, "looking for pending cancels in all databases");
			/* Until the worker leaves, but not for long: they should not take all worker processes. */
			if (launch(&swept, OID_MAX))
				wakeup_wait(now + USECS_PER_SEC, "OnesignalCancelLauncher");
		}
		else if (due <= now)
		{
			database--;
			launch(&database, database + 1);
		}
		else
		{
			pgstat_report_activity(STATE_IDLE, NULL);
			wakeup_wait(due, "OnesignalCancelLauncher");
		}
	}
	/* Without a message, as PostgreSQL's own launchers; 1: restart me. */
	proc_exit(1);
}
