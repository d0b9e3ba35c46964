/*
 * servers.h
 *		The servers of our wrapper, found by app.
 */
#ifndef ONESIGNAL_CANCEL_SERVERS_H
#define ONESIGNAL_CANCEL_SERVERS_H

#include "utils/uuid.h"

typedef struct Server
{
	pg_uuid_t	app_id;
	Oid			oid;
	char	   *name;
	char	   *base_url;		/* without a trailing slash */
	char	   *ca_file;		/* or NULL */
	char	   *proxy;			/* or NULL */
	double		rate_limit;		/* CREDENTIALS_RATE_ADAPTS when not stated */
	const char *invalid;		/* name of an option that cannot be used, or NULL */
} Server;

/*
 * An app's servers in the order of their names; valid until the next call.
 * Needs a transaction.
 */
extern const Server *servers_of_app(const pg_uuid_t *app_id, int *count);

/* Grows when a server, user mapping or wrapper changed. */
extern uint64 servers_changes(void);

#endif
