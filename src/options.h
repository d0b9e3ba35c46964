/*
 * options.h
 *		Options of servers and user mappings: which exist, and what they may say.
 */
#ifndef ONESIGNAL_CANCEL_OPTIONS_H
#define ONESIGNAL_CANCEL_OPTIONS_H

/* An App API key is one line of visible ASCII: nothing that could end a header. */
extern bool options_key_is_valid(const char *key, size_t length);

/* https://, or http:// to a loopback address; no user info, query or fragment. NULL: fine, else why not. */
extern const char *options_url_problem(const char *url);

#endif
