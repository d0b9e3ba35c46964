/*
 * owner.c
 *		The rights and settings that our statements on our tables run with.
 *
 * Whoever delivers, purges or pauses works as the owner of onesignal_message:
 * a grantee's row security policies and missing privileges must not hide a
 * message.  That is a privilege which code of others must not get hold of, so
 *
 * - the operation is security-restricted, and search_path is fixed;
 * - session_replication_role is replica, since GRANT ALL includes TRIGGER, and
 *   a grantee's trigger would run with the owner's rights.  Only what the
 *   owner made ENABLE ALWAYS fires;
 * - FORCE ROW LEVEL SECURITY does not apply (SECURITY_NOFORCE_RLS).
 *
 * The planner's settings are there because a plan is made when the table may
 * still be empty and is used when it holds millions: they leave the planner
 * nothing but the index that a statement was written for.
 *
 * Assigning session_replication_role discards every plan of the session, which
 * costs a CALL some milliseconds a batch and would cost the worker the same.
 * It therefore settles once.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "owner.h"

#define MESSAGE_TRIGGER "zz_onesignal_message"

typedef struct Setting
{
	const char *name;
	const char *value;
} Setting;

static const Setting statement_settings[] = {
	{"search_path", "pg_catalog, pg_temp"},
	{"row_security", "off"},
	{"session_replication_role", "replica"},
	{"plan_cache_mode", "force_generic_plan"},
	{"enable_bitmapscan", "off"},
	{"enable_hashjoin", "off"},
	{"enable_indexscan", "on"},
	{"enable_mergejoin", "off"},
	{"enable_nestloop", "on"},
	{"enable_seqscan", "off"},
	{"enable_tidscan", "on"},
	{"exit_on_error", "off"},	/* an outcome that cannot be written is no reason to end */
	{"jit", "off"},
	{"max_parallel_workers_per_gather", "0"},
};

/* As autovacuum does, and for its reasons. */
static const Setting worker_settings[] = {
	{"default_transaction_deferrable", "off"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"idle_in_transaction_session_timeout", "0"},
	{"lock_timeout", "0"},
	{"statement_timeout", "0"},
	{"transaction_timeout", "0"},	/* PostgreSQL 17 and newer */
};

static bool settled = false;

static bool
find_extension(Installation *installation)
{
	Relation	catalog = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("onesignal_cancel"));
	scan = systable_beginscan(catalog, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
	{
		installation->extension = ((Form_pg_extension) GETSTRUCT(tuple))->oid;
		installation->schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return found;
}

static bool
find_table(const char *name, Oid schema, Oid *table, Oid *owner)
{
	HeapTuple	tuple;

	*table = get_relname_relid(name, schema);
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(*table));
	if (!HeapTupleIsValid(tuple))
		return false;
	*owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return true;
}

bool
owner_find(Installation *installation)
{
	Oid			app_table;

	return find_extension(installation) &&
		find_table("onesignal_message", installation->schema,
				   &installation->message_table, &installation->owner) &&
		find_table("onesignal_app", installation->schema, &app_table, &installation->app_owner);
}

bool
owner_find_and_lock(Installation *installation)
{
	Oid			locked = InvalidOid;

	while (owner_find(installation))
	{
		if (installation->message_table == locked)
			return true;
		/* Takes in what changed while it waited. */
		locked = installation->message_table;
		InvalidateCatalogSnapshot();
		LockRelationOid(locked, RowExclusiveLock);
	}
	return false;
}

static const char *
trigger_problem(const Trigger *trigger, Oid schema, bool allow_off)
{
	const char *function = get_func_name(trigger->tgfoid);

	/* No other function of that name can be a trigger's: those have no arguments. */
	if (function == NULL || strcmp(function, "onesignal_message_change") != 0 ||
		get_func_namespace(trigger->tgfoid) != schema)
		return "it calls another function";
	if (trigger->tgtype != (TRIGGER_TYPE_ROW | TRIGGER_TYPE_BEFORE | TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE) ||
		trigger->tgnattr > 0 || trigger->tgqual != NULL)
		return "it does not fire before each INSERT and UPDATE of a row";
	if (!allow_off && trigger->tgenabled != TRIGGER_FIRES_ON_ORIGIN && trigger->tgenabled != TRIGGER_FIRES_ALWAYS)
		return "it is disabled";
	return NULL;
}

const char *
owner_trigger_problem(Oid message_table, Oid schema, bool allow_off)
{
	Relation	relation = table_open(message_table, NoLock);
	const TriggerDesc *all = relation->trigdesc;
	const char *problem = "it does not exist";

	for (int i = 0; all != NULL && i < all->numtriggers; i++)
		if (strcmp(all->triggers[i].tgname, MESSAGE_TRIGGER) == 0)
			problem = trigger_problem(&all->triggers[i], schema, allow_off);
	table_close(relation, NoLock);
	return problem;
}

void
owner_require_trigger(Oid schema, bool allow_off)
{
	Oid			message_table = get_relname_relid("onesignal_message", schema);
	const char *problem = "the table does not exist";

	if (OidIsValid(message_table))
	{
		LockRelationOid(message_table, RowExclusiveLock);
		problem = owner_trigger_problem(message_table, schema, allow_off);
	}
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("trigger \"%s\" of table \"onesignal_message\" is not the extension's own: %s",
						MESSAGE_TRIGGER, problem),
				 errdetail("Nothing is requested or delivered until it is, since requests could be forged without it."),
				 errhint("The table's owner can put it back with CREATE OR REPLACE TRIGGER %s BEFORE INSERT OR UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION %s(), and enable it with ALTER TABLE ... ENABLE TRIGGER.",
						 MESSAGE_TRIGGER,
						 quote_qualified_identifier(get_namespace_name(schema), "onesignal_message"),
						 quote_qualified_identifier(get_namespace_name(schema), "onesignal_message_change"))));
}

static void
set_all(const Setting *settings, int count, GucSource source, GucAction action)
{
	for (int i = 0; i < count; i++)
		if (GetConfigOption(settings[i].name, true, false) != NULL)
			(void) set_config_option(settings[i].name, settings[i].value,
									 PGC_SUSET, source, action, true, 0, false);
}

void
owner_enter(OwnerContext *context, const Installation *installation)
{
	GetUserIdAndSecContext(&context->user, &context->sec_context);
	if (!has_privs_of_role(installation->owner, installation->app_owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the owner of onesignal_message may not write onesignal_app"),
				 errhint("Give both tables the same owner with ALTER TABLE ... OWNER TO.")));
	SetUserIdAndSecContext(installation->owner, context->sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION | SECURITY_NOFORCE_RLS);
	context->guc_level = 0;
	if (settled)
		return;
	context->guc_level = NewGUCNestLevel();
	set_all(statement_settings, lengthof(statement_settings), PGC_S_SESSION, GUC_ACTION_SAVE);
}

void
owner_leave(const OwnerContext *context)
{
	if (context->guc_level != 0)
		AtEOXact_GUC(false, context->guc_level);
	SetUserIdAndSecContext(context->user, context->sec_context);
}

void
owner_settle(void)
{
	if (settled)
		return;
	set_all(statement_settings, lengthof(statement_settings), PGC_S_OVERRIDE, GUC_ACTION_SET);
	set_all(worker_settings, lengthof(worker_settings), PGC_S_OVERRIDE, GUC_ACTION_SET);
	settled = true;
}
