/*
 * compat.h
 *		Every PostgreSQL and libcurl version test, and nothing else.
 *
 * PostgreSQL 15 to 19, libcurl 7.81 or newer.  A file that needs curl/curl.h includes it before this one.
 */
#ifndef ONESIGNAL_CANCEL_COMPAT_H
#define ONESIGNAL_CANCEL_COMPAT_H

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_namespace.h"
#include "common/jsonapi.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 150000
#error PostgreSQL 15 or newer is needed
#endif

#if PG_VERSION_NUM >= 160000
#define foreign_server_aclcheck(server, role, mode) object_aclcheck(ForeignServerRelationId, server, role, mode)
#define namespace_aclcheck(schema, role, mode) object_aclcheck(NamespaceRelationId, schema, role, mode)
#else
#define foreign_server_aclcheck pg_foreign_server_aclcheck
#define namespace_aclcheck pg_namespace_aclcheck
#endif

/* A set lives until FreeWaitEventSet(): keep it in a static variable, so that no error can lose it. */
#if PG_VERSION_NUM >= 170000
#include "storage/dsm_registry.h"
#define create_wait_event_set(count) CreateWaitEventSet(NULL, count)
#define wait_event_named(name) WaitEventExtensionNew(name)
#define json_lexer(text, encoding) makeJsonLexContextCstringLen(NULL, text, strlen(text), encoding, false)
#else
#define create_wait_event_set(count) CreateWaitEventSet(TopMemoryContext, count)
#define wait_event_named(name) ((void) (name), PG_WAIT_EXTENSION)
#define json_lexer(text, encoding) makeJsonLexContextCstringLen((char *) (text), strlen(text), encoding, false)
#endif

/* Is it JSON?  The only text that raises an error is one that is nested too deep for the stack. */
#define is_json(text, encoding) (pg_parse_json(json_lexer(text, encoding), &nullSemAction) == JSON_SUCCESS)

/* Tells PostgreSQL 18 and newer name and version of the library (pg_get_loaded_modules()). */
#if PG_VERSION_NUM >= 180000
#define LIBRARY_MAGIC PG_MODULE_MAGIC_EXT(.name = "onesignal_cancel", .version = ONESIGNAL_CANCEL_VERSION)
#else
#define LIBRARY_MAGIC PG_MODULE_MAGIC
#endif

#if PG_VERSION_NUM >= 190000
#define INITIALIZE_PARAMETERS void *memory, void *argument pg_attribute_unused()
#define JUMBLE_STATE const JumbleState
#else
#define INITIALIZE_PARAMETERS void *memory
#define JUMBLE_STATE JumbleState
#endif

/* A few kB for all processes, preloaded or not.  Before 17 what PostgreSQL has to spare may be used up: an error. */
static inline void *
get_shared_memory(const char *name, Size size, void (*initialize) (INITIALIZE_PARAMETERS))
{
	bool		found;

#if PG_VERSION_NUM >= 190000
	return GetNamedDSMSegment(name, size, initialize, &found, NULL);
#elif PG_VERSION_NUM >= 170000
	return GetNamedDSMSegment(name, size, initialize, &found);
#else
	void	   *memory;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	memory = ShmemInitStruct(name, size, &found);
	if (!found)
		initialize(memory);
	LWLockRelease(AddinShmemInitLock);
	return memory;
#endif
}

/* Both came with 7.87: without the second a slow name server blocks a handle's removal.  Older versions refuse them. */
#if defined(LIBCURL_VERSION_NUM) && LIBCURL_VERSION_NUM < 0x075700
#define CURLOPT_CA_CACHE_TIMEOUT ((CURLoption) 321)
#define CURLOPT_QUICK_EXIT ((CURLoption) 322)
#endif

#endif
