/*
 * message.c
 *		A row of onesignal_message in its trigger: columns, states, changes.
 *
 * Columns are known by number, which is checked once a statement: the trigger
 * runs for each of a million rows, and looking names up would cost as much as
 * all else it does.  Values are read from the executor's slots, which take a
 * row apart only as far as it is asked for.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_type.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "message.h"

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

static const char *const state_labels[STATE_COUNT] = {
	"scheduled", "pending", "canceled", "refused", "failed"
};

/* The owner may have altered the table, and then nothing here would be right. */
void
message_check_table(Relation relation, Oid function)
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
				 errmsg("onesignal_message_change() is for table onesignal_message as the extension made it"),
				 errdetail("Table \"%s\" is not that, or its columns were altered.",
						   RelationGetRelationName(relation))));
}

void
message_find_states(MessageStates *states, Relation relation)
{
	Oid			type = TupleDescAttr(RelationGetDescr(relation), COLUMN_STATE - 1)->atttypid;

	for (int state = 0; state < STATE_COUNT; state++)
	{
		HeapTuple	tuple = SearchSysCache2(ENUMTYPOIDNAME, ObjectIdGetDatum(type),
											CStringGetDatum(state_labels[state]));

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "onesignal_message_state has no value \"%s\"", state_labels[state]);
		states->values[state] = ((Form_pg_enum) GETSTRUCT(tuple))->oid;
		ReleaseSysCache(tuple);
	}
}

/* ---- reading ---- */

void
message_begin(MessageRow *row, TriggerData *trigger, const MessageStates *states)
{
	bool		inserts = TRIGGER_FIRED_BY_INSERT(trigger->tg_event);

	row->trigger = trigger;
	row->states = states;
	row->old = inserts ? NULL : trigger->tg_trigslot;
	row->new = inserts ? trigger->tg_trigslot : trigger->tg_newslot;
	row->count = 0;
}

MessageState
message_state(const MessageRow *row, TupleTableSlot *slot)
{
	bool		isnull;
	Oid			value = DatumGetObjectId(slot_getattr(slot, COLUMN_STATE, &isnull));

	for (int state = 0; !isnull && state < STATE_COUNT; state++)
		if (row->states->values[state] == value)
			return state;
	return STATE_SCHEDULED;		/* NULL: the constraint will say so */
}

bool
message_flag(TupleTableSlot *slot, int column)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, column, &isnull);

	return !isnull && DatumGetBool(value);
}

bool
message_differs(const MessageRow *row, int column)
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

bool
message_names(const MessageRow *row, int column)
{
	return bms_is_member(column - FirstLowInvalidHeapAttributeNumber,
						 row->trigger->tg_updatedcols) ||
		message_differs(row, column);
}

static bool
differs_from_default(const MessageRow *row, int column)
{
	bool		isnull;
	Datum		value = slot_getattr(row->new, column, &isnull);

	switch (column)
	{
		case COLUMN_STATE:
			return DatumGetObjectId(value) != row->states->values[STATE_SCHEDULED];
		case COLUMN_ATTEMPTS:
			return DatumGetInt32(value) != 0;
		case COLUMN_UNANSWERED:
			return DatumGetBool(value);
		case COLUMN_CREATED_AT:
			return DatumGetTimestampTz(value) != GetCurrentTransactionStartTimestamp();
		default:
			return !isnull;
	}
}

int
message_foreign_column(const MessageRow *row)
{
	for (int column = COLUMN_STATE; column <= COLUMN_COUNT; column++)
		if (row->old == NULL ? differs_from_default(row, column) : message_differs(row, column))
			return column;
	return 0;
}

const char *
message_column_name(int column)
{
	return columns[column].name;
}

/* ---- changing ---- */

void
message_set(MessageRow *row, int column, Datum value)
{
	Assert(row->count < COLUMN_COUNT);
	row->columns[row->count] = column;
	row->values[row->count] = value;
	row->nulls[row->count] = false;
	row->count++;
}

void
message_set_state(MessageRow *row, MessageState state)
{
	message_set(row, COLUMN_STATE, ObjectIdGetDatum(row->states->values[state]));
}

void
message_clear(MessageRow *row, int column)
{
	message_set(row, column, (Datum) 0);
	row->nulls[row->count - 1] = true;
}

HeapTuple
message_result(MessageRow *row)
{
	HeapTuple	tuple = row->old == NULL ? row->trigger->tg_trigtuple : row->trigger->tg_newtuple;

	if (row->count == 0)
		return tuple;
	return heap_modify_tuple_by_cols(tuple, RelationGetDescr(row->trigger->tg_relation),
									 row->count, row->columns, row->values, row->nulls);
}
