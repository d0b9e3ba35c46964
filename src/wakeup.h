/*
 * wakeup.h
 *		Who delivers in a database: slots and launcher (wakeup.c), worker and
 *		the deliverer's lock (worker.c).
 */
#ifndef ONESIGNAL_CANCEL_WAKEUP_H
#define ONESIGNAL_CANCEL_WAKEUP_H

#include "datatype/timestamp.h"

/* Attaches to the shared memory.  May raise an error; call it before the other functions. */
extern void wakeup_attach(void);

/*
 * This transaction requested a cancel, or changed a server, mapping or pause.
 * Its commit is a synchronous one and wakes or starts the database's worker.
 * Attaches by itself; cheap when called again.  What can fail fails here.
 */
extern void wakeup_request(void);

/*
 * A deliverer may have sent requests that are older than this (requested_at)
 * without recording it.  Whoever loses requests that are on the wire calls
 * wakeup_raise_doubt() once it sends no more.
 */
extern TimestampTz wakeup_doubt(void);
extern void wakeup_raise_doubt(void);

/* Wakes the database's worker, or starts one if that is allowed.  Never throws. */
extern void wakeup_worker(Oid database, bool may_start);

/* Registers a worker for the database, or, with InvalidOid while the library is preloaded, the launcher. */
extern bool wakeup_register(Oid database);

/* ---- for the worker: its own slot; none of these throws ---- */

/* How soon the launcher replaces a worker that could not start or leave, and the postmaster the launcher. */
#define WAKEUP_RESTART_AFTER	(5 * USECS_PER_SEC)

extern bool wakeup_enter(Oid database); /* false: another worker is there */
extern bool wakeup_take(void);	/* was the worker woken since it last asked? */

/*
 * due: when the launcher has to start a worker again; DT_NOEND: never.  False: it
 * has to stay, for it was woken, or is due again without a launcher; unless it must.
 */
extern bool wakeup_leave(TimestampTz due, bool must);

/* ---- worker.c ---- */

/*
 * Returns 0 when this session has the lock; without wait also the pid of the
 * session that has it; -1: there is no extension.  The lock survives commits, but
 * not an abort: call this before each run.  Needs a transaction.
 */
extern int	deliverer_lock(bool wait);
extern void deliverer_unlock(void);

/* Call both without a transaction.  Was it woken since it last asked, or may a prepared transaction have ended? */
extern bool worker_was_woken(void);
extern bool worker_must_stop(void); /* must its run end, within about a second? */

/* Throws if interrupted, and reloads the configuration if that was asked for. */
extern void wakeup_serve_signals(void);

/* Until then or until the latch is set, which it resets; then serves signals. */
extern void wakeup_wait(TimestampTz until, const char *wait_event);

#endif
