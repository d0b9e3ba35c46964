/*
 * tap.h
 *		What the programs in here print: TAP.
 */
#ifndef ONESIGNAL_CANCEL_TAP_H
#define ONESIGNAL_CANCEL_TAP_H

#include "c.h"

/* c.h replaces them by libpgport's, which a program of one file does not need. */
#undef printf
#undef snprintf

static int	tests = 0;
static int	broken = 0;

static void
check(bool holds, const char *name)
{
	printf("%sok %d - %s\n", holds ? "" : "not ", ++tests, name);
	if (!holds)
		broken++;
}

static inline void
check_number(double got, double least, double most, const char *name)
{
	check(got >= least && got <= most, name);
	if (got < least || got > most)
		printf("# got %.6f, expected %.6f to %.6f\n", got, least, most);
}

static int
done_testing(void)
{
	printf("1..%d\n", tests);
	return broken > 0;
}

#endif
