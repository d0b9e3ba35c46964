/*
 * message.c
 *		The BEFORE ROW trigger of onesignal_message: columns, states, transitions.
 *
 * The application writes cancel; the extension alone writes the columns from
 * state on.  What a statement writes to these is replaced by what the row
 * holds, so that an ORM may save whole rows, however old its copy is.  Only an
 * INSERT by a member of the table's owner may set them: it restores a dump.
 *
 * "SET cancel = true" asks again for a failed row that has it already.  So what
 * counts is which columns an UPDATE names.  In a MERGE only a change of the
 * value counts: PostgreSQL tells a trigger only what all of its actions name.
 *
 * requested_by decides whose credentials are used, so a CHECK of the table asks
 * onesignal_message_guard() whether this trigger is ours, and the last to fire.
 * It does not fire where session_replication_role is replica, as in delivery and
 * replication: there the guard lets only members of the table's owner pass,
 * since a subscription with run_as_owner may be somebody else's.
 */
#include "postgres.h"

#include "executor/executor.h"
#include "miscadmin.h"
#include "parser/parsetree.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "queue.h"
#include "wakeup.h"

PG_FUNCTION_INFO_V1(onesignal_message_change);
PG_FUNCTION_INFO_V1(onesignal_message_guard);

/* In the order of CREATE TABLE; those from STATE on belong to the extension. */
enum Column
{
	MESSAGE_ID,
	APP_ID,
	SEND_AFTER,
	CANCEL,
	REASON,
	STATE,
	HTTP_STATUS,
	ERRORS,
	RESPONSE,
	ATTEMPTS,
	UNANSWERED,
	REQUESTED_BY,
	REQUESTED_AT,
	FIRST_ATTEMPT_AT,
	LAST_ATTEMPT_AT,
	NEXT_ATTEMPT_AT,
	FINISHED_AT,
	CREATED_AT,
	COLUMN_COUNT
};

static const Oid column_types[COLUMN_COUNT] = {
	UUIDOID, UUIDOID, TIMESTAMPTZOID, BOOLOID, TEXTOID,
	InvalidOid,					/* onesignal_message_state has no fixed one */
	INT4OID, TEXTARRAYOID, JSONBOID, INT4OID, BOOLOID, NAMEOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID
};

/* What the rows of one statement share.  It lives in fn_extra, and so no longer than the statement. */
typedef struct Shared
{
	bool		merges;			/* the statement is a MERGE */
	bool		noticed;		/* it was told that a value of its is ignored */
	bool		inserts;		/* it is an INSERT, ... */
	QueueState	inserted;		/* ... whose last row had this state: ON CONFLICT sees what we made of it */
} Shared;

/* A row as it is (before an INSERT: its defaults), and as it is to be. */
typedef struct MessageRow
{
	TriggerData *trigger;
	TupleDesc	descriptor;
	Shared	   *shared;
	Datum		old[MaxHeapAttributeNumber];
	bool		old_nulls[MaxHeapAttributeNumber];
	Datum		new[MaxHeapAttributeNumber];
	bool		new_nulls[MaxHeapAttributeNumber];
} MessageRow;

/* ---- which statement ---- */

static ExecutorStart_hook_type previous_start = NULL;

/* Identifies the memory context of a statement that merges into the table. */
static const char merge_mark[] = "MERGE INTO onesignal_message";

/* An UPDATE of the table in a WITH beside such a MERGE then counts as part of it. */
static bool
merges_messages(const PlannedStmt *statement)
{
	ListCell   *cell;

	foreach(cell, lcons(statement->planTree, list_copy(statement->subplans)))
	{
		const ModifyTable *modifies = lfirst(cell);

		if (modifies != NULL && IsA(modifies, ModifyTable) && modifies->operation == CMD_MERGE &&
			strcmp(get_rel_name(rt_fetch(linitial_int(modifies->resultRelations), statement->rtable)->relid),
				   "onesignal_message") == 0)
			return true;
	}
	return false;
}

