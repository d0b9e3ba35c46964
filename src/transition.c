/*
 * transition.c
 *		The state machine of onesignal_message: its BEFORE ROW trigger.
 *
 *		scheduled --cancel = true--> pending --delivery--> canceled
 *		    ^                          |  \--------------> refused
 *		    |                          |   \-------------> failed
 *		    +------cancel = false------+---- refused, failed
 *		failed --cancel = true--> pending
 *
 * The application writes cancel, and what it wrote decides: "SET cancel = true"
 * on a row that has it already is a request if the row has failed.  So what
 * counts is which columns an UPDATE names, not what differs.
 *
 * Delivery writes with session_replication_role = replica, in which this does
 * not fire; nor does it for rows applied by logical replication.
 *
 * requested_by is whose credentials are used: nobody but us may set it.  That
 * is why protected columns are compared here, where the final row is seen, and
 * why no BEFORE trigger may come after this one: anybody with TRIGGER on the
 * table could add one that changes the row once more.
 *
 * It runs for each of a million rows in one statement.  What such rows share
 * is found out once: access rights, which a REVOKE must be able to change
 * before the next statement, live no longer than that (in fn_extra).
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "credentials.h"
#include "message.h"
#include "wakeup.h"

PG_FUNCTION_INFO_V1(onesignal_message_change);

typedef struct Access
{
	pg_uuid_t	app_id;
	Oid			role;
} Access;

/* Enough for a statement over the rows of many customers, in any order. */
#define ACCESS_MAX 16

/* What the rows of one statement share. */
typedef struct Shared
{
	MessageStates states;
	Oid			role;			/* whose name is role_name */
	NameData	role_name;
	Oid			member;			/* known to be a member of the table's owner */
	bool		woken;
	int			access_count;
	Access		access[ACCESS_MAX];
} Shared;

/* ---- what a statement's rows share ---- */

static Shared *
get_shared(FunctionCallInfo fcinfo)
{
	Relation	relation = ((TriggerData *) fcinfo->context)->tg_relation;
	Shared	   *shared = fcinfo->flinfo->fn_extra;

	if (shared != NULL)
		return shared;
	message_check_table(relation, fcinfo->flinfo->fn_oid);
	shared = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(Shared));
	message_find_states(&shared->states, relation);
	fcinfo->flinfo->fn_extra = shared;
	return shared;
}

static void
require_access(MessageRow *row, Shared *shared)
{
	Oid			role = GetUserId();
	bool		isnull;
	Datum		app_id = slot_getattr(row->new, COLUMN_APP_ID, &isnull);
	Access	   *access;

	if (isnull)
		return;					/* the NOT NULL constraint will say so */
	for (int i = 0; i < shared->access_count; i++)
		if (shared->access[i].role == role &&
			memcmp(&shared->access[i].app_id, DatumGetUUIDP(app_id), sizeof(pg_uuid_t)) == 0)
			return;
	credentials_check(DatumGetUUIDP(app_id), role);
	if (shared->access_count == ACCESS_MAX)
		shared->access_count = 0;
	access = &shared->access[shared->access_count++];
	access->app_id = *DatumGetUUIDP(app_id);
	access->role = role;
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

/* ---- what is refused ---- */

/* Whoever owns the table could take the trigger away, so may do without it. */
static void
require_membership(MessageRow *row, Shared *shared, int column)
{
	Relation	relation = row->trigger->tg_relation;

	if (shared->member == GetUserId())
		return;
	if (!has_privs_of_role(GetUserId(), relation->rd_rel->relowner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to set column \"%s\" of table \"%s\"",
						message_column_name(column), RelationGetRelationName(relation)),
				 errdetail("It belongs to the extension: only members of the table's owner may set it."),
				 errhint("To cancel a message, set cancel to true.")));
	shared->member = GetUserId();
}

static void
require_same_key(const MessageRow *row)
{
	if (message_differs(row, COLUMN_MESSAGE_ID) || message_differs(row, COLUMN_APP_ID))
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
			 errmsg("message %s has been canceled",
					DatumGetCString(DirectFunctionCall1(uuid_out, message_id))),
			 errdetail("OneSignal confirmed it: cancel cannot be set to false any more."),
			 errhint("Schedule another message with OneSignal.")));
}

/* Triggers fire in the order of their names, in which the array has them. */
static void
require_last(const TriggerData *trigger)
{
	const TriggerDesc *all = trigger->tg_relation->trigdesc;
	int16		event = TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ? TRIGGER_TYPE_INSERT : TRIGGER_TYPE_UPDATE;

	for (int i = all->numtriggers - 1; i >= 0; i--)
	{
		const Trigger *other = &all->triggers[i];

		if (other->tgoid == trigger->tg_trigger->tgoid)
			return;
		if (other->tgenabled != TRIGGER_DISABLED &&
			TRIGGER_TYPE_MATCHES(other->tgtype, TRIGGER_TYPE_ROW, TRIGGER_TYPE_BEFORE, event))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("trigger \"%s\" of table \"%s\" would change rows that were checked already",
							other->tgname, RelationGetRelationName(trigger->tg_relation)),
					 errhint("Rename it so that it fires before trigger \"%s\".", trigger->tg_trigger->tgname)));
	}
}

