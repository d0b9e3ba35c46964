/*
 * launcher.c
 *		Starts workers where nobody commits: at server start, for a retry, after a death.
 *
 * It needs shared_preload_libraries, and connects to no database: only a worker
 * can know whether its database has the extension and something pending.  So
 * when the server starts or is promoted, the launcher starts a worker in each
 * database, one after the other; a worker that finds nothing due leaves at
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
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "settings.h"
#include "wakeup.h"

/* Left by a DROP DATABASE that was interrupted: nobody can connect. */
#define CONNLIMIT_INVALID	(-2)

/* A sweep waits so long for a worker to leave, so that it does not take all worker processes. */
#define SWEEP_STEP	USECS_PER_SEC

extern PGDLLEXPORT void launcher_main(Datum arg);

/* The next database that a worker could connect to; InvalidOid: there is none. */
static Oid
next_database(Oid after)
{
	Oid			next = InvalidOid;
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

		if (database->oid > after && (!OidIsValid(next) || database->oid < next) &&
			database->datallowconn && database->datconnlimit != CONNLIMIT_INVALID)
			next = database->oid;
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	return next;
}

/* Looks into one database after the other. */
static void
sweep_databases(void)
{
	Oid			database = InvalidOid;

	pgstat_report_activity(STATE_RUNNING, "looking for pending cancels in all databases");
	while (OidIsValid(database = next_database(database)) && !ShutdownRequestPending)
	{
		TimestampTz until = GetCurrentTimestamp() + SWEEP_STEP;

		wakeup_launch(database);
		while (wakeup_has_worker(database) && GetCurrentTimestamp() < until && !ShutdownRequestPending)
			wakeup_wait(until, "OnesignalCancelLauncher");
	}
}

/* Starts what is due; returns when there is something to do again. */
static TimestampTz
launcher_turn(void)
{
	Oid			database;
	TimestampTz due;

	while ((due = wakeup_due(&database)) <= GetCurrentTimestamp() && !ShutdownRequestPending)
	{
		if (!OidIsValid(database))
		{
			wakeup_sweep_at(DT_NOEND);
			sweep_databases();
		}
		/* A worker in a dropped database would fail again and again. */
		else if (next_database(database - 1) == database)
			wakeup_launch(database);
		else
			wakeup_forget(database);
	}
	return due;
}

void
launcher_main(Datum arg)
{
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
		wakeup_wait(until, "OnesignalCancelLauncher");

		/* What was requested while it was off has nobody else to deliver it. */
		if (settings_enabled && (!enabled || (settings_background_delivery && !background_delivery)))
			wakeup_sweep_at(0);
	}
	/* Without a message, as PostgreSQL's own launchers; 1: restart me. */
	proc_exit(1);
}
