/*
 * message.c
 *		The BEFORE ROW trigger of onesignal_message: columns, states, transitions.
 *
 *		scheduled --cancel = true--> pending --delivery--> canceled
 *		    ^                          |  \--------------> refused
 *		    |                          |   \-------------> failed
 *		    +------cancel = false------+---- refused, failed
 *		failed --cancel = true--> pending
 *
 * The application writes cancel; the extension alone writes the columns from
 * state on.  What a statement writes to these is replaced by what the row
 * holds, so that an ORM may save whole rows, however old its copy is.  Only an
 * INSERT by a member of the table's owner may set them: it restores a dump.
 *
 * "SET cancel = true" asks again for a failed row that has it already.  So what
 * counts is which columns an UPDATE names.  In a MERGE only a change of the
 * value counts: PostgreSQL tells a trigger which columns all of its actions
 * name, not which this row's action names.
 *
 * requested_by decides whose credentials are used, so nobody else may set it.
 * That is why no BEFORE trigger may fire after this one, and why a CHECK of the
 * table asks onesignal_message_guard() whether the trigger is still ours: the
 * TRIGGER privilege is enough to replace it.
 *
 * Delivery and logical replication write with session_replication_role =
 * replica, in which the trigger does not fire and the guard accepts all.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "parser/parsetree.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "credentials.h"
#include "message.h"
#include "queue.h"
#include "statements.h"
#include "wakeup.h"

PG_FUNCTION_INFO_V1(onesignal_message_change);
PG_FUNCTION_INFO_V1(onesignal_message_guard);

/* In the order of CREATE TABLE; COLUMN_STATE and after belong to the extension. */
enum
{
	COLUMN_MESSAGE_ID = 1,
	COLUMN_APP_ID,
	COLUMN_SEND_AFTER,
	COLUMN_CANCEL,
	COLUMN_REASON,
	COLUMN_STATE,
	COLUMN_HTTP_STATUS,
	COLUMN_ERRORS,
	COLUMN_RESPONSE,
	COLUMN_ATTEMPTS,
	COLUMN_UNANSWERED,
	COLUMN_REQUESTED_BY,
	COLUMN_REQUESTED_AT,
	COLUMN_FIRST_ATTEMPT_AT,
	COLUMN_LAST_ATTEMPT_AT,
	COLUMN_NEXT_ATTEMPT_AT,
	COLUMN_FINISHED_AT,
	COLUMN_CREATED_AT
};

#define COLUMN_COUNT COLUMN_CREATED_AT

static const Oid column_types[COLUMN_COUNT] = {
	UUIDOID, UUIDOID, TIMESTAMPTZOID, BOOLOID, TEXTOID,
	InvalidOid,					/* onesignal_message_state has no fixed one */
	INT4OID, TEXTARRAYOID, JSONBOID, INT4OID, BOOLOID, NAMEOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID
};

/* Whether a role may cancel an app's messages. */
typedef struct Access
{
	pg_uuid_t	app_id;
	Oid			role;
	bool		granted;
} Access;

/* Enough for a statement over the rows of many customers, in any order. */
#define ACCESS_MAX 16

/*
 * What the rows of one statement share: there may be a million.  It lives in
 * fn_extra and so no longer than the statement: the next one sees a REVOKE.
 */
typedef struct Shared
{
	Oid			states[QUEUE_STATES];	/* the enum's values, as rows hold them */
	bool		merges;			/* the statement is a MERGE */
	bool		noticed;		/* it was told that a value of its is ignored */

	/* The state that the last INSERT of a row wrote: ON CONFLICT sees only what we made of it. */
	bool		offered;
	pg_uuid_t	offered_message;
	QueueState	offered_state;
	int			access_next;
	Access		access[ACCESS_MAX];
} Shared;

/* First all columns of ours are restored, then a request may set most of them. */
#define CHANGES_MAX (2 * COLUMN_COUNT + 2)

/* A row, and what we change in it: of several changes of a column the last one counts. */
typedef struct MessageRow
{
	TriggerData *trigger;
	Shared	   *shared;
	TupleTableSlot *old;		/* NULL: INSERT */
	TupleTableSlot *new;		/* as the statement wants it */
	int			count;
	int			columns[CHANGES_MAX];
	Datum		values[CHANGES_MAX];
	bool		nulls[CHANGES_MAX];
} MessageRow;

