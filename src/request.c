/*
 * request.c
 *		onesignal_cancel_enqueue(), and the trigger for the application's own tables.
 *
 * Both write to onesignal_message as the current user: table grants and row
 * security decide, and its own trigger does the rest.  Missing grants are found
 * out before: PostgreSQL's error has no hint, and whoever deletes an appointment
 * has never heard of this table.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "queue.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(onesignal_cancel_enqueue);
PG_FUNCTION_INFO_V1(onesignal_cancel_trigger);

/* Is this right granted on the table, or on some of its columns? */
static bool
may(Oid table, AclMode right)
{
	return pg_class_aclcheck(table, GetUserId(), right) == ACLCHECK_OK ||
		pg_attribute_aclcheck_all(table, GetUserId(), right, ACLMASK_ANY) == ACLCHECK_OK;
}

static void
require_privileges(const Installation *installation)
{
	Oid			table = installation->message_table;
	char	   *schema = get_namespace_name(installation->schema);
	const char *role = quote_identifier(GetUserNameFromId(GetUserId(), false));
	bool		enters = namespace_aclcheck(installation->schema, GetUserId(), ACL_USAGE) == ACLCHECK_OK;

	if (enters && may(table, ACL_SELECT) && may(table, ACL_INSERT) && may(table, ACL_UPDATE))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 enters ? errmsg("permission denied for table onesignal_message") :
			 errmsg("permission denied for schema %s", schema),
			 errdetail("Requesting a cancel writes to table onesignal_message as the current user."),
			 enters ? errhint("Grant the privileges with GRANT SELECT, INSERT, UPDATE ON %s TO %s.",
							  quote_qualified_identifier(RelationIsVisible(table) ? NULL : schema, "onesignal_message"),
							  role) :
			 errhint("Grant the privilege with GRANT USAGE ON SCHEMA %s TO %s.", quote_identifier(schema), role)));
}

static void
enqueue(Datum *values, const char *nulls)
{
	static Statement write_row = {
		.sql = "INSERT INTO @onesignal_message AS m (app_id, message_id, send_after, reason, cancel)"
			   " VALUES ($1, $2, $3, $4, true)"
			   " ON CONFLICT (message_id, app_id) DO UPDATE SET cancel = true,"
			   " send_after = COALESCE($3, m.send_after), reason = COALESCE($4, m.reason)",
		.types = {UUIDOID, UUIDOID, TIMESTAMPTZOID, TEXTOID}
	};
	Installation installation;

	owner_find(&installation, false);
	require_privileges(&installation);
	LockRelationOid(installation.message_table, RowExclusiveLock);	/* the trigger stays as it is */
	owner_require_trigger(&installation, false);
	SPI_connect();
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA ||
		statement_run(&write_row, installation.schema, values, nulls) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the cancel was not requested"),
				 errdetail("A trigger or rule of table onesignal_message has suppressed the row, or "
						   "session_replication_role is \"replica\" and keeps the table's own trigger from firing.")));
	SPI_finish();
}

/* onesignal_cancel_enqueue(app_id uuid, message_id uuid, send_after timestamptz, reason text) RETURNS void */
Datum
onesignal_cancel_enqueue(PG_FUNCTION_ARGS)
{
	Datum		values[4];
	char		nulls[4];

	settings_require_argument(fcinfo, 0, "app_id", SETTINGS_FILTER_HINT);
	settings_require_argument(fcinfo, 1, "message_id", SETTINGS_FILTER_HINT);
	for (int i = 0; i < 4; i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	enqueue(values, nulls);
	PG_RETURN_VOID();
}

/* False: no server of ours has that name. */
static bool
server_app(const char *name, pg_uuid_t *app_id)
{
	ForeignServer *server = GetForeignServerByName(name, true);
	bool		is_ours = server != NULL && server->fdwid == get_foreign_data_wrapper_oid(CREDENTIALS_WRAPPER, true);
	const char *text = is_ours ? options_get(server->options, "app_id") : NULL;

	return text != NULL && options_parse_uuid(text, app_id);
}

/* Adds a hint if the column that an error is about may have been meant to be a server. */
static int
server_hint(const TriggerData *row, const char *name)
{
	pg_uuid_t	app_id;

	if (strcmp(name, row->tg_trigger->tgargs[1]) != 0 || !server_app(name, &app_id))
		return 0;
	return errhint("There is also a server \"%s\", but a column is tried first: "
				   "rename the server, or give the app's id.",
				   name);
}

/* The column's number and base type.  It is looked up for each row, since partitions number columns differently. */
static int
find_column(const TriggerData *row, const char *name, bool is_time, Oid *type)
{
	const char *table = RelationGetRelationName(row->tg_relation);
	TupleDesc	descriptor = RelationGetDescr(row->tg_relation);
	int			number = SPI_fnumber(descriptor, name);

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", name, table),
				 errdetail("Trigger function onesignal_cancel_trigger() was given that name.")));
	/* 'v' is of PostgreSQL 18 and newer. */
	if (TupleDescAttr(descriptor, number - 1)->attgenerated == 'v')
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" of table \"%s\" is a virtual generated column, whose value no trigger sees",
						name, table),
				 errhint("Make it STORED, or name the columns that it is made of.")));
	*type = getBaseType(SPI_gettypeid(descriptor, number));
	if (is_time ? *type != TIMESTAMPTZOID && *type != TIMESTAMPOID && *type != DATEOID :
		*type != UUIDOID && *type != TEXTOID && *type != VARCHAROID && *type != BPCHAROID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s\" is of type %s, but %s is needed",
						name, table, format_type_be(SPI_gettypeid(descriptor, number)),
						is_time ? "timestamp with time zone" : "uuid or text"),
				 server_hint(row, name)));
	return number;
}

