/*
 * request.c
 *		Requesting a cancel from any function, and from triggers on the
 *		application's own tables.
 *
 * Both write the message's row in onesignal_message as the current user: table
 * grants and row security decide, and the table's own trigger does the rest.
 * The trigger looks its columns up by name for each row, since partitions
 * number them differently; beside the INSERT that costs nothing.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "credentials.h"
#include "options.h"
#include "queue.h"

PG_FUNCTION_INFO_V1(onesignal_cancel_enqueue);
PG_FUNCTION_INFO_V1(onesignal_cancel_trigger);

/* The row that a trigger was fired for. */
typedef struct Row
{
	Relation	relation;
	HeapTuple	tuple;
} Row;

/*
 * onesignal_cancel_enqueue(app_id uuid, message_id uuid, send_after timestamptz,
 *							reason text) RETURNS void
 */
Datum
onesignal_cancel_enqueue(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"app_id", "message_id"};
	TimestampTz send_after = PG_ARGISNULL(2) ? 0 : PG_GETARG_TIMESTAMPTZ(2);

	for (int i = 0; i < 2; i++)
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be null", names[i]),
					 errhint("Where a row may lack it, filter: WHERE %s IS NOT NULL.", names[i])));
	queue_enqueue(get_func_namespace(fcinfo->flinfo->fn_oid),
				  PG_GETARG_UUID_P(0), PG_GETARG_UUID_P(1),
				  PG_ARGISNULL(2) ? NULL : &send_after,
				  PG_ARGISNULL(3) ? NULL : PG_GETARG_TEXT_PP(3));
	PG_RETURN_VOID();
}

/* ---- columns of the application's tables ---- */

/* 0: there is none. System columns hold nothing of interest. */
static int
find_column(const Row *row, const char *name)
{
	int			number = SPI_fnumber(RelationGetDescr(row->relation), name);

	return number > 0 ? number : 0;
}

static int
require_column(const Row *row, const char *name)
{
	int			number = find_column(row, name);

	if (number == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist",
						name, RelationGetRelationName(row->relation)),
				 errdetail("Trigger function onesignal_cancel_trigger() was given that name.")));
	return number;
}

static void
wrong_type(const Row *row, const char *name, const char *expected)
{
	int			number = find_column(row, name);

	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("column \"%s\" of table \"%s\" is of type %s, but %s is needed",
					name, RelationGetRelationName(row->relation),
					format_type_be(SPI_gettypeid(RelationGetDescr(row->relation), number)), expected)));
}

/* False: it is NULL. */
static bool
uuid_column(const Row *row, const char *name, pg_uuid_t *uuid)
{
	TupleDesc	descriptor = RelationGetDescr(row->relation);
	int			number = require_column(row, name);
	bool		isnull;
	Datum		value = SPI_getbinval(row->tuple, descriptor, number, &isnull);
	char	   *text;

	switch (getBaseType(SPI_gettypeid(descriptor, number)))
	{
		case UUIDOID:
			if (!isnull)
				*uuid = *DatumGetUUIDP(value);
			return !isnull;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			break;
		default:
			wrong_type(row, name, "uuid or text");
	}
	if (isnull)
		return false;
	text = SPI_getvalue(row->tuple, descriptor, number);
	if (!options_parse_uuid(text, uuid))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("invalid input syntax for type uuid: \"%s\"", text),
				 errdetail("It is the value of column \"%s\" of table \"%s\".",
						   name, RelationGetRelationName(row->relation)),
				 errhint("OneSignal's ids are uuids. Where there is none, the column must be NULL.")));
	return true;
}

/* False: it is NULL. */
static bool
time_column(const Row *row, const char *name, TimestampTz *time)
{
	TupleDesc	descriptor = RelationGetDescr(row->relation);
	int			number = require_column(row, name);
	bool		isnull;
	Datum		value = SPI_getbinval(row->tuple, descriptor, number, &isnull);

	switch (getBaseType(SPI_gettypeid(descriptor, number)))
	{
		case TIMESTAMPTZOID:
			break;
		case TIMESTAMPOID:
			value = isnull ? value : DirectFunctionCall1(timestamp_timestamptz, value);
			break;
		case DATEOID:
			value = isnull ? value : DirectFunctionCall1(date_timestamptz, value);
			break;
		default:
			wrong_type(row, name, "timestamp with time zone");
	}
	*time = isnull ? 0 : DatumGetTimestampTz(value);
	return !isnull;
}

/* ---- the trigger's arguments ---- */

/* False: no server of ours has that name. */
static bool
server_app(const char *name, pg_uuid_t *app_id)
{
	ForeignServer *server = GetForeignServerByName(name, true);
	char	   *text;

	if (server == NULL ||
		strcmp(GetForeignDataWrapper(server->fdwid)->fdwname, CREDENTIALS_WRAPPER) != 0)
		return false;
	text = options_get(server->options, "app_id");
	return text != NULL && options_parse_uuid(text, app_id);
}

static void
resolve_app(const Row *row, const char *app, pg_uuid_t *app_id)
{
	if (options_parse_uuid(app, app_id))
		return;
	if (find_column(row, app) != 0)
	{
		if (!uuid_column(row, app, app_id))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("column \"%s\" of table \"%s\" is null, but the row has a message to cancel",
							app, RelationGetRelationName(row->relation))));
		return;
	}
	if (!server_app(app, app_id))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("\"%s\" is no app", app),
				 errdetail("It is neither a uuid, nor a column of table \"%s\", nor a server of foreign-data wrapper \"%s\".",
						   RelationGetRelationName(row->relation), CREDENTIALS_WRAPPER)));
}

static void
check_call(FunctionCallInfo fcinfo)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("onesignal_cancel_trigger() must be fired AFTER INSERT, UPDATE or DELETE, FOR EACH ROW")));
	if (trigger->tg_trigger->tgnargs < 2 || trigger->tg_trigger->tgnargs > 3)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" must give onesignal_cancel_trigger() two or three arguments",
						trigger->tg_trigger->tgname),
				 errhint("They are: 'message_id_column', app [, 'send_after_column'].")));
}

/*
 * onesignal_cancel_trigger('message_id_column', app [, 'send_after_column'])
 *
 * OLD's message is the one that was scheduled: "SET status = 'canceled',
 * reminder_id = NULL" and a rescheduling that replaces the id both mean it.
 */
Datum
onesignal_cancel_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	char	  **arguments;
	Row			row;
	pg_uuid_t	app_id;
	pg_uuid_t	message_id;
	TimestampTz send_after = 0;
	bool		has_message;
	bool		has_send_after;

	check_call(fcinfo);
	arguments = trigger->tg_trigger->tgargs;
	row.relation = trigger->tg_relation;
	row.tuple = trigger->tg_trigtuple;
	has_message = uuid_column(&row, arguments[0], &message_id);
	if (!has_message && TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		row.tuple = trigger->tg_newtuple;
		has_message = uuid_column(&row, arguments[0], &message_id);
	}
	if (!has_message)
		return PointerGetDatum(NULL);

	resolve_app(&row, arguments[1], &app_id);
	has_send_after = trigger->tg_trigger->tgnargs == 3 && time_column(&row, arguments[2], &send_after);
	queue_enqueue(get_func_namespace(fcinfo->flinfo->fn_oid), &app_id, &message_id,
				  has_send_after ? &send_after : NULL, NULL);
	return PointerGetDatum(NULL);
}
