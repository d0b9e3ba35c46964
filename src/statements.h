/*
 * statements.h
 *		The SQL statements on onesignal_message and onesignal_app.
 */
#ifndef ONESIGNAL_CANCEL_STATEMENTS_H
#define ONESIGNAL_CANCEL_STATEMENTS_H

#include "executor/spi.h"

/* Parameters: see each statement's text. */
typedef enum Statement
{
	STATEMENT_ENQUEUE,
	STATEMENT_LANES,
	STATEMENT_FETCH_HEAD,
	STATEMENT_FETCH_NEXT,
	STATEMENT_RECORD,
	STATEMENT_RECORD_UNLOCKED,
	STATEMENT_OWED,
	STATEMENT_APPS,
	STATEMENT_CREATE_APP,
	STATEMENT_SAVE_APP,
	STATEMENT_ADD_TOTALS,
	STATEMENT_KNOWS_APP,
	STATEMENT_PAUSE,
	STATEMENT_RESUME,
	STATEMENT_PURGE,
	STATEMENT_COUNT
} Statement;

/*
 * Runs one over the caller's SPI connection, for the tables in that schema.
 * nulls: as of SPI_execute_plan().  Returns how many rows it touched or
 * returned; the latter are in SPI_tuptable, to be freed by the caller where
 * the connection lives on.  CurrentMemoryContext stays what it is.
 */
extern uint64 statement_run(Statement which, Oid schema, Datum *values, const char *nulls);

#endif