/* All that a trigger has of its statement is the memory context. */
static void
message_executor_start(QueryDesc *queryDesc, int eflags)
{
	(previous_start != NULL ? previous_start : standard_ExecutorStart)(queryDesc, eflags);
	if ((queryDesc->operation == CMD_MERGE || queryDesc->plannedstmt->hasModifyingCTE) &&
		merges_messages(queryDesc->plannedstmt))
		MemoryContextSetIdentifier(queryDesc->estate->es_query_cxt, merge_mark);
}

void
message_init(void)
{
	previous_start = ExecutorStart_hook;
	ExecutorStart_hook = message_executor_start;
}

/* The owner may have altered the table, and then a value could be read as of another type. */
static bool
is_message_table(Relation relation, Oid schema)
{
	TupleDesc	descriptor = RelationGetDescr(relation);
	bool		is = RelationGetNamespace(relation) == schema &&
		strcmp(RelationGetRelationName(relation), "onesignal_message") == 0 &&
		descriptor->natts >= COLUMN_COUNT && type_is_enum(TupleDescAttr(descriptor, STATE)->atttypid);

	for (int column = 0; is && column < COLUMN_COUNT; column++)
		is = column == STATE || TupleDescAttr(descriptor, column)->atttypid == column_types[column];
	return is;
}

/* ---- reading and writing columns ---- */

/* NULL is a copy whose columns the database fills, so it was never read: such a row is scheduled. */
static QueueState
state_in(const Datum *values, const bool *nulls)
{
	const char *name = nulls[STATE] ? "" : DatumGetCString(DirectFunctionCall1(enum_out, values[STATE]));
	QueueState	state = QUEUE_FAILED;

	while (state > QUEUE_SCHEDULED && strcmp(name, queue_state_names[state]) != 0)
		state--;
	return state;
}

/* Does the statement, or a trigger before us, change the value? */
static bool
differs(const MessageRow *row, int column)
{
	Form_pg_attribute attribute = TupleDescAttr(row->descriptor, column);

	if (row->old_nulls[column] || row->new_nulls[column])
		return row->old_nulls[column] != row->new_nulls[column];
	return !datum_image_eq(row->old[column], row->new[column], attribute->attbyval, attribute->attlen);
}

static bool
is_named(const MessageRow *row, int column)
{
	return !row->shared->merges &&
		bms_is_member(column + 1 - FirstLowInvalidHeapAttributeNumber, row->trigger->tg_updatedcols);
}

static void
set_value(MessageRow *row, int column, Datum value)
{
	row->new[column] = value;
	row->new_nulls[column] = false;
}

static Datum
state_value(const MessageRow *row, QueueState state)
{
	Datum		value = DirectFunctionCall2(enum_in, CStringGetDatum(queue_state_names[state]),
											ObjectIdGetDatum(TupleDescAttr(row->descriptor, STATE)->atttypid));

	return Int32GetDatum(DatumGetInt32(value)); /* tuples sign-extend an OID */
}

/* Leaves the column as it is in the row. */
static void
keep_value(MessageRow *row, int column, bool tell)
{
	set_value(row, column, row->old[column]);
	row->new_nulls[column] = row->old_nulls[column];
	if (!tell || row->shared->noticed)
		return;
	row->shared->noticed = true;
	ereport(NOTICE,
			(errmsg("ignoring the value that was given for column \"%s\" of table \"onesignal_message\"",
					NameStr(TupleDescAttr(row->descriptor, column)->attname)),
			 errdetail("Only the extension writes the columns from \"state\" on. "
					   "A statement that sets \"state\" to an older value does not change \"cancel\" either."),
			 errhint("To change \"cancel\", leave the columns from \"state\" on out of the statement.")));
}

/* ---- what happens ---- */

static void
require_access(const MessageRow *row)
{
	/* Of a NULL the NOT NULL constraint complains. */
	if (!row->new_nulls[APP_ID])
		credentials_get(DatumGetUUIDP(row->new[APP_ID]), GetUserId(), NULL);
}

/* Writes what delivery needs of a pending row, where it is missing, and wakes the worker. */
static void
fill_request(MessageRow *row)
{
	Datum		now = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());

	/* A value of type name has NAMEDATALEN bytes, the role's name only its own. */
	if (row->new_nulls[REQUESTED_BY])
		set_value(row, REQUESTED_BY,
				  DirectFunctionCall1(namein, CStringGetDatum(GetUserNameFromId(GetUserId(), false))));
	if (row->new_nulls[REQUESTED_AT])
		set_value(row, REQUESTED_AT, now);
	if (row->new_nulls[NEXT_ATTEMPT_AT])
		set_value(row, NEXT_ATTEMPT_AT, now);
	wakeup_request();
}

