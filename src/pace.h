/*
 * pace.h
 *		Pace, circuits and backoff: arithmetic on times that are passed in.
 *
 * Nothing here reads a clock, sleeps, allocates or throws: given the same
 * times and answers it decides the same.  All times and durations are int64
 * microseconds of one clock of the caller's choice; 0 is no time at all.
 */
#ifndef ONESIGNAL_CANCEL_PACE_H
#define ONESIGNAL_CANCEL_PACE_H

#include "c.h"

/*
 * How fast requests of one app may start.  OneSignal counts creates and
 * cancels in one bucket and says nothing before its first 429, so the rate is
 * found: design, section 6.
 */
typedef struct Pace
{
	double		rate;			/* requests a second now; 0: unpaced */
	double		limit;			/* the user's rate_limit; 0: none set */
	double		ceiling;		/* after a 429, until ceiling_until; 0: none */
	int64		ceiling_until;
	double		tokens;
	int64		refilled_at;
	int64		second_began;	/* the second that decides on growth */
	bool		held_back;		/* the pace was what held us back in it */
	bool		throttled;		/* a 429 came in it */
	int64		cut_at;			/* a 429 of a request begun before does not cut again */
	int			answered;		/* other answers in this second, ... */
	int			answered_before;	/* ... and in the one before */
} Pace;

/* rate_limit: requests a second; 0: no pace; negative: adapts from 100/s up */
extern void pace_init(Pace *pace, double rate_limit, int64 now);
/* May a request start now?  Takes its token if so. */
extern bool pace_take(Pace *pace, int64 now);
/* When the next token will be there; <= now: at once. */
extern int64 pace_next(const Pace *pace, int64 now);
extern void pace_answered(Pace *pace, int64 now);
extern void pace_throttled(Pace *pace, int64 begun_at, int64 now);

/*
 * A circuit: closed (all may go), or open until a time, after which one probe
 * at a time may go.  Apps have one (429; several failures in a row), lanes
 * have one (401/403, missing key).
 */
typedef struct Circuit
{
	int			failures;		/* no-answers and 5xx in a row */
	bool		open;
	bool		probing;		/* the one probe is on the wire */
	int64		open_until;		/* no probe before */
	int64		opened_at;
} Circuit;

extern bool circuit_admits(const Circuit *circuit, int64 now);
extern void circuit_begin(Circuit *circuit, int64 now);	/* a request starts (a probe when open) */
extern bool circuit_success(Circuit *circuit, int64 begun_at);	/* true: it closed just now */
extern bool circuit_failure(Circuit *circuit, int64 begun_at, int64 now);	/* true: it opened just now */
extern bool circuit_open(Circuit *circuit, int64 until, int64 now);	/* 429, 401/403: true: it opened just now */
extern void circuit_close(Circuit *circuit);

/*
 * How long to wait after the given number of attempts (1: the first failed).
 * random: 0 <= random < 1.  time_left: until send_after, <= 0: past or none.
 * retry_after: what the server asked for, 0: nothing; wins over all.
 */
extern int64 backoff_delay(int attempts, double random, int64 time_left, int64 retry_after);
/* The plain form for direct calls, which know no send_after. */
extern int64 backoff_direct(int attempts, double random, int64 retry_after);

#endif
