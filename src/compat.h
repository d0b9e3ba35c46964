/*
 * compat.h
 *		Every PostgreSQL and libcurl version test, and nothing else.
 *
 * PostgreSQL 15 to 18 and libcurl 7.81 or newer are supported.  The part on
 * libcurl is seen only by the one file that includes curl/curl.h first.
 */
#ifndef ONESIGNAL_CANCEL_COMPAT_H
#define ONESIGNAL_CANCEL_COMPAT_H

#include "catalog/pg_foreign_server.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif

#if PG_VERSION_NUM < 150000
#error PostgreSQL 15 or newer is needed
#endif

#if PG_VERSION_NUM >= 160000
#define foreign_server_aclcheck(server, role, mode) \
	object_aclcheck(ForeignServerRelationId, (server), (role), (mode))
#else
#define foreign_server_aclcheck(server, role, mode) \
	pg_foreign_server_aclcheck((server), (role), (mode))
#endif

/*
 * A set that lives until FreeWaitEventSet(): its owner keeps the pointer in a
 * static variable, so that no error can lose it.
 */
static inline WaitEventSet *
create_wait_event_set(int nevents)
{
#if PG_VERSION_NUM >= 170000
	return CreateWaitEventSet(NULL, nevents);
#else
	return CreateWaitEventSet(TopMemoryContext, nevents);
#endif
}

/* The name that pg_stat_activity shows; before PostgreSQL 17 all extensions share "Extension". */
static inline uint32
wait_event_named(uint32 *cached, const char *name)
{
#if PG_VERSION_NUM >= 170000
	if (*cached == 0)
		*cached = WaitEventExtensionNew(name);
#else
	(void) name;
	*cached = PG_WAIT_EXTENSION;
#endif
	return *cached;
}

#ifdef CURLINC_CURL_H

/* Without it a slow name server blocks the removal of a handle (7.87). */
#if LIBCURL_VERSION_NUM >= 0x075700
#define CURL_COMPAT_QUICK_EXIT 1
#endif

/* The protocols as a string came with 7.85; the bit mask is deprecated since. */
#if LIBCURL_VERSION_NUM >= 0x075500
#define curl_compat_set_protocols(easy) curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https")
#else
#define curl_compat_set_protocols(easy) \
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS, (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS))
#endif

#endif							/* CURLINC_CURL_H */

#endif
