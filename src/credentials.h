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

/* All strings are palloc'd in the caller's context; credentials_wipe() wipes the key. */
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
	CREDENTIALS_NO_USAGE,		/* 42501; also when the role is gone */
	CREDENTIALS_NO_MAPPING,		/* 42704 */
	CREDENTIALS_AMBIGUOUS,		/* 42710 */
	CREDENTIALS_INVALID,		/* HV024: a server option, set while there was no validator */
	CREDENTIALS_NO_KEY,			/* 42704; also when the mapping's api_key cannot be one */
	CREDENTIALS_KEY_FILE		/* 58P01: cannot be read, or holds no key */
} CredentialsStatus;

/*
 * With the key, for requests that are about to start.  A problem of
 * configuration is a value: *message (palloc'd) says it without the key or the
 * key file's path, and *credentials is all zeros.  All of these need a
 * transaction, none looks at who the current user is, and each leaves under a
 * kilobyte of scrap in the caller's context.
 */
extern CredentialsStatus credentials_find(const pg_uuid_t *app_id, Oid role,
										  Credentials *credentials, char **message);

/* The same, but a problem is raised with SQLSTATE, detail and hint. */
extern void credentials_get(const pg_uuid_t *app_id, Oid role, Credentials *credentials);

/* Configuration only (server, USAGE, mapping), the key is not looked at; raises. */
extern void credentials_check(const pg_uuid_t *app_id, Oid role);

/* Would credentials_check() raise nothing? */
extern bool credentials_allow(const pg_uuid_t *app_id, Oid role);

extern void credentials_wipe(Credentials *credentials);

/*
 * Grows when a server, mapping or wrapper changed (noticed when a transaction
 * starts), and when a look-up found another key in a key file than the last
 * one did: time to look again.
 */
extern uint64 credentials_generation(void);

#endif
