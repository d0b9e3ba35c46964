/*
 * pace.c
 *		Times and answers in, decisions out: the tests of src/pace.c.
 *
 * Linked with src/pace.o alone, without a server; prints TAP.  Time is a
 * number here, so hours of delivery pass in milliseconds.
 */
#include "c.h"

#include <limits.h>
#include <math.h>

#include "pace.h"
#include "tap.h"

#define MS ((int64) 1000)
#define S USECS_PER_SEC
#define MIN USECS_PER_MINUTE
#define HOUR USECS_PER_HOUR

/* Where the clock stands when a test begins: 2025, as PostgreSQL counts. */
#define T0 (INT64CONST(789000000) * USECS_PER_SEC)

/*
 * OneSignal as far as it matters here: a bucket of so many requests a second,
 * which creates empty as well, and answers that take a while.
 */
#define LATENCY 130
#define QUEUE (LATENCY + 1)

typedef struct World
{
	Pace		pace;
	int64		now;
	double		capacity;		/* requests a second; 0: all are answered */
	bool		fixed_window;	/* counts each second anew; otherwise refills evenly */
	double		bucket;
	int64		bucket_at;
	double		creates;		/* a second, by the application */
	double		creates_due;
	double		demand;			/* cancels a second that are there to be sent */
	double		demand_due;
	int			stall_every;	/* the deliverer is away this often, ... */
	int			stall;			/* ... for this long; ms */
	int64		paused_until;	/* Retry-After */
	int			fine[QUEUE];	/* answers on their way, by the ms they arrive in */
	int			refused[QUEUE];
	int64		refused_begun[QUEUE];

	/* what happened since the last look */
	int			started;
	int			refusals;
	int			creates_refused;
	int			most_in_a_second;
	int			recent[1000];
	int			recent_sum;
} World;

static void
world_init(World *w, double rate_limit, double capacity)
{
	memset(w, 0, sizeof(*w));
	w->now = T0;
	w->capacity = capacity;
	w->bucket = capacity;
	w->bucket_at = T0;
	w->demand = 1e9;
	pace_init(&w->pace, rate_limit);
}

static bool
bucket_take(World *w)
{
	if (w->capacity <= 0)
		return true;
	if (!w->fixed_window)
		w->bucket = Min(w->capacity, w->bucket + w->capacity * (w->now - w->bucket_at) / S);
	else if (w->now / S != w->bucket_at / S)
		w->bucket = w->capacity;
	w->bucket_at = w->now;
	if (w->bucket < 1)
		return false;
	w->bucket -= 1;
	return true;
}

static void
send_what_is_due(World *w, int ms)
{
	int			arrives = (ms + LATENCY) % QUEUE;
	int			slot = ms % 1000;
	int			started = 0;

	w->demand_due = Min(w->demand_due + w->demand / 1000, 10000);
	w->recent_sum -= w->recent[slot];
	w->recent[slot] = 0;
	if (w->now < w->paused_until || (w->stall_every > 0 && ms % w->stall_every < w->stall))
		return;
	while (w->demand_due >= 1 && pace_take(&w->pace, w->now))
	{
		w->demand_due -= 1;
		started++;
		if (bucket_take(w))
			w->fine[arrives]++;
		else
		{
			w->refused[arrives]++;
			w->refused_begun[arrives] = w->now;
		}
	}
	w->started += started;
	w->recent[slot] = started;
	w->recent_sum += started;
	w->most_in_a_second = Max(w->most_in_a_second, w->recent_sum);
}

static void
receive_what_arrives(World *w, int ms)
{
	int			slot = ms % QUEUE;

	for (; w->fine[slot] > 0; w->fine[slot]--)
		pace_answered(&w->pace, w->now);
	for (; w->refused[slot] > 0; w->refused[slot]--)
	{
		pace_throttled(&w->pace, w->refused_begun[slot], w->now);
		w->refusals++;
		w->paused_until = w->now + S;
	}
}

static void
world_run(World *w, double seconds)
{
	int64		end = w->now + (int64) (seconds * S);

	w->started = w->refusals = w->creates_refused = w->most_in_a_second = 0;
	while (w->now < end)
	{
		int			ms;

		w->now += MS;
		ms = (int) ((w->now - T0) / MS);
		for (w->creates_due += w->creates / 1000; w->creates_due >= 1; w->creates_due -= 1)
			w->creates_refused += !bucket_take(w);
		receive_what_arrives(w, ms);
		send_what_is_due(w, ms);
	}
}

