/*
 * credentials.c
 *		Finds the server and the key that a role's cancels for an app use.
 *
 * Nothing in the catalogs finds a server by one of its options, so each
 * process remembers which servers an app has.  Everything else is looked up
 * each time: PostgreSQL caches the catalogs, rights depend on memberships, and
 * a key that is not kept cannot leak.  A key file is read each time too,
 * because it is replaced without SQL; that takes a few microseconds.
 *
 * The worker asks for roles that may be gone, and must go on when something
 * is missing.  A look-up therefore returns the error, for the caller to raise.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/reloptions.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "compat.h"
#include "credentials.h"

static const char key_file_hint[] =
	"The file must be readable by the user that runs PostgreSQL (owner postgres, mode 600) and "
	"contain the key alone, without \"Key \" or \"Basic \".";

/* The servers of an app. */
typedef struct AppServers
{
	pg_uuid_t	app_id;			/* hash key */
	List	   *servers;		/* OIDs */
} AppServers;

/* What is asked for, and the server and mapping found so far. */
typedef struct Lookup
{
	const pg_uuid_t *app_id;
	Oid			role;
	char	   *role_name;
	ForeignServer *server;
	bool		is_own;			/* the role's own mapping, not PUBLIC's */
} Lookup;

/* Counts changes of the catalogs. */
static uint64 changes = 1;

/* All apps that have servers, as of that count of changes. */
static HTAB *apps_with_servers = NULL;
static MemoryContext apps_context = NULL;
static uint64 apps_as_of = 0;

/* The hint may be NULL. */
static ErrorData *
problem(int sqlstate, char *message, char *hint)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));

	error->elevel = ERROR;
	error->sqlerrcode = sqlstate;
	error->message = message;
	error->hint = hint;
	return error;
}

static char *
app_text(const pg_uuid_t *app_id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(app_id)));
}

/* ---- which servers an app has ---- */

/* Invalidations arrive in the middle of any catalog access, so this only counts. */
static void
catalog_changed(Datum arg pg_attribute_unused(), int cacheid pg_attribute_unused(),
				uint32 hashvalue pg_attribute_unused())
{
	changes++;
}

static void
remember_server(HTAB *apps, HeapTuple tuple, TupleDesc descriptor)
{
	bool		isnull;
	Datum		stored = heap_getattr(tuple, Anum_pg_foreign_server_srvoptions, descriptor, &isnull);
	const char *text = isnull ? NULL : options_get(untransformRelOptions(stored), "app_id");
	pg_uuid_t	app_id;
	AppServers *app;
	bool		found;

	/* Without a usable app_id nobody can ask for the server. */
	if (text == NULL || !options_parse_uuid(text, &app_id))
		return;
	app = hash_search(apps, &app_id, HASH_ENTER, &found);
	app->servers = lappend_oid(found ? app->servers : NIL, ((Form_pg_foreign_server) GETSTRUCT(tuple))->oid);
}

