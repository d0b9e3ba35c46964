/*
 * window.c
 *		Waits and answers in, a limit out: the tests of src/window.c.
 *
 * Linked with src/window.o alone, without a server; prints TAP.
 */
#include "c.h"

#include "datatype/timestamp.h"
#include "tap.h"
#include "window.h"

#define MS ((int64) 1000)
#define S USECS_PER_SEC
#define T0 (INT64CONST(789000000) * USECS_PER_SEC)

#define WINDOW_MAX 800

/*
 * A peer that answers after a while, and a process that each answer, with the
 * request that follows it, keeps busy for a while; the first requests go out
 * some time apart.  Returns how long it took.
 */
static int64
exchange(Window *window, int count, int64 round_trip, int64 busy, int64 apart)
{
	static int64 arrives[100000];
	int64		began = T0;
	int64		now = began;
	int			sent = 0;

	for (; sent < Min(count, window->limit); now += apart)
		arrives[sent++] = now + round_trip;
	for (int ended = 0; ended < count; ended++)
	{
		while (sent < count && sent - ended < window->limit)
			arrives[sent++] = now + round_trip;
		while (arrives[ended] > now)
		{
			int64		until = arrives[ended];

			int			patience_ms = window_patience_ms(window, sent - ended, WINDOW_MAX);

			if (patience_ms >= 0)
				until = Min(until, now + patience_ms * MS);
			window_waited(window, sent - ended, WINDOW_MAX, now, until);
			now = until;
			while (sent < count && sent - ended < window->limit)
				arrives[sent++] = now + round_trip;
		}
		now += busy;
		window_ended(window, now - (arrives[ended] - round_trip));
		window_review(window, WINDOW_MAX, now);
	}
	return now - began;
}

static void
test_window(void)
{
	Window		window = {.limit = WINDOW_MIN};
	int64		took;

	(void) exchange(&window, 10000, 500, 40, 0);
	check(window.limit == WINDOW_MIN, "while a near peer keeps us busy, as many are in flight as at first");
	window.limit = WINDOW_MIN;
	window_start(&window, T0 - 2 * S, T0);
	took = exchange(&window, 10000, 30 * MS, 40, 0);
	check(window.limit > WINDOW_MAX / 2, "with a peer that is far from the start they are at once, ...");
	check_number((double) took, 10000 * 40, 1.2 * 10000 * 40, "... and keep us busy");
	window_start(&window, T0 - 2 * S, T0);
	(void) exchange(&window, 20000, 500, 40, 0);
	check(window.limit == WINDOW_MIN, "and near again, no more than at first");

	(void) exchange(&window, 10000, 200 * MS, 40, 0);
	check(window.limit == WINDOW_MAX, "never more than may be, however far it is");

	window.limit = WINDOW_MIN;
	window_start(&window, T0 - 2 * S, T0);
	took = exchange(&window, 10000, 90 * MS, 40, 900);
	check_number((double) took, 90 * MS, 20 * 90 * MS, "and where no wait is long, but there are many");

	window.limit = WINDOW_MIN;
	window_waited(&window, WINDOW_MIN - 1, WINDOW_MAX, T0, T0 + S);
	check(window.limit == WINDOW_MIN, "a wait for lack of messages changes nothing");
	check(window_patience_ms(&window, WINDOW_MIN - 1, WINDOW_MAX) < 0 &&
		  window_patience_ms(&window, WINDOW_MIN, WINDOW_MAX) > 0, "and is not cut short");
	window.limit = WINDOW_MAX;
	check(window_patience_ms(&window, WINDOW_MAX, WINDOW_MAX) < 0, "nor is one that could lead to nothing");

	window_ended(&window, 500);
	window.limit = WINDOW_MIN;
	window_start(&window, T0 - 500 * MS, T0);
	window_waited(&window, WINDOW_MIN, WINDOW_MAX, T0, T0 + 2 * MS);
	check(window.limit == WINDOW_MIN, "a peer that was near a moment ago is near still");
	window_start(&window, T0 - 2 * S, T0);
	window_waited(&window, WINDOW_MIN, WINDOW_MAX, T0, T0 + 2 * MS);
	check(window.limit == 2 * WINDOW_MIN, "later it may not be");

	window.limit = WINDOW_MIN;
	window_ended(&window, 500);
	window_waited(&window, WINDOW_MIN, WINDOW_MAX, T0, T0 + 10 * MS);
	check(window.limit == WINDOW_MIN, "a peer that answers may pause for 10 ms");
	window_waited(&window, WINDOW_MIN, WINDOW_MAX, T0, T0 + 20 * MS);
	check(window.limit == 2 * WINDOW_MIN, "but those that hang hold up nobody");
}

int
main(void)
{
	test_window();
	return done_testing();
}
