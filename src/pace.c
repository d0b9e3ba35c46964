/*
 * pace.c
 *		Pace, circuit, allowance, trust and backoff: arithmetic on times.
 *
 * A test links this file alone and tries ten minutes of delivery in a
 * microsecond: no clock, no allocation, no error, no header above c.h.
 */
#include "c.h"

#include <float.h>

#include "pace.h"

/* Without a rate_limit: two thirds of the smallest plan's 150/s, which creates share. */
#define PACE_START 100.0

/* A tenth a second finds a paid plan's 6,000/s in 43 s. */
#define PACE_GROWTH 1.1

/* What a cut keeps: the fifth that it leaves is for live sends. */
#define PACE_KEPT 0.8

/* When less than half of the rate was answered, we had little to send: no measure of OneSignal's limit. */
#define PACE_KEPT_AT_LEAST 0.5
#define PACE_MIN 1.0

/* Fewer answers than this are no measure for a ceiling. */
#define PACE_MEASURABLE 5.0
#define PACE_CEILING_DURATION (10 * USECS_PER_MINUTE)

/* What part of a second's requests may start at once: a commit, of 10 to 50 ms, must not cost pace. */
#define PACE_BURST 0.05

/* Five failures in a row are an outage, or one lost connection: hence the first probe follows soon. */
#define CIRCUIT_FAILURES 5
#define CIRCUIT_PROBE_FIRST USECS_PER_SEC
#define CIRCUIT_PROBE_MAX (15 * USECS_PER_SEC)

/* OneSignal's advice for urgent work: 2, 4, 8 ... 60 s, with jitter. */
#define BACKOFF_FIRST (2 * USECS_PER_SEC)
#define BACKOFF_MAX (60 * USECS_PER_SEC)

/* While send_after is further away than this, nothing is lost by waiting longer. */
#define BACKOFF_RELAXED_BEYOND USECS_PER_HOUR
#define BACKOFF_RELAXED_MAX (15 * USECS_PER_MINUTE)

#define BACKOFF_MIN USECS_PER_SEC
#define BACKOFF_DOUBLINGS 9

/* An app may have four times what is then left: alone four fifths of the wire, and something is always left. */
#define ALLOWANCE_SHARE 4

/* Apps that are not proven share half of what the others leave, and leave a part of the wire to those. */
#define UNPROVEN_PART 2
#define PROVEN_RESERVE 32

#define TRUST_PAUSE USECS_PER_SEC

/* Brings the counts up to now. */
static void
pace_advance(Pace *pace, int64 now)
{
	int64		elapsed = now - pace->second_began;
	double		bound;

	if (now >= pace->ceiling_until)
		pace->ceiling = 0;
	if (elapsed < USECS_PER_SEC)
		return;
	/* Only a pace that was in use may grow: a few requests at once have to wait at any pace. */
	bound = pace->ceiling > 0 ? pace->ceiling : pace->limit > 0 ? pace->limit :
		DBL_MAX;
	if (pace->held_back && !pace->throttled && pace->started >= pace->rate / 2)
		pace->rate = Min(pace->rate * PACE_GROWTH, bound);
	pace->answered_before = elapsed < 2 * USECS_PER_SEC ? pace->answered : 0;
	pace->second_began = elapsed < 2 * USECS_PER_SEC ? pace->second_began + USECS_PER_SEC : now;
	pace->held_back = pace->throttled = false;
	pace->started = pace->answered = 0;
}

void
pace_init(Pace *pace, double rate_limit)
{
	*pace = (Pace) {.rate = rate_limit < 0 ? PACE_START : rate_limit, .limit = rate_limit, .tokens = 1.0};
}

bool
pace_take(Pace *pace, int64 now)
{
	double		refill;

	if (pace->rate <= 0)
		return true;
	refill = pace->rate * (double) (now - pace->refilled_at) / USECS_PER_SEC;
	pace->refilled_at = now;
	pace_advance(pace, now);
	pace->tokens = Min(pace->tokens + refill, Max(pace->rate * PACE_BURST, 1.0));
	if (pace->tokens < 1.0)
	{
		pace->held_back = true;
		return false;
	}
	pace->tokens -= 1.0;
	pace->started++;
	return true;
}

int64
pace_next(const Pace *pace, int64 now)
{
	double		wait;

	if (pace->rate <= 0 || pace->tokens >= 1.0)
		return now;
	/* Rounded up, or the caller would come a microsecond early; an hour fits any integer. */
	wait = (1.0 - pace->tokens) / pace->rate * USECS_PER_SEC;
	return pace->refilled_at + (int64) Min(wait, (double) USECS_PER_HOUR) + 1;
}

void
pace_answered(Pace *pace, int64 now)
{
	pace_advance(pace, now);
	pace->answered++;
}