/* ---- which statement ---- */

static ExecutorRun_hook_type previous_run = NULL;

/* The innermost statement; NULL: it began before this library was loaded, or is in ExecutorFinish(). */
static QueryDesc *running = NULL;

static void
message_executor_run(EXECUTOR_RUN_PARAMETERS)
{
	QueryDesc  *outer = running;

	running = queryDesc;
	PG_TRY();
	{
		(previous_run != NULL ? previous_run : standard_ExecutorRun) (EXECUTOR_RUN_ARGUMENTS);
	}
	PG_FINALLY();
	{
		running = outer;
	}
	PG_END_TRY();
}

void
message_init(void)
{
	previous_run = ExecutorRun_hook;
	ExecutorRun_hook = message_executor_run;
}

/*
 * Does the running statement MERGE into the table?  An UPDATE of the table in a
 * WITH beside that MERGE then counts as part of it.  Where the statement is not
 * known, the one that the client sent is looked at; a MERGE in a function is then
 * taken for an UPDATE, which may try a failed message once more.
 */
static bool
statement_merges(Oid table)
{
	List	   *statements = ActivePortal != NULL ? ActivePortal->stmts : NIL;
	ListCell   *statement_cell;
	ListCell   *cell;

	if (running != NULL)
		statements = list_make1(running->plannedstmt);
	foreach(statement_cell, statements)
	{
		const PlannedStmt *statement = lfirst_node(PlannedStmt, statement_cell);

		foreach(cell, lcons(statement->planTree, list_copy(statement->subplans)))
		{
			const ModifyTable *modifies = lfirst(cell);

			if (modifies != NULL && IsA(modifies, ModifyTable) && modifies->operation == CMD_MERGE &&
				rt_fetch(linitial_int(modifies->resultRelations), statement->rtable)->relid == table)
				return true;
		}
	}
	return false;
}

/* ---- what a statement's rows share ---- */

/* The owner may have altered the table, and then a value could be read as of another type. */
static void
check_table(Relation relation, Oid function)
{
	TupleDesc	descriptor = RelationGetDescr(relation);
	bool		ours = RelationGetNamespace(relation) == get_func_namespace(function) &&
		strcmp(RelationGetRelationName(relation), "onesignal_message") == 0 &&
		descriptor->natts >= COLUMN_COUNT;

	for (int number = 1; ours && number <= COLUMN_COUNT; number++)
	{
		Form_pg_attribute attribute = TupleDescAttr(descriptor, number - 1);

		ours = number == COLUMN_STATE ? type_is_enum(attribute->atttypid) :
			attribute->atttypid == column_types[number - 1];
	}
	if (!ours)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("onesignal_message_change() can only be used on the extension's own table"),
				 errdetail("Table \"%s\" is not onesignal_message, or its columns were altered.",
						   RelationGetRelationName(relation))));
}

static Shared *
get_shared(FunctionCallInfo fcinfo)
{
	Relation	relation = ((TriggerData *) fcinfo->context)->tg_relation;
	Shared	   *shared = fcinfo->flinfo->fn_extra;
	Oid			type;

	if (shared != NULL)
		return shared;
	check_table(relation, fcinfo->flinfo->fn_oid);
	shared = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(Shared));
	type = TupleDescAttr(RelationGetDescr(relation), COLUMN_STATE - 1)->atttypid;
	for (int state = 0; state < QUEUE_STATES; state++)
	{
		shared->states[state] = GetSysCacheOid2(ENUMTYPOIDNAME, Anum_pg_enum_oid, ObjectIdGetDatum(type),
												CStringGetDatum(queue_state_names[state]));
		if (!OidIsValid(shared->states[state]))
			elog(ERROR, "onesignal_message_state has no value \"%s\"", queue_state_names[state]);
	}
	shared->merges = statement_merges(RelationGetRelid(relation));
	fcinfo->flinfo->fn_extra = shared;
	return shared;
}

/* ---- reading ---- */

/* QUEUE_STATES: it is NULL, which a statement may write, but no row has. */
static QueueState
state_of(const MessageRow *row, TupleTableSlot *slot)
{
	bool		isnull;
	Oid			value = DatumGetObjectId(slot_getattr(slot, COLUMN_STATE, &isnull));
	int			state = 0;

	while (state < QUEUE_STATES && (isnull || row->shared->states[state] != value))
		state++;
	return state;
}

