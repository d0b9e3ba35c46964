/*
 * credentials.c
 *		Finds the server and the key that a role's cancels for an app use.
 *
 * Nothing in the catalogs finds a server by one of its options, so each
 * process remembers which servers an app has.  Everything else is looked up
 * each time: PostgreSQL caches the catalogs, rights depend on memberships, a
 * key that is not kept cannot leak, and a key file is replaced without SQL.
 *
 * The worker asks for roles that may be gone, and must go on when something
 * is missing.  A look-up therefore returns the error, for the caller to raise.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "access/table.h"
#include "catalog/pg_authid.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "compat.h"
#include "credentials.h"

#define AUTHORIZATION	"Authorization: Key "

typedef struct AppServers
{
	pg_uuid_t	app_id;			/* hash key */
	List	   *servers;		/* OIDs */
} AppServers;

/* What is asked for, and the nearest that was found. */
typedef struct Lookup
{
	char	   *app;
	Oid			role;
	char	   *role_name;
	ForeignServer *server;		/* with a mapping, or else with USAGE alone */
	Oid			owner;			/* of the mapping: the role, or InvalidOid for PUBLIC */
	const char *owner_text;
} Lookup;

/* Counts changes of the catalogs; 0: they are not watched yet. */
static uint64 changes = 0;

/* Detail and hint may be NULL. */
static ErrorData *
problem(int sqlstate, char *message, char *detail, char *hint)
{
	ErrorData  *error = palloc(sizeof(ErrorData));

	*error = (ErrorData) {.elevel = ERROR, .sqlerrcode = sqlstate, .message = message, .detail = detail, .hint = hint};
	return error;
}

/* ---- which servers an app has ---- */

/* Invalidations arrive in the middle of any catalog access, so this only counts. */
static void
catalog_changed(Datum arg pg_attribute_unused(), int cacheid pg_attribute_unused(),
				uint32 hashvalue pg_attribute_unused())
{
	changes++;
}

/* Reads the wrapper's servers into a hash table in the current memory context. */
static HTAB *
read_servers(void)
{
	HASHCTL		control = {.keysize = sizeof(pg_uuid_t), .entrysize = sizeof(AppServers), .hcxt = CurrentMemoryContext};
	HTAB	   *apps = hash_create("onesignal_cancel servers", 16, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	Relation	relation = table_open(ForeignServerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_foreign_server_srvfdw, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(get_foreign_data_wrapper_oid(CREDENTIALS_WRAPPER, true)));
	scan = systable_beginscan(relation, InvalidOid, false, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		bool		found;
		Datum		stored = SysCacheGetAttr(FOREIGNSERVEROID, tuple, Anum_pg_foreign_server_srvoptions, &isnull);
		const char *text = isnull ? NULL : options_get(untransformRelOptions(stored), "app_id");
		pg_uuid_t	app_id;
		AppServers *app;

		/* Without a usable app_id nobody can ask for the server. */
		if (text == NULL || !options_parse_uuid(text, &app_id))
			continue;
		app = hash_search(apps, &app_id, HASH_ENTER, &found);
		app->servers = lappend_oid(found ? app->servers : NIL, ((Form_pg_foreign_server) GETSTRUCT(tuple))->oid);
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return apps;
}

List *
credentials_servers(const pg_uuid_t *app_id)
{
	static MemoryContext context = NULL;
	static HTAB *apps;
	static uint64 as_of = 0;
	uint64		now = credentials_generation();
	MemoryContext caller = CurrentMemoryContext;
	AppServers *app;

	if (as_of != now)
	{
		if (context == NULL)
			context = AllocSetContextCreate(CacheMemoryContext, "onesignal_cancel servers", ALLOCSET_SMALL_SIZES);
		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		apps = read_servers();
		MemoryContextSwitchTo(caller);
		as_of = now;			/* not after an error: then the next call reads all again */
	}
	app = hash_search(apps, app_id, HASH_FIND, NULL);
	return app != NULL ? app->servers : NIL;
}

/* A role's own mapping, on whichever server, wins over PUBLIC's. */
static ErrorData *
choose_server(Lookup *lookup, const pg_uuid_t *app_id)
{
	char	   *names = NULL;
	ForeignServer *any = NULL;
	ListCell   *cell;

	/* The ACL check raises an error for a server that is gone.  It reads the role first, which this caches. */
	(void) superuser_arg(lookup->role);
	foreach(cell, credentials_servers(app_id))
	{
		Oid			oid = lfirst_oid(cell);
		ForeignServer *server = GetForeignServerExtended(oid, FSV_MISSING_OK);

		if (server == NULL)
			continue;
		any = server;
		if (foreign_server_aclcheck(oid, lookup->role, ACL_USAGE) != ACLCHECK_OK)
			continue;
		if (!OidIsValid(lookup->owner) &&
			SearchSysCacheExists2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(lookup->role), ObjectIdGetDatum(oid)))
		{
			lookup->owner = lookup->role;
			names = NULL;
		}
		if (names == NULL)
			lookup->server = server;
		if (SearchSysCacheExists2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(lookup->owner), ObjectIdGetDatum(oid)))
			names = names == NULL ? server->servername : psprintf("%s\", \"%s", names, server->servername);
	}
	lookup->owner_text = OidIsValid(lookup->owner) ? psprintf("role \"%s\"", lookup->role_name) : "PUBLIC";
	if (any == NULL)
		return problem(ERRCODE_UNDEFINED_OBJECT, psprintf("no server for OneSignal app \"%s\"", lookup->app), NULL,
					   psprintf("Create one with CREATE SERVER name FOREIGN DATA WRAPPER %s OPTIONS (app_id '%s').",
								CREDENTIALS_WRAPPER, lookup->app));
	if (lookup->server == NULL)
		return problem(ERRCODE_INSUFFICIENT_PRIVILEGE,
					   psprintf("permission denied for foreign server %s", any->servername),
					   psprintf("To cancel messages of OneSignal app \"%s\", role \"%s\" needs USAGE on its server.",
								lookup->app, lookup->role_name),
					   psprintf("Grant it with GRANT USAGE ON FOREIGN SERVER %s TO %s.",
								quote_identifier(any->servername), quote_identifier(lookup->role_name)));
	if (names == NULL)
		return problem(ERRCODE_UNDEFINED_OBJECT,
					   psprintf("no user mapping for role \"%s\" or PUBLIC on server \"%s\"",
								lookup->role_name, lookup->server->servername),
					   NULL,
					   psprintf("Create one with CREATE USER MAPPING FOR PUBLIC SERVER %s "
								"OPTIONS (api_key_file '/path/to/key').",
								quote_identifier(lookup->server->servername)));
	if (names != lookup->server->servername)	/* but a list */
		return problem(ERRCODE_DUPLICATE_OBJECT,
					   psprintf("more than one server for OneSignal app \"%s\" has a user mapping for %s: \"%s\"",
								lookup->app, lookup->owner_text, names),
					   NULL,
					   "Keep one of them, or create one for the role: a role's own wins over PUBLIC's.");
	return NULL;
}