/* So many answers, evenly over the second before; time passes. */
static void
answer_for_a_second(Pace *pace, int64 *now, int count)
{
	for (int i = 1; i <= count; i++)
		pace_answered(pace, *now + i * S / count);
	*now += S;
}

static void
test_pace_start(void)
{
	World		w;
	Pace		pace;

	pace_init(&pace, -1);
	check_number(pace.rate, 100, 100, "an unset pace starts at 100 a second");
	check(pace.limit == -1, "and has no limit");
	pace_init(&pace, 30);
	check_number(pace.rate, 30, 30, "a set pace starts at the limit");

	pace_init(&pace, 0);
	pace_throttled(&pace, T0, T0 + 1);
	check(pace_next(&pace, T0) <= T0, "unpaced: the next is now");
	for (int i = 0; i < 100000; i++)
		if (!pace_take(&pace, T0))
			pace.rate = -1;
	check(pace.rate == 0, "unpaced: all may go, 429 or not");

	world_init(&w, 150, 0);
	world_run(&w, 60);
	check_number(w.started, 150 * 60 - 5, 150 * 60 + 10, "a limit of 150 starts 150 a second");
	check_number(w.pace.rate, 150, 150, "a set pace never exceeds the limit");

	world_init(&w, 0.5, 0);
	world_run(&w, 60);
	check_number(w.started, 30, 31, "a limit of one in two seconds is kept");
}

static void
test_pace_burst(void)
{
	World		w;
	Pace		pace;
	int			burst = 0;

	pace_init(&pace, 1000);
	while (pace_take(&pace, T0 + HOUR))
		burst++;
	check_number(burst, 20, 50, "an idle hour saves up 20 to 50 ms worth of requests");

	pace_init(&pace, 2);
	for (burst = 0; pace_take(&pace, T0 + HOUR);)
		burst++;
	check_number(burst, 1, 1, "a slow pace saves up one request");

	world_init(&w, 1000, 0);
	w.stall_every = 200;
	w.stall = 40;
	world_run(&w, 10);
	check_number(w.started, 9900, 10100, "a deliverer away for a commit of 40 ms keeps its pace");
	world_init(&w, 1000, 0);
	w.stall_every = 200;
	w.stall = 100;
	world_run(&w, 10);
	check_number(w.most_in_a_second, 500, 1050, "no second exceeds the pace by more than 5%");

	world_init(&w, 6000, 0);
	w.stall_every = 4;
	w.stall = 3;
	world_run(&w, 10);
	check_number(w.started, 59900, 60400, "6,000 a second with a look every 4 ms");
}

static void
test_pace_next(void)
{
	static const double rates[] = {0.1, 0.7, 1, 3, 7, 30, 99.9, 150, 6000, 123456.7, 2e6};
	Pace		pace;
	int64		next;

	for (size_t i = 0; i < lengthof(rates); i++)
	{
		bool		early = false;
		bool		late = false;
		int64		now = T0;
		char		name[64];

		pace_init(&pace, rates[i]);
		for (int j = 0; j < 1000; j++)
		{
			while (pace_take(&pace, now))
				;
			next = pace_next(&pace, now);
			late |= next > now + S / rates[i] + 2 || next <= now;
			now = next;
			early |= pace_next(&pace, now) > now || !pace_take(&pace, now);
		}
		snprintf(name, sizeof(name), "at %g a second, the next token is there when promised", rates[i]);
		check(!early && !late, name);
	}

	pace_init(&pace, 1e-300);
	check(pace_take(&pace, T0) && !pace_take(&pace, T0), "an absurd pace gives its first token");
	next = pace_next(&pace, T0);
	check(next > T0 && next <= T0 + HOUR + 1, "an absurd pace is looked at again within an hour");
	pace_init(&pace, 100);
	check(pace_next(&pace, T0 + 5) == T0 + 5, "with a token at hand, the next is now");
}

