/*
 * statements.h
 *		Every SQL statement on our tables, and running them as the tables' owner.
 */
#ifndef ONESIGNAL_CANCEL_STATEMENTS_H
#define ONESIGNAL_CANCEL_STATEMENTS_H

#include "executor/spi.h"

/* Where the extension is installed now. */
typedef struct Installation
{
	Oid			extension;
	Oid			schema;
	Oid			message_table;
	Oid			owner;			/* of onesignal_message */
	Oid			app_owner;		/* of onesignal_app */
} Installation;

/* What owner_leave() puts back. */
typedef struct OwnerContext
{
	Oid			user;
	int			sec_context;
	int			guc_level;		/* 0: no setting was made */
} OwnerContext;

/* False if the extension or one of its tables does not exist (any more). Needs a transaction. */
extern bool owner_find(Installation *installation);

/* The same, and locks the message table for writing, so that a DROP EXTENSION under way ends first and is seen. */
extern bool owner_find_and_lock(Installation *installation);

/*
 * Says, palloc'd, why the trigger of onesignal_message is not the extension's
 * own any more; NULL: it is.  TRIGGER on the table is enough to replace it, and
 * what another trigger lets through must not be delivered.  allow_off: a
 * disabled trigger is accepted.  The table must be locked already.
 */
extern char *owner_trigger_problem(Oid message_table, Oid schema, bool allow_off);

/* Raises 55000 for such a problem of the table in that schema, which it locks for writing. */
extern void owner_require_trigger(Oid schema, bool allow_off);

/*
 * Becomes the table's owner with fixed settings.  Raises 42501 when that owner
 * may not write onesignal_app, before anything is sent whose outcome could not
 * be recorded.  To be left before the transaction ends: a user switch that
 * survives a commit would be the caller's to keep.  After an error, the abort of
 * the (sub)transaction restores user and settings.
 */
extern void owner_enter(OwnerContext *context, const Installation *installation);
extern void owner_leave(const OwnerContext *context);

/* Makes the settings for the rest of this background worker; owner_enter() then only switches the user. */
extern void owner_settle(void);

/* Parameters: see each statement's text. */
typedef enum Statement
{
	STATEMENT_ENQUEUE,
	STATEMENT_LANES,
	STATEMENT_FETCH,
	STATEMENT_RECORD,
	STATEMENT_UNRECORDED,
	STATEMENT_EXPIRE,
	STATEMENT_CREATE_APP,
	STATEMENT_SAVE_APP,
	STATEMENT_KNOWS_APP,
	STATEMENT_PAUSE,
	STATEMENT_RESUME,
	STATEMENT_PURGE,
	STATEMENT_COUNT
} Statement;

#define STATEMENT_PARAMETERS_MAX 10

/*
 * Runs a statement over the caller's SPI connection, for the tables in that
 * schema.  nulls: as for SPI_execute_plan().  Returns how many rows it changed
 * or returned; the latter are in SPI_tuptable, which the caller frees.
 * CurrentMemoryContext stays what it is.
 */
extern uint64 statement_run(Statement which, Oid schema, Datum *values, const char *nulls);

/* One run of a statement. */
typedef struct StatementCall
{
	Datum		values[STATEMENT_PARAMETERS_MAX];
	char		nulls[STATEMENT_PARAMETERS_MAX];
	uint64		processed;
} StatementCall;

/*
 * Runs a statement so many times, all in one subtransaction.  Returns NULL, or
 * the error that rolled it back.  Raises interrupts, and errors after which
 * nothing else would work in this transaction.
 */
extern ErrorData *statement_try(Statement which, Oid schema, StatementCall *calls, int count);

#endif
