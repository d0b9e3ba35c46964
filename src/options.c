/*
 * options.c
 *		Options of servers and user mappings: which exist, and what they may say.
 *
 * A rejected CREATE USER MAPPING is logged with its text, key and all, so
 * every error raised here hides the statement and the context from the log,
 * and none quotes a value: somebody may have put a key under a wrong name.
 * That is why uuids and numbers are not read by PostgreSQL's input functions:
 * on PostgreSQL 15 these can only throw errors of their own.
 *
 * The validator sees the list as it will be stored, not what a statement
 * changes.  A role that may not set an option may therefore not alter
 * anything else beside it either, as with postgres_fdw's password_required.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <math.h>

#include "access/reloptions.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_user_mapping.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/acl.h"

#include "http.h"
#include "options.h"
#include "wakeup.h"

/*
 * Below, a request would wait for more than a quarter of an hour; above, no
 * pace would be noticed.  Both keep the arithmetic of the pace in range.
 */
#define RATE_MIN 0.001
#define RATE_MAX 1000000.0

typedef enum OptionSetter
{
	SET_BY_ANYONE,
	SET_BY_FILE_READERS,		/* the server reads the file on their behalf */
	SET_BY_SUPERUSERS			/* decides where keys travel to */
} OptionSetter;

typedef struct OptionRule
{
	const char *name;
	Oid			catalog;
	OptionSetter setter;
	const char *(*problem) (const char *value); /* a sentence, or NULL: fine */
} OptionRule;

static const char *app_id_problem(const char *value);
static const char *rate_problem(const char *value);
static const char *path_problem(const char *value);
static const char *proxy_problem(const char *value);
static const char *key_problem(const char *value);

static const OptionRule rules[] = {
	{"app_id", ForeignServerRelationId, SET_BY_ANYONE, app_id_problem},
	{"rate_limit", ForeignServerRelationId, SET_BY_ANYONE, rate_problem},
	{"base_url", ForeignServerRelationId, SET_BY_SUPERUSERS, options_url_problem},
	{"ca_file", ForeignServerRelationId, SET_BY_SUPERUSERS, path_problem},
	{"proxy", ForeignServerRelationId, SET_BY_SUPERUSERS, proxy_problem},
	{"api_key_file", UserMappingRelationId, SET_BY_FILE_READERS, path_problem},
	{"api_key", UserMappingRelationId, SET_BY_ANYONE, key_problem},
};

PG_FUNCTION_INFO_V1(onesignal_cancel_fdw_validator);

/* Raises; detail and hint may be NULL. */
static void
refuse(int sqlstate, const char *message, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg_internal("%s", message),
			 detail != NULL ? errdetail_internal("%s", detail) : 0,
			 hint != NULL ? errhint("%s", hint) : 0,
			 errhidestmt(true),
			 errhidecontext(true)));
}

static const char *
app_id_problem(const char *value)
{
	pg_uuid_t	app_id;

	return options_parse_uuid(value, &app_id) ? NULL : "An app_id is a uuid.";
}

static const char *
rate_problem(const char *value)
{
	double		rate;

	return options_parse_rate(value, &rate) ? NULL :
		"A rate_limit is a number of requests a second from 0.001 to 1000000, or 0 for no pace.";
}

static const char *
path_problem(const char *value)
{
	if (!is_absolute_path(value))
		return "The path must be absolute.";
	for (; *value != '\0'; value++)
	{
		/* Bytes of UTF-8 beyond ASCII are fine. */
		if ((unsigned char) *value < ' ' || *value == 0x7f)
			return "A path must not contain control characters.";
	}
	return NULL;
}

/*
 * What holds for every URL.  Characters are looked at before libcurl's parser
 * is asked, because its versions differ on an empty query or user, and because
 * srvoptions is visible to all: no password may hide in it.
 */
static const char *
url_problem(const char *url, HttpUrl *parts)
{
	const char *c;

	for (c = url; *c != '\0'; c++)
	{
		if (*c <= ' ' || *c > '~' || *c == '\\')
			return "A URL must be visible ASCII without backslashes.";
	}
	if (strchr(url, '@') != NULL)
		return "A URL must not contain a user name or password.";
	if (strpbrk(url, "?#") != NULL)
		return "A URL must not contain a query or fragment.";
	if (!http_parse_url(url, parts) || parts->host[0] == '\0')
		return "The value is not a URL with a scheme and a host.";
	/* Escapes in the host are decoded by now. */
	if (parts->has_user || strpbrk(parts->host, "@?#/\\ ") != NULL)
		return "A URL must not contain a user name or password.";
	return NULL;
}

