/*
 * credentials.h
 *		Servers and user mappings: what their options may say, and which server
 *		and key a role's cancels for an app use.
 */
#ifndef ONESIGNAL_CANCEL_CREDENTIALS_H
#define ONESIGNAL_CANCEL_CREDENTIALS_H

#include "http.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "utils/uuid.h"

#define CREDENTIALS_WRAPPER "onesignal"

/* rate_limit of a server that does not state one */
#define CREDENTIALS_RATE_ADAPTS (-1.0)

/* ---- credentials.c ---- */

/* What an app's requests are made with.  All of it lives in the caller's memory context. */
typedef struct Credentials
{
	Oid			server;
	char	   *server_name;
	double		rate_limit;		/* requests a second; 0: unlimited */
	char	   *base_url;		/* without a trailing slash */
	char	   *app_id;
	StringInfoData url;			/* of the last request */
	HttpRequest http;			/* onesignal_request() adds method and URL; the user, group and timeouts */
	int			refs;			/* delivery's: how many share it */
	char	   *api_key;		/* within http.authorization; wiped when its memory context goes */
} Credentials;

/*
 * Returns NULL, or what is missing: an error (credentials_get() raises it), whose
 * message names neither the key nor its file.  Without credentials it looks at
 * server, USAGE and user mapping only.  Needs a transaction, as any user.
 */
extern ErrorData *credentials_find(const pg_uuid_t *app_id, Oid role, Credentials *credentials);
extern void credentials_get(const pg_uuid_t *app_id, Oid role, Credentials *credentials);

/* The OIDs of an app's servers; the list is valid until the next call. */
extern List *credentials_servers(const pg_uuid_t *app_id);

/* Grows when a server, user mapping or wrapper changes; noticed when a transaction starts. */
extern uint64 credentials_generation(void);

/* ---- options.c ---- */

/* App API keys are about 120 characters long; this is room for the next format. */
#define OPTIONS_KEY_MAX 4096

/* NULL: the value is valid; else a sentence why not.  Ask at each use, too: a superuser can drop the validator. */
extern const char *options_key_problem(const char *key);
extern const char *options_url_problem(const char *url);
extern const char *options_rate_problem(const char *value);

/* Reads what uuid_in() reads, but never throws. */
extern bool options_parse_uuid(const char *text, pg_uuid_t *uuid);

/* The value of an option in a list of DefElem, or NULL; not a copy. */
extern char *options_get(List *options, const char *name);

#endif