static bool
flag_of(TupleTableSlot *slot, int column)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, column, &isnull);

	return !isnull && DatumGetBool(value);
}

/* Does an UPDATE, or a trigger before us, change the value? */
static bool
value_differs(const MessageRow *row, int column)
{
	Form_pg_attribute attribute = TupleDescAttr(row->new->tts_tupleDescriptor, column - 1);
	bool		new_null;
	bool		old_null;
	Datum		new = slot_getattr(row->new, column, &new_null);
	Datum		old = slot_getattr(row->old, column, &old_null);

	if (new_null || old_null)
		return new_null != old_null;
	return !datum_image_eq(new, old, attribute->attbyval, attribute->attlen);
}

static bool
names_column(const MessageRow *row, int column)
{
	return value_differs(row, column) ||
		(!row->shared->merges &&
		 bms_is_member(column - FirstLowInvalidHeapAttributeNumber, row->trigger->tg_updatedcols));
}

/* ---- changing ---- */

/* A value of type name has NAMEDATALEN bytes, the text that is looked up only its own. */
static Datum
current_role(void)
{
	return DirectFunctionCall1(namein, CStringGetDatum(GetUserNameFromId(GetUserId(), false)));
}

static void
set_value(MessageRow *row, int column, Datum value)
{
	Assert(row->count < CHANGES_MAX);
	row->columns[row->count] = column;
	row->values[row->count] = value;
	row->nulls[row->count] = false;
	row->count++;
}

static void
set_null(MessageRow *row, int column)
{
	set_value(row, column, (Datum) 0);
	row->nulls[row->count - 1] = true;
}

static void
set_message_state(MessageRow *row, QueueState state)
{
	set_value(row, COLUMN_STATE, ObjectIdGetDatum(row->shared->states[state]));
}

static void
notice_ignored(MessageRow *row, int column)
{
	if (row->shared->noticed)
		return;
	row->shared->noticed = true;
	ereport(NOTICE,
			(errmsg("ignoring the value that was given for column \"%s\" of table \"%s\"",
					NameStr(TupleDescAttr(row->new->tts_tupleDescriptor, column - 1)->attname),
					RelationGetRelationName(row->trigger->tg_relation)),
			 column == COLUMN_CANCEL ?
			 errdetail("The statement also sets \"state\", and so saves a copy older than the last change.") :
			 errdetail("Columns from \"state\" on are written by the extension alone."),
			 column == COLUMN_CANCEL ?
			 errhint("To change \"cancel\", leave \"state\" out of the statement.") :
			 errhint("To cancel a message, set \"cancel\" to true.")));
}

/* Leaves the column as it is in the row. */
static void
keep_value(MessageRow *row, int column)
{
	bool		isnull;
	Datum		value = slot_getattr(row->old, column, &isnull);

	set_value(row, column, value);
	row->nulls[row->count - 1] = isnull;
	notice_ignored(row, column);
}

/*
 * Clears what a former request left in the row, but not unanswered: an attempt
 * that had no answer may have canceled the message.  The same is true of a
 * pending row that is taken back or adopted: its request may be on the wire,
 * and the answer will be dropped.  So both set unanswered.
 */
static void
clear_outcome(MessageRow *row)
{
	set_null(row, COLUMN_HTTP_STATUS);
	set_null(row, COLUMN_ERRORS);
	set_null(row, COLUMN_RESPONSE);
	set_value(row, COLUMN_ATTEMPTS, Int32GetDatum(0));
	set_null(row, COLUMN_FIRST_ATTEMPT_AT);
	set_null(row, COLUMN_LAST_ATTEMPT_AT);
	set_null(row, COLUMN_FINISHED_AT);
}

/* ---- what is refused ---- */

/* May this role cancel the row's message? */
static bool
is_granted(MessageRow *row, Oid role)
{
	Shared	   *shared = row->shared;
	bool		isnull;
	Datum		app_id = slot_getattr(row->new, COLUMN_APP_ID, &isnull);
	Access	   *access;

	if (isnull)
		return true;			/* the NOT NULL constraint will say so */
	for (access = shared->access; access < shared->access + ACCESS_MAX; access++)
		if (access->role == role && memcmp(&access->app_id, DatumGetUUIDP(app_id), UUID_LEN) == 0)
			return access->granted;
	access = &shared->access[shared->access_next++ % ACCESS_MAX];
	access->app_id = *DatumGetUUIDP(app_id);
	access->role = role;
	access->granted = credentials_find(&access->app_id, role, NULL) == NULL;
	return access->granted;
}

