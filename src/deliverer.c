/*
 * deliverer.c
 *		At most one session delivers in a database: its lock, and CALL.
 *
 * The lock is on the extension, with a sub-object number that nobody else
 * uses: neither SQL's advisory lock functions nor DROP EXTENSION meet it.  It
 * belongs to the session, so that it outlives the short transactions of a
 * run; any abort of a transaction releases it all the same.
 *
 * The procedure delivers with the rights of the table's owner, but only within
 * the transactions of queue.c, each of which puts the caller's back before it
 * commits; deliverer_abandon() does so after an error.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "delivery.h"
#include "deliverer.h"
#include "http.h"
#include "queue.h"
#include "settings.h"
#include "wakeup.h"

/* Objects have sub-object 0, columns have theirs in pg_class only. */
#define DELIVERER_SUBOBJECT 1

/* How soon a CALL with a duration sees a commit. */
#define DELIVERER_LOOK_MS	1000

static Oid	locked_extension = InvalidOid;

static LOCKTAG
lock_tag(Oid extension)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, extension, DELIVERER_SUBOBJECT);
	return tag;
}

void
deliverer_unlock(void)
{
	LOCKTAG		tag = lock_tag(locked_extension);

	if (OidIsValid(locked_extension) && lock_is_held(&tag, ExclusiveLock))
		LockRelease(&tag, ExclusiveLock, true);
	locked_extension = InvalidOid;
}

DelivererLock
deliverer_lock(bool wait)
{
	Oid			extension = queue_extension();
	LOCKTAG		tag = lock_tag(extension);

	if (!OidIsValid(extension))
	{
		deliverer_unlock();
		return DELIVERER_NO_EXTENSION;
	}
	if (locked_extension == extension && lock_is_held(&tag, ExclusiveLock))
		return DELIVERER_LOCKED;

	/* Dropped and created again: the new one's table has its own deliverer. */
	deliverer_unlock();

	/* A CALL may have the lock for hours, in which nothing may hold back VACUUM. */
	InvalidateCatalogSnapshot();
	if (LockAcquire(&tag, ExclusiveLock, true, !wait) == LOCKACQUIRE_NOT_AVAIL)
		return DELIVERER_BUSY;
	locked_extension = extension;
	return DELIVERER_LOCKED;
}

void
deliverer_abandon(void)
{
	queue_abandon();
	http_abandon();
	deliverer_unlock();
}

/* 0 without a duration: what is due now. */
static TimestampTz
end_of_duration(FunctionCallInfo fcinfo)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until;

	if (PG_ARGISNULL(0))
		return 0;
	until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													TimestampTzGetDatum(now),
													PG_GETARG_DATUM(0)));
	if (until < now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_duration must not be negative")));
	return until;
}

/* Commits wake only workers: with a duration left, look for rows now and then. */
static bool
look_again(void)
{
	static TimestampTz looked_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	wakeup_serve_signals();
	if (looked_at != 0 && !TimestampDifferenceExceeds(looked_at, now, DELIVERER_LOOK_MS))
		return false;
	looked_at = now;
	return true;
}

/* What is due is what was due: a CALL without duration comes to an end. */
static bool
look_no_more(void)
{
	wakeup_serve_signals();
	return false;
}

/* True: another run may find something before the duration is over. */
static bool
deliver_once(TimestampTz until)
{
	static uint32 wait_event = 0;
	const DeliveryOptions options = {
		.in_procedure = true,
		.until = until,
		.woken = until == 0 ? look_no_more : look_again
	};
	TimestampTz due;

	due = delivery_run(&options);
	settings_require_enabled();
	if (due == DT_NOBEGIN)
		return false;

	if (GetCurrentTimestamp() >= until)
		return false;
	due = Min(due, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), DELIVERER_LOOK_MS));
	wakeup_wait(Min(due, until), wait_event_named(&wait_event, "OnesignalCancelDeliver"));
	wakeup_serve_signals();
	settings_require_enabled();
	return true;
}

/* The pid of the session that has the deliverer's lock; 0: nobody has it any more. */
static int
lock_holder(void)
{
	LOCKTAG		tag = lock_tag(queue_extension());
	LockData   *locks = GetLockStatusData();

	for (int i = 0; i < locks->nelements; i++)
	{
		LockInstanceData *lock = &locks->locks[i];

		if (lock->holdMask != 0 && memcmp(&lock->locktag, &tag, sizeof(tag)) == 0)
			return lock->pid;
	}
	return 0;
}

static void
call_deliver(TimestampTz until)
{
	DelivererLock lock;
	int			holder = 0;

	do
	{
		lock = deliverer_lock(false);
		if (lock == DELIVERER_BUSY)
			holder = lock_holder();
		/* What the look-up of the extension has taken is not held while we wait for answers. */
		SPI_commit();
		/* Before anything is sent of which no outcome could be recorded. */
		PreventCommandIfReadOnly("CALL onesignal_cancel_deliver()");
	} while ((lock == DELIVERER_BUSY && holder == 0) ||
			 (lock == DELIVERER_LOCKED && deliver_once(until)));

	if (lock == DELIVERER_BUSY)
		ereport(NOTICE,
				(errmsg("nothing to do: session %d is already delivering in this database", holder)));
}

static bool in_call = false;

/* A session that is terminated raises no error that PG_CATCH() would see. */
static void
call_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	if (in_call)
		wakeup_raise_doubt();
}

/* What can fail fails before anything is sent. */
static void
call_begin(FunctionCallInfo fcinfo)
{
	static bool registered = false;

	wakeup_attach();
	if (!registered)
		before_shmem_exit(call_exit, 0);
	registered = true;
	queue_call_begin(fcinfo);
	in_call = true;
}

PG_FUNCTION_INFO_V1(onesignal_cancel_deliver);

Datum
onesignal_cancel_deliver(PG_FUNCTION_ARGS)
{
	volatile TimestampTz until;

	settings_require_enabled();
	PreventCommandDuringRecovery("CALL onesignal_cancel_deliver()");
	until = end_of_duration(fcinfo);
	call_begin(fcinfo);
	PG_TRY();
	{
		call_deliver(until);
	}
	PG_CATCH();
	{
		in_call = false;
		deliverer_abandon();
		delivery_end();
		PG_RE_THROW();
	}
	PG_END_TRY();
	in_call = false;
	deliverer_unlock();
	delivery_end();
	queue_call_end();
	PG_RETURN_VOID();
}
