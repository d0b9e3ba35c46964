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
 * The application writes cancel; all columns from state on are written by the
 * extension alone.  What a statement writes to these is replaced by what the
 * row holds, so that an ORM may save whole rows, however old its copy is.  The
 * one exception is an INSERT by a member of the table's owner: a dump is
 * restored that way.
 *
 * "SET cancel = true" on a row that has it already is a new request if the row
 * has failed.  So what counts is which columns an UPDATE names, not what
 * differs.  MERGE is an exception: PostgreSQL tells a trigger which columns all
 * of its actions name, not which this row's action names.
 *
 * requested_by decides whose credentials are used: nobody but us may set it.
 * That is why no BEFORE trigger may come after this one, and why a CHECK of the
 * table asks onesignal_message_guard() whether the trigger is still ours: the
 * TRIGGER privilege is enough to replace it.
 *
 * Delivery and logical replication write with session_replication_role =
 * replica, in which the trigger does not fire and the guard lets all pass.
 *
 * The trigger runs for each of a million rows in one statement.  It therefore
 * knows the columns by number, checked once a statement, and finds out once
 * what the rows share.  Access rights live no longer than the statement (in
 * fn_extra), so that a REVOKE is seen by the next.
 */
#include "postgres.h"

#include "access/htup_details.h"
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
#include "utils/uuid.h"

#include "compat.h"
#include "credentials.h"
#include "message.h"
#include "owner.h"
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

static const struct
{
	const char *name;
	Oid			type;			/* InvalidOid: onesignal_message_state, which has no fixed one */
}			columns[COLUMN_COUNT + 1] = {
	[COLUMN_MESSAGE_ID] = {"message_id", UUIDOID},
	[COLUMN_APP_ID] = {"app_id", UUIDOID},
	[COLUMN_SEND_AFTER] = {"send_after", TIMESTAMPTZOID},
	[COLUMN_CANCEL] = {"cancel", BOOLOID},
	[COLUMN_REASON] = {"reason", TEXTOID},
	[COLUMN_STATE] = {"state", InvalidOid},
	[COLUMN_HTTP_STATUS] = {"http_status", INT4OID},
	[COLUMN_ERRORS] = {"errors", TEXTARRAYOID},
	[COLUMN_RESPONSE] = {"response", JSONBOID},
	[COLUMN_ATTEMPTS] = {"attempts", INT4OID},
	[COLUMN_UNANSWERED] = {"unanswered", BOOLOID},
	[COLUMN_REQUESTED_BY] = {"requested_by", NAMEOID},
	[COLUMN_REQUESTED_AT] = {"requested_at", TIMESTAMPTZOID},
	[COLUMN_FIRST_ATTEMPT_AT] = {"first_attempt_at", TIMESTAMPTZOID},
	[COLUMN_LAST_ATTEMPT_AT] = {"last_attempt_at", TIMESTAMPTZOID},
	[COLUMN_NEXT_ATTEMPT_AT] = {"next_attempt_at", TIMESTAMPTZOID},
	[COLUMN_FINISHED_AT] = {"finished_at", TIMESTAMPTZOID},
	[COLUMN_CREATED_AT] = {"created_at", TIMESTAMPTZOID},
};

typedef enum MessageState
{
	STATE_SCHEDULED,
	STATE_PENDING,
	STATE_CANCELED,
	STATE_REFUSED,
	STATE_FAILED,
	STATE_NULL					/* what a statement may write, no row has it */
} MessageState;

#define STATE_COUNT STATE_NULL

