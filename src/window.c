/*
 * window.c
 *		How many requests may be in flight.
 *
 * Like pace.c it is arithmetic on times, which a test links by itself.
 */
#include "c.h"

#include "window.h"

/*
 * Waiting for less than this part of the time, fewer would do; for more than
 * that, more would, unless it was but the pause of a near peer.
 */
#define WAITED_LITTLE 32
#define WAITED_LONG 8
#define WAITED_LONG_US 2000

/*
 * How long nothing may come in: before the first answer a millisecond, so that
 * it takes 4 to have 800 under way to a peer 30 ms away; later longer than the
 * pause that a near peer makes because somebody else had its CPU.
 */
#define FIRST_PATIENCE_MS 1
#define PATIENCE_MS 20

static void
window_begin(Window *window, int64 now)
{
	window->ended = 0;
	window->began = now;
	window->waited = 0;
}

void
window_start(Window *window, int64 now)
{
	window_begin(window, now);
	window->answered = false;
}

int
window_patience_ms(const Window *window, int in_flight, int max)
{
	if (in_flight < window->limit || window->limit >= max)
		return -1;
	return window->answered ? PATIENCE_MS : FIRST_PATIENCE_MS;
}

void
window_waited(Window *window, int in_flight, int max, int64 from, int64 to)
{
	int			patience_ms = window_patience_ms(window, in_flight, max);

	/* With fewer in flight there is no more to send, or no connection yet. */
	if (in_flight < window->limit)
	{
		window_start(window, to);
		return;
	}
	window->waited += to - from;
	if (patience_ms >= 0 && to - from >= patience_ms * INT64CONST(1000))
		window->limit = Min(2 * window->limit, max);
}

void
window_ended(Window *window)
{
	window->ended++;
	window->answered = true;
}

void
window_review(Window *window, int max, int64 now)
{
	int64		elapsed = now - window->began;

	if (window->ended < window->limit)
		return;
	if (window->waited < elapsed / WAITED_LITTLE)
		window->limit = Max(window->limit - window->limit / 8, WINDOW_MIN);
	else if (window->waited > Max(elapsed / WAITED_LONG, WAITED_LONG_US))
		window->limit = Min(max, window->limit * Min(2.0, (double) elapsed / Max(elapsed - window->waited, 1)));
	window_begin(window, now);
}
