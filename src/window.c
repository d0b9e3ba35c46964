/*
 * window.c
 *		How many requests may be in flight.
 *
 * Like pace.c it is arithmetic on times, which a test links by itself.
 */
#include "c.h"

#include "datatype/timestamp.h"
#include "window.h"

/* Waiting for less than this part of the time, fewer would do; for more than that, more would. */
#define WAITED_LITTLE 32
#define WAITED_LONG 8

/* WINDOW_MIN in 2 ms are 50,000 a second: a peer that answers in less needs no more, and pauses for reasons of its own. */
#define NEAR_US 2000

/*
 * How long nothing may come in: before the first answer a millisecond, so that
 * it takes 4 to have 800 under way to a peer 30 ms away; later longer than the
 * pause that a near peer makes because somebody else had its CPU.
 */
#define FIRST_PATIENCE_MS 1
#define PATIENCE_MS 20

/* A drain has none in flight at times, and its peer is where it was; after so long it may not be. */
#define LULL_US USECS_PER_SEC

static void
window_begin(Window *window, int64 now)
{
	window->ended = 0;
	window->began = now;
	window->waited = 0;
}

void
window_start(Window *window, int64 idle_since, int64 now)
{
	window_begin(window, now);
	if (now - idle_since >= LULL_US)
		window->nearest = 0;
}

int
window_patience_ms(const Window *window, int in_flight, int max)
{
	if (in_flight < window->limit || window->limit >= max)
		return -1;
	return window->nearest > 0 ? PATIENCE_MS : FIRST_PATIENCE_MS;
}

void
window_waited(Window *window, int in_flight, int max, int64 from, int64 to)
{
	int			patience_ms = window_patience_ms(window, in_flight, max);

	/* With fewer in flight there is no more to send, or no connection yet. */
	if (in_flight < window->limit)
	{
		window_begin(window, to);
		return;
	}
	window->waited += to - from;
	if (patience_ms >= 0 && to - from >= patience_ms * INT64CONST(1000))
		window->limit = Min(2 * window->limit, max);
}

void
window_ended(Window *window, int64 took)
{
	window->ended++;
	if (window->nearest == 0 || took < window->nearest)
		window->nearest = Max(took, 1);
}

void
window_review(Window *window, int max, int64 now)
{
	int64		elapsed = now - window->began;

	if (window->ended < window->limit)
		return;
	if (window->waited < elapsed / WAITED_LITTLE)
		window->limit = Max(window->limit - window->limit / 8, WINDOW_MIN);
	else if (window->waited > elapsed / WAITED_LONG && window->nearest > NEAR_US)
		window->limit = Min(max, window->limit * Min(2.0, (double) elapsed / Max(elapsed - window->waited, 1)));
	window_begin(window, now);
}
