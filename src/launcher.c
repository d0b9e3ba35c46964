/*
 * launcher.c
 *		Starts workers where nobody commits: at server start, for a retry, after a death.
 *
 * It needs shared_preload_libraries, and connects to no database: which one
 * has the extension, or something pending, only a worker in it can know.  So
 * when the server starts or is promoted it sends a worker to each database,
 * one after the other; one that finds nothing pending leaves at once.  From
 * then on it sleeps, with no timeout unless a slot names a time.
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
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "launcher.h"
#include "settings.h"
#include "wakeup.h"

/* Seconds until the postmaster starts a launcher again that was terminated. */
#define LAUNCHER_RESTART	5

/* Left by a DROP DATABASE that was interrupted: nobody can connect. */
#define CONNLIMIT_INVALID	(-2)

/* The databases that the sweep has yet to look into, the first one now. */
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

/* All that a worker could connect to. */
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

static void
sweep_begin(void)
{
	wakeup_swept();
	list_free(sweep);
	sweep = list_databases();
	if (sweep != NIL)
		wakeup_launch(linitial_oid(sweep), true);
}

/* One at a time, so that a sweep never takes all worker processes. Until when to wait for the present one. */
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
			wakeup_launch(linitial_oid(sweep), true);
	}
	return DT_NOEND;
}

static void
launch_due(Oid database)
{
	List	   *databases = list_databases();

	/* A worker in a dropped database would only log that it does not exist. */
	if (list_member_oid(databases, database))
		wakeup_launch(database, false);
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

	while ((due = wakeup_due(&database)) <= GetCurrentTimestamp())
	{
		wakeup_serve_signals();
		if (OidIsValid(database))
			launch_due(database);
		else
			sweep_begin();
	}
	return Min(due, sweep_on());
}

static void
serve_signals(void)
{
	bool		enabled = settings_enabled;
	bool		background_delivery = settings_background_delivery;

	/* Quietly, as PostgreSQL's own launchers do at each shutdown; 1: start me again. */
	if (ProcDiePending)
		proc_exit(1);
	wakeup_serve_signals();

	/* What was requested while it was off has nobody else to deliver it. */
	if (settings_enabled && (!enabled || (settings_background_delivery && !background_delivery)))
		sweep_begin();
}

static void
launcher_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	wakeup_set_launcher(false);
}

void
launcher_main(Datum arg)
{
	static uint32 wait_event = 0;

	(void) arg;
	before_shmem_exit(launcher_exit, 0);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_appname(MyBgworkerEntry->bgw_name);

	wakeup_attach();
	/* After a promotion: what the old primary sent may not have been replicated. */
	wakeup_raise_doubt();
	wakeup_set_launcher(true);
	if (settings_enabled)
		sweep_begin();
	for (;;)
	{
		TimestampTz until = settings_enabled ? launcher_turn() : DT_NOEND;

		pgstat_report_activity(STATE_IDLE, NULL);
		wakeup_wait(until, wait_event_named(&wait_event, "OnesignalCancelLauncher"));
		serve_signals();
	}
}