static const char *
proxy_problem(const char *value)
{
	HttpUrl		parts;
	const char *problem = url_problem(value, &parts);

	if (problem == NULL &&
		strcmp(parts.scheme, "http") != 0 && strcmp(parts.scheme, "https") != 0 &&
		strcmp(parts.scheme, "socks5") != 0 && strcmp(parts.scheme, "socks5h") != 0)
		problem = "A proxy's URL must start with http://, https://, socks5:// or socks5h://.";
	return problem;
}

static const char *
key_problem(const char *value)
{
	return options_key_is_valid(value, strlen(value)) ? NULL :
		"An App API key is 1 to 4096 characters of visible ASCII.";
}

/*
 * Literals and the one name that libcurl itself maps to a loopback address;
 * any other name could be resolved to anything by whoever answers DNS.
 */
static bool
host_is_loopback(const char *host)
{
	struct in_addr ipv4;
	struct in6_addr ipv6;
	char		literal[HTTP_HOST_SIZE];
	size_t		length = strlen(host);

	if (pg_strcasecmp(host, "localhost") == 0)
		return true;
	if (inet_pton(AF_INET, host, &ipv4) == 1)
		return (ntohl(ipv4.s_addr) >> 24) == IN_LOOPBACKNET;
	if (length < 2 || host[0] != '[' || host[length - 1] != ']')
		return false;
	strlcpy(literal, host + 1, length - 1);
	return inet_pton(AF_INET6, literal, &ipv6) == 1 &&
		memcmp(&ipv6, &in6addr_loopback, sizeof(ipv6)) == 0;
}

static const char *
catalog_object(Oid catalog)
{
	return catalog == ForeignServerRelationId ? "server" : "user mapping";
}

/* The option may exist on the other object: that is worth saying. */
static void
refuse_unknown(const char *name, Oid catalog)
{
	StringInfoData hint;
	const char *separator = "";

	initStringInfo(&hint);
	for (size_t i = 0; i < lengthof(rules); i++)
	{
		if (rules[i].catalog != catalog)
			continue;
		if (hint.len == 0)
			appendStringInfo(&hint, "Valid options of a %s are: ", catalog_object(catalog));
		appendStringInfo(&hint, "%s%s", separator, rules[i].name);
		separator = ", ";
	}
	appendStringInfoString(&hint, hint.len > 0 ? "." : "There are no valid options here.");

	for (size_t i = 0; i < lengthof(rules); i++)
	{
		if (rules[i].catalog != catalog && strcmp(rules[i].name, name) == 0)
			appendStringInfo(&hint, " Option \"%s\" belongs to a %s.",
							 name, catalog_object(rules[i].catalog));
	}
	refuse(ERRCODE_FDW_INVALID_OPTION_NAME, psprintf("invalid option \"%s\"", name), NULL, hint.data);
}

static void
check_setter(const OptionRule *rule)
{
	bool		allowed = true;
	const char *who = "superusers";

	if (rule->setter == SET_BY_SUPERUSERS)
		allowed = superuser();
	else if (rule->setter == SET_BY_FILE_READERS)
	{
		allowed = has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES);
		who = "roles with privileges of the \"pg_read_server_files\" role";
	}
	if (!allowed)
		refuse(ERRCODE_INSUFFICIENT_PRIVILEGE,
			   psprintf("permission denied to set option \"%s\"", rule->name),
			   psprintf("Only %s may create or change a %s that has this option.",
						who, catalog_object(rule->catalog)),
			   NULL);
}

/* Returns the rule's index. */
static size_t
check_option(const DefElem *option, Oid catalog)
{
	/* An SQL call of the validator can bring an option without a value. */
	const char *value = option->arg != NULL ? strVal(option->arg) : "";
	const char *problem;
	size_t		i;

	for (i = 0; i < lengthof(rules); i++)
	{
		if (rules[i].catalog == catalog && strcmp(rules[i].name, option->defname) == 0)
			break;
	}
	if (i == lengthof(rules))
		refuse_unknown(option->defname, catalog);

	check_setter(&rules[i]);
	problem = rules[i].problem(value);
	if (problem != NULL)
		refuse(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE,
			   psprintf("invalid value for option \"%s\"", rules[i].name), problem, NULL);
	return i;
}

bool
options_key_is_valid(const char *key, size_t length)
{
	if (length < 1 || length > OPTIONS_KEY_MAX)
		return false;
	for (size_t i = 0; i < length; i++)
	{
		if (key[i] <= ' ' || key[i] > '~')
			return false;
	}
	return true;
}

