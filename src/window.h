/*
 * window.h
 *		How many requests may be in flight: arithmetic on times that are passed in.
 *
 * As pace.h: no clock, no allocation, no error.  Times are microseconds of one
 * clock of the caller's choice.
 */
#ifndef ONESIGNAL_CANCEL_WINDOW_H
#define ONESIGNAL_CANCEL_WINDOW_H

#include "c.h"

/*
 * How many requests may be in flight.  More of them than keep us busy only
 * cost: libcurl takes a quarter longer for each with 800 handles than with
 * 100, and 10 MB.  So it begins with the streams of one connection, and doubles
 * when nothing comes in for too long.  And each time when as many have ended as
 * may be in flight, it grows to what would have filled the time spent waiting,
 * if the peer is not near, or falls by an eighth if next to none was.
 */
typedef struct Window
{
	int			limit;			/* how many; WINDOW_MIN at first */
	int			ended;			/* of them, since the limit was last looked at, ... */
	int64		began;			/* ... when that was, ... */
	int64		waited;			/* ... and for how long the limit made us wait since */
	int64		nearest;		/* the least that one has taken since the last lull; 0: none ended */
} Window;

#define WINDOW_MIN 100

/* Says that a request is sent while none is in flight, the last having ended at idle_since. */
extern void window_start(Window *window, int64 idle_since, int64 now);

/* After how long a wait the limit is raised; -1: never, it is not what lets no more be sent, or the highest. */
extern int window_patience_ms(const Window *window, int in_flight, int max);

/* Says that there was nothing to be read from one time to the other. */
extern void window_waited(Window *window, int in_flight, int max, int64 from, int64 to);

/* Says that one of those in flight ended, after so long. */
extern void window_ended(Window *window, int64 took);

/* Raises or lowers the limit by how much of the time it made us wait. */
extern void window_review(Window *window, int max, int64 now);

#endif
