/*
 * owner.h
 *		The rights and settings that our statements on our tables run with.
 */
#ifndef ONESIGNAL_CANCEL_OWNER_H
#define ONESIGNAL_CANCEL_OWNER_H

#include "postgres_ext.h"

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

/*
 * Looks the extension up by its name, in the current transaction.  False when
 * it, or one of its tables, is not there (any more).
 */
extern bool owner_find(Installation *installation);

/*
 * The same, and locks the table as statements on it will: a DROP EXTENSION
 * that is under way ends first and is then seen, instead of making them fail.
 */
extern bool owner_find_and_lock(Installation *installation);

/*
 * Why the trigger of onesignal_message is not the extension's own any more, in
 * words; NULL: it is.  The right to make triggers on the table is enough to
 * replace it, and what the other one writes must not be delivered.  allow_off:
 * a disabled one will do.  The table must be locked already.
 */
extern const char *owner_trigger_problem(Oid message_table, Oid schema, bool allow_off);

/* The same of the table in that schema, which it locks for writing; raises 55000. */
extern void owner_require_trigger(Oid schema, bool allow_off);

/*
 * Becomes the table's owner, security-restricted, with settings that no caller
 * can bend.  Raises 42501 when that owner may not write onesignal_app, before
 * anything is sent of which no outcome could be recorded.  To be left before the transaction ends: a user switch that
 * survives a commit would be the caller's to keep.  An error needs nothing:
 * the abort of the (sub)transaction puts all of it back.
 */
extern void owner_enter(OwnerContext *context, const Installation *installation);
extern void owner_leave(const OwnerContext *context);

/*
 * Makes the same settings for the rest of this process, a background worker
 * of ours, beside those that keep it from being stopped by settings of its
 * database; owner_enter() then only switches the user.
 */
extern void owner_settle(void);

#endif