/* ---- what happens ---- */

/* All that a former request, or its delivery, left in the row. */
static void
clear_outcome(MessageRow *row)
{
	message_clear(row, COLUMN_HTTP_STATUS);
	message_clear(row, COLUMN_ERRORS);
	message_clear(row, COLUMN_RESPONSE);
	message_set(row, COLUMN_ATTEMPTS, Int32GetDatum(0));
	message_set(row, COLUMN_UNANSWERED, BoolGetDatum(false));
	message_clear(row, COLUMN_FIRST_ATTEMPT_AT);
	message_clear(row, COLUMN_LAST_ATTEMPT_AT);
	message_clear(row, COLUMN_FINISHED_AT);
}

static void
request(MessageRow *row, Shared *shared)
{
	TimestampTz now = GetCurrentTransactionStartTimestamp();

	require_access(row, shared);
	message_set_state(row, STATE_PENDING);
	message_set(row, COLUMN_REQUESTED_BY, current_role(shared));
	message_set(row, COLUMN_REQUESTED_AT, TimestampTzGetDatum(now));
	message_set(row, COLUMN_NEXT_ATTEMPT_AT, TimestampTzGetDatum(now));
	clear_outcome(row);
	wake(shared);
}

static void
reset(MessageRow *row)
{
	message_set_state(row, STATE_SCHEDULED);
	message_clear(row, COLUMN_REQUESTED_BY);
	message_clear(row, COLUMN_REQUESTED_AT);
	message_clear(row, COLUMN_NEXT_ATTEMPT_AT);
	clear_outcome(row);
}

static void
take_back(MessageRow *row, Shared *shared, MessageState state)
{
	switch (state)
	{
		case STATE_PENDING:
		case STATE_REFUSED:
		case STATE_FAILED:
			require_access(row, shared);
			reset(row);
			break;
		case STATE_CANCELED:
			/* It is false already when the answer came after the take-back. */
			if (message_flag(row->old, COLUMN_CANCEL))
				refuse_takeback(row);
			break;
		default:
			break;
	}
}

/* The order of delivery is another one now, and so are the times of retries. */
static void
reschedule(MessageRow *row, Shared *shared)
{
	require_access(row, shared);
	message_set(row, COLUMN_NEXT_ATTEMPT_AT, TimestampTzGetDatum(GetCurrentTransactionStartTimestamp()));
	wake(shared);
}

/*
 * A restored dump, or the owner's own hand: the row stays as it is.  What
 * delivery cannot do without is filled in where it is missing.
 */
static void
accept_state(MessageRow *row, Shared *shared, MessageState state)
{
	TimestampTz now = GetCurrentTransactionStartTimestamp();

	if (state != STATE_PENDING)
		return;
	if (slot_attisnull(row->new, COLUMN_REQUESTED_BY))
		message_set(row, COLUMN_REQUESTED_BY, current_role(shared));
	if (slot_attisnull(row->new, COLUMN_REQUESTED_AT))
		message_set(row, COLUMN_REQUESTED_AT, TimestampTzGetDatum(now));
	if (slot_attisnull(row->new, COLUMN_NEXT_ATTEMPT_AT))
		message_set(row, COLUMN_NEXT_ATTEMPT_AT, TimestampTzGetDatum(now));
	wake(shared);
}

static void
inserted(MessageRow *row, Shared *shared)
{
	MessageState state = message_state(row, row->new);
	int			foreign = message_foreign_column(row);

	if (foreign != 0)
		require_membership(row, shared, foreign);
	if (state != STATE_SCHEDULED)
		accept_state(row, shared, state);
	else if (message_flag(row->new, COLUMN_CANCEL))
		request(row, shared);
}

static void
updated(MessageRow *row, Shared *shared)
{
	MessageState was = message_state(row, row->old);
	MessageState state = message_state(row, row->new);
	int			foreign = message_foreign_column(row);
	bool		named = message_names(row, COLUMN_CANCEL);

	require_same_key(row);
	if (foreign != 0)
		require_membership(row, shared, foreign);
	if (state != was)
		accept_state(row, shared, state);
	else if (named && !message_flag(row->new, COLUMN_CANCEL))
		take_back(row, shared, was);
	else if (named && (was == STATE_SCHEDULED || was == STATE_FAILED))
		request(row, shared);
	else if (was == STATE_PENDING && message_differs(row, COLUMN_SEND_AFTER))
		reschedule(row, shared);
}

/* onesignal_message_change() RETURNS trigger: of onesignal_message alone */
Datum
onesignal_message_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Shared	   *shared;
	MessageRow	row;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) || TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("onesignal_message_change() must be fired BEFORE INSERT OR UPDATE for each row")));
	require_last(trigger);
	shared = get_shared(fcinfo);
	message_begin(&row, trigger, &shared->states);
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		inserted(&row, shared);
	else
		updated(&row, shared);
	return PointerGetDatum(message_result(&row));
}
