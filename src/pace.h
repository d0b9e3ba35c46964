/*
 * pace.h
 *		Pace, circuit, allowance, trust and backoff: arithmetic on what is passed in.
 *
 * Nothing here reads a clock, sleeps, allocates or throws: given the same
 * times and answers it decides the same.  All times and durations are int64
 * microseconds of one clock of the caller's choice, after 0, which is no time
 * at all.  The clock may jump: backward it makes no wait longer than it was.
 */
#ifndef ONESIGNAL_CANCEL_PACE_H
#define ONESIGNAL_CANCEL_PACE_H

#include "c.h"

#include "datatype/timestamp.h"

/*
 * How fast requests of one app may start.  OneSignal counts creates and
 * cancels in one bucket and says nothing before its first 429, so the rate is
 * found: up by a tenth a second while it is what holds us back, down to 80%
 * of what was answered on a 429.
 */
typedef struct Pace
{
	double		rate;			/* requests a second now; 0: unpaced */
	double		limit;			/* the user's rate_limit; 0: none set */
	double		ceiling;		/* after a 429, until ceiling_until; 0: none */
	int64		ceiling_until;
	double		tokens;			/* requests that may start at once */
	int64		refilled_at;
	int64		cut_at;			/* a 429 of a request begun before does not cut again */

	/* the second that runs, which decides on growth when it ends */
	int64		second_began;
	bool		held_back;		/* a request was refused in it */
	bool		throttled;		/* a 429 came in it */
	int			started;		/* requests that started in it */
	int			answered;		/* answers other than 429 in it, ... */
	int			answered_before;	/* ... and in the one before */
} Pace;

/* rate_limit: requests a second; 0: no pace; negative: adapts from 100/s up */
extern void pace_init(Pace *pace, double rate_limit);

/*
 * May a request start now?  Takes its token if so.  Ask for each request that
 * could start but for the pace: a refusal is how it learns that it held us
 * back.  (So do not ask pace_next() first.)
 */
extern bool pace_take(Pace *pace, int64 now);

/* When the next token will be there; <= now: at once. */
extern int64 pace_next(const Pace *pace, int64 now);

/* An answer came: any but a 429, and ... */
extern void pace_answered(Pace *pace, int64 now);

/* ... a 429, to a request that began at begun_at. */
extern void pace_throttled(Pace *pace, int64 begun_at, int64 now);

/*
 * A circuit: closed (all may go), or open until a time, after which one probe
 * at a time may go, whose success closes it.  Apps have one (429; several
 * failures in a row), lanes have one (401/403, missing key).
 *
 *		   circuit_open(), or the 5th failure in a row
 *		closed ----------------------------> open until open_until
 *		  ^                                    |             ^
 *		  | success                 open_until |             | failure, or
 *		  | of the probe               passed  v             | circuit_open()
 *		  +---------------------------------- probe ---------+
 *
 * Each outcome comes with the time at which its request began: what began
 * before the circuit changed tells of the time before, and changes nothing.
 */
typedef struct Circuit
{
	bool		open;
	bool		probing;		/* the one probe is on the wire */
	int			failures;		/* while closed: no-answers and 5xx in a row */
	int			probes;			/* while open: how many probes failed so far */
	int64		open_until;		/* no probe before */
	int64		changed_at;		/* when it opened, opened again or closed */
	int64		success_at;		/* failures of requests begun before do not count */
} Circuit;

/* 401, 403, no mapping, no key: somebody has to act, so one probe a minute will do. */
#define CIRCUIT_KEY_PAUSE USECS_PER_MINUTE

/* A closed one is all zeros; this is for those that are not in zeroed memory. */
extern void circuit_init(Circuit *circuit);

/* When a request may start: <= now: at once; PG_INT64_MAX: when the probe has ended. */
extern int64 circuit_next(Circuit *circuit, int64 now);

/* Says that a request starts; it is the probe if the circuit is open. */
extern void circuit_begin(Circuit *circuit);

/* Says that a request came to nothing that tells of the circuit, if only as it was not sent. */
extern void circuit_abandon(Circuit *circuit, int64 begun_at);

/* An answer that shows that what the circuit guards works.  True: it closed just now. */
extern bool circuit_success(Circuit *circuit, int64 begun_at, int64 now);

/* No answer, or a 5xx.  True: it opened just now. */
extern bool circuit_failure(Circuit *circuit, int64 begun_at, int64 now);

/*
 * An answer that opens it at once: 429 (until: now + backoff_direct(probes + 1,
 * random, Retry-After)), 401, 403 (now + CIRCUIT_KEY_PAUSE).  Where there was
 * no request, such as for a missing key or a pause from before a restart,
 * begun_at is now.  True: it opened just now.
 */
extern bool circuit_open(Circuit *circuit, int64 begun_at, int64 until, int64 now);

/* Closes it by hand, after a change of server, mapping or key.  True: it was open. */
extern bool circuit_close(Circuit *circuit, int64 now);

/*
 * How many requests of one app may be on the wire, so that an app that hangs
 * costs a handful and leaves room for all others.  An app begins with
 * ALLOWANCE_FIRST and gets one more with each answer.  When an answer fails to
 * come it falls back to that number, and begins nothing in place of what
 * failed until an answer comes.
 */
typedef struct Allowance
{
	int			limit;
	int			in_flight;
	bool		proven;			/* it has been answered since an answer last failed to come */
} Allowance;

/* All apps together. */
typedef struct Wire
{
	int			max;			/* requests that may be on the wire */
	int			in_flight;
	int			unproven;		/* of these: of apps that are not proven */
} Wire;

#define ALLOWANCE_FIRST 20

extern void allowance_init(Allowance *allowance);

/* Has the app as many on the wire as it may have, whatever others do? */
extern bool allowance_is_full(const Allowance *allowance);

/* May it begin one more, given what others have on the wire? */
extern bool allowance_permits(const Allowance *allowance, const Wire *wire);

extern void allowance_begin(Allowance *allowance, Wire *wire);

/* A request has ended, with an answer or without one. */
extern void allowance_end(Allowance *allowance, Wire *wire, bool answered);

/*
 * How many requests may be begun before their outcomes are recorded: few at
 * first, twice as many with each commit that records some.  When outcomes
 * cannot be recorded, one more request may begin after a pause, which doubles
 * while that goes on.
 */
typedef struct Trust
{
	int			limit;
	int			unrecorded;		/* begun, and not yet recorded or dropped */
	int			max;
	int64		pause;			/* the last one; 0: none */
	int64		paused_until;
} Trust;

extern void trust_init(Trust *trust, int first, int max);
extern bool trust_permits(const Trust *trust, int64 now);
extern void trust_grow(Trust *trust);	/* outcomes were committed */
extern void trust_lose(Trust *trust, int64 now);	/* they could not be recorded */

/*
 * How long to wait after the given number of attempts (1: the first failed).
 * random: 0 <= random < 1.  time_left: until send_after, <= 0: past or none.
 * retry_after: what the server asked for, 0: nothing; wins over all.
 */
extern int64 backoff_delay(int attempts, double random, int64 time_left, int64 retry_after);

/* The plain form for direct calls, which know no send_after. */
extern int64 backoff_direct(int attempts, double random, int64 retry_after);

#endif