static void
require_access(MessageRow *row)
{
	bool		isnull;
	Datum		app_id = slot_getattr(row->new, COLUMN_APP_ID, &isnull);

	if (!is_granted(row, GetUserId()))
		credentials_get(DatumGetUUIDP(app_id), GetUserId(), NULL);
}

static void
require_same_key(const MessageRow *row)
{
	if (value_differs(row, COLUMN_MESSAGE_ID) || value_differs(row, COLUMN_APP_ID))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot change message_id or app_id in onesignal_message"),
				 errhint("Insert a row for the other message.")));
}

/*
 * The array is in the order of names, in which triggers fire.  A trigger's maker
 * can replace what it does in the middle of a statement, but cannot rename it:
 * so only the name counts.
 */
static void
require_last(const TriggerData *trigger)
{
	const TriggerDesc *all = trigger->tg_relation->trigdesc;

	for (int i = all->numtriggers - 1; i >= 0; i--)
	{
		const Trigger *other = &all->triggers[i];

		if (other->tgoid == trigger->tg_trigger->tgoid)
			return;
		if (!other->tgisinternal)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("trigger \"%s\" of table \"%s\" must not fire after \"%s\"",
							other->tgname, RelationGetRelationName(trigger->tg_relation),
							trigger->tg_trigger->tgname),
					 errhint("Rename it: triggers fire in the order of their names.")));
	}
}

/* PostgreSQL dumps an extension's table as the extension makes it, but its rows with all columns. */
static void
warn_of_added_column(Relation relation)
{
	static bool warned = false;
	TupleDesc	descriptor = RelationGetDescr(relation);

	for (int number = COLUMN_COUNT; !warned && number < descriptor->natts; number++)
	{
		Form_pg_attribute attribute = TupleDescAttr(descriptor, number);

		warned = !attribute->attisdropped;
		if (warned)
			ereport(WARNING,
					(errmsg("a dump of this database cannot restore table \"%s\"",
							RelationGetRelationName(relation)),
					 errdetail("Column \"%s\" was added to it: pg_dump writes the column's values, but CREATE EXTENSION does not make the column.",
							   NameStr(attribute->attname)),
					 errhint("Keep the column in a table of your own that refers to message_id and app_id, and drop it here.")));
	}
}

/* ---- what happens ---- */

static void
request_cancel(MessageRow *row)
{
	TimestampTz now = GetCurrentTransactionStartTimestamp();

	require_access(row);
	warn_of_added_column(row->trigger->tg_relation);
	set_message_state(row, QUEUE_PENDING);
	set_value(row, COLUMN_REQUESTED_BY, current_role());
	set_value(row, COLUMN_REQUESTED_AT, TimestampTzGetDatum(now));
	set_value(row, COLUMN_NEXT_ATTEMPT_AT, TimestampTzGetDatum(now));
	clear_outcome(row);
	wakeup_request();
}

/*
 * Somebody asks for a cancel that is pending already.  If its requester can no
 * longer cancel and this role can, it becomes this role's request, with a
 * retry_window of its own.
 */
static void
adopt_request(MessageRow *row)
{
	bool		isnull;
	Datum		name = slot_getattr(row->old, COLUMN_REQUESTED_BY, &isnull);
	Oid			requester = isnull ? InvalidOid : get_role_oid(NameStr(*DatumGetName(name)), true);

	if ((!OidIsValid(requester) || !is_granted(row, requester)) && is_granted(row, GetUserId()))
	{
		request_cancel(row);
		set_value(row, COLUMN_UNANSWERED, BoolGetDatum(true));
	}
}

static void
take_back(MessageRow *row, QueueState state)
{
	bool		isnull;

	if (state == QUEUE_PENDING || state == QUEUE_REFUSED || state == QUEUE_FAILED)
	{
		require_access(row);
		set_message_state(row, QUEUE_SCHEDULED);
		set_null(row, COLUMN_REQUESTED_BY);
		set_null(row, COLUMN_REQUESTED_AT);
		set_null(row, COLUMN_NEXT_ATTEMPT_AT);
		clear_outcome(row);
		if (state == QUEUE_PENDING)
			set_value(row, COLUMN_UNANSWERED, BoolGetDatum(true));
	}
	/* It is false already when the answer came after the take-back. */
	else if (state == QUEUE_CANCELED && flag_of(row->old, COLUMN_CANCEL))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot withdraw the cancel of message %s",
						DatumGetCString(DirectFunctionCall1(uuid_out,
															slot_getattr(row->new, COLUMN_MESSAGE_ID, &isnull)))),
				 errdetail("OneSignal has already confirmed it."),
				 errhint("Schedule another message with OneSignal.")));
}