/* False: it is NULL, or a text of blanks. */
static bool
uuid_column(const TriggerData *row, const char *name, pg_uuid_t *uuid)
{
	Oid			type;
	int			number = find_column(row, name, false, &type);
	char	   *id = SPI_getvalue(row->tg_trigtuple, RelationGetDescr(row->tg_relation), number);

	if (id == NULL || id[strspn(id, " \t\n\v\f\r")] == '\0')
		return false;
	if (type == BPCHAROID)		/* whose blanks at the end mean nothing */
		id[bpchartruelen(id, (int) strlen(id))] = '\0';
	if (!options_parse_uuid(id, uuid))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("invalid input syntax for type uuid: \"%s\"", id),
				 errdetail("It is the value of column \"%s\" of table \"%s\".",
						   name, RelationGetRelationName(row->tg_relation)),
				 errhint("OneSignal's ids are uuids. Where there is none, the column must be null or empty."),
				 server_hint(row, name)));
	return true;
}

static void
resolve_app(const TriggerData *row, pg_uuid_t *app_id)
{
	const char *app = row->tg_trigger->tgargs[1];

	if (options_parse_uuid(app, app_id))
		return;
	if (SPI_fnumber(RelationGetDescr(row->tg_relation), app) > 0)
	{
		if (!uuid_column(row, app, app_id))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("column \"%s\" of table \"%s\" is null or empty, but the row has a message to cancel",
							app, RelationGetRelationName(row->tg_relation)),
					 server_hint(row, app)));
	}
	else if (!server_app(app, app_id))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("could not find OneSignal app \"%s\"", app),
				 errdetail("It is neither a uuid, nor a column of table \"%s\", "
						   "nor a server of foreign-data wrapper \"%s\".",
						   RelationGetRelationName(row->tg_relation), CREDENTIALS_WRAPPER),
				 errhint("Give the app's id, the name of a column that holds it, or the name of a server.")));
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
	TriggerData row;
	pg_uuid_t	app_id;
	pg_uuid_t	message_id;
	Datum		values[] = {UUIDPGetDatum(&app_id), UUIDPGetDatum(&message_id), 0, 0};
	char		nulls[] = {' ', ' ', 'n', 'n'};
	int			number;
	Oid			type;
	bool		isnull;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		trigger->tg_trigger->tgnargs < 2 || trigger->tg_trigger->tgnargs > 3)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("onesignal_cancel_trigger() must be fired AFTER INSERT, UPDATE or DELETE, FOR EACH ROW, "
						"with two or three arguments"),
				 errhint("They are: 'message_id_column', app [, 'send_after_column'].")));
	row = *trigger;
	if (!uuid_column(&row, row.tg_trigger->tgargs[0], &message_id))
	{
		row.tg_trigtuple = trigger->tg_newtuple;
		if (!TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) || !uuid_column(&row, row.tg_trigger->tgargs[0], &message_id))
			return PointerGetDatum(NULL);
	}
	resolve_app(&row, &app_id);
	if (trigger->tg_trigger->tgnargs == 3)
	{
		number = find_column(&row, row.tg_trigger->tgargs[2], true, &type);
		values[2] = SPI_getbinval(row.tg_trigtuple, RelationGetDescr(row.tg_relation), number, &isnull);
		if (!isnull && type != TIMESTAMPTZOID)
			values[2] = DirectFunctionCall1(type == DATEOID ? date_timestamptz : timestamp_timestamptz, values[2]);
		nulls[2] = isnull ? 'n' : ' ';
	}
	enqueue(values, nulls);
	return PointerGetDatum(NULL);
}