/* ---- which key they use ---- */

/*
 * Reads the key into OPTIONS_KEY_MAX + 2 bytes.  Returns NULL, or why it could
 * not, without the path and the contents.  Until fstat() can tell, a FIFO must
 * not hang the backend, nor a terminal become its own.
 */
static const char *
read_key_file(const char *path, char *buffer)
{
	struct stat status;
	ssize_t		length = 0;
	ssize_t		got;
	const char *reason = "not a regular file";
	int			fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return psprintf("%m");
	if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode))
	{
		/* A read may end early: half a key must not pass for one. */
		while ((got = read(fd, buffer + length, OPTIONS_KEY_MAX + 1 - length)) > 0 || (got < 0 && errno == EINTR))
			length += Max(got, 0);
		reason = got < 0 ? psprintf("%m") : NULL;
	}
	CloseTransientFile(fd);
	if (length > OPTIONS_KEY_MAX)
		return "larger than 4 kB";
	if (reason != NULL)
		return reason;
	while (length > 0 && (buffer[length - 1] == '\n' || buffer[length - 1] == '\r'))
		length--;
	buffer[length] = '\0';
	return strlen(buffer) == (size_t) length && options_key_problem(buffer) == NULL ? NULL :
		"it must contain exactly one line of printable ASCII without spaces";
}

/* The memory context of a key calls it, also when an error frees it. */
static void
wipe_header(void *header)
{
	explicit_bzero(header, strlen(header));
}

