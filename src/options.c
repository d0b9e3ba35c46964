/*
 * options.c
 *		Says which options servers and user mappings have, and what is valid.
 *
 * PostgreSQL logs a rejected CREATE USER MAPPING with its text, key and all.  So
 * each error here hides the statement and the context from the log, and none
 * quotes a value, as PostgreSQL's input functions do: it may be a key under a
 * wrong name.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <ctype.h>

#include "access/reloptions.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_user_mapping.h"
#include "miscadmin.h"
#include "utils/acl.h"

#include "credentials.h"
#include "wakeup.h"

/* Who may set an option, as error messages name them. */
static const char SUPERUSERS[] = "superusers";
static const char FILE_READERS[] = "roles with privileges of the \"pg_read_server_files\" role";

typedef struct OptionRule
{
	const char *name;
	Oid			catalog;
	const char *setter;			/* SUPERUSERS, FILE_READERS, or NULL for anybody */
	const char *(*problem) (const char *value); /* a sentence, or NULL for a valid value */
} OptionRule;

PG_FUNCTION_INFO_V1(onesignal_cancel_fdw_validator);

/* A byte that is no printable ASCII, or is a space, could end a header. */
static bool
is_plain(const char *value)
{
	while (*value > ' ' && *value <= '~')
		value++;
	return *value == '\0';
}

const char *
options_key_problem(const char *key)
{
	return is_plain(key) && *key != '\0' && strlen(key) <= OPTIONS_KEY_MAX ? NULL :
		"An App API key is 1 to 4096 characters of printable ASCII without spaces.";
}

/* Optional braces; a hyphen may follow each four digits. */
bool
options_parse_uuid(const char *text, pg_uuid_t *uuid)
{
	bool		braces = *text == '{';

	text += braces;
	for (int i = 0; i < UUID_LEN * 2; i++)
	{
		text += *text == '-' && i > 0 && i % 4 == 0;
		if (!isxdigit((unsigned char) *text))
			return false;
		uuid->data[i / 2] = uuid->data[i / 2] << 4 | (*text <= '9' ? *text - '0' : (*text - 'a' + 10) & 0xf);
		text++;
	}
	return strcmp(text, braces ? "}" : "") == 0;
}

static const char *
app_id_problem(const char *value)
{
	pg_uuid_t	app_id;

	return options_parse_uuid(value, &app_id) ? NULL : "An app_id must be a uuid.";
}

/* Below, a request would wait for a quarter of an hour; above, nobody would notice.  Pace's arithmetic needs bounds. */
const char *
options_rate_problem(const char *value)
{
	char	   *end;
	double		rate = strtod(value, &end);

	/* strtod() would also take blanks, hexadecimal, infinity and NaN. */
	if (*value != '\0' && *end == '\0' && value[strspn(value, "0123456789.eE+-")] == '\0' &&
		(rate == 0 || (rate >= 0.001 && rate <= 1000000)))
		return NULL;
	return "A rate_limit must be a number of requests a second from 0.001 to 1000000, or 0 for unlimited.";
}

static const char *
path_problem(const char *value)
{
	bool		valid = is_absolute_path(value);

	/* Bytes of UTF-8 beyond ASCII are fine. */
	for (; *value != '\0'; value++)
		valid &= (unsigned char) *value >= ' ' && *value != 0x7f;
	return valid ? NULL : "A path must be absolute, without control characters.";
}

/* Everybody can read srvoptions: no password may hide in a URL, whatever libcurl's version takes or decodes. */
static bool
parse_url(const char *url, HttpUrl *parts)
{
	return is_plain(url) && strpbrk(url, "@?#\\") == NULL && http_parse_url(url, parts) &&
		parts->host[0] != '\0' && strpbrk(parts->host, "@?#/\\ ") == NULL;
}

static const char *
proxy_problem(const char *value)
{
	HttpUrl		parts;

	if (parse_url(value, &parts) &&
		(strcmp(parts.scheme, "http") == 0 || strcmp(parts.scheme, "https") == 0 ||
		 strcmp(parts.scheme, "socks5") == 0 || strcmp(parts.scheme, "socks5h") == 0))
		return NULL;
	return "A proxy must be a URL that starts with http://, https://, socks5:// or socks5h://, "
		"in printable ASCII, without user name, password, query and fragment.";
}

/* Literals, and the one name that libcurl maps to loopback: DNS can resolve any other name to any address. */
static bool
host_is_loopback(const char *host)
{
	struct in_addr ipv4;
	struct in6_addr ipv6;

	if (host[0] == '[')
		return inet_pton(AF_INET6, pnstrdup(host + 1, strcspn(host, "]") - 1), &ipv6) == 1 &&
			IN6_IS_ADDR_LOOPBACK(&ipv6);
	return pg_strcasecmp(host, "localhost") == 0 ||
		(inet_pton(AF_INET, host, &ipv4) == 1 && (ntohl(ipv4.s_addr) >> 24) == IN_LOOPBACKNET);
}