static void
test_pace_growth(void)
{
	World		w;
	double		rate;

	world_init(&w, -1, 0);
	world_run(&w, 1.2);
	check_number(w.pace.rate, 110, 110.0001, "a second held back raises the rate by a tenth");
	world_run(&w, 43);
	check_number(w.pace.rate, 6000, 8000, "6,000 a second are found in 44 s");
	check_number(w.pace.rate, 100 * pow(1.1, 44) - 1, 100 * pow(1.1, 44) + 1,
				 "each second raises it once");
	world_run(&w, 20);
	check_number(w.pace.rate, 30000, 50000, "an unset pace knows no upper bound");

	world_init(&w, -1, 0);
	w.demand = 95;
	world_run(&w, 30);
	check_number(w.pace.rate, 100, 100, "a pace that holds nobody back stays");

	world_init(&w, -1, 0);
	for (int i = 0; i < 30; i++)
	{
		w.demand_due = 20;
		w.demand = 0;
		world_run(&w, 1);
	}
	check_number(w.pace.rate, 100, 100, "20 at once each second do not raise a pace of 100");

	world_init(&w, -1, 0);
	world_run(&w, 3.5);
	w.demand_due = 0;
	w.demand = 90;
	world_run(&w, 1);
	rate = w.pace.rate;
	world_run(&w, 10);
	check_number(w.pace.rate, rate, rate, "a pace that no longer holds back grows no further");

	/* in the middle of a second, to a request from before a cut */
	world_init(&w, -1, 0);
	world_run(&w, 3.5);
	rate = w.pace.rate;
	w.pace.cut_at = w.now;
	pace_throttled(&w.pace, T0, w.now);
	world_run(&w, 1);
	check_number(w.pace.rate, rate, rate, "a second with a 429 does not raise it");
	world_run(&w, 1);
	check_number(w.pace.rate, rate * 1.1, rate * 1.1 + 1e-6, "but the next one does");

	world_init(&w, 1, 0);
	w.pace.limit = 0;
	world_run(&w, 30);
	check_number(w.pace.rate, 10, 1.1 * pow(1.1, 30), "a pace of one a second grows as well");
}

static void
test_pace_cut(void)
{
	Pace		pace;
	int64		now = T0;
	double		rate;

	pace_init(&pace, 200);
	answer_for_a_second(&pace, &now, 150);
	answer_for_a_second(&pace, &now, 150);
	pace_throttled(&pace, now - 100 * MS, now);
	check_number(pace.rate, 119, 121, "a 429 cuts to 80% of what was answered");
	check(pace.ceiling == pace.rate && pace.ceiling_until == now + 10 * MIN,
		  "and makes that the ceiling for ten minutes");
	rate = pace.rate;
	pace_throttled(&pace, now - 50 * MS, now + 10 * MS);
	pace_throttled(&pace, now, now + 20 * MS);
	check_number(pace.rate, rate, rate, "a 429 of a request begun before the cut does not cut again");
	answer_for_a_second(&pace, &now, 100);
	answer_for_a_second(&pace, &now, 100);
	pace_throttled(&pace, now - 100 * MS, now);
	check_number(pace.rate, 79, 81, "a 429 of a request begun after the cut cuts again");

	/* whatever the part of the second in which it comes */
	for (int part = 0; part <= 900; part += 300)
	{
		char		name[80];

		pace_init(&pace, 200);
		now = T0;
		answer_for_a_second(&pace, &now, 150);
		answer_for_a_second(&pace, &now, 150);
		for (int i = 0; i < 150 * part / 1000; i++)
			pace_answered(&pace, now + i * S / 150);
		now += part * MS;
		pace_throttled(&pace, now - 1, now);
		snprintf(name, sizeof(name), "%d ms into a second, the last second still counts", part);
		check_number(pace.rate, 118, 122, name);
	}

	pace_init(&pace, 100);
	now = T0;
	answer_for_a_second(&pace, &now, 300);
	pace_throttled(&pace, now - 1, now);
	check_number(pace.rate, 80, 80, "answers that piled up do not make a cut a raise");
	pace_init(&pace, 200);
	now = T0;
	answer_for_a_second(&pace, &now, 150);
	pace_throttled(&pace, now, now + 5 * S);
	check_number(pace.rate, 100, 100, "answers of five seconds ago do not count");
	pace_init(&pace, 200);
	now = T0;
	answer_for_a_second(&pace, &now, 50);
	now += HOUR;
	answer_for_a_second(&pace, &now, 150);
	pace_throttled(&pace, now - 1, now);
	check_number(pace.rate, 119, 121, "after an idle hour they count as ever");
}

