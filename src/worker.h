/*
 * worker.h
 *		The background processes: the database's worker, and the launcher.
 */
#ifndef ONESIGNAL_CANCEL_WORKER_H
#define ONESIGNAL_CANCEL_WORKER_H

/* In _PG_init: in a preloaded library it prepares shared memory and the launcher. */
extern void worker_init(void);

/* Is the library preloaded, so that there is a launcher? */
extern bool worker_preloaded(void);

extern void launcher_register(void);

/* Entry points; a worker's argument is the database's oid. */
extern PGDLLEXPORT void worker_main(Datum arg);
extern PGDLLEXPORT void launcher_main(Datum arg);

#endif
