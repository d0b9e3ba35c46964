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
	STATEMENT_FETCH,
	STATEMENT_RECORD,
	STATEMENT_UNRECORDED,
	STATEMENT_EXPIRE,
	STATEMENT_CREATE_APPS,
	STATEMENT_SAVE_APPS,
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

/*
 * The parameters of a statement that takes an array for each column, filled
 * row by row.  Values are kept as they are, not copied.
 */
typedef struct StatementRows
{
	Statement	which;
	int			columns;
	int			count;
	int			max;
	Datum	   *values;			/* column by column */
	bool	   *nulls;
} StatementRows;

/* For at most max rows, in the current context. */
extern void statement_rows_begin(StatementRows *rows, Statement which, int max);

/* Of the values as many as the statement has columns; nulls may be NULL. */
extern void statement_rows_add(StatementRows *rows, const Datum *values, const bool *nulls);
extern uint64 statement_rows_run(StatementRows *rows, Oid schema);

#endif