/*
 * Begins a request, or takes it back, and clears what a former one left in the
 * row, but not unanswered: that attempt may have canceled the message.  So may the
 * one on the wire of a pending row, or one just given up: its answer is dropped.
 */
static void
set_request(MessageRow *row, bool requests, bool doubtful)
{
	require_access(row);
	set_value(row, STATE, state_value(row, requests ? QUEUE_PENDING : QUEUE_SCHEDULED));
	for (int column = HTTP_STATUS; column <= FINISHED_AT; column++)
		row->new_nulls[column] |= column != ATTEMPTS && column != UNANSWERED;
	set_value(row, ATTEMPTS, Int32GetDatum(0));
	if (doubtful)
		set_value(row, UNANSWERED, BoolGetDatum(true));
	if (requests)
		fill_request(row);
}

/* Can this role cancel the message, and the one that requested it no longer? */
static bool
adopts(const MessageRow *row)
{
	const pg_uuid_t *app_id = DatumGetUUIDP(row->old[APP_ID]);
	Oid			requester = row->old_nulls[REQUESTED_BY] ? InvalidOid :
		get_role_oid(NameStr(*DatumGetName(row->old[REQUESTED_BY])), true);

	return (!OidIsValid(requester) || credentials_find(app_id, requester, NULL) != NULL) &&
		credentials_find(app_id, GetUserId(), NULL) == NULL;
}

static void
row_updated(MessageRow *row)
{
	QueueState	was = state_in(row->old, row->old_nulls);
	QueueState	written = row->shared->inserts && is_named(row, STATE) ? row->shared->inserted :
		state_in(row->new, row->new_nulls);
	bool		had = DatumGetBool(row->old[CANCEL]);
	bool		cancel = !row->new_nulls[CANCEL] && DatumGetBool(row->new[CANCEL]);
	bool		named = is_named(row, CANCEL) || differs(row, CANCEL);

	if (differs(row, MESSAGE_ID) || differs(row, APP_ID))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot change message_id or app_id in onesignal_message"),
				 errhint("Insert a row for the other message.")));

	/* This saves a copy of the row from before the request, or its take-back: nobody asks to change cancel. */
	if (was == QUEUE_SCHEDULED ? !had && cancel && written != QUEUE_SCHEDULED :
		had && !cancel && written == QUEUE_SCHEDULED)
	{
		keep_value(row, CANCEL, true);
		named = false;
	}
	for (int column = STATE; column < COLUMN_COUNT; column++)
		if (differs(row, column))
			keep_value(row, column, true);

	/* The order of delivery is another one now, and so are the times of retries. */
	if (was == QUEUE_PENDING && differs(row, SEND_AFTER) && (cancel || !named))
	{
		require_access(row);
		row->new_nulls[NEXT_ATTEMPT_AT] = true;
		fill_request(row);
	}
	if (!named)
		return;
	if (cancel ? was == QUEUE_SCHEDULED || was == QUEUE_FAILED || (was == QUEUE_PENDING && adopts(row)) :
		was == QUEUE_PENDING || was == QUEUE_REFUSED || was == QUEUE_FAILED)
		set_request(row, cancel, was == QUEUE_PENDING || was == QUEUE_FAILED);
	/* It is false already when the answer came after the take-back. */
	else if (!cancel && was == QUEUE_CANCELED && had)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot withdraw the cancel of message %s",
						DatumGetCString(DirectFunctionCall1(uuid_out, row->new[MESSAGE_ID]))),
				 errdetail("OneSignal has already confirmed it."),
				 errhint("Schedule another message with OneSignal.")));
}

