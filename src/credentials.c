/*
 * credentials.c
 *		Which server and key a role's cancels for an app use.
 *
 * User mappings are not cached here: the syscache finds them by role and
 * server, and this way no key from a catalog stays with us; keys from files
 * do, for a second.  Access rights are asked for each time, since they also
 * depend on memberships.
 *
 * A background worker must be able to ask on behalf of any role, of one that
 * was dropped too, and go on when something is missing: look-ups fill in a
 * Problem, and only credentials_get() and credentials_check() raise it.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_user_mapping.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "compat.h"
#include "credentials.h"
#include "keyfile.h"
#include "options.h"
#include "servers.h"

/* What a role's cancels for an app go through. */
typedef struct Choice
{
	const Server *server;
	Oid			mapped_role;	/* InvalidOid: PUBLIC */
} Choice;

typedef struct Problem
{
	CredentialsStatus status;
	char	   *message;
	char	   *detail;			/* or NULL */
	char	   *detail_log;		/* what only the server's log may say, or NULL */
	char	   *hint;			/* or NULL */
} Problem;

static bool
problem_is(Problem *problem, CredentialsStatus status, char *message)
{
	memset(problem, 0, sizeof(*problem));
	problem->status = status;
	problem->message = message;
	return false;
}

static char *
app_text(const pg_uuid_t *app_id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(app_id)));
}

/* The role may be dropped while we look. */
static char *
role_name(Oid role)
{
	char	   *name = GetUserNameFromId(role, true);

	return name != NULL ? name : psprintf("%u", role);
}

/* As SQL has it, for hints that can be typed. */
static const char *
role_sql(Oid role)
{
	return OidIsValid(role) ? quote_identifier(role_name(role)) : "PUBLIC";
}

/* As messages have it. */
static const char *
role_text(Oid role)
{
	return OidIsValid(role) ? psprintf("role \"%s\"", role_name(role)) : "PUBLIC";
}

/*
 * The ACL check raises an error for a server that is not there, and one may
 * have been dropped since our copy was made.  What the check reads first, the
 * role, is cached by superuser_arg(): it finds the server as we found it.
 */
static bool
server_may_be_used(Oid server, Oid role)
{
	if (superuser_arg(role))
		return true;
	return SearchSysCacheExists1(FOREIGNSERVEROID, ObjectIdGetDatum(server)) &&
		foreign_server_aclcheck(server, role, ACL_USAGE) == ACLCHECK_OK;
}

/*
 * Problems of the choice of a server
 */

static bool
no_role(Problem *problem, Oid role)
{
	return problem_is(problem, CREDENTIALS_NO_USAGE,
					  psprintf("role with OID %u does not exist", role));
}

static bool
no_server(Problem *problem, const pg_uuid_t *app_id)
{
	char	   *app = app_text(app_id);

	problem_is(problem, CREDENTIALS_NO_SERVER, psprintf("no server for OneSignal app \"%s\"", app));
	problem->hint = psprintf("Create one with CREATE SERVER name FOREIGN DATA WRAPPER %s OPTIONS (app_id '%s').",
							 CREDENTIALS_WRAPPER, app);
	return false;
}

static bool
no_usage(Problem *problem, const Server *server, Oid role)
{
	problem_is(problem, CREDENTIALS_NO_USAGE,
			   psprintf("permission denied for foreign server %s", server->name));
	problem->detail = psprintf("To cancel messages of OneSignal app \"%s\", %s needs USAGE on its server.",
							   app_text(&server->app_id), role_text(role));
	problem->hint = psprintf("Grant it with GRANT USAGE ON FOREIGN SERVER %s TO %s.",
							 quote_identifier(server->name), role_sql(role));
	return false;
}

static bool
no_mapping(Problem *problem, const Server *server, Oid role)
{
	problem_is(problem, CREDENTIALS_NO_MAPPING,
			   psprintf("no user mapping for %s or PUBLIC on server \"%s\"",
						role_text(role), server->name));
	problem->hint = psprintf("Create one with CREATE USER MAPPING FOR PUBLIC SERVER %s OPTIONS (api_key_file '/path/to/key').",
							 quote_identifier(server->name));
	return false;
}

