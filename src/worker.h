/*
 * worker.h
 *		The database's worker: when it delivers, waits and leaves.
 */
#ifndef ONESIGNAL_CANCEL_WORKER_H
#define ONESIGNAL_CANCEL_WORKER_H

/* In _PG_init: in a preloaded library it prepares shared memory and the launcher. */
extern void worker_init(void);

/* Is the library preloaded, so that there is a launcher? */
extern bool worker_preloaded(void);

/* Entry point of the background worker; its argument is the database's oid. */
extern PGDLLEXPORT void worker_main(Datum arg);

#endif
