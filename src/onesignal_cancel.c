/*
 * onesignal_cancel.c
 *		Where PostgreSQL enters the library.
 *
 * Loading defines settings and, preloaded, registers the launcher; nothing
 * else happens: libcurl is opened by the first
 * request, for it must not be in the postmaster, whose children would share
 * what it opened.
 */
#include "postgres.h"

#include "fmgr.h"

#include "message.h"
#include "settings.h"
#include "worker.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	settings_define();
	message_init();
	worker_init();
}