static ErrorData *
read_key(const Lookup *lookup, Credentials *credentials)
{
	char		header[sizeof(AUTHORIZATION) + OPTIONS_KEY_MAX + 1] = AUTHORIZATION;
	char	   *key = header + strlen(AUTHORIZATION);
	List	   *options = GetUserMapping(lookup->owner, lookup->server->serverid)->options;
	const char *path = options_get(options, "api_key_file");
	char	   *stored = options_get(options, "api_key");
	const char *reason = path != NULL ? read_key_file(path, key) : NULL;
	ErrorData  *error;
	char	   *where;

	if (path == NULL && stored != NULL)
	{
		strlcpy(key, stored, OPTIONS_KEY_MAX + 2);
		explicit_bzero(stored, strlen(stored));
	}
	if (reason == NULL && options_key_problem(key) == NULL)
	{
		MemoryContextCallback *wipe = palloc(sizeof(MemoryContextCallback));

		*wipe = (MemoryContextCallback) {.func = wipe_header, .arg = pstrdup(header)};
		MemoryContextRegisterResetCallback(CurrentMemoryContext, wipe);
		credentials->http.authorization = wipe->arg;
		credentials->api_key = (char *) wipe->arg + strlen(AUTHORIZATION);
	}
	explicit_bzero(header, sizeof(header));
	if (credentials->api_key != NULL)
		return NULL;
	if (path == NULL)
		return problem(ERRCODE_UNDEFINED_OBJECT,
					   psprintf("user mapping for %s on server \"%s\" has no valid API key",
								lookup->owner_text, lookup->server->servername),
					   NULL,
					   psprintf("Set it with ALTER USER MAPPING FOR %s SERVER %s "
								"OPTIONS (ADD api_key_file '/path/to/key').",
								OidIsValid(lookup->owner) ? quote_identifier(lookup->role_name) : "PUBLIC",
								quote_identifier(lookup->server->servername)));
	/* Only the log, and roles that may read the file, are told where it is. */
	where = psprintf("The file is \"%s\".", path);
	error = problem(ERRCODE_UNDEFINED_FILE,
					psprintf("could not read the API key file of the user mapping for %s on server \"%s\": %s",
							 lookup->owner_text, lookup->server->servername, reason),
					has_privs_of_role(lookup->role, ROLE_PG_READ_SERVER_FILES) ? where : NULL,
					"The file must be readable by the user that runs PostgreSQL (owner postgres, mode 600) and "
					"contain the key alone, without \"Key \" or \"Basic \".");
	error->detail_log = where;
	return error;
}

/* ---- the whole of it ---- */

ErrorData *
credentials_find(const pg_uuid_t *app_id, Oid role, Credentials *credentials)
{
	Lookup		lookup = {.role = role};
	ErrorData  *error;
	const char *rate_limit;
	char	   *base_url;
	bool		rate_is_valid;

	/* A REVOKE must also stop a loop within one statement. */
	AcceptInvalidationMessages();
	/* A role that is gone must not cancel with PUBLIC's rights. */
	lookup.role_name = GetUserNameFromId(role, true);
	if (lookup.role_name == NULL)
		return problem(ERRCODE_INSUFFICIENT_PRIVILEGE, psprintf("role with OID %u does not exist", role), NULL, NULL);

	lookup.app = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(app_id)));
	error = choose_server(&lookup, app_id);
	if (error != NULL || credentials == NULL)
		return error;

	rate_limit = options_get(lookup.server->options, "rate_limit");
	rate_is_valid = rate_limit == NULL || options_rate_problem(rate_limit) == NULL;
	base_url = options_get(lookup.server->options, "base_url");
	if (base_url == NULL)
		base_url = pstrdup("https://api.onesignal.com");
	/* The options may have been set while the wrapper had no validator. */
	if (!rate_is_valid || options_url_problem(base_url) != NULL)
		return problem(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE,
					   psprintf("invalid value for option \"%s\" of server \"%s\"",
								rate_is_valid ? "base_url" : "rate_limit", lookup.server->servername),
					   NULL, NULL);
	for (size_t length = strlen(base_url); length > 0 && base_url[length - 1] == '/'; length--)
		base_url[length - 1] = '\0';

	memset(credentials, 0, sizeof(*credentials));
	credentials->server = lookup.server->serverid;
	credentials->server_name = lookup.server->servername;
	credentials->rate_limit = rate_limit != NULL ? strtod(rate_limit, NULL) : CREDENTIALS_RATE_ADAPTS;
	credentials->base_url = base_url;
	credentials->app_id = lookup.app;
	credentials->http.ca_file = options_get(lookup.server->options, "ca_file");
	credentials->http.proxy = options_get(lookup.server->options, "proxy");
	initStringInfo(&credentials->url);
	return read_key(&lookup, credentials);
}

void
credentials_get(const pg_uuid_t *app_id, Oid role, Credentials *credentials)
{
	ErrorData  *error = credentials_find(app_id, role, credentials);

	if (error != NULL)
		ThrowErrorData(error);
}

uint64
credentials_generation(void)
{
	if (changes == 0)
	{
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID, catalog_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(USERMAPPINGOID, catalog_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID, catalog_changed, (Datum) 0);
		changes = 1;
	}
	return changes;
}