static bool
ambiguous(Problem *problem, List *candidates, Oid mapped_role)
{
	StringInfoData names;
	ListCell   *cell;
	const Server *first = linitial(candidates);

	initStringInfo(&names);
	foreach(cell, candidates)
		appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "",
						 ((const Server *) lfirst(cell))->name);
	problem_is(problem, CREDENTIALS_AMBIGUOUS,
			   psprintf("more than one server for OneSignal app \"%s\" has a user mapping for %s: %s",
						app_text(&first->app_id), role_text(mapped_role), names.data));
	problem->hint = pstrdup(OidIsValid(mapped_role) ?
							"Keep this user mapping on one of them only." :
							"Create a user mapping for the role on the one that it is to use: it wins over PUBLIC's.");
	return false;
}

/*
 * A role's own mapping, on whichever server, wins over PUBLIC's.  Fills in
 * the choice and returns true, or the problem and returns false.
 */
static bool
choose(const pg_uuid_t *app_id, Oid role, Choice *choice, Problem *problem)
{
	List	   *own = NIL;
	List	   *shared = NIL;
	List	   *candidates;
	const Server *usable = NULL;
	const Server *servers;
	int			count;

	/* PUBLIC's rights would do for a role that is gone. */
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)))
		return no_role(problem, role);

	servers = servers_of_app(app_id, &count);
	if (count == 0)
		return no_server(problem, app_id);
	for (const Server *server = servers; server < servers + count; server++)
	{
		Datum		oid = ObjectIdGetDatum(server->oid);

		if (!server_may_be_used(server->oid, role))
			continue;
		if (usable == NULL)
			usable = server;
		if (SearchSysCacheExists2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(role), oid))
			own = lappend(own, unconstify(Server *, server));
		else if (SearchSysCacheExists2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid), oid))
			shared = lappend(shared, unconstify(Server *, server));
	}
	if (usable == NULL)
		return no_usage(problem, servers, role);

	candidates = own != NIL ? own : shared;
	if (candidates == NIL)
		return no_mapping(problem, usable, role);
	choice->mapped_role = own != NIL ? role : InvalidOid;
	if (list_length(candidates) > 1)
		return ambiguous(problem, candidates, choice->mapped_role);
	choice->server = linitial(candidates);
	list_free(own);
	list_free(shared);
	return true;
}

/*
 * Problems of the key
 */

static bool
no_key(Problem *problem, const Choice *choice, bool invalid)
{
	const char *what = invalid ? "holds no valid API key" : "has no API key";

	problem_is(problem, CREDENTIALS_NO_KEY,
			   psprintf("user mapping for %s on server \"%s\" %s",
						role_text(choice->mapped_role), choice->server->name, what));
	problem->hint = psprintf("Set it with ALTER USER MAPPING FOR %s SERVER %s OPTIONS (%sapi_key_file '/path/to/key').",
							 role_sql(choice->mapped_role), quote_identifier(choice->server->name),
							 invalid ? "DROP api_key, ADD " : "ADD ");
	return false;
}

/* Where the file is, is told to those who may read it, and to the log. */
static bool
bad_key_file(Problem *problem, const Choice *choice, Oid role, const char *path, const char *reason)
{
	char	   *located = psprintf("The file is \"%s\".", path);

	problem_is(problem, CREDENTIALS_KEY_FILE,
			   psprintf("could not read the API key file of the user mapping for %s on server \"%s\": %s",
						role_text(choice->mapped_role), choice->server->name, reason));
	if (has_privs_of_role(role, ROLE_PG_READ_SERVER_FILES))
		problem->detail = located;
	else
		problem->detail_log = located;
	return false;
}

/* Fills in the key, palloc'd, and returns true, or the problem and returns false. */
static bool
find_key(const Choice *choice, Oid role, char **key, Problem *problem)
{
	HeapTuple	tuple = SearchSysCache2(USERMAPPINGUSERSERVER,
										ObjectIdGetDatum(choice->mapped_role),
										ObjectIdGetDatum(choice->server->oid));
	Oid			mapping;
	Datum		stored;
	bool		isnull;
	List	   *options;
	char	   *in_mapping;
	const char *path;
	char	   *reason = NULL;
	const char *found = NULL;

	if (!HeapTupleIsValid(tuple))	/* dropped since it was chosen */
		return no_mapping(problem, choice->server, role);
	mapping = ((Form_pg_user_mapping) GETSTRUCT(tuple))->oid;
	stored = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple, Anum_pg_user_mapping_umoptions, &isnull);
	options = isnull ? NIL : untransformRelOptions(stored);
	ReleaseSysCache(tuple);

	in_mapping = options_get(options, "api_key");
	path = options_get(options, "api_key_file");
	if (path != NULL)
		found = keyfile_get(mapping, path, &reason);
	else if (in_mapping != NULL && options_key_is_valid(in_mapping, strlen(in_mapping)))
		found = in_mapping;

	if (found != NULL)
		*key = pstrdup(found);
	if (in_mapping != NULL)
		explicit_bzero(in_mapping, strlen(in_mapping));
	if (found != NULL)
		return true;
	return path != NULL ? bad_key_file(problem, choice, role, path, reason) :
		no_key(problem, choice, in_mapping != NULL);
}

