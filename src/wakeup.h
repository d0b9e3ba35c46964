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

typedef enum DelivererLock
{
	DELIVERER_LOCKED,
	DELIVERER_BUSY,				/* another session has it, and wait was false */
	DELIVERER_NO_EXTENSION
} DelivererLock;

/*
 * Needs a transaction; the session may have the lock already.  The lock
 * survives commits, but an abort releases it: call this before each run.
 */
extern DelivererLock deliverer_lock(bool wait);
extern void deliverer_unlock(void);

/* The pid of the session that has the lock; 0: none has.  Needs a transaction. */
extern int	deliverer_pid(void);

/* ---- for the worker: its own slot; none of these throws ---- */

#define WAKEUP_COMMIT	1		/* something was requested or changed */
#define WAKEUP_PREPARE	2		/* the same, in a transaction that is only prepared */

extern bool wakeup_enter(Oid database); /* false: another worker is there */
extern int	wakeup_take(void);	/* who woke the worker since it last asked: bits, or 0 */
extern void wakeup_looked(void);	/* the worker knows whether something is pending */
extern void wakeup_hand_over(void); /* a successor starts, and this worker must end */
extern void wakeup_died(void);

/*
 * due: when a worker has to be back; DT_NOEND: not before the next commit.  False
 * when the worker must stay: it was woken, or no launcher would start it then.
 */
extern bool wakeup_leave(TimestampTz due);

/* ---- for the launcher ---- */

extern void wakeup_begin_launcher(void);

/* When to start a worker, and for which database (InvalidOid: look into all); DT_NOEND: never. */
extern TimestampTz wakeup_due(Oid *database);
extern void wakeup_sweep_at(TimestampTz due);	/* when to look into all databases; DT_NOEND: never */
extern void wakeup_launch(Oid database);
extern TimestampTz wakeup_looks_until(Oid database);	/* how long to wait for its worker's look; 0: no longer */
extern void wakeup_forget(Oid database);	/* it is gone, or takes no connections */

/* ---- waiting ---- */

/* Throws if interrupted, and reloads the configuration if that was asked for. */
extern void wakeup_serve_signals(void);

/* Until then or until the latch is set, which it resets; then serves signals. */
extern void wakeup_wait(TimestampTz until, uint32 wait_event);

#endif
