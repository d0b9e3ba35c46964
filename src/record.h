/*
 * record.h
 *		Writing the outcomes of attempts, past whatever others have locked.
 */
#ifndef ONESIGNAL_CANCEL_RECORD_H
#define ONESIGNAL_CANCEL_RECORD_H

#include "queue.h"

/* As queue_record(), queue_expire() and queue_save_apps(), over the caller's SPI connection; schema: where the tables are. */
extern void record_outcomes(Oid schema, const QueueOutcome *outcomes, int count,
							QueueRecorded *recorded, char **error);
extern int	record_expired(Oid schema, const QueueLane *lane, TimestampTz before, const char *reason);
extern void record_apps(Oid schema, QueueApp *apps, int count);

#endif
