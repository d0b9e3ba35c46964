/*
 * window.c
 *		How many requests may be in flight.
 *
 * Like pace.c it is arithmetic on times, which a test links by itself.
 */
#include "c.h"

#include "window.h"

/* Waiting for less than this part of the time, fewer would do; for more than that, more would. */
#define WAITED_LITTLE 32
#define WAITED_LONG 2

static void
window_begin(Window *window, int64 now)
{
	window->ended = 0;
	window->began = now;
	window->waited = 0;
}

bool
window_stalls(const Window *window, int in_flight, int max)
{
	return in_flight >= window->limit && window->limit < max;
}

void
window_waited(Window *window, int in_flight, int max, int64 from, int64 to)
{
	/* With fewer in flight there is no more to send, or no connection yet. */
	if (in_flight < window->limit)
	{
		window_begin(window, to);
		return;
	}
	window->waited += to - from;
	if (to - from >= WINDOW_STALL_MS * INT64CONST(1000))
		window->limit = Min(2 * window->limit, max);
}

void
window_ended(Window *window)
{
	window->ended++;
}

void
window_review(Window *window, int max, int64 now)
{
	int64		elapsed = now - window->began;

	if (window->ended < window->limit)
		return;
	if (window->waited < elapsed / WAITED_LITTLE)
		window->limit = Max(window->limit - window->limit / 8, WINDOW_MIN);
	else if (window->waited > elapsed / WAITED_LONG)
		window->limit = Min(2 * window->limit, max);
	window_begin(window, now);
}
