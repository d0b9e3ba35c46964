/*
 * delivery.h
 *		The pipeline: begins requests, judges the answers, records the outcomes.
 */
#ifndef ONESIGNAL_CANCEL_DELIVERY_H
#define ONESIGNAL_CANCEL_DELIVERY_H

#include "datatype/timestamp.h"

/* What a run of the pipeline is given by the worker or by CALL. */
typedef struct DeliveryOptions
{
	bool		in_procedure;	/* transactions are SPI's */
	TimestampTz until;			/* begin no request after it; 0: no end */

	/*
	 * Were there commits since it was last asked?  It also reloads the
	 * configuration, and throws if interrupted.  It is called at least once a
	 * second, without a transaction of the worker's.
	 */
	bool		(*woken) (void);

	/* Must the run end, within about a second?  May be NULL. */
	bool		(*must_stop) (void);
} DeliveryOptions;

/*
 * Delivers until nothing is due and nothing is on the wire.  Returns when the
 * next row falls due, DT_NOEND when nothing is pending, and DT_NOBEGIN when the
 * extension is gone.  It also returns when settings_enabled goes off, and in a
 * worker settings_background_delivery; and from a CALL while rows stay locked:
 * their messages are sent again.  The next run of the process knows what this
 * one learned.  The caller holds the deliverer's lock.
 */
extern TimestampTz delivery_run(const DeliveryOptions *options);

/* For a session that goes on to other things: forgets all, and wipes the keys.  Never throws. */
extern void delivery_end(void);

#endif