static const char *const state_labels[STATE_COUNT] = {
	"scheduled", "pending", "canceled", "refused", "failed"
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

/* What the rows of one statement share. */
typedef struct Shared
{
	Oid			states[STATE_COUNT];	/* the enum's values, as rows hold them */
	Oid			role;			/* whose name is role_name */
	NameData	role_name;
	bool		merges;			/* the statement is a MERGE */
	bool		woken;
	bool		noticed;		/* it was told that a column is not its to write */

	/* What the last INSERT of a row wrote, for ON CONFLICT sees only what we made of it. */
	bool		offered;
	pg_uuid_t	offered_message;
	pg_uuid_t	offered_app;
	MessageState offered_state;
	int			access_count;
	Access		access[ACCESS_MAX];
} Shared;

/* First all columns of ours are put back, then a request may set most of them. */
#define CHANGES_MAX (2 * COLUMN_COUNT + 2)

/* One row on its way, and what we change in it: of one column, the last change counts. */
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
static ExecutorFinish_hook_type previous_finish = NULL;

/* The innermost statement; NULL: none, or it began before this library was loaded. */
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

/* A WITH that the query did not read to its end is run here. */
static void
message_executor_finish(QueryDesc *queryDesc)
{
	QueryDesc  *outer = running;

	running = queryDesc;
	PG_TRY();
	{
		(previous_finish != NULL ? previous_finish : standard_ExecutorFinish) (queryDesc);
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
	previous_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = message_executor_finish;
}

/* Is it a MERGE that has called this trigger? */
static bool
node_merges(PlanState *node, const FmgrInfo *called)
{
	ModifyTableState *modifies = (ModifyTableState *) node;

	if (node == NULL || !IsA(node, ModifyTableState) || modifies->operation != CMD_MERGE)
		return false;
	for (int i = 0; i < modifies->mt_nrels; i++)
	{
		const ResultRelInfo *result = &modifies->resultRelInfo[i];

		if (result->ri_TrigFunctions != NULL && called >= result->ri_TrigFunctions &&
			called < result->ri_TrigFunctions + result->ri_TrigDesc->numtriggers)
			return true;
	}
	return false;
}

/*
 * Of the statement that made this process load the library, only what the
 * client sent is known.  A MERGE in a function is then taken for an UPDATE:
 * that may try a failed message once more, and loses nothing.
 */
static bool
portal_merges(Oid table)
{
	ListCell   *cell;

	foreach(cell, ActivePortal != NULL ? ActivePortal->stmts : NIL)
	{
		const PlannedStmt *statement = lfirst_node(PlannedStmt, cell);
		const ModifyTable *modifies = (const ModifyTable *) statement->planTree;

		if (modifies != NULL && IsA(modifies, ModifyTable) && modifies->operation == CMD_MERGE &&
			rt_fetch(linitial_int(modifies->resultRelations), statement->rtable)->relid == table)
			return true;
	}
	return false;
}

static bool
statement_merges(const FmgrInfo *called, Oid table)
{
	ListCell   *cell;

	if (running == NULL)
		return portal_merges(table);
	if (node_merges(running->planstate, called))
		return true;
	foreach(cell, running->estate->es_auxmodifytables)
	{
		if (node_merges(lfirst(cell), called))
			return true;
	}
	return false;
}

/* ---- what a statement's rows share ---- */

/* The owner may have altered the table, and then nothing here would be right. */
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

		ours = strcmp(NameStr(attribute->attname), columns[number].name) == 0 &&
			(columns[number].type == InvalidOid ? type_is_enum(attribute->atttypid) :
			 columns[number].type == attribute->atttypid);
	}
	if (!ours)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("onesignal_message_change() can only be used on the extension's own table"),
				 errdetail("Table \"%s\" is not onesignal_message, or its columns were altered.",
						   RelationGetRelationName(relation))));
}

static void
find_states(Oid *states, Oid type)
{
	for (int state = 0; state < STATE_COUNT; state++)
	{
		HeapTuple	tuple = SearchSysCache2(ENUMTYPOIDNAME, ObjectIdGetDatum(type),
											CStringGetDatum(state_labels[state]));

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "onesignal_message_state has no value \"%s\"", state_labels[state]);
		states[state] = ((Form_pg_enum) GETSTRUCT(tuple))->oid;
		ReleaseSysCache(tuple);
	}
}

static Shared *
get_shared(FunctionCallInfo fcinfo)
{
	Relation	relation = ((TriggerData *) fcinfo->context)->tg_relation;
	Shared	   *shared = fcinfo->flinfo->fn_extra;

	if (shared != NULL)
		return shared;
	check_table(relation, fcinfo->flinfo->fn_oid);
	shared = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(Shared));
	find_states(shared->states, TupleDescAttr(RelationGetDescr(relation), COLUMN_STATE - 1)->atttypid);
	shared->merges = statement_merges(fcinfo->flinfo, RelationGetRelid(relation));
	fcinfo->flinfo->fn_extra = shared;
	return shared;
}

static Datum
current_role(Shared *shared)
{
	if (shared->role != GetUserId())
	{
		namestrcpy(&shared->role_name, GetUserNameFromId(GetUserId(), false));
		shared->role = GetUserId();
	}
	return NameGetDatum(&shared->role_name);
}

static void
wake(Shared *shared)
{
	if (!shared->woken)
		wakeup_request();
	shared->woken = true;
}

/* ---- reading ---- */

