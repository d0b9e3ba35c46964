/*
 * wakeup.c
 *		Waking or starting a database's worker at commit.
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
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "owner.h"
#include "settings.h"
#include "slots.h"
#include "wakeup.h"

/*
 * The outermost subtransaction level that a request of this transaction
 * belongs to, 0: none.  Rolling that level back takes all requests back that
 * are not older.
 */
static int	request_level = 0;
static bool poked = false;

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

static bool
act_on(SlotsAnswer answer, Oid database)
{
	bool		registered;

	if (answer == SLOTS_SERVED)
		return true;
	if (answer == SLOTS_START)
	{
		registered = register_worker(database);
		slots_started(database, registered);
		if (registered)
			return true;
	}
	complain(answer == SLOTS_FULL);
	return false;
}

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
				act_on(slots_wake(MyDatabaseId, settings_enabled && settings_background_delivery,
								  event == XACT_EVENT_PREPARE),
					   MyDatabaseId);
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
	slots_attach();
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

bool
wakeup_launch(Oid database, bool look)
{
	return act_on(slots_launch(database, look), database);
}

bool
wakeup_hand_over(Oid database)
{
	slots_hand_over();
	if (register_worker(database))
	{
		slots_started(database, true);
		return true;
	}
	slots_take_back();
	return false;
}

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