static void
test_pace_thin_cut(void)
{
	Pace		pace;
	int64		now = T0;

	pace_init(&pace, -1);
	pace_take(&pace, T0);
	pace_throttled(&pace, T0, T0 + 130 * MS);
	check_number(pace.rate, 50, 50, "a 429 to the first request of all halves the rate");
	check(pace.ceiling == 0, "and sets no ceiling");

	pace_init(&pace, 200);
	answer_for_a_second(&pace, &now, 200);
	answer_for_a_second(&pace, &now, 200);
	pace_throttled(&pace, now - 1, now);
	check_number(pace.ceiling, 159, 160, "a measured ceiling ...");
	pace_throttled(&pace, now + 2 * S, now + 2 * S + 130 * MS);
	check_number(pace.rate, 79, 80, "a 429 to the probe after it halves the rate");
	check_number(pace.ceiling, 159, 160, "... outlives it");
	check(pace.ceiling_until == now + 10 * MIN, "for no longer");

	pace_init(&pace, -1);
	for (int i = 1; i <= 20; i++)
		pace_throttled(&pace, T0 + i * S, T0 + i * S + 130 * MS);
	check_number(pace.rate, 1, 1, "no 429s bring the rate below one a second");
	check(pace.ceiling == 0, "however many, they set no ceiling");
	pace_init(&pace, 0.5);
	pace_throttled(&pace, T0, T0 + 130 * MS);
	check_number(pace.rate, 0.5, 0.5, "nor above a limit that is below that");

	pace_init(&pace, 200);
	now = T0;
	answer_for_a_second(&pace, &now, 50);
	pace_throttled(&pace, now - 1, now);
	check_number(pace.rate, 100, 100, "a quarter of the pace answered: it is halved");
	check(pace.ceiling == 0, "and has no ceiling, as a quarter of it may have been all there was");

	pace_init(&pace, 4);
	now = T0;
	answer_for_a_second(&pace, &now, 4);
	pace_throttled(&pace, now - 1, now);
	check(pace.ceiling == 0, "four answers are too few to set a ceiling");
	pace_init(&pace, 6);
	now = T0;
	answer_for_a_second(&pace, &now, 6);
	pace_throttled(&pace, now - 1, now);
	check_number(pace.ceiling, 4.79, 4.81, "six are enough");
}

static void
test_pace_ceiling(void)
{
	World		w;

	world_init(&w, 150, 0);
	world_run(&w, 3);
	pace_throttled(&w.pace, w.now - 1, w.now);
	check_number(w.pace.rate, 115, 122, "a 429 at full pace cuts by a fifth");
	world_run(&w, 10 * 60 - 2);
	check_number(w.pace.rate, 115, 122, "the rate keeps to the ceiling for ten minutes");
	world_run(&w, 3);
	check_number(w.pace.rate, 126, 146, "and grows by a tenth a second after");
	world_run(&w, 10);
	check_number(w.pace.rate, 150, 150, "up to the limit");

	world_init(&w, 150, 0);
	world_run(&w, 3);
	pace_throttled(&w.pace, w.now - 1, w.now);
	w.pace.rate /= 2;
	world_run(&w, 4.2);
	check_number(w.pace.rate, 60 * 1.2, 60 * 1.5, "below the ceiling it grows at once");
}

static void
share_with_creates(bool fixed_window, const char *kind)
{
	World		w;
	char		name[100];

	world_init(&w, -1, 150);
	w.fixed_window = fixed_window;
	w.creates = 20;
	world_run(&w, 30);
	snprintf(name, sizeof(name), "%s: the limit is found within 30 s", kind);
	check(w.refusals > 0 && w.pace.ceiling > 0, name);
	world_run(&w, 8 * 60);
	snprintf(name, sizeof(name), "%s: then no 429 for us", kind);
	check_number(w.refusals, 0, 0, name);
	snprintf(name, sizeof(name), "%s: none for live sends", kind);
	check_number(w.creates_refused, 0, 0, name);
	snprintf(name, sizeof(name), "%s: at least half of the bucket is used for cancels", kind);
	check_number(w.started / (8 * 60.0), 75, 125, name);
	snprintf(name, sizeof(name), "%s: and in no second much more than 80%% of it", kind);
	check_number(w.most_in_a_second, 75, 125, name);
}

static void
test_pace_shared(void)
{
	World		w;

	share_with_creates(true, "counted by the second");
	share_with_creates(false, "refilled evenly");

	world_init(&w, 6000, 150);
	w.fixed_window = true;
	world_run(&w, 30);
	check_number(w.pace.ceiling, 75, 150, "a limit that the plan does not grant is found out");
	world_run(&w, 8 * 60);
	check_number(w.refusals, 0, 0, "and then kept to");

	world_init(&w, -1, 150);
	w.creates = 300;
	world_run(&w, 20);
	w.creates = 20;
	world_run(&w, 60);
	check_number(w.pace.rate, 50, 165, "a crowd of creates is forgotten in a minute");
}

