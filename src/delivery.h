/*
 * delivery.h
 *		The pipeline: what is due, lanes, circuits, retry, record.
 */
#ifndef ONESIGNAL_CANCEL_DELIVERY_H
#define ONESIGNAL_CANCEL_DELIVERY_H

#include "datatype/timestamp.h"

/* What one run of the pipeline is given by the worker or by CALL. */
typedef struct DeliveryOptions
{
	bool		in_procedure;	/* transactions are SPI's */
	TimestampTz until;			/* start no request after it; 0: no end */

	/*
	 * Were there commits since it was last asked?  May be NULL.  Asked at
	 * least once a second and whenever the latch was set, with no transaction
	 * of the worker's open: it also reloads the configuration, and throws if
	 * interrupted.
	 */
	bool		(*woken) (void);

	/*
	 * Must it end?  Asked as often as woken(), may be NULL; then it begins
	 * nothing more, takes what arrives for at most a second, records all, and
	 * returns.
	 */
	bool		(*must_stop) (void);
} DeliveryOptions;

/*
 * Delivers until nothing is due and nothing is on the wire.  Holds no
 * transaction while it waits.  Returns when the next row falls due (a retry,
 * or a pause that ends), DT_NOEND when nothing is pending at all, and
 * DT_NOBEGIN when the extension is gone: leave.  Also returns, once what is on
 * the wire is recorded, when settings_enabled goes off, and in a worker when
 * settings_background_delivery does; and from a CALL though outcomes wait for
 * rows that stay locked: these are sent again.  What it learned of pace and
 * circuits is kept in the process for the next run.  The caller holds the
 * deliverer's lock.
 */
extern TimestampTz delivery_run(const DeliveryOptions *options);

/* A session that CALLed goes on to other things: wipes the keys.  Never throws. */
extern void delivery_end(void);

#endif
