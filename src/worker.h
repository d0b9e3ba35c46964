/*
 * worker.h
 *		The launcher and the database's worker: who delivers, and when it leaves.
 */
#ifndef ONESIGNAL_CANCEL_WORKER_H
#define ONESIGNAL_CANCEL_WORKER_H

/* In _PG_init: registers the launcher when the library is preloaded. */
extern void worker_init(void);

/* Entry points of the background workers. */
extern PGDLLEXPORT void worker_launcher_main(Datum arg);
extern PGDLLEXPORT void worker_main(Datum arg);

#endif