/* As many failures as open a circuit, one each ms. */
static int64
fail_until_open(Circuit *circuit, int64 now)
{
	for (int i = 0; i < 100 && !circuit->open; i++)
	{
		circuit_begin(circuit);
		circuit_failure(circuit, now, now + MS);
		now += MS;
	}
	return now;
}

static void
test_circuit_failures(void)
{
	Circuit		circuit;
	int64		now = T0;
	int			opened = 0;

	circuit = (Circuit) {0};
	check(circuit_next(&circuit, T0) == T0, "a new circuit is closed");
	for (int i = 0; i < 4; i++)
		opened += circuit_failure(&circuit, T0, T0 + i);
	check(opened == 0 && circuit_next(&circuit, T0 + 4) <= T0 + 4, "four failures in a row leave it closed");
	check(circuit_failure(&circuit, T0, T0 + 4), "the fifth opens it");
	check(circuit_next(&circuit, T0 + 4) == T0 + 4 + S, "for a second");
	check(!circuit_failure(&circuit, T0, T0 + 5), "the sixth does not open it again");

	circuit = (Circuit) {0};
	for (int i = 0; i < 100; i++)
	{
		now += 10 * MS;
		opened += circuit_failure(&circuit, now - MS, now);
		if (i % 4 == 3)
			circuit_success(&circuit, now - MS, now + MS);
	}
	check(opened == 0, "a success in between starts the count anew");

	circuit = (Circuit) {0};
	circuit_success(&circuit, T0, T0 + S);
	for (int i = 0; i < 100; i++)
		opened += circuit_failure(&circuit, T0 + 999 * MS, T0 + 2 * S);
	check(opened == 0, "failures of requests begun before the last success do not count");
	for (int i = 0; i < 5; i++)
		opened += circuit_failure(&circuit, T0 + S, T0 + 2 * S);
	check(opened == 1, "those of requests begun after it do");
}

static void
test_circuit_probes(void)
{
	static const int waits[] = {1, 2, 4, 8, 15, 15, 15};
	Circuit		circuit;
	int64		now;
	int			requests = 0;

	circuit = (Circuit) {0};
	now = fail_until_open(&circuit, T0);
	for (size_t i = 0; i < lengthof(waits); i++)
	{
		int64		until = now + waits[i] * S;
		char		name[64];

		snprintf(name, sizeof(name), "probe %d comes after %d s, and no other meanwhile", (int) i + 1, waits[i]);
		check(circuit_next(&circuit, now) == until && circuit_next(&circuit, until) <= until, name);
		circuit_begin(&circuit);
		check(circuit_next(&circuit, until + HOUR) == PG_INT64_MAX, "one at a time");
		now = until + 130 * MS;
		check(!circuit_failure(&circuit, until, now), "its failure opens nothing anew");
	}
	now = circuit_next(&circuit, now);
	circuit_begin(&circuit);
	check(circuit_success(&circuit, now, now + MS), "the probe's success closes it");
	check(circuit_next(&circuit, now + MS) <= now + MS, "and all may go");
	check(!circuit_success(&circuit, now, now + 2 * MS), "the next success closes nothing");
	now = fail_until_open(&circuit, now + 10 * MS);
	check(circuit_next(&circuit, now) == now + S, "the next outage begins with a second again");

	circuit = (Circuit) {0};
	now = fail_until_open(&circuit, T0);
	while (now < T0 + HOUR)
	{
		now = circuit_next(&circuit, now);
		circuit_begin(&circuit);
		circuit_failure(&circuit, now, now);
		requests++;
	}
	check_number(requests, 235, 245, "an outage of an hour costs 240 probes");
}