/*
 * The state that the statement wrote.  Of an upsert that sets state, what the
 * INSERT wrote counts.  NULL is a copy whose columns the database fills, so it
 * was never read: such a row is scheduled.
 */
static QueueState
written_state(const MessageRow *row)
{
	bool		isnull;
	Datum		message_id = slot_getattr(row->new, COLUMN_MESSAGE_ID, &isnull);
	QueueState	written = state_of(row, row->new);

	if (row->shared->offered && !isnull && names_column(row, COLUMN_STATE) &&
		memcmp(DatumGetUUIDP(message_id), &row->shared->offered_message, UUID_LEN) == 0)
		written = row->shared->offered_state;
	return written == QUEUE_STATES ? QUEUE_SCHEDULED : written;
}

/*
 * The statement saves a copy of the row that was read before the request
 * ("scheduled" and false), or before it was taken back (another state and
 * true).  Nobody asks to change cancel.
 */
static bool
saves_older_copy(const MessageRow *row, QueueState was)
{
	bool		had = flag_of(row->old, COLUMN_CANCEL);
	bool		cancel = flag_of(row->new, COLUMN_CANCEL);
	bool		written_scheduled = written_state(row) == QUEUE_SCHEDULED;

	if (was == QUEUE_SCHEDULED)
		return !had && cancel && !written_scheduled;
	return had && !cancel && written_scheduled;
}

static void
row_updated(MessageRow *row)
{
	QueueState	was = state_of(row, row->old);
	bool		cancel = flag_of(row->new, COLUMN_CANCEL);
	bool		named = names_column(row, COLUMN_CANCEL);

	require_same_key(row);
	if (saves_older_copy(row, was))
	{
		keep_value(row, COLUMN_CANCEL);
		named = false;
	}
	for (int column = COLUMN_STATE; column <= COLUMN_COUNT; column++)
		if (value_differs(row, column))
			keep_value(row, column);

	/* The order of delivery is another one now, and so are the times of retries. */
	if (was == QUEUE_PENDING && value_differs(row, COLUMN_SEND_AFTER) && (cancel || !named))
	{
		require_access(row);
		set_value(row, COLUMN_NEXT_ATTEMPT_AT, TimestampTzGetDatum(GetCurrentTransactionStartTimestamp()));
		wakeup_request();
	}
	if (named && !cancel)
		take_back(row, was);
	else if (named && (was == QUEUE_SCHEDULED || was == QUEUE_FAILED))
		request_cancel(row);
	else if (named && was == QUEUE_PENDING)
		adopt_request(row);
}

/*
 * Gives a column of a new row its default; only_null: if it is NULL and must
 * not be.  Returns whether it had another value.
 */
static bool
set_default(MessageRow *row, int column, bool only_null)
{
	bool		isnull;
	Datum		value = slot_getattr(row->new, column, &isnull);
	Datum		fallback;

	switch (column)
	{
		case COLUMN_STATE:
			value = ObjectIdGetDatum(DatumGetObjectId(value));	/* tuples sign-extend it */
			fallback = ObjectIdGetDatum(row->shared->states[QUEUE_SCHEDULED]);
			break;
		case COLUMN_ATTEMPTS:
			fallback = Int32GetDatum(0);
			break;
		case COLUMN_UNANSWERED:
			fallback = BoolGetDatum(false);
			break;
		case COLUMN_CREATED_AT:
			fallback = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
			break;
		default:
			if (!isnull && !only_null)
				set_null(row, column);
			return !isnull;
	}
	/* All of these are passed by value. */
	if (isnull || (value != fallback && !only_null))
		set_value(row, column, fallback);
	return isnull || value != fallback;
}

