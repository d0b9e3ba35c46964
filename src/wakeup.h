/*
 * wakeup.h
 *		Who delivers in a database, and how a commit wakes or starts its worker.
 */
#ifndef ONESIGNAL_CANCEL_WAKEUP_H
#define ONESIGNAL_CANCEL_WAKEUP_H

#include "datatype/timestamp.h"

/* Attaches to the shared memory.  May raise an error; call it before the other functions. */
extern void wakeup_attach(void);

/*
 * This transaction requested a cancel.  Its commit is a synchronous one and
 * wakes or starts the database's worker.  All that can fail fails here and not
 * at commit.  Attaches by itself, and is cheap when called again.
 */
extern void wakeup_request(void);

/* The same for a changed server, mapping or pause; the commit need not be synchronous. */
extern void wakeup_poke(void);

/*
 * A deliverer may have sent requests that are older than this (requested_at)
 * without recording it.  Whoever loses requests that are on the wire calls
 * wakeup_raise_doubt() once it sends no more.
 */
extern TimestampTz wakeup_doubt(void);
extern void wakeup_raise_doubt(void);

/* What happens to pending rows here, in the words of view onesignal_cancel_status. */
extern const char *wakeup_status(void);

/* ---- the deliverer's lock ---- */

#define DELIVERER_NO_EXTENSION	(-1)

/*
 * Returns 0 when this session has the lock, or has it already; without wait
 * also the pid of the session that has it.  It survives commits, but an abort
 * releases it: call this before each run.  Needs a transaction.
 */
extern int	deliverer_lock(bool wait);
extern void deliverer_unlock(void);

/* ---- for the worker: its own slot; none of these throws ---- */

/* Something was requested or changed; the same, in a transaction that is only prepared. */
#define WAKEUP_COMMIT	1
#define WAKEUP_PREPARE	2

extern bool wakeup_enter(Oid database); /* false: another worker is there */
extern int	wakeup_take(void);	/* who woke the worker since it last asked: bits, or 0 */

/*
 * due: when a worker has to be back; DT_NOEND: not before the next commit.  False
 * when the worker must stay: it was woken, or no launcher would start it then.
 */
extern bool wakeup_leave(TimestampTz due);

/* The worker ends, if it has not left.  died: the launcher replaces it. */
extern void wakeup_end(bool died);

/* ---- for the launcher ---- */

extern void wakeup_register_launcher(void);
extern void wakeup_begin_launcher(void);

/* When to start a worker, and for which database (InvalidOid: look into all); DT_NOEND: never. */
extern TimestampTz wakeup_due(Oid *database);
extern void wakeup_sweep_at(TimestampTz due);	/* when to look into all databases; DT_NOEND: never */
extern void wakeup_launch(Oid database);
extern bool wakeup_has_worker(Oid database);	/* or one on its way */
extern void wakeup_forget(Oid database);	/* it is gone, or takes no connections */

/* ---- waiting ---- */

/* Throws if interrupted, and reloads the configuration if that was asked for. */
extern void wakeup_serve_signals(void);

/* Until then or until the latch is set, which it resets; then serves signals. */
extern void wakeup_wait(TimestampTz until, const char *wait_event);

#endif