/* Plain HTTP, which shows the key, is for loopback as libcurl reads it: 127.1 is, 127.0.0.1.example.com is a name. */
const char *
options_url_problem(const char *url)
{
	HttpUrl		parts;

	if (parse_url(url, &parts) &&
		(strcmp(parts.scheme, "https") == 0 || (strcmp(parts.scheme, "http") == 0 && host_is_loopback(parts.host))))
		return NULL;
	return "A base_url must be a URL that starts with https://, or with http:// and a loopback address, "
		"in printable ASCII, without user name, password, query and fragment.";
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

static const OptionRule rules[] = {
	{"app_id", ForeignServerRelationId, NULL, app_id_problem},
	{"rate_limit", ForeignServerRelationId, NULL, options_rate_problem},
	{"base_url", ForeignServerRelationId, SUPERUSERS, options_url_problem},
	{"ca_file", ForeignServerRelationId, SUPERUSERS, path_problem},
	{"proxy", ForeignServerRelationId, SUPERUSERS, proxy_problem},
	{"api_key_file", UserMappingRelationId, FILE_READERS, path_problem},
	{"api_key", UserMappingRelationId, NULL, options_key_problem},
};

/* Raises the error; detail and hint may be NULL. */
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

static void
check_option(List *options, const DefElem *option, Oid catalog)
{
	/* An SQL call of the validator can bring an option without a value. */
	const char *value = option->arg != NULL ? strVal(option->arg) : "";
	const char *object = catalog == ForeignServerRelationId ? "server" : "user mapping";
	const OptionRule *rule = rules;
	const char *problem;
	StringInfoData valid;

	while (rule < rules + lengthof(rules) && (rule->catalog != catalog || strcmp(rule->name, option->defname) != 0))
		rule++;
	if (rule == rules + lengthof(rules))
	{
		initStringInfo(&valid);
		for (rule = rules; rule < rules + lengthof(rules); rule++)
			if (rule->catalog == catalog)
				appendStringInfo(&valid, "%s%s", valid.len > 0 ? ", " : "", rule->name);
		refuse(ERRCODE_FDW_INVALID_OPTION_NAME, psprintf("invalid option \"%s\"", option->defname), NULL,
			   valid.len == 0 ? "There are no valid options here." :
			   psprintf("Valid options of a %s are: %s.", object, valid.data));
	}

	if ((rule->setter == SUPERUSERS && !superuser()) ||
		(rule->setter == FILE_READERS && !has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES)))
		refuse(ERRCODE_INSUFFICIENT_PRIVILEGE,
			   psprintf("permission denied to set option \"%s\"", rule->name),
			   psprintf("Only %s may create or change a %s that has this option.", rule->setter, object), NULL);
	problem = rule->problem(value);
	if (problem != NULL)
		refuse(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE,
			   psprintf("invalid value for option \"%s\"", rule->name), problem, NULL);
	/* PostgreSQL's own check takes OPTIONS ("api_key=x" 'y') for another name, where it lets it pass. */
	if (options_get(options, rule->name) != value)
		refuse(ERRCODE_FDW_INVALID_OPTION_NAME,
			   psprintf("option \"%s\" provided more than once", rule->name), NULL, NULL);
}

/*
 * PostgreSQL passes the list as it will be stored: beside an option that it may
 * not set, a role can alter nothing, as with postgres_fdw's password_required.
 */
Datum
onesignal_cancel_fdw_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	const char *base_url = options_get(options, "base_url");

	if (catalog == ForeignTableRelationId || catalog == AttributeRelationId)
		refuse(ERRCODE_FEATURE_NOT_SUPPORTED, "foreign-data wrapper \"onesignal\" has no foreign tables",
			   "It holds apps (servers) and their keys (user mappings).", NULL);

	for (int i = 0; i < list_length(options); i++)
		check_option(options, list_nth_node(DefElem, options, i), catalog);
	if (catalog == ForeignServerRelationId && options_get(options, "app_id") == NULL)
		refuse(ERRCODE_FDW_OPTION_NAME_NOT_FOUND, "option \"app_id\" is required", NULL,
			   "Set the id of the OneSignal app: OPTIONS (app_id '...').");
	if (options_get(options, "proxy") != NULL && base_url != NULL && pg_strncasecmp(base_url, "http:", 5) == 0)
		refuse(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE, "option \"proxy\" needs a base_url that starts with https://",
			   "Without TLS the proxy would see the key.", NULL);
	if (options_get(options, "api_key") != NULL && options_get(options, "api_key_file") != NULL)
		refuse(ERRCODE_FDW_INVALID_OPTION_NAME,
			   "options \"api_key\" and \"api_key_file\" cannot be set at the same time", NULL,
			   "To change from one to the other, drop one in the statement that adds the other.");

	/* Requested cancels may wait for a new key or address. */
	if (catalog == ForeignServerRelationId || catalog == UserMappingRelationId)
		wakeup_request();
	PG_RETURN_VOID();
}