static void
row_inserted(MessageRow *row)
{
	bool		trusted = has_privs_of_role(GetUserId(), row->trigger->tg_relation->rd_rel->relowner);
	Datum		now = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	QueueState	written = state_of(row, row->new);
	bool		isnull;
	Datum		message_id = slot_getattr(row->new, COLUMN_MESSAGE_ID, &isnull);

	row->shared->offered = !isnull;
	if (!isnull)
		row->shared->offered_message = *DatumGetUUIDP(message_id);
	row->shared->offered_state = written;
	for (int column = COLUMN_STATE; column <= COLUMN_COUNT; column++)
		if (set_default(row, column, trusted) && !trusted)
			notice_ignored(row, column);
	if (trusted && written == QUEUE_PENDING)
	{
		/* A dump of an older version may lack what delivery needs. */
		if (slot_attisnull(row->new, COLUMN_REQUESTED_BY))
			set_value(row, COLUMN_REQUESTED_BY, current_role());
		if (slot_attisnull(row->new, COLUMN_REQUESTED_AT))
			set_value(row, COLUMN_REQUESTED_AT, now);
		if (slot_attisnull(row->new, COLUMN_NEXT_ATTEMPT_AT))
			set_value(row, COLUMN_NEXT_ATTEMPT_AT, now);
		wakeup_request();
	}
	else if ((!trusted || written == QUEUE_SCHEDULED || written == QUEUE_STATES) && flag_of(row->new, COLUMN_CANCEL))
		request_cancel(row);
}

/* onesignal_message_change() RETURNS trigger: of onesignal_message alone */
Datum
onesignal_message_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	MessageRow	row;
	HeapTuple	tuple;
	bool		inserts;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) || TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("onesignal_message_change() must be fired BEFORE INSERT OR UPDATE for each row")));
	inserts = TRIGGER_FIRED_BY_INSERT(trigger->tg_event);
	tuple = inserts ? trigger->tg_trigtuple : trigger->tg_newtuple;
	/* An owner may have made it ENABLE ALWAYS: then this is delivery, or replication. */
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		return PointerGetDatum(tuple);
	require_last(trigger);
	row.trigger = trigger;
	row.shared = get_shared(fcinfo);
	row.old = inserts ? NULL : trigger->tg_trigslot;
	row.new = inserts ? trigger->tg_trigslot : trigger->tg_newslot;
	row.count = 0;
	if (inserts)
		row_inserted(&row);
	else
		row_updated(&row);
	if (row.count > 0)
		tuple = heap_modify_tuple_by_cols(tuple, RelationGetDescr(trigger->tg_relation),
										  row.count, row.columns, row.values, row.nulls);
	return PointerGetDatum(tuple);
}

/*
 * onesignal_message_guard() RETURNS boolean: a CHECK of onesignal_message
 *
 * Whoever has TRIGGER on the table can replace its trigger, and could then write
 * any role into requested_by.  He can neither drop a CHECK nor put our trigger
 * back, for he may not execute its function: so nothing that he wrote in between
 * is ever delivered.  Disabling the trigger is the owner's privilege, and what
 * pg_restore --disable-triggers does: then the owner alone may write, and this
 * wakes delivery in the trigger's place.
 */
Datum
onesignal_message_guard(PG_FUNCTION_ARGS)
{
	FmgrInfo   *called = fcinfo->flinfo;

	if (called->fn_extra == NULL && SessionReplicationRole != SESSION_REPLICATION_ROLE_REPLICA)
	{
		Oid			schema = get_func_namespace(called->fn_oid);
		Oid			table = get_relname_relid("onesignal_message", schema);
		bool		locked = false;
		bool		is_owner;
		LOCKTAG		tag;
		Relation	relation;

		SET_LOCKTAG_RELATION(tag, MyDatabaseId, table);
		for (LOCKMODE mode = RowExclusiveLock; mode <= AccessExclusiveLock; mode++)
			locked |= lock_is_held(&tag, mode);
		/* Otherwise anybody could have it lock the table. */
		if (!locked)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("onesignal_message_guard() can only be used by table onesignal_message")));
		relation = table_open(table, NoLock);
		is_owner = has_privs_of_role(GetUserId(), relation->rd_rel->relowner);
		table_close(relation, NoLock);
		owner_require_trigger(schema, is_owner);
		if (owner_trigger_problem(table, schema, false) != NULL)
			wakeup_request();
	}
	called->fn_extra = called;	/* once a statement */
	PG_RETURN_BOOL(true);
}