void
pace_throttled(Pace *pace, int64 begun_at, int64 now)
{
	double		lately;
	double		share;
	double		half;

	if (pace->rate <= 0)
		return;
	pace_advance(pace, now);
	pace->throttled = true;
	if (begun_at <= pace->cut_at)
		return;
	pace->cut_at = now;

	/* In the last second: of the second before, the part counts that is less than a second ago. */
	lately = pace->answered + pace->answered_before * (1.0 - (double) (now - pace->second_began) / USECS_PER_SEC);
	/* Answers that a slow network held up may come faster than we ever sent. */
	share = PACE_KEPT * Min(lately, pace->rate);
	half = PACE_KEPT_AT_LEAST * pace->rate;
	pace->rate = Max(Max(share, half), PACE_MIN);
	if (pace->limit > 0)
		pace->rate = Min(pace->rate, pace->limit);
	if (share >= half && share >= PACE_KEPT * PACE_MEASURABLE)
	{
		pace->ceiling = pace->rate;
		pace->ceiling_until = now + PACE_CEILING_DURATION;
	}
}

static void
circuit_set_open(Circuit *circuit, int64 until, int64 now)
{
	circuit->probes = circuit->open ? circuit->probes + 1 : 0;
	circuit->open = true;
	circuit->probing = false;
	circuit->changed_at = now;

	/* After now in any case, which tells the probe from what began before. */
	circuit->open_until = Max(until, now + 1);
}

int64
circuit_next(const Circuit *circuit, int64 now)
{
	if (!circuit->open)
		return now;
	return circuit->probing ? PG_INT64_MAX : circuit->open_until;
}

void
circuit_begin(Circuit *circuit)
{
	circuit->probing = circuit->open;
}

void
circuit_abandon(Circuit *circuit, int64 begun_at)
{
	if (begun_at > circuit->changed_at)
		circuit->probing = false;
}

bool
circuit_success(Circuit *circuit, int64 begun_at, int64 now)
{
	if (circuit->open)
		return begun_at > circuit->changed_at && circuit_close(circuit, now);
	circuit->failures = 0;
	circuit->success_at = now;
	return false;
}

bool
circuit_failure(Circuit *circuit, int64 begun_at, int64 now)
{
	bool		was_open = circuit->open;
	int			probes = was_open ? circuit->probes + 1 : 0;

	if (was_open ? begun_at <= circuit->changed_at :
		(begun_at < circuit->success_at || ++circuit->failures < CIRCUIT_FAILURES))
		return false;
	circuit_set_open(circuit, now + Min(CIRCUIT_PROBE_FIRST << Min(probes, 4), CIRCUIT_PROBE_MAX), now);
	return !was_open;
}

bool
circuit_open(Circuit *circuit, int64 begun_at, int64 until, int64 now)
{
	bool		was_open = circuit->open;

	if (was_open ? begun_at <= circuit->changed_at : begun_at < circuit->changed_at)
		return false;
	circuit_set_open(circuit, until, now);
	return !was_open;
}

bool
circuit_close(Circuit *circuit, int64 now)
{
	bool		was_open = circuit->open;

	*circuit = (Circuit) {.changed_at = now, .success_at = now};
	return was_open;
}

/* Others that hang must not keep an app from being proven: its first request may begin beside them. */
bool
allowance_permits(const Allowance *allowance, const Wire *wire)
{
	int			left = wire->max - wire->in_flight;

	if (allowance->in_flight >= allowance->limit || allowance->in_flight >= ALLOWANCE_SHARE * left)
		return false;
	if (allowance->proven)
		return true;
	if (allowance->in_flight == 0)
		return wire->unproven < wire->max - wire->max / PROVEN_RESERVE;
	return wire->unproven < (left + wire->unproven) / UNPROVEN_PART;
}

void
allowance_begin(Allowance *allowance, Wire *wire)
{
	allowance->in_flight++;
	wire->in_flight++;
	if (!allowance->proven)
		wire->unproven++;
}

void
allowance_end(Allowance *allowance, Wire *wire, bool answered)
{
	if (!allowance->proven)
		wire->unproven -= allowance->in_flight;
	allowance->in_flight--;
	wire->in_flight--;
	allowance->limit = answered ? Min(Max(allowance->limit + 1, ALLOWANCE_FIRST), wire->max) :
		Min(Max(allowance->in_flight, 1), ALLOWANCE_FIRST);
	allowance->proven = answered;
	if (!allowance->proven)
		wire->unproven += allowance->in_flight;
}

bool
trust_permits(const Trust *trust, int64 now)
{
	return trust->unrecorded < trust->limit && now >= trust->paused_until;
}

/* A loss leaves room for one more than what waits: a row that can never be written must not keep others from it. */
void
trust_learn(Trust *trust, bool recorded, int64 now)
{
	trust->limit = Min((recorded ? trust->limit : trust->unrecorded) + 1, trust->max);
	trust->paused_until = recorded ? 0 : now + TRUST_PAUSE;
}

int64
backoff_delay(int attempts, double random, int64 time_left, int64 retry_after)
{
	int64		longest = time_left > BACKOFF_RELAXED_BEYOND ? BACKOFF_RELAXED_MAX : BACKOFF_MAX;
	int64		delay = BACKOFF_FIRST << (Min(Max(attempts, 1), BACKOFF_DOUBLINGS + 1) - 1);

	delay = Min(delay, longest);
	/* Bounded before the jitter: messages that share a send_after stay spread. */
	if (time_left > 0)
		delay = Min(delay, time_left / 2);
	/* Half of the wait is certain; the other half spreads the crowd. */
	delay = delay / 2 + (int64) (random * (double) (delay / 2));
	return Max(Max(delay, BACKOFF_MIN), retry_after);
}