static MessageState
state_of(const MessageRow *row, TupleTableSlot *slot)
{
	bool		isnull;
	Oid			value = DatumGetObjectId(slot_getattr(slot, COLUMN_STATE, &isnull));
	int			state = 0;

	while (state < STATE_COUNT && (isnull || row->shared->states[state] != value))
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

/* Of an UPDATE: is it another value than before, by whoever? */
static bool
differs(const MessageRow *row, int column)
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

/* Or a trigger before us has changed it. */
static bool
names_cancel(const MessageRow *row)
{
	return differs(row, COLUMN_CANCEL) ||
		(!row->shared->merges &&
		 bms_is_member(COLUMN_CANCEL - FirstLowInvalidHeapAttributeNumber, row->trigger->tg_updatedcols));
}

/* ---- changing ---- */

static void
set(MessageRow *row, int column, Datum value)
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
	set(row, column, (Datum) 0);
	row->nulls[row->count - 1] = true;
}

static void
set_state(MessageRow *row, MessageState state)
{
	set(row, COLUMN_STATE, ObjectIdGetDatum(row->shared->states[state]));
}

static void
notice_ignored(MessageRow *row, int column)
{
	if (row->shared->noticed)
		return;
	row->shared->noticed = true;
	ereport(NOTICE,
			(errmsg("ignoring the value that was given for column \"%s\" of table \"%s\"",
					columns[column].name, RelationGetRelationName(row->trigger->tg_relation)),
			 errdetail("Columns from \"state\" on are written by the extension alone."),
			 errhint("To cancel a message, set \"cancel\" to true.")));
}

/* Leaves the column as it is in the row. */
static void
keep(MessageRow *row, int column)
{
	bool		isnull;
	Datum		value = slot_getattr(row->old, column, &isnull);

	set(row, column, value);
	row->nulls[row->count - 1] = isnull;
	notice_ignored(row, column);
}

/*
 * All that a former request, or its delivery, left in the row, except that an
 * attempt which had no answer may have canceled the message all the same.
 */
static void
clear_outcome(MessageRow *row)
{
	set_null(row, COLUMN_HTTP_STATUS);
	set_null(row, COLUMN_ERRORS);
	set_null(row, COLUMN_RESPONSE);
	set(row, COLUMN_ATTEMPTS, Int32GetDatum(0));
	set_null(row, COLUMN_FIRST_ATTEMPT_AT);
	set_null(row, COLUMN_LAST_ATTEMPT_AT);
	set_null(row, COLUMN_FINISHED_AT);
}

static void
reset(MessageRow *row)
{
	set_state(row, STATE_SCHEDULED);
	set_null(row, COLUMN_REQUESTED_BY);
	set_null(row, COLUMN_REQUESTED_AT);
	set_null(row, COLUMN_NEXT_ATTEMPT_AT);
	clear_outcome(row);
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
	for (int i = 0; i < shared->access_count; i++)
		if (shared->access[i].role == role &&
			memcmp(&shared->access[i].app_id, DatumGetUUIDP(app_id), sizeof(pg_uuid_t)) == 0)
			return shared->access[i].granted;
	if (shared->access_count == ACCESS_MAX)
		shared->access_count = 0;
	access = &shared->access[shared->access_count];
	access->app_id = *DatumGetUUIDP(app_id);
	access->role = role;
	access->granted = credentials_find(&access->app_id, role, NULL) == NULL;
	shared->access_count++;
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
	if (differs(row, COLUMN_MESSAGE_ID) || differs(row, COLUMN_APP_ID))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot change message_id or app_id in onesignal_message"),
				 errhint("Insert a row for the other message.")));
}

static void
refuse_takeback(const MessageRow *row)
{
	bool		isnull;
	Datum		message_id = slot_getattr(row->new, COLUMN_MESSAGE_ID, &isnull);

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot withdraw the cancel of message %s",
					DatumGetCString(DirectFunctionCall1(uuid_out, message_id))),
			 errdetail("OneSignal has already confirmed it."),
			 errhint("Schedule another message with OneSignal.")));
}

