/*
 * lanes.h
 *		What goes next: apps and lanes that are ready, fetch rows, or wait.
 */
#ifndef ONESIGNAL_CANCEL_LANES_H
#define ONESIGNAL_CANCEL_LANES_H

#include "apps.h"

/* At the start of each run; cautious: begin with one request, as outcomes could not be recorded. */
extern void lanes_open(bool cautious);

/* Forgets all there is, and wipes the keys.  Never throws. */
extern void lanes_forget(void);

/* Rows may have been committed, in any lane: look for them soon. */
extern void lanes_wake(void);

/* Now and then, where no wake-up tells of it: somebody may have paused or resumed an app. */
extern void lanes_refresh(Moment now);

/* Takes up what waited for a time that has come. */
extern void lanes_tick(Moment now);

/* Is there something to read from the tables?  lanes_fill() reads it, between queue_begin() and queue_commit(). */
extern bool lanes_hungry(Moment now);
extern void lanes_fill(Moment now);

/* The next row to begin, if any may start now.  It is taken until lanes_settle(). */
extern bool lanes_take(Moment now, LaneTurn *turn);

/* Does nothing begin before outcomes are recorded? */
extern bool lanes_await_record(void);

/* One more request of a taken row's lane, if it may start now. */
extern bool lanes_take_again(DeliveryLane *lane, Moment now);

/* A request has ended, with an answer or without one; apps_learn() comes before. */
extern void lanes_end_request(DeliveryLane *lane, bool answered, Moment now);

/*
 * The outcome of a taken row was recorded or dropped; next_due: when it is to
 * be tried again, DT_NOEND: never.  The lane may be gone afterwards.
 */
extern void lanes_settle(DeliveryLane *lane, const QueueRow *row, int http_status, TimestampTz next_due);

/* A taken row does not count as unrecorded while its refusal is checked (-1), and does again (1). */
extern void lanes_count_unrecorded(DeliveryLane *lane, int count);

/* A transaction tried to record outcomes, and some were, or none. */
extern void lanes_note_visit(bool recorded_some);

/* Outcomes of an app's messages were committed, or could not be recorded. */
extern void lanes_grow_trust(DeliveryApp *app);
extern void lanes_lose_trust(DeliveryApp *app);

/* When there may be something to begin; DT_NOEND: not before somebody commits more. */
extern TimestampTz lanes_next_due(Moment now);

#endif
