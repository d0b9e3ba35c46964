/*
 * deliverer.h
 *		At most one session delivers in a database: its lock, and CALL.
 */
#ifndef ONESIGNAL_CANCEL_DELIVERER_H
#define ONESIGNAL_CANCEL_DELIVERER_H

typedef enum DelivererLock
{
	DELIVERER_LOCKED,
	DELIVERER_BUSY,				/* another session has it, and we did not wait */
	DELIVERER_NO_EXTENSION		/* there is nothing to deliver for: leave */
} DelivererLock;

/*
 * In a transaction, and at no cost when the session has the lock already.  It
 * survives commits; an abort releases it: call again before each run.
 */
extern DelivererLock deliverer_lock(bool wait);
extern void deliverer_unlock(void);

/* After an error in a run, before its transaction is aborted. Never throws. */
extern void deliverer_abandon(void);

#endif
