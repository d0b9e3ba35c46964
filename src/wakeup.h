/*
 * wakeup.h
 *		Waking or starting a database's worker at commit.
 */
#ifndef ONESIGNAL_CANCEL_WAKEUP_H
#define ONESIGNAL_CANCEL_WAKEUP_H

#include "datatype/timestamp.h"

/*
 * This transaction requested a cancel: at its commit the database's worker is
 * woken or started, and the commit is a synchronous one.  All that can fail
 * fails here, not at commit.  Cheap when called again and again.
 */
extern void wakeup_request(void);

/* Like wakeup_request(), for a changed server, mapping or resumed app: the commit needs no force. */
extern void wakeup_poke(void);

/* The launcher's start of a worker, and a worker's of its successor; false: there is no room for one. */
extern bool wakeup_launch(Oid database, bool look);
extern bool wakeup_hand_over(Oid database);

/*
 * Waits until then (DT_NOEND: for ever) or for the latch, which is reset;
 * serve signals after it.
 */
extern void wakeup_wait(TimestampTz until, uint32 wait_event);

/* Throws if interrupted; reloads the configuration if that was asked for. */
extern void wakeup_serve_signals(void);

#endif