static void
test_circuit_throttled(void)
{
	Circuit		circuit;
	int64		now = T0 + 30 * S;

	circuit = (Circuit) {0};
	check(circuit_open(&circuit, T0, now, T0 + MS), "a 429 opens it");
	check(circuit_next(&circuit, T0 + MS) == now, "for as long as asked");
	check(circuit_next(&circuit, now) <= now, "then a probe may go");
	circuit_begin(&circuit);
	check(circuit_next(&circuit, now) == PG_INT64_MAX, "one");
	check(!circuit_open(&circuit, now, now + 45 * S, now + MS), "a 429 to the probe opens nothing anew");
	check(circuit_next(&circuit, now + MS) == now + 45 * S && circuit.probes == 1, "but prolongs");
	now += 45 * S;
	circuit_begin(&circuit);
	check(!circuit_failure(&circuit, now, now + MS), "a probe may also have no answer");
	check(circuit_next(&circuit, now + MS) == now + MS + 4 * S, "and then the next comes after seconds");
	now += MS + 4 * S;
	circuit_begin(&circuit);
	check(circuit_success(&circuit, now, now + MS), "a probe's success closes it");

	circuit = (Circuit) {0};
	check(circuit_open(&circuit, T0, T0, T0) && circuit_next(&circuit, T0) == T0 + 1,
		  "a pause of no length still has a probe");
	circuit_begin(&circuit);
	check(circuit_success(&circuit, T0 + 1, T0 + 1), "that can close it");
	check(circuit_open(&circuit, T0 + 1, T0 + S, T0 + 1), "a pause right after closing holds");

	circuit = (Circuit) {0};
	for (int i = 0; i < 3; i++)
	{
		now = T0 + i * MIN;
		check(circuit_open(&circuit, now, now + CIRCUIT_KEY_PAUSE, now) == (i == 0),
			  "a wrong key is noted once ...");
		check(circuit_next(&circuit, now) == now + MIN, "... and tried once a minute");
	}
	circuit = (Circuit) {0};
	circuit_open(&circuit, T0, PG_INT64_MAX, T0);
	check(circuit_next(&circuit, T0 + 1000 * HOUR) == PG_INT64_MAX, "forever is possible");
}

static void
test_circuit_late(void)
{
	Circuit		circuit;

	circuit = (Circuit) {0};
	circuit_open(&circuit, T0, T0 + MIN, T0 + S);
	check(!circuit_success(&circuit, T0 + S, T0 + 2 * S) && circuit.open,
		  "a success begun before it opened does not close it");
	for (int i = 0; i < 100; i++)
		circuit_failure(&circuit, T0 + S, T0 + 2 * S);
	check(circuit_next(&circuit, T0 + 2 * S) == T0 + MIN,
		  "failures begun before it opened do not prolong it");
	check(!circuit_open(&circuit, T0 + S, T0 + HOUR, T0 + 2 * S) &&
		  circuit_next(&circuit, T0 + 2 * S) == T0 + MIN,
		  "nor does a 429 to a request begun before");

	circuit_next(&circuit, T0 + MIN);
	circuit_begin(&circuit);
	circuit_success(&circuit, T0, T0 + MIN + MS);
	circuit_failure(&circuit, T0, T0 + MIN + MS);
	circuit_open(&circuit, T0, T0 + HOUR, T0 + MIN + MS);
	check(circuit.open && circuit.probing && circuit.probes == 0, "nor do they end a probe");
	check(circuit_success(&circuit, T0 + MIN, T0 + MIN + 2 * MS), "which does what it should");
	check(!circuit_open(&circuit, T0, T0 + HOUR, T0 + MIN + 3 * MS) && !circuit.open,
		  "a 429 to a request from before the pause does not open it after");
	for (int i = 0; i < 100; i++)
		circuit_failure(&circuit, T0 + S, T0 + MIN + 3 * MS);
	check(!circuit.open, "nor do failures");
	check(circuit_open(&circuit, T0 + MIN + 2 * MS, T0 + HOUR, T0 + MIN + 4 * MS),
		  "a 429 to a request from after it does");

	circuit = (Circuit) {0};
	circuit_success(&circuit, T0, T0 + S);
	check(circuit_open(&circuit, T0, T0 + HOUR, T0 + S + 1),
		  "a 429 opens it although a request begun later succeeded");
}

static void
test_circuit_by_hand(void)
{
	Circuit		circuit;
	int64		now = T0 + MIN;

	circuit = (Circuit) {0};
	circuit_open(&circuit, T0, now, T0);
	circuit_begin(&circuit);
	circuit_abandon(&circuit, T0 - S);
	check(circuit_next(&circuit, now) == PG_INT64_MAX, "another request abandoned does not free the probe");
	circuit_abandon(&circuit, now);
	check(circuit_next(&circuit, now) <= now, "an abandoned probe makes room for the next");

	circuit_begin(&circuit);
	check(circuit_close(&circuit, now + MS), "closed by hand, it says that it was open");
	check(circuit_next(&circuit, now + MS) <= now + MS && !circuit_close(&circuit, now + MS), "and lets all go");
	check(!circuit_open(&circuit, now, now + HOUR, now + 2 * MS), "answers from before no longer open it");
	for (int i = 0; i < 100; i++)
		circuit_failure(&circuit, now, now + 2 * MS);
	check(!circuit.open && circuit.probes == 0, "nor do failures");
	circuit_failure(&circuit, now + MS, now + 2 * MS);
	check(circuit.failures == 1, "failures from then on do count");
}

