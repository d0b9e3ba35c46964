/*
 * pace.c
 *		How fast requests start, when none may, and how long a retry waits.
 *
 * Everything here is arithmetic on times that the caller passes in, so that
 * ten minutes of delivery can be tried in a microsecond, by a test that links
 * this file alone: no clock, no allocation, no error, and no header above c.h.
 */
#include "c.h"

#include "datatype/timestamp.h"

#include "pace.h"

/* OneSignal's advice for work that is urgent: 2, 4, 8 ... 60 s, with jitter. */
#define BACKOFF_FIRST (2 * USECS_PER_SEC)
#define BACKOFF_MAX (60 * USECS_PER_SEC)

/* While send_after is further away than this, nothing is lost by waiting longer. */
#define BACKOFF_RELAXED_BEYOND USECS_PER_HOUR
#define BACKOFF_RELAXED_MAX (15 * USECS_PER_MINUTE)

/* However near send_after is, trying faster than this helps nobody. */
#define BACKOFF_MIN USECS_PER_SEC

static int64
backoff_doubled(int attempts, int64 max)
{
	int64		delay = BACKOFF_FIRST;

	for (int i = 1; i < attempts && delay < max; i++)
		delay *= 2;
	return Min(delay, max);
}

/* Half of it is certain, so that a retry is never at once; half spreads the crowd. */
static int64
backoff_jittered(int64 delay, double random)
{
	return delay / 2 + (int64) (random * (double) (delay / 2));
}

int64
backoff_delay(int attempts, double random, int64 time_left, int64 retry_after)
{
	int64		delay;

	delay = backoff_doubled(attempts, time_left > BACKOFF_RELAXED_BEYOND ?
							BACKOFF_RELAXED_MAX : BACKOFF_MAX);

	/* Bounded before the jitter: messages that share a send_after stay spread. */
	if (time_left > 0)
		delay = Min(delay, time_left / 2);
	delay = Max(backoff_jittered(delay, random), BACKOFF_MIN);
	return Max(delay, retry_after);
}

int64
backoff_direct(int attempts, double random, int64 retry_after)
{
	int64		delay = backoff_jittered(backoff_doubled(attempts, BACKOFF_MAX), random);

	return Max(delay, retry_after);
}
