/*
 * wakeup.h
 *		Who delivers in which database, and waking or starting it at commit.
 */
#ifndef ONESIGNAL_CANCEL_WAKEUP_H
#define ONESIGNAL_CANCEL_WAKEUP_H

/*
 * This transaction requested a cancel: at its commit the database's worker is
 * woken or started, and the commit is a synchronous one.  All that can fail
 * fails here, not at commit.  PREPARE TRANSACTION is refused (0A000).
 */
extern void wakeup_request(void);

/*
 * Like wakeup_request(), for a changed server, mapping or resumed app: the
 * commit needs no force, and PREPARE is fine.
 */
extern void wakeup_poke(void);

#endif
