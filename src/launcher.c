/*
 * launcher.c
 *		Starts workers where nobody commits: at server start, for a retry, after a death.
 *
 * It needs shared_preload_libraries, and connects to no database: only a worker
 * can know whether its database has the extension and something pending.  So
 * when the server starts or is promoted, the launcher starts a worker in each
 * database, one after the other; a worker that finds nothing pending leaves at
 * once.  After that the launcher sleeps until a slot names a time.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "settings.h"
#include "wakeup.h"
#include "worker.h"

/* Seconds until the postmaster restarts a launcher that was terminated. */
#define LAUNCHER_RESTART	5

/* Left by a DROP DATABASE that was interrupted: nobody can connect. */
#define CONNLIMIT_INVALID	(-2)

/* The databases that the sweep has yet to look into; the first one's worker is at it. */
static List *sweep = NIL;

void
launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	strlcpy(worker.bgw_name, "onesignal_cancel launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "onesignal_cancel launcher", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = LAUNCHER_RESTART;
	strlcpy(worker.bgw_library_name, "onesignal_cancel", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "launcher_main", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/* All that a worker could connect to; to be freed. */
static List *
list_databases(void)
{
	List	   *databases = NIL;
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext context = MemoryContextSwitchTo(TopMemoryContext);

		if (form->datallowconn && form->datconnlimit != CONNLIMIT_INVALID)
			databases = lappend_oid(databases, form->oid);
		MemoryContextSwitchTo(context);
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	return databases;
}

/* One at a time, so that a sweep never takes all worker processes.  When to go on; DT_NOEND: it is over. */
static TimestampTz
sweep_on(void)
{
	while (sweep != NIL)
	{
		TimestampTz until = wakeup_looks_until(linitial_oid(sweep));

		if (until > GetCurrentTimestamp())
			return until;
		sweep = list_delete_first(sweep);
		if (sweep != NIL)
			wakeup_launch(linitial_oid(sweep));
	}
	return DT_NOEND;
}

/* Starts what is due: for this database, or a sweep of all. */
static void
launch_due(Oid database)
{
	List	   *databases = list_databases();

	if (!OidIsValid(database))
	{
		wakeup_sweep_at(DT_NOEND);
		list_free(sweep);
		/* Begins with a database that has no worker, and so none to wait for. */
		sweep = lcons_oid(InvalidOid, databases);
		return;
	}
	/* A worker in a dropped database would fail again and again. */
	if (list_member_oid(databases, database))
		wakeup_launch(database);
	else
		wakeup_forget(database);
	list_free(databases);
}

/* Starts what is due; returns when there is something to do again. */
static TimestampTz
launcher_turn(void)
{
	Oid			database;
	TimestampTz due;

	while ((due = wakeup_due(&database)) <= GetCurrentTimestamp() && !ShutdownRequestPending)
		launch_due(database);
	return Min(due, sweep_on());
}

void
launcher_main(Datum arg)
{
	static uint32 wait_event = 0;

	(void) arg;
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_appname(MyBgworkerEntry->bgw_name);

	wakeup_attach();
	wakeup_begin_launcher();
	while (!ShutdownRequestPending)
	{
		bool		enabled = settings_enabled;
		bool		background_delivery = settings_background_delivery;
		TimestampTz until = enabled ? launcher_turn() : DT_NOEND;

		pgstat_report_activity(STATE_IDLE, NULL);
		wakeup_wait(until, wait_event_named(&wait_event, "OnesignalCancelLauncher"));

		/* What was requested while it was off has nobody else to deliver it. */
		if (settings_enabled && (!enabled || (settings_background_delivery && !background_delivery)))
			wakeup_sweep_at(GetCurrentTimestamp());
	}
	/* Without a message, as PostgreSQL's own launchers; 1: restart me. */
	proc_exit(1);
}
