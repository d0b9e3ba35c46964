/*
 * statements.c
 *		Finds the extension's tables, works as their owner, and runs SQL on them.
 *
 * Whoever delivers, purges or pauses works as the owner of onesignal_message:
 * a grantee's row security policies and missing privileges must not hide a
 * message, nor must FORCE ROW LEVEL SECURITY (SECURITY_NOFORCE_RLS).  Nobody
 * else's code may run with that privilege, so
 *
 * - the operation is security-restricted, and search_path is fixed;
 * - session_replication_role is replica, since GRANT ALL includes TRIGGER: only
 *   triggers that the owner made ENABLE ALWAYS fire;
 * - whoever owns the extension's schema, as a database's owner owns "public",
 *   may give its name to another one while a statement waits for a lock: what a
 *   statement came to name is looked at before it is planned.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "parser/analyze.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "queue.h"

/* How our statements begin. */
#define STATEMENT_MARK	"/* statement of onesignal_cancel */ "

/* Pairs of name and value. */
typedef const char *const Setting[2];

/*
 * A plan is made when the table may still be empty and is used when it holds
 * millions: the planner's settings leave it nothing but the index that the
 * statement was written for.
 */
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
	{"exit_on_error", "off"},	/* an outcome that cannot be written must not end the process */
	{"jit", "off"},
};

/* No setting of the database may stop the worker.  PostgreSQL applies the other timeouts to clients alone. */
static const Setting worker_settings[] = {
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"lock_timeout", "0"},
	{"transaction_timeout", "0"},	/* PostgreSQL 17 and newer */
};

bool		owner_is_worker = false;

bool
owner_find(Installation *installation, bool missing_ok)
{
	Relation	catalog = table_open(ExtensionRelationId, AccessShareLock);
	HeapTuple	tuple;

	memset(installation, 0, sizeof(*installation));
	tuple = get_catalog_object_by_oid(catalog, Anum_pg_extension_oid, get_extension_oid("onesignal_cancel", true));
	if (HeapTupleIsValid(tuple))
	{
		installation->schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
		heap_freetuple(tuple);
	}
	table_close(catalog, AccessShareLock);
	installation->message_table = get_relname_relid("onesignal_message", installation->schema);
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(installation->message_table));
	if (HeapTupleIsValid(tuple))
	{
		installation->owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		ReleaseSysCache(tuple);
	}
	else if (!missing_ok)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table onesignal_message does not exist in the extension's schema")));
	return OidIsValid(installation->owner);
}

/* ---- the table's trigger ---- */

const char *
owner_trigger_problem(const Installation *installation, bool allow_off)
{
	Relation	relation = table_open(installation->message_table, AccessShareLock);
	/* A copy: any look into the catalogs may bring the news that the table has changed, which frees the original. */
	const TriggerDesc *all = CopyTriggerDesc(relation->trigdesc);
	bool		last_is_ours = false;

	table_close(relation, AccessShareLock);
	for (int i = 0; all != NULL && i < all->numtriggers; i++)
	{
		const Trigger *trigger = &all->triggers[i];
		const char *function = get_func_name(trigger->tgfoid);

		if (trigger->tgisinternal)
			continue;
		/* No other function of that name can be a trigger's: those have no arguments. */
		last_is_ours = function != NULL && strcmp(function, "onesignal_message_change") == 0 &&
			get_func_namespace(trigger->tgfoid) == installation->schema &&
			trigger->tgtype == (TRIGGER_TYPE_ROW | TRIGGER_TYPE_BEFORE | TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE) &&
			trigger->tgnattr == 0 && trigger->tgqual == NULL &&
			(allow_off || trigger->tgenabled == TRIGGER_FIRES_ON_ORIGIN || trigger->tgenabled == TRIGGER_FIRES_ALWAYS);
	}
	return last_is_ours ? NULL : "trigger \"zz_onesignal_message\" of table \"onesignal_message\" "
		"is not the extension's own, is disabled, or is not the last to fire";
}

void
owner_require_trigger(const Installation *installation, bool allow_off)
{
	const char *problem = owner_trigger_problem(installation, allow_off);
	const char *schema = get_namespace_name(installation->schema);

	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg_internal("%s", problem),
				 errdetail("Nothing is requested or delivered until that is mended, since requests could be forged."),
				 errhint("The table's owner can put it back with CREATE OR REPLACE TRIGGER zz_onesignal_message "
						 "BEFORE INSERT OR UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION %s(), enable it with "
						 "ALTER TABLE ... ENABLE TRIGGER, and rename triggers whose names sort after its name.",
						 quote_qualified_identifier(schema, "onesignal_message"),
						 quote_qualified_identifier(schema, "onesignal_message_change"))));
}

/* ---- the owner ---- */

static void
set_all(const Setting *settings, int count, GucSource source)
{
	for (int i = 0; i < count; i++)
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, source);
}

void
owner_enter(Installation *installation)
{
	int			restrictions = SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION | SECURITY_NOFORCE_RLS;

	GetUserIdAndSecContext(&installation->user, &installation->sec_context);
	SetUserIdAndSecContext(installation->owner, installation->sec_context | restrictions);
	installation->guc_level = NewGUCNestLevel();
	if (!owner_is_worker)
		set_all(statement_settings, lengthof(statement_settings), PGC_S_SESSION);
}