/*
 * Plain HTTP carries the key in clear, so only a loopback address is near
 * enough.  Decided on the host as libcurl read it, for libcurl will connect:
 * it turns http://127.1 into 127.0.0.1, and leaves 127.0.0.1.example.com.
 */
const char *
options_url_problem(const char *url)
{
	HttpUrl		parts;
	const char *problem = url_problem(url, &parts);

	if (problem != NULL)
		return problem;
	if (strcmp(parts.scheme, "https") == 0)
		return NULL;
	if (strcmp(parts.scheme, "http") == 0 && host_is_loopback(parts.host))
		return NULL;
	return "The URL must start with https://, or with http:// and a loopback address.";
}

/* Optional braces; a hyphen may follow each four digits. */
bool
options_parse_uuid(const char *text, pg_uuid_t *uuid)
{
	bool		braces = *text == '{';

	if (braces)
		text++;
	for (int i = 0; i < UUID_LEN; i++)
	{
		unsigned int byte = 0;

		for (int digit = 0; digit < 2; digit++, text++)
		{
			if (*text >= '0' && *text <= '9')
				byte = byte * 16 + (*text - '0');
			else if (pg_tolower((unsigned char) *text) >= 'a' && pg_tolower((unsigned char) *text) <= 'f')
				byte = byte * 16 + (pg_tolower((unsigned char) *text) - 'a' + 10);
			else
				return false;
		}
		uuid->data[i] = (unsigned char) byte;
		if (*text == '-' && i % 2 == 1 && i < UUID_LEN - 1)
			text++;
	}
	if (braces && *text++ != '}')
		return false;
	return *text == '\0';
}

bool
options_parse_rate(const char *text, double *rate)
{
	char	   *end;

	/* strtod() would also take blanks, hexadecimal, infinity and NaN. */
	if (*text == '\0' || text[strspn(text, "0123456789.eE+-")] != '\0')
		return false;
	*rate = strtod(text, &end);
	if (*end != '\0')
		return false;
	return *rate == 0 || (*rate >= RATE_MIN && *rate <= RATE_MAX);
}

char *
options_get(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (option->arg != NULL && strcmp(option->defname, name) == 0)
			return strVal(option->arg);
	}
	return NULL;
}

/*
 * Called by CREATE and ALTER of the wrapper, its servers and user mappings,
 * and its foreign tables, with the whole list as it will be stored and the
 * catalog that it will be stored in.
 */
Datum
onesignal_cancel_fdw_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	bool		seen[lengthof(rules)] = {0};
	ListCell   *cell;

	if (catalog == ForeignTableRelationId || catalog == AttributeRelationId)
		refuse(ERRCODE_FEATURE_NOT_SUPPORTED,
			   "foreign-data wrapper \"onesignal\" has no foreign tables",
			   "It holds apps (servers) and their keys (user mappings).", NULL);

	foreach(cell, options)
	{
		size_t		i = check_option(lfirst_node(DefElem, cell), catalog);

		/* PostgreSQL's own check takes OPTIONS ("api_key=x" 'y') for another name, where it lets it pass. */
		if (seen[i])
			refuse(ERRCODE_FDW_INVALID_OPTION_NAME,
				   psprintf("option \"%s\" provided more than once", rules[i].name), NULL, NULL);
		seen[i] = true;
	}

	if (catalog == ForeignServerRelationId && options_get(options, "app_id") == NULL)
		refuse(ERRCODE_FDW_OPTION_NAME_NOT_FOUND, "option \"app_id\" is required", NULL,
			   "Say which OneSignal app the server stands for: OPTIONS (app_id '...').");
	if (options_get(options, "proxy") != NULL && options_get(options, "base_url") != NULL &&
		pg_strncasecmp(options_get(options, "base_url"), "http:", 5) == 0)
		refuse(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE,
			   "option \"proxy\" needs a base_url that starts with https://",
			   "Without TLS the proxy would see the key.", NULL);
	if (options_get(options, "api_key") != NULL && options_get(options, "api_key_file") != NULL)
		refuse(ERRCODE_FDW_INVALID_OPTION_NAME,
			   "options \"api_key\" and \"api_key_file\" exclude each other", NULL,
			   "To change from one to the other, drop the one in the statement that adds the other.");

	/* A new key or address may be what requested cancels wait for. */
	if (catalog == ForeignServerRelationId || catalog == UserMappingRelationId)
		wakeup_poke();
	PG_RETURN_VOID();
}
