/*
 * credentials.h
 *		Which server and key a role's cancels for an app use.
 */
#ifndef ONESIGNAL_CANCEL_CREDENTIALS_H
#define ONESIGNAL_CANCEL_CREDENTIALS_H

#include "utils/uuid.h"

#define CREDENTIALS_WRAPPER "onesignal"
#define CREDENTIALS_DEFAULT_URL "https://api.onesignal.com"

/* rate_limit of a server that does not state one */
#define CREDENTIALS_RATE_ADAPTS (-1.0)

/* All strings are palloc'd in the caller's context; the key is wiped by credentials_wipe(). */
typedef struct Credentials
{
	Oid			server;
	char	   *server_name;
	char	   *base_url;		/* without a trailing slash */
	char	   *ca_file;		/* or NULL */
	char	   *proxy;			/* or NULL */
	double		rate_limit;		/* requests a second; 0: unpaced */
	char	   *api_key;
} Credentials;

typedef enum CredentialsStatus
{
	CREDENTIALS_OK,
	CREDENTIALS_NO_SERVER,		/* 42704 */
	CREDENTIALS_NO_USAGE,		/* 42501 */
	CREDENTIALS_NO_MAPPING,		/* 42704 */
	CREDENTIALS_AMBIGUOUS,		/* 42P09 (ambiguous_alias) would mislead: 42710 */
	CREDENTIALS_NO_KEY,			/* 42704 */
	CREDENTIALS_KEY_FILE		/* 58P01 */
} CredentialsStatus;

/* With the key, for a request that is about to start. A problem is a value; *message says it in a sentence without the key. */
extern CredentialsStatus credentials_find(const pg_uuid_t *app_id, Oid role,
										  Credentials *credentials, char **message);

/* The same, but a problem is raised with SQLSTATE, detail and hint. */
extern void credentials_get(const pg_uuid_t *app_id, Oid role, Credentials *credentials);

/* Configuration only (server, USAGE, mapping), the key is not looked at; raises. */
extern void credentials_check(const pg_uuid_t *app_id, Oid role);

extern void credentials_wipe(Credentials *credentials);

/* Grows whenever a server, mapping or wrapper changed: time to look again. */
extern uint64 credentials_generation(void);

#endif
