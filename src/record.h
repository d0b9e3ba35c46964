/*
 * record.h
 *		Writing what came of attempts, past whatever others hold locked.
 */
#ifndef ONESIGNAL_CANCEL_RECORD_H
#define ONESIGNAL_CANCEL_RECORD_H

#include "queue.h"
#include "statements.h"

/* As queue_record(), over the caller's SPI connection; schema: where the tables are. */
extern void record_outcomes(Oid schema, const QueueOutcome *outcomes, int count,
							QueueRecorded *recorded);

/*
 * Runs a statement that updates the row of an app in onesignal_app, the
 * statement's first parameter; makes the row if there is none.  False: it is
 * locked.
 */
extern bool record_app(Oid schema, Statement which, Datum *values, const char *nulls);

/* A transaction in which outcomes may be recorded begins; it was committed. */
extern void record_begin(void);
extern void record_committed(void);

#endif