/* Reads the wrapper's servers into a hash table in the current memory context. */
static HTAB *
read_servers(void)
{
	HASHCTL		control = {
		.keysize = sizeof(pg_uuid_t),
		.entrysize = sizeof(AppServers),
		.hcxt = CurrentMemoryContext
	};
	HTAB	   *apps = hash_create("onesignal_cancel servers", 16, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	Relation	relation = table_open(ForeignServerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_foreign_server_srvfdw, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(get_foreign_data_wrapper_oid(CREDENTIALS_WRAPPER, true)));
	scan = systable_beginscan(relation, InvalidOid, false, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		remember_server(apps, tuple, RelationGetDescr(relation));
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return apps;
}

/*
 * Returns the OIDs of an app's servers; the list is valid until the next call.
 *
 * A new table is built below the caller's memory context and adopted when it
 * is complete, so an error leaves the old one, still out of date.  Changes
 * during the scan make the new one out of date as well.
 */
static List *
servers_of(const pg_uuid_t *app_id)
{
	uint64		as_of = credentials_generation();
	AppServers *app;

	if (apps_as_of != as_of)
	{
		MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "onesignal_cancel servers",
													  ALLOCSET_SMALL_SIZES);
		MemoryContext caller = MemoryContextSwitchTo(context);
		HTAB	   *apps = read_servers();

		MemoryContextSwitchTo(caller);
		MemoryContextSetParent(context, CacheMemoryContext);
		if (apps_context != NULL)
			MemoryContextDelete(apps_context);
		apps_context = context;
		apps_with_servers = apps;
		apps_as_of = as_of;
	}
	app = hash_search(apps_with_servers, app_id, HASH_FIND, NULL);
	return app != NULL ? app->servers : NIL;
}

/* ---- which of them a role's cancels use ---- */

static ErrorData *
no_mapping(const Lookup *lookup, const ForeignServer *server)
{
	return problem(ERRCODE_UNDEFINED_OBJECT,
				   psprintf("no user mapping for role \"%s\" or PUBLIC on server \"%s\"",
							lookup->role_name, server->servername),
				   psprintf("Create one with CREATE USER MAPPING FOR PUBLIC SERVER %s "
							"OPTIONS (api_key_file '/path/to/key').",
							quote_identifier(server->servername)));
}

static ErrorData *
no_server(const Lookup *lookup)
{
	const char *app = app_text(lookup->app_id);

	return problem(ERRCODE_UNDEFINED_OBJECT, psprintf("no server for OneSignal app \"%s\"", app),
				   psprintf("Create one with CREATE SERVER name FOREIGN DATA WRAPPER %s OPTIONS (app_id '%s').",
							CREDENTIALS_WRAPPER, app));
}

static ErrorData *
no_usage(const Lookup *lookup, const ForeignServer *server)
{
	ErrorData  *error = problem(ERRCODE_INSUFFICIENT_PRIVILEGE,
								psprintf("permission denied for foreign server %s", server->servername),
								psprintf("Grant it with GRANT USAGE ON FOREIGN SERVER %s TO %s.",
										 quote_identifier(server->servername), quote_identifier(lookup->role_name)));

	error->detail = psprintf("To cancel messages of OneSignal app \"%s\", role \"%s\" needs USAGE on its server.",
							 app_text(lookup->app_id), lookup->role_name);
	return error;
}

/* Whose mapping it is. */
static const char *
mapping_text(const Lookup *lookup)
{
	return lookup->is_own ? psprintf("role \"%s\"", lookup->role_name) : "PUBLIC";
}

static ErrorData *
ambiguous(const Lookup *lookup, List *candidates)
{
	StringInfoData names;
	ListCell   *cell;

	initStringInfo(&names);
	foreach(cell, candidates)
		appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "", ((ForeignServer *) lfirst(cell))->servername);
	return problem(ERRCODE_DUPLICATE_OBJECT,
				   psprintf("more than one server for OneSignal app \"%s\" has a user mapping for %s: %s",
							app_text(lookup->app_id), mapping_text(lookup), names.data),
				   lookup->is_own ? "Keep this user mapping on only one of them." :
				   "Create a user mapping for the role on the server that it should use: it wins over PUBLIC's.");
}

/*
 * The ACL check raises an error for a server that is gone.  It reads the role
 * first, which superuser_arg() caches, and then finds the server as we did.
 */
static ForeignServer *
get_server(Oid oid, Oid role, bool *may_use)
{
	bool		is_superuser = superuser_arg(role);
	ForeignServer *server = GetForeignServerExtended(oid, FSV_MISSING_OK);

	*may_use = server != NULL &&
		(is_superuser || foreign_server_aclcheck(oid, role, ACL_USAGE) == ACLCHECK_OK);
	return server;
}