void
owner_leave(const Installation *installation)
{
	AtEOXact_GUC(false, installation->guc_level);
	SetUserIdAndSecContext(installation->user, installation->sec_context);
}

/* Assigning session_replication_role discards every plan of the session: the worker does so once. */
void
owner_settle(void)
{
	set_all(statement_settings, lengthof(statement_settings), PGC_S_OVERRIDE);
	set_all(worker_settings, lengthof(worker_settings), PGC_S_OVERRIDE);
	owner_is_worker = true;
}

/* ---- what a statement names ---- */

static post_parse_analyze_hook_type previous_analyze = NULL;

/* A relation of another schema, or what could call code that is not PostgreSQL's own? */
static bool
names_other(Node *node, void *schema)
{
	const RangeTblEntry *entry = (const RangeTblEntry *) node;

	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
		return entry->rtekind == RTE_RELATION && get_rel_namespace(entry->relid) != *(Oid *) schema;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, names_other, schema, QTW_EXAMINE_RTES_BEFORE);
	return IsA(node, CoerceToDomain) ||
		(IsA(node, FuncExpr) && ((FuncExpr *) node)->funcid >= FirstNormalObjectId) ||
		expression_tree_walker(node, names_other, schema);
}

/* A plan that became invalid is analyzed again by its text, whenever PostgreSQL uses it. */
static void
check_names(ParseState *pstate, Query *query, JUMBLE_STATE *jumble)
{
	Installation installation;

	if (previous_analyze != NULL)
		previous_analyze(pstate, query, jumble);
	/* Somebody's ROLLBACK may begin so, too, and where it comes no catalog can be read. */
	if (query->commandType != CMD_UTILITY &&
		strncmp(pstate->p_sourcetext, STATEMENT_MARK, strlen(STATEMENT_MARK)) == 0 &&
		(!owner_find(&installation, true) || names_other((Node *) query, &installation.schema)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the schema of onesignal_cancel was renamed while a statement named it")));
}

void
owner_init(void)
{
	previous_analyze = post_parse_analyze_hook;
	post_parse_analyze_hook = check_names;
}

/* ---- running ---- */

uint64
statement_run(Statement *statement, Oid schema, Datum *values, const char *nulls)
{
	MemoryContext old = CurrentMemoryContext;	/* SPI leaves us in its own */
	char	   *name = get_namespace_name(schema);
	int			count = 0;
	int			result;

	if (name == NULL)
		elog(ERROR, "schema with OID %u does not exist", schema);
	if (statement->plan == NULL || strcmp(NameStr(statement->schema), name) != 0)
	{
		Datum		sql = DirectFunctionCall3Coll(replace_text, C_COLLATION_OID, CStringGetTextDatum(statement->sql),
												  CStringGetTextDatum("@"),
												  CStringGetTextDatum(psprintf("%s.", quote_identifier(name))));

		while (OidIsValid(statement->types[count]))
			count++;
		/* The former plan, of a schema that was renamed, may be running: it stays. */
		statement->plan = SPI_prepare(psprintf(STATEMENT_MARK "%s", TextDatumGetCString(sql)), count, statement->types);
		SPI_keepplan(statement->plan);
		namestrcpy(&statement->schema, name);
	}
	pfree(name);
	result = SPI_execute_plan(statement->plan, values, nulls, false, 0);	/* which refuses a plan that is NULL */
	if (result < 0)
		elog(ERROR, "could not run \"%s\": %s", statement->sql, SPI_result_code_string(result));
	MemoryContextSwitchTo(old);
	return SPI_processed;
}

/*
 * Copies the error that was caught before the rollback: a trigger may have
 * raised it again, and then some of its fields are in memory that this frees.
 */
static ErrorData *
roll_back(void)
{
	ErrorData *volatile error;

	PG_TRY();
	{
		error = CopyErrorData();
	}
	PG_CATCH();
	{
		RollbackAndReleaseCurrentSubTransaction();
		PG_RE_THROW();
	}
	PG_END_TRY();
	FlushErrorState();
	RollbackAndReleaseCurrentSubTransaction();
	return error;
}

ErrorData *
statement_try(Statement *statement, Oid schema, Datum *values)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner resources = CurrentResourceOwner;
	ErrorData *volatile error = NULL;
	Installation installation;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		(void) statement_run(statement, schema, values, NULL);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = roll_back();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = resources;

	/*
	 * A trigger may raise any SQLSTATE for the rows of one app, so this looks at
	 * the facts.  An interrupt that has become an error is no longer pending: it
	 * is known by the function that raised it.  ThrowErrorData() and
	 * ReThrowError() do not copy all fields, and the memory may be gone by the
	 * report.
	 */
	if (error != NULL &&
		((error->sqlerrcode == ERRCODE_QUERY_CANCELED &&
		  error->funcname != NULL && strcmp(error->funcname, "ProcessInterrupts") == 0) ||
		 error->sqlerrcode == ERRCODE_OUT_OF_MEMORY ||
		 XactReadOnly || !owner_find(&installation, true) || installation.schema != schema))
		ereport(ERROR,
				(errcode(error->sqlerrcode),
				 errmsg_internal("%s", error->message),
				 error->detail != NULL ? errdetail_internal("%s", error->detail) : 0,
				 error->hint != NULL ? errhint("%s", error->hint) : 0));
	return error;
}