static void
test_backoff(void)
{
	static const struct
	{
		int			attempts;
		double		random;
		int64		time_left;
		int64		retry_after;
		int64		expected;
		const char *name;
	}			table[] =
	{
		{1, 0, 0, 0, 1 * S, "the first retry waits at least a second"},
		{1, 0.5, 0, 0, 1500 * MS, "1.5 on average"},
		{1, 0.999999, 0, 0, 1999999, "and less than two"},
		{2, 0, 0, 0, 2 * S, "the wait doubles"},
		{3, 0.5, 0, 0, 6 * S, "and doubles again"},
		{5, 0, 0, 0, 16 * S, "up to 32 s"},
		{6, 0, 0, 0, 30 * S, "and then 60 s"},
		{50, 0.5, 0, 0, 45 * S, "where it stays"},
		{INT_MAX, 0, 0, 0, 30 * S, "for ever"},
		{0, 0, 0, 0, 1 * S, "no attempts are as one"},
		{INT_MIN, 0, 0, 0, 1 * S, "as is nonsense"},
		{10, 0, -5 * HOUR, 0, 30 * S, "a send_after in the past changes nothing"},
		{10, 0, PG_INT64_MIN, 0, 30 * S, "however far"},
		{10, 0, HOUR, 0, 30 * S, "an hour before send_after the wait is up to 60 s"},
		{10, 0, HOUR + 1, 0, 450 * S, "more than an hour before, up to 15 min"},
		{9, 0, 9 * HOUR, 0, 256 * S, "which are reached by doubling"},
		{INT_MAX, 0.999999, PG_INT64_MAX, 0, 899999550, "and not exceeded"},
		{10, 0, 60 * S, 0, 15 * S, "a minute before, at least 15 s"},
		{10, 0.999998, 60 * S, 0, 29999970, "and less than half of what is left"},
		{10, 0.5, 10 * S, 0, 3750 * MS, "ten seconds before, still spread"},
		{10, 0, 1500 * MS, 0, 1 * S, "but never less than a second"},
		{10, 0.9, 1, 0, 1 * S, "however little is left"},
		{1, 0, 0, 5 * S, 5 * S, "never before Retry-After"},
		{10, 0, 10 * S, 3600 * S, 3600 * S, "which wins over the time left"},
		{10, 0, 0, 5 * S, 30 * S, "a shorter one does not shorten the wait"},
		{1, 0, 0, -5, 1 * S, "a negative one is none"},
	};

	for (size_t i = 0; i < lengthof(table); i++)
		check_number(backoff_delay(table[i].attempts, table[i].random,
								   table[i].time_left, table[i].retry_after),
					 table[i].expected, table[i].expected, table[i].name);

	check(backoff_delay(1, 0, 0, 0) == S && backoff_delay(1, 0.5, 0, 0) == 1500 * MS, "direct: 1 to 2 s first");
	check(backoff_delay(2, 0, 0, 0) == 2 * S && backoff_delay(5, 0, 0, 0) == 16 * S, "direct: doubles");
	check(backoff_delay(6, 0, 0, 0) == 30 * S && backoff_delay(INT_MAX, 0, 0, 0) == 30 * S, "direct: to 60 s");
	check(backoff_delay(1, 0, 0, 3 * S) == 3 * S, "direct: never before Retry-After");
	check(backoff_delay(6, 0, 0, 3 * S) == 30 * S, "direct: nor sooner for it");
}

static int
begin_all(Allowance *app, Wire *wire, int most)
{
	int			begun = 0;

	for (; begun < most && allowance_permits(app, wire); begun++)
		allowance_begin(app, wire);
	return begun;
}