static void
row_inserted(MessageRow *row)
{
	QueueState	written = state_in(row->new, row->new_nulls);
	bool		trusted = has_privs_of_role(GetUserId(), row->trigger->tg_relation->rd_rel->relowner);

	/* What an INSERT that names none of the extension's columns gives them. */
	memset(row->old_nulls, true, sizeof(row->old_nulls));
	row->old[STATE] = state_value(row, QUEUE_SCHEDULED);
	row->old[ATTEMPTS] = Int32GetDatum(0);
	row->old[UNANSWERED] = BoolGetDatum(false);
	row->old[CREATED_AT] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	row->old_nulls[STATE] = row->old_nulls[ATTEMPTS] = row->old_nulls[UNANSWERED] = row->old_nulls[CREATED_AT] = false;

	row->shared->inserts = true;
	row->shared->inserted = written;
	for (int column = STATE; column < COLUMN_COUNT; column++)
		if (differs(row, column) && (!trusted || row->new_nulls[column]))
			keep_value(row, column, !trusted);
	if (trusted && written == QUEUE_PENDING)
	{
		fill_request(row);
		wakeup_raise_doubt();	/* the server that was dumped may have sent it */
	}
	else if ((!trusted || written == QUEUE_SCHEDULED) && !row->new_nulls[CANCEL] && DatumGetBool(row->new[CANCEL]))
		set_request(row, true, false);
}

/* onesignal_message_change() RETURNS trigger */
Datum
onesignal_message_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	FmgrInfo   *called = fcinfo->flinfo;
	MessageRow	row;
	HeapTuple	tuple;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) || TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ||
		(called->fn_extra == NULL &&
		 !is_message_table(trigger->tg_relation, get_func_namespace(called->fn_oid))))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("onesignal_message_change() can only be used on the extension's own table"),
				 errdetail("It must be fired BEFORE INSERT OR UPDATE, FOR EACH ROW, of a table onesignal_message "
						   "whose columns were not altered.")));
	tuple = TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ? trigger->tg_trigtuple : trigger->tg_newtuple;
	/* An owner may have made it ENABLE ALWAYS: then this is delivery, or replication. */
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		return PointerGetDatum(tuple);
	row.shared = called->fn_extra;
	if (row.shared == NULL)
	{
		called->fn_extra = row.shared = MemoryContextAllocZero(called->fn_mcxt, sizeof(Shared));
		/* The library may have been loaded by the very statement: then that is the one that the client sent. */
		row.shared->merges = called->fn_mcxt->ident == merge_mark ||
			(ActivePortal != NULL && ActivePortal->stmts != NIL &&
			 ActivePortal->portalContext == MemoryContextGetParent(called->fn_mcxt) &&
			 merges_messages(linitial_node(PlannedStmt, ActivePortal->stmts)));
	}
	row.trigger = trigger;
	row.descriptor = RelationGetDescr(trigger->tg_relation);
	heap_deform_tuple(tuple, row.descriptor, row.new, row.new_nulls);
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		row_inserted(&row);
	else
	{
		heap_deform_tuple(trigger->tg_trigtuple, row.descriptor, row.old, row.old_nulls);
		row_updated(&row);
	}
	return PointerGetDatum(heap_form_tuple(row.descriptor, row.new, row.new_nulls));
}

/*
 * onesignal_message_guard() RETURNS boolean: a CHECK of onesignal_message
 *
 * Whoever has TRIGGER on the table can replace its trigger, but neither drop a
 * CHECK nor put ours back, for he may not execute its function.  The owner may
 * disable it, as pg_restore --disable-triggers does: then the owner alone may
 * write, and this wakes delivery in its place.
 */
Datum
onesignal_message_guard(PG_FUNCTION_ARGS)
{
	FmgrInfo   *called = fcinfo->flinfo;

	if (called->fn_extra == NULL)
	{
		Installation installation;

		owner_find(&installation, false);
		if (SessionReplicationRole != SESSION_REPLICATION_ROLE_REPLICA)
		{
			owner_require_trigger(&installation, has_privs_of_role(GetUserId(), installation.owner));
			if (owner_trigger_problem(&installation, false) != NULL)
			{
				wakeup_request();
				wakeup_raise_doubt();
			}
		}
		else if (!has_privs_of_role(GetUserId(), installation.owner))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied for table onesignal_message"),
					 errdetail("Where session_replication_role is \"replica\", as in a subscription, "
							   "only members of the table's owner may write it.")));
	}
	called->fn_extra = called;	/* once a statement */
	PG_RETURN_BOOL(true);
}