/*
 * The whole of a look-up; credentials is NULL when only the configuration is
 * asked for.
 */
static bool
look_up(const pg_uuid_t *app_id, Oid role, Credentials *credentials, Problem *problem)
{
	static uint64 keys_as_of = 0;
	Choice		choice = {0};
	const Server *server;

	Assert(IsTransactionState());	/* catalog access; callers see to it */

	/* A REVOKE shall also stop a loop that runs within one statement. */
	AcceptInvalidationMessages();
	if (keys_as_of != servers_changes())
	{
		keyfile_forget();
		keys_as_of = servers_changes();
	}

	if (!choose(app_id, role, &choice, problem))
		return false;
	if (credentials == NULL)
		return true;

	server = choice.server;
	if (server->invalid != NULL)
		return problem_is(problem, CREDENTIALS_INVALID,
						  psprintf("invalid value for option \"%s\" of server \"%s\"",
								   server->invalid, server->name));
	if (!find_key(&choice, role, &credentials->api_key, problem))
		return false;
	credentials->server = server->oid;
	credentials->server_name = pstrdup(server->name);
	credentials->base_url = pstrdup(server->base_url);
	credentials->ca_file = server->ca_file != NULL ? pstrdup(server->ca_file) : NULL;
	credentials->proxy = server->proxy != NULL ? pstrdup(server->proxy) : NULL;
	credentials->rate_limit = server->rate_limit;
	return true;
}

static int
sqlstate_of(CredentialsStatus status)
{
	switch (status)
	{
		case CREDENTIALS_OK:
			break;
		case CREDENTIALS_NO_SERVER:
		case CREDENTIALS_NO_MAPPING:
		case CREDENTIALS_NO_KEY:
			return ERRCODE_UNDEFINED_OBJECT;
		case CREDENTIALS_NO_USAGE:
			return ERRCODE_INSUFFICIENT_PRIVILEGE;
		case CREDENTIALS_AMBIGUOUS:
			return ERRCODE_DUPLICATE_OBJECT;
		case CREDENTIALS_INVALID:
			return ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE;
		case CREDENTIALS_KEY_FILE:
			return ERRCODE_UNDEFINED_FILE;
	}
	return ERRCODE_INTERNAL_ERROR;
}

static void
raise_problem(const Problem *problem)
{
	ereport(ERROR,
			(errcode(sqlstate_of(problem->status)),
			 errmsg_internal("%s", problem->message),
			 problem->detail != NULL ? errdetail_internal("%s", problem->detail) : 0,
			 problem->detail_log != NULL ? errdetail_log("%s", problem->detail_log) : 0,
			 problem->hint != NULL ? errhint("%s", problem->hint) : 0));
}

CredentialsStatus
credentials_find(const pg_uuid_t *app_id, Oid role, Credentials *credentials, char **message)
{
	Problem		problem;

	*message = NULL;
	memset(credentials, 0, sizeof(*credentials));
	if (look_up(app_id, role, credentials, &problem))
		return CREDENTIALS_OK;
	*message = problem.message;
	return problem.status;
}

void
credentials_get(const pg_uuid_t *app_id, Oid role, Credentials *credentials)
{
	Problem		problem;

	memset(credentials, 0, sizeof(*credentials));
	if (!look_up(app_id, role, credentials, &problem))
		raise_problem(&problem);
}

void
credentials_check(const pg_uuid_t *app_id, Oid role)
{
	Problem		problem;

	if (!look_up(app_id, role, NULL, &problem))
		raise_problem(&problem);
}

bool
credentials_allow(const pg_uuid_t *app_id, Oid role)
{
	Problem		problem;

	return look_up(app_id, role, NULL, &problem);
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

uint64
credentials_generation(void)
{
	return servers_changes() + keyfile_changes();
}
