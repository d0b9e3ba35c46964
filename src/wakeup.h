/*
 * wakeup.h
 *		Who has a worker, and waking or starting one at commit.
 */
#ifndef ONESIGNAL_CANCEL_WAKEUP_H
#define ONESIGNAL_CANCEL_WAKEUP_H

#include "datatype/timestamp.h"

/* Who delivers in a database. */
typedef enum WakeupDelivery
{
	WAKEUP_NOBODY,				/* until the next commit of a request */
	WAKEUP_AT_WORK,				/* a worker is there, on its way, or will be started in time */
	WAKEUP_NO_WORKER			/* the last one died, or could not start */
} WakeupDelivery;

/* In _PG_init of a preloaded library: reserves the shared memory. */
extern void wakeup_reserve(void);

/* Where an error may be thrown, before any of the following but the next two. */
extern void wakeup_attach(void);

/*
 * This transaction requested a cancel: at its commit the database's worker is
 * woken or started, and the commit is a synchronous one.  All that can fail
 * fails here, not at commit.  Cheap when called again and again.
 */
extern void wakeup_request(void);

/* Like wakeup_request(), for a changed server, mapping or resumed app: the commit needs no force. */
extern void wakeup_poke(void);

/*
 * Requests that are older than this (requested_at) may have been sent by a
 * deliverer that could not record it.  Whoever loses requests that are on the
 * wire raises it to now, once it sends no more.
 */
extern TimestampTz wakeup_doubt(void);
extern void wakeup_raise_doubt(void);

extern WakeupDelivery wakeup_delivery(Oid database);

/*
 * A worker's own slot.  It may deliver when wakeup_enter() is true: no other
 * worker is there.  wakeup_leave() is false when it has to stay: a commit woke
 * it meanwhile, or it has to be back at next_due (0: it does not) but there is
 * no launcher to start it then.  wakeup_hand_over() is false when it has to
 * stay since no successor can start.  None of these throws.
 */
extern bool wakeup_enter(Oid database);
extern bool wakeup_take(void);	/* was it woken since it last asked? */
extern void wakeup_looked(void);	/* by now it knows whether something is pending */
extern bool wakeup_leave(TimestampTz next_due);
extern bool wakeup_hand_over(void);
extern void wakeup_died(void);

/*
 * When a transaction with requests was last prepared in the worker's database,
 * as far as is known; 0: none is.  wakeup_note_prepared(): whether there is
 * still one, asked after wakeup_prepared_at() returned that time.
 */
extern TimestampTz wakeup_prepared_at(void);
extern void wakeup_note_prepared(TimestampTz prepared_at, bool still);

/*
 * The launcher's view.  wakeup_due(): when it has to start a worker, and for
 * which database (InvalidOid: for all that have something pending); DT_NOEND:
 * never.  wakeup_launch(): starts one; look: wakeup_looks_until() will tell
 * when it has looked.
 */
extern void wakeup_set_launcher(bool here);
extern TimestampTz wakeup_due(Oid *database);
extern void wakeup_launch(Oid database, bool look);
extern TimestampTz wakeup_looks_until(Oid database);	/* 0: it has looked, or will not */
extern void wakeup_forget(Oid database);	/* it is gone, or takes no connections */
extern void wakeup_swept(void); /* all databases are about to be looked into */

/*
 * Waits until then (DT_NOEND: for ever) or for the latch, which is reset;
 * serve signals after it.
 */
extern void wakeup_wait(TimestampTz until, uint32 wait_event);

/* Throws if interrupted; reloads the configuration if that was asked for. */
extern void wakeup_serve_signals(void);

#endif
