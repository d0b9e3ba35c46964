/*
 * apps.h
 *		What delivery learns of each app: pace, circuits, pauses.
 */
#ifndef ONESIGNAL_CANCEL_APPS_H
#define ONESIGNAL_CANCEL_APPS_H

#include "lanes.h"

extern void apps_open(MemoryContext context);
extern DeliveryApp *apps_get(const pg_uuid_t *app_id);

extern bool apps_denies(const DeliveryLane *lane, const QueueRow *row, Moment now);
extern void apps_excuse(DeliveryLane *lane, int64 begun_us);
extern void apps_forget_lane(DeliveryLane *lane);
extern void apps_end_saving(bool committed);
extern void apps_learn(DeliveryLane *lane, const HttpAnswer *answer, int64 begun_us);
extern void apps_drop_key(DeliveryLane *lane);
extern bool apps_needs_key_check(const DeliveryLane *lane, Moment now);
extern int64 apps_next_key_check(const DeliveryLane *lane);

extern bool apps_wants_saving(const DeliveryApp *app, Moment now);
extern bool apps_are_old(Moment now);

/* Between queue_begin() and queue_commit() */
extern void apps_check_key(DeliveryLane *lane, Moment now);
extern void apps_read(Moment now);
extern void apps_save(Moment now);

#endif