static void
test_allowance(void)
{
	Wire		wire = {.max = 800};
	Allowance	apps[100];
	int			begun = 0;

	for (size_t i = 0; i < lengthof(apps); i++)
		apps[i] = (Allowance) {.limit = ALLOWANCE_FIRST};
	check(begin_all(&apps[0], &wire, 1000) == ALLOWANCE_FIRST, "allowance: an app begins with 20");
	check(!allowance_permits(&apps[0], &wire), "allowance: and has no more");
	allowance_end(&apps[0], &wire, false);
	check(!allowance_permits(&apps[0], &wire), "allowance: nothing begins in place of what had no answer");
	while (apps[0].in_flight > 0)
		allowance_end(&apps[0], &wire, false);
	check(wire.in_flight == 0 && wire.unproven == 0, "allowance: all have ended");
	check(begin_all(&apps[0], &wire, 1000) == 1, "allowance: after all have failed, one begins");
	allowance_end(&apps[0], &wire, true);
	check(begin_all(&apps[0], &wire, 1000) == ALLOWANCE_FIRST, "allowance: after an answer, 20 again");
	for (int i = 0; i < 10; i++)
		allowance_end(&apps[0], &wire, true);
	check(begin_all(&apps[0], &wire, 1000) == 20, "allowance: each answer makes room for itself and one more");

	while (apps[0].limit < 800)
	{
		allowance_end(&apps[0], &wire, true);
		(void) begin_all(&apps[0], &wire, 1);
	}
	(void) begin_all(&apps[0], &wire, 1000);
	check_number(apps[0].in_flight, 600, 680, "allowance: an app that is alone has four fifths of the wire");

	/* It hangs; so do others; one that is answered comes. */
	for (int i = 1; i < 41; i++)
		begun += begin_all(&apps[i], &wire, 1000);
	check_number(begun, 40, 150, "allowance: forty that hang beside it leave some room");
	check(allowance_permits(&apps[50], &wire), "allowance: and a new one begins");
	apps[51].proven = true;
	check(allowance_permits(&apps[51], &wire), "allowance: as does one that is proven");
}

static void
test_allowance_of_many(void)
{
	Wire		wire = {.max = 800};
	static Allowance apps[10000];
	Allowance	proven;

	proven = (Allowance) {.limit = ALLOWANCE_FIRST, .proven = true};
	for (size_t i = 0; i < lengthof(apps); i++)
		apps[i] = (Allowance) {.limit = ALLOWANCE_FIRST};
	for (int i = 0; i < 40; i++)
		(void) begin_all(&apps[i], &wire, 1000);
	check(apps[39].in_flight > 0 && wire.unproven < 450, "allowance: forty new ones share half of the wire");
	for (size_t i = 40; i < lengthof(apps); i++)
		(void) begin_all(&apps[i], &wire, 1000);
	check(allowance_permits(&proven, &wire), "allowance: ten thousand that hang keep no proven one from the wire");

	/* The more there are that want more, the less they leave. */
	wire = (Wire) {.max = 800};
	for (size_t i = 0; i < 1000; i++)
	{
		Allowance  *app = &apps[i % 100];

		if (i < 100)
			*app = (Allowance) {.limit = 800, .proven = true};
		(void) begin_all(app, &wire, 1);
	}
	proven = (Allowance) {.limit = ALLOWANCE_FIRST};
	allowance_end(&apps[0], &wire, true);
	check(allowance_permits(&proven, &wire), "allowance: a hundred that are answered leave their next place to a new one");
	wire = (Wire) {.max = 1};
	apps[0] = (Allowance) {.limit = ALLOWANCE_FIRST};
	check(begin_all(&apps[0], &wire, 10) == 1, "allowance: with room for one, one begins");
}

static void
test_trust(void)
{
	Trust		trust;
	int64		now = T0;
	int			sent = 0;

	trust = (Trust) {.limit = 32, .max = 4096, .unrecorded = 31};
	check(trust_permits(&trust, now), "trust: some begin before the first are recorded");
	trust.unrecorded = 32;
	check(!trust_permits(&trust, now), "trust: no more");
	for (int i = 0; i < 32; i++)
		trust_learn(&trust, true, now);
	check(trust.limit == 64 && trust_permits(&trust, now), "trust: a commit doubles it");

	/* Half a minute in which nothing can be recorded. */
	for (int i = 0; i < 30000; i++, now += MS)
	{
		if (!trust_permits(&trust, now))
			continue;
		trust.unrecorded++;
		sent++;
		trust_learn(&trust, false, now);
	}
	check_number(sent, 5, 50, "trust: in half a minute without records few requests begin");
	trust.unrecorded = 0;
	trust_learn(&trust, true, now);
	check(trust_permits(&trust, now), "trust: a commit ends the pause");
	for (int i = 0; i < 5000; i++)
		trust_learn(&trust, true, now);
	check(trust.limit == 4096, "trust: up to its bound");
}

int
main(void)
{
	test_allowance();
	test_allowance_of_many();
	test_trust();
	test_backoff();
	test_pace_start();
	test_pace_burst();
	test_pace_next();
	test_pace_growth();
	test_pace_cut();
	test_pace_thin_cut();
	test_pace_ceiling();
	test_pace_shared();
	test_circuit_failures();
	test_circuit_probes();
	test_circuit_throttled();
	test_circuit_late();
	test_circuit_by_hand();
	return done_testing();
}
