/*
 * pace.h
 *		Pace, circuit, allowance, trust and backoff: arithmetic on times.
 *
 * Nothing here reads a clock, sleeps, allocates or throws.  Times and durations
 * are microseconds of one clock of the caller's choice; 0 is no time.
 */
#ifndef ONESIGNAL_CANCEL_PACE_H
#define ONESIGNAL_CANCEL_PACE_H

#include "c.h"

#include "datatype/timestamp.h"

/*
 * How fast requests of one app may start.  Only a 429 tells how large OneSignal's
 * bucket is, which creates empty as well.  So the rate grows by a tenth a second
 * while it holds us back, and a 429 cuts it to 80% of what was answered.
 */
typedef struct Pace
{
	double		rate;			/* requests a second now; 0: unlimited */
	double		limit;			/* the rate_limit that it was made with */
	double		ceiling;		/* after a 429, until ceiling_until; 0: none */
	int64		ceiling_until;
	double		tokens;			/* requests that may start at once */
	int64		refilled_at;
	int64		cut_at;			/* a 429 of a request begun before does not cut again */
	int64		second_began;	/* the present second, whose counts follow */
	bool		held_back;		/* a request had to wait */
	bool		throttled;		/* a 429 came */
	int			started;		/* requests */
	int			answered;		/* answers other than 429 */
	int			answered_before;	/* the same in the second before */
} Pace;

/* rate_limit: requests a second; 0: unlimited; negative: adapts from 100/s up */
extern void pace_init(Pace *pace, double rate_limit);

/* May a request start now?  A refusal tells the pace that it held one back.  pace_next(): when it may. */
extern bool pace_take(Pace *pace, int64 now);
extern int64 pace_next(const Pace *pace, int64 now);

/* An answer came: any but a 429, or a 429 to a request that began at begun_at. */
extern void pace_answered(Pace *pace, int64 now);
extern void pace_throttled(Pace *pace, int64 begun_at, int64 now);

/*
 * Closed, as a zeroed one is: all requests may go.  Open until a time: then one
 * at a time, the probe; src/README.md draws it.  A request that began before the
 * circuit last changed does not change it again.
 */
typedef struct Circuit
{
	bool		open;
	bool		probing;		/* the probe is on the wire */
	int			failures;		/* in a row, while closed */
	int			probes;			/* that have failed, while open */
	int64		open_until;
	int64		changed_at;		/* when it opened, opened again or closed */
	int64		success_at;		/* failures of requests begun before do not count */
} Circuit;

/* How long a key that was rejected, or is missing, pauses its lane: somebody has to act. */
#define CIRCUIT_KEY_PAUSE USECS_PER_MINUTE

/* When a request may start; PG_INT64_MAX: when the probe has ended. */
extern int64 circuit_next(const Circuit *circuit, int64 now);

/* A request starts, or has ended in a way that tells nothing of the circuit. */
extern void circuit_begin(Circuit *circuit);
extern void circuit_abandon(Circuit *circuit, int64 begun_at);

/*
 * A request has worked, or failed; none will work before "until"; it is closed
 * by hand.  True: the circuit was closed and opened just now, or the reverse.
 */
extern bool circuit_success(Circuit *circuit, int64 begun_at, int64 now);
extern bool circuit_failure(Circuit *circuit, int64 begun_at, int64 now);
extern bool circuit_open(Circuit *circuit, int64 begun_at, int64 until, int64 now);
extern bool circuit_close(Circuit *circuit, int64 now);

/*
 * How many requests of one app may be on the wire: ALLOWANCE_FIRST, and one more
 * with each answer.  When an answer fails to come it falls back to that number,
 * and nothing begins in place of what failed until an answer comes.
 */
typedef struct Allowance
{
	int			limit;			/* ALLOWANCE_FIRST in the beginning */
	int			in_flight;
	bool		proven;			/* the last request that ended had an answer */
} Allowance;

#define ALLOWANCE_FIRST 20

/* All apps together. */
typedef struct Wire
{
	int			max;
	int			in_flight;
	int			unproven;		/* those of apps that are not proven */
} Wire;

extern bool allowance_permits(const Allowance *allowance, const Wire *wire);
extern void allowance_begin(Allowance *allowance, Wire *wire);
extern void allowance_end(Allowance *allowance, Wire *wire, bool answered);

/*
 * How many requests may be begun and not yet recorded: one more with each outcome
 * that was recorded, or one a second while outcomes cannot be recorded.
 */
typedef struct Trust
{
	int			limit;
	int			max;
	int			unrecorded;
	int64		paused_until;
} Trust;

extern bool trust_permits(const Trust *trust, int64 now);
extern void trust_learn(Trust *trust, bool recorded, int64 now);

/*
 * How long to wait after so many attempts.  random: 0 <= random < 1;
 * time_left: until send_after, <= 0: none; retry_after: no wait is shorter.
 */
extern int64 backoff_delay(int attempts, double random, int64 time_left, int64 retry_after);

#endif