/* A role's own mapping, on whichever server, wins over PUBLIC's. */
static ErrorData *
choose_server(Lookup *lookup)
{
	List	   *own = NIL;
	List	   *shared = NIL;
	List	   *candidates;
	ForeignServer *any = NULL;
	ForeignServer *usable = NULL;
	ListCell   *cell;

	foreach(cell, servers_of(lookup->app_id))
	{
		Datum		oid = ObjectIdGetDatum(lfirst_oid(cell));
		bool		may_use;
		ForeignServer *server = get_server(lfirst_oid(cell), lookup->role, &may_use);

		any = any != NULL ? any : server;
		if (!may_use)
			continue;
		usable = usable != NULL ? usable : server;
		if (SearchSysCacheExists2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(lookup->role), oid))
			own = lappend(own, server);
		else if (SearchSysCacheExists2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid), oid))
			shared = lappend(shared, server);
	}
	if (any == NULL)
		return no_server(lookup);
	if (usable == NULL)
		return no_usage(lookup, any);
	lookup->is_own = own != NIL;
	candidates = lookup->is_own ? own : shared;
	if (candidates == NIL)
		return no_mapping(lookup, usable);
	if (list_length(candidates) > 1)
		return ambiguous(lookup, candidates);
	lookup->server = linitial(candidates);
	return NULL;
}

/* ---- which key they use ---- */

/*
 * Reads the key into a buffer of OPTIONS_KEY_MAX + 2 bytes.  Returns NULL, or
 * why it could not, in words that contain neither the path nor the contents.
 * Without O_NONBLOCK a FIFO would hang the backend, and without O_NOCTTY a
 * terminal would become its own, before fstat() can tell.
 */
static const char *
read_key_file(const char *path, char *buffer)
{
	struct stat status;
	size_t		length = 0;
	ssize_t		got;
	const char *reason = NULL;
	int			fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return psprintf("%m");
	if (fstat(fd, &status) < 0)
		reason = psprintf("%m");
	else if (!S_ISREG(status.st_mode))
		reason = "not a regular file";
	else
	{
		while ((got = read(fd, buffer + length, OPTIONS_KEY_MAX + 1 - length)) > 0 || (got < 0 && errno == EINTR))
			length += Max(got, 0);
		if (got < 0)
			reason = psprintf("%m");
	}
	CloseTransientFile(fd);
	if (reason != NULL)
		return reason;
	if (length > OPTIONS_KEY_MAX)
		return "larger than 4 kB";
	while (length > 0 && (buffer[length - 1] == '\n' || buffer[length - 1] == '\r'))
		length--;
	buffer[length] = '\0';
	return options_key_is_valid(buffer, length) ? NULL :
		"it must contain exactly one line of printable ASCII without spaces";
}

static ErrorData *
key_from_file(const Lookup *lookup, const char *path, char **key)
{
	char		buffer[OPTIONS_KEY_MAX + 2];
	const char *reason = read_key_file(path, buffer);
	char	   *located;
	ErrorData  *error;

	if (reason == NULL)
		*key = pstrdup(buffer);
	explicit_bzero(buffer, sizeof(buffer));
	if (reason == NULL)
		return NULL;

	error = problem(ERRCODE_UNDEFINED_FILE,
					psprintf("could not read the API key file of the user mapping for %s on server \"%s\": %s",
							 mapping_text(lookup), lookup->server->servername, reason),
					pstrdup(key_file_hint));
	/* Only the log, and roles that may read the file, are told where it is. */
	located = psprintf("The file is \"%s\".", path);
	if (has_privs_of_role(lookup->role, ROLE_PG_READ_SERVER_FILES))
		error->detail = located;
	else
		error->detail_log = located;
	return error;
}

static ErrorData *
key_from_mapping(const Lookup *lookup, char *stored, char **key)
{
	if (stored != NULL && options_key_is_valid(stored, strlen(stored)))
		*key = pstrdup(stored);
	if (stored != NULL)
		explicit_bzero(stored, strlen(stored));
	if (*key != NULL)
		return NULL;
	return problem(ERRCODE_UNDEFINED_OBJECT,
				   psprintf("user mapping for %s on server \"%s\" %s", mapping_text(lookup),
							lookup->server->servername, stored != NULL ? "holds no valid API key" : "has no API key"),
				   psprintf("Set it with ALTER USER MAPPING FOR %s SERVER %s "
							"OPTIONS (%sADD api_key_file '/path/to/key').",
							lookup->is_own ? quote_identifier(lookup->role_name) : "PUBLIC",
							quote_identifier(lookup->server->servername), stored != NULL ? "DROP api_key, " : ""));
}

