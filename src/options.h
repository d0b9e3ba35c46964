/*
 * options.h
 *		Options of servers and user mappings: which exist, and what they may say.
 *
 * The same rules hold when an option is set and when it is used, since a
 * superuser can take the validator away.
 */
#ifndef ONESIGNAL_CANCEL_OPTIONS_H
#define ONESIGNAL_CANCEL_OPTIONS_H

#include "nodes/pg_list.h"
#include "utils/uuid.h"

/* App API keys are about 120 characters long; this is room for the next format. */
#define OPTIONS_KEY_MAX 4096

/* An App API key is one line of visible ASCII: nothing that could end a header. */
extern bool options_key_is_valid(const char *key, size_t length);

/* https://, or http:// to a loopback address; no user info, query or fragment. NULL: fine, else why not. */
extern const char *options_url_problem(const char *url);

/* Reads what uuid_in() reads, but never throws. */
extern bool options_parse_uuid(const char *text, pg_uuid_t *uuid);

/* Requests a second, 0 for no pace. */
extern bool options_parse_rate(const char *text, double *rate);

/* The value of an option in a list of DefElem, or NULL; not a copy. */
extern char *options_get(List *options, const char *name);

#endif
