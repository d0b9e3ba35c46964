/*
 * launcher.h
 *		Starts workers where nobody commits: at server start, for a retry, after a death.
 */
#ifndef ONESIGNAL_CANCEL_LAUNCHER_H
#define ONESIGNAL_CANCEL_LAUNCHER_H

/* In _PG_init of a preloaded library. */
extern void launcher_register(void);

/* Entry point of the background worker. */
extern PGDLLEXPORT void launcher_main(Datum arg);

#endif