/*
 * Triggers fire in the order of their names, in which the array has them.  What
 * another one does, and when, its maker can replace in the middle of a
 * statement, which goes on with the triggers that it began with; he cannot
 * rename it.  So none of that counts, only the name.
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

/* PostgreSQL dumps an extension's table as the extension makes it, and its rows with all columns. */
static void
warn_of_added_column(Relation relation)
{
	static bool warned = false;
	TupleDesc	descriptor = RelationGetDescr(relation);

	for (int number = COLUMN_COUNT; !warned && number < descriptor->natts; number++)
	{
		Form_pg_attribute attribute = TupleDescAttr(descriptor, number);

		if (attribute->attisdropped)
			continue;
		warned = true;
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
request(MessageRow *row)
{
	TimestampTz now = GetCurrentTransactionStartTimestamp();

	require_access(row);
	warn_of_added_column(row->trigger->tg_relation);
	set_state(row, STATE_PENDING);
	set(row, COLUMN_REQUESTED_BY, current_role(row->shared));
	set(row, COLUMN_REQUESTED_AT, TimestampTzGetDatum(now));
	set(row, COLUMN_NEXT_ATTEMPT_AT, TimestampTzGetDatum(now));
	clear_outcome(row);
	wake(row->shared);
}

/*
 * Somebody asks for a cancel that is pending already.  Where its requester can
 * not cancel any more and this role can, it becomes this role's request, a new
 * one with a retry_window of its own.
 */
static void
adopt(MessageRow *row)
{
	bool		isnull;
	Datum		name = slot_getattr(row->old, COLUMN_REQUESTED_BY, &isnull);
	Oid			requester = isnull ? InvalidOid : get_role_oid(NameStr(*DatumGetName(name)), true);

	if ((OidIsValid(requester) && is_granted(row, requester)) || !is_granted(row, GetUserId()))
		return;
	request(row);
}

static void
take_back(MessageRow *row, MessageState state)
{
	switch (state)
	{
		case STATE_PENDING:
		case STATE_REFUSED:
		case STATE_FAILED:
			require_access(row);
			reset(row);
			break;
		case STATE_CANCELED:
			/* It is false already when the answer came after the take-back. */
			if (flag_of(row->old, COLUMN_CANCEL))
				refuse_takeback(row);
			break;
		default:
			break;
	}
}

/* The order of delivery is another one now, and so are the times of retries. */
static void
reschedule(MessageRow *row)
{
	require_access(row);
	set(row, COLUMN_NEXT_ATTEMPT_AT, TimestampTzGetDatum(GetCurrentTransactionStartTimestamp()));
	wake(row->shared);
}

static void
ask_again(MessageRow *row, MessageState state)
{
	if (state == STATE_SCHEDULED || state == STATE_FAILED)
		request(row);
	else if (state == STATE_PENDING)
		adopt(row);
}

static pg_uuid_t *
uuid_of(TupleTableSlot *slot, int column)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, column, &isnull);

	return isnull ? NULL : DatumGetUUIDP(value);
}

static bool
is_uuid(const pg_uuid_t *uuid, const pg_uuid_t *other)
{
	return uuid != NULL && memcmp(uuid, other, sizeof(pg_uuid_t)) == 0;
}

static void
remember_offer(MessageRow *row)
{
	Shared	   *shared = row->shared;
	const pg_uuid_t *message_id = uuid_of(row->new, COLUMN_MESSAGE_ID);
	const pg_uuid_t *app_id = uuid_of(row->new, COLUMN_APP_ID);

	shared->offered = message_id != NULL && app_id != NULL;
	if (!shared->offered)
		return;
	shared->offered_message = *message_id;
	shared->offered_app = *app_id;
	shared->offered_state = state_of(row, row->new);
}

/* The state that the statement wrote; of an INSERT ... ON CONFLICT, before we put it right. */
static MessageState
written_state(const MessageRow *row)
{
	const Shared *shared = row->shared;

	if (shared->offered && is_uuid(uuid_of(row->new, COLUMN_MESSAGE_ID), &shared->offered_message) &&
		is_uuid(uuid_of(row->new, COLUMN_APP_ID), &shared->offered_app))
		return shared->offered_state;
	return state_of(row, row->new);
}

/*
 * The statement wrote "scheduled" and false to a row whose cancel has been
 * requested: it saves a copy that was read before the request.  Nobody asks to
 * take anything back.
 */
static bool
saves_older_copy(const MessageRow *row, MessageState was)
{
	return was != STATE_SCHEDULED && written_state(row) == STATE_SCHEDULED &&
		flag_of(row->old, COLUMN_CANCEL) && !flag_of(row->new, COLUMN_CANCEL);
}

static void
updated(MessageRow *row)
{
	MessageState was = state_of(row, row->old);
	bool		cancel = flag_of(row->new, COLUMN_CANCEL);
	bool		named = names_cancel(row);

	require_same_key(row);
	for (int column = COLUMN_STATE; column <= COLUMN_COUNT; column++)
		if (differs(row, column))
			keep(row, column);
	if (saves_older_copy(row, was))
	{
		keep(row, COLUMN_CANCEL);
		named = false;
	}

	if (was == STATE_PENDING && differs(row, COLUMN_SEND_AFTER) && (cancel || !named))
		reschedule(row);
	if (named && cancel)
		ask_again(row, was);
	else if (named)
		take_back(row, was);
}