static ErrorData *
find_api_key(const Lookup *lookup, char **key)
{
	HeapTuple	tuple = SearchSysCache2(USERMAPPINGUSERSERVER,
										ObjectIdGetDatum(lookup->is_own ? lookup->role : InvalidOid),
										ObjectIdGetDatum(lookup->server->serverid));
	Datum		stored;
	bool		isnull;
	List	   *options;
	const char *path;

	if (!HeapTupleIsValid(tuple))	/* dropped since it was chosen */
		return no_mapping(lookup, lookup->server);
	stored = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple, Anum_pg_user_mapping_umoptions, &isnull);
	options = isnull ? NIL : untransformRelOptions(stored);
	ReleaseSysCache(tuple);

	path = options_get(options, "api_key_file");
	if (path != NULL)
		return key_from_file(lookup, path, key);
	return key_from_mapping(lookup, options_get(options, "api_key"), key);
}

/* ---- the whole of it ---- */

/* The options may have been set while the wrapper had no validator. */
static ErrorData *
read_server_options(const ForeignServer *server, Credentials *credentials)
{
	const char *rate_limit = options_get(server->options, "rate_limit");
	char	   *base_url = options_get(server->options, "base_url");
	const char *invalid = NULL;

	credentials->rate_limit = CREDENTIALS_RATE_ADAPTS;
	if (rate_limit != NULL && !options_parse_rate(rate_limit, &credentials->rate_limit))
		invalid = "rate_limit";
	if (base_url == NULL)
		base_url = pstrdup(CREDENTIALS_DEFAULT_URL);
	else if (options_url_problem(base_url) != NULL)
		invalid = "base_url";
	if (invalid != NULL)
		return problem(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE,
					   psprintf("invalid value for option \"%s\" of server \"%s\"", invalid, server->servername), NULL);
	for (size_t length = strlen(base_url); length > 0 && base_url[length - 1] == '/'; length--)
		base_url[length - 1] = '\0';
	credentials->server = server->serverid;
	credentials->server_name = server->servername;
	credentials->base_url = base_url;
	credentials->ca_file = options_get(server->options, "ca_file");
	credentials->proxy = options_get(server->options, "proxy");
	return NULL;
}

ErrorData *
credentials_find(const pg_uuid_t *app_id, Oid role, Credentials *credentials)
{
	Lookup		lookup = {.app_id = app_id, .role = role};
	ErrorData  *error;

	Assert(IsTransactionState());	/* callers see to it */

	/* A REVOKE must also stop a loop within one statement. */
	AcceptInvalidationMessages();
	/* A role that is gone must not cancel with PUBLIC's rights. */
	lookup.role_name = GetUserNameFromId(role, true);
	if (lookup.role_name == NULL)
		return problem(ERRCODE_INSUFFICIENT_PRIVILEGE, psprintf("role with OID %u does not exist", role), NULL);

	error = choose_server(&lookup);
	if (error == NULL && credentials != NULL)
	{
		memset(credentials, 0, sizeof(*credentials));
		error = read_server_options(lookup.server, credentials);
		if (error == NULL)
			error = find_api_key(&lookup, &credentials->api_key);
	}
	return error;
}

void
credentials_get(const pg_uuid_t *app_id, Oid role, Credentials *credentials)
{
	ErrorData  *error = credentials_find(app_id, role, credentials);

	if (error != NULL)
		ThrowErrorData(error);
}

void
credentials_wipe(Credentials *credentials)
{
	if (credentials->api_key == NULL)
		return;
	explicit_bzero(credentials->api_key, strlen(credentials->api_key));
	pfree(credentials->api_key);
	credentials->api_key = NULL;
}

bool
credentials_app_has_server(const pg_uuid_t *app_id)
{
	return servers_of(app_id) != NIL;
}

uint64
credentials_generation(void)
{
	static bool watching = false;

	if (!watching)
	{
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID, catalog_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(USERMAPPINGOID, catalog_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID, catalog_changed, (Datum) 0);
		watching = true;
	}
	return changes;
}