/*
 * Gives a column the value that it has without the statement's, unless that is
 * what it has; returns whether it had another one.  Of what must not be NULL,
 * NULL is no value.
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
			fallback = ObjectIdGetDatum(row->shared->states[STATE_SCHEDULED]);
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
		set(row, column, fallback);
	return isnull || value != fallback;
}

/* A restored dump: what delivery cannot do without is filled in where an old one lacks it. */
static void
restored(MessageRow *row)
{
	Datum		now = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());

	if (slot_attisnull(row->new, COLUMN_REQUESTED_BY))
		set(row, COLUMN_REQUESTED_BY, current_role(row->shared));
	if (slot_attisnull(row->new, COLUMN_REQUESTED_AT))
		set(row, COLUMN_REQUESTED_AT, now);
	if (slot_attisnull(row->new, COLUMN_NEXT_ATTEMPT_AT))
		set(row, COLUMN_NEXT_ATTEMPT_AT, now);
	wake(row->shared);
}

static void
inserted(MessageRow *row)
{
	bool		trusted = has_privs_of_role(GetUserId(), row->trigger->tg_relation->rd_rel->relowner);
	MessageState state = trusted ? state_of(row, row->new) : STATE_SCHEDULED;

	remember_offer(row);
	for (int column = COLUMN_STATE; column <= COLUMN_COUNT; column++)
		if (set_default(row, column, trusted) && !trusted)
			notice_ignored(row, column);
	if (state == STATE_PENDING)
		restored(row);
	else if ((state == STATE_SCHEDULED || state == STATE_NULL) && flag_of(row->new, COLUMN_CANCEL))
		request(row);
}

static HeapTuple
changed_tuple(MessageRow *row)
{
	HeapTuple	tuple = row->old == NULL ? row->trigger->tg_trigtuple : row->trigger->tg_newtuple;

	if (row->count == 0)
		return tuple;
	return heap_modify_tuple_by_cols(tuple, RelationGetDescr(row->trigger->tg_relation),
									 row->count, row->columns, row->values, row->nulls);
}

/* onesignal_message_change() RETURNS trigger: of onesignal_message alone */
Datum
onesignal_message_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	MessageRow	row;
	bool		inserts;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) || TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("onesignal_message_change() must be fired BEFORE INSERT OR UPDATE for each row")));
	inserts = TRIGGER_FIRED_BY_INSERT(trigger->tg_event);
	/* An owner may have made it ENABLE ALWAYS: then this is delivery, or replication. */
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		return PointerGetDatum(inserts ? trigger->tg_trigtuple : trigger->tg_newtuple);
	require_last(trigger);
	row.trigger = trigger;
	row.shared = get_shared(fcinfo);
	row.old = inserts ? NULL : trigger->tg_trigslot;
	row.new = inserts ? trigger->tg_trigslot : trigger->tg_newslot;
	row.count = 0;
	if (inserts)
		inserted(&row);
	else
		updated(&row);
	return PointerGetDatum(changed_tuple(&row));
}

/* Called by anybody else, the guard would lock the table for him. */
static void
require_written(Oid table)
{
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, table);
	for (LOCKMODE mode = RowExclusiveLock; mode <= AccessExclusiveLock; mode++)
		if (lock_is_held(&tag, mode))
			return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("onesignal_message_guard() can only be used by table onesignal_message")));
}

/*
 * onesignal_message_guard() RETURNS boolean: a CHECK of onesignal_message
 *
 * Whoever has TRIGGER on the table can replace its trigger by one of his own,
 * and would then write into requested_by whom he likes.  He can neither drop a
 * CHECK nor put our trigger back, for he may not execute its function: so
 * nothing that he wrote in between is ever delivered.  Disabling the trigger is
 * the owner's privilege, and what pg_restore --disable-triggers does: then this
 * wakes delivery in its place.
 */
Datum
onesignal_message_guard(PG_FUNCTION_ARGS)
{
	FmgrInfo   *called = fcinfo->flinfo;

	if (called->fn_extra == NULL && SessionReplicationRole != SESSION_REPLICATION_ROLE_REPLICA)
	{
		Oid			schema = get_func_namespace(called->fn_oid);
		Oid			table = get_relname_relid("onesignal_message", schema);

		require_written(table);
		owner_require_trigger(schema, true);
		if (owner_trigger_problem(table, schema, false) != NULL)
			wakeup_request();
	}
	called->fn_extra = called;	/* once a statement */
	PG_RETURN_BOOL(true);
}
