/*
 * fuzz.c
 *		What libFuzzer tries of all that reads text from outside, and what must hold of it.
 *
 * It runs in a single-user server, so that the text meets PostgreSQL's own
 * memory, encodings and jsonb: test/fuzz/run makes a library of this file and
 * the extension's, and calls fuzz() in it.  An error that is raised, a
 * sanitizer's report or a broken promise ends the server, and libFuzzer keeps
 * the input.
 */
#include "../../src/credentials.c"

#include <stdint.h>
#include <sys/mman.h>

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "onesignal.h"

/* It has to be escaped in JSON.  No "\\x01", as control characters are shown, completes it. */
#define API_KEY "os_v2_app_\"/\\k3y"

extern int	LLVMFuzzerRunDriver(int *argc, char ***argv, int (*target) (const uint8_t *bytes, size_t size));

PG_FUNCTION_INFO_V1(fuzz);

static MemoryContext context;

static void
must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "does not hold: %s\n", what);
	abort();
}

/* As long as it says, so that AddressSanitizer sees who reads on. */
static char *
text_of(const uint8_t *bytes, size_t size)
{
	char	   *text = malloc(size + 1);

	memcpy(text, bytes, size);
	text[size] = '\0';
	return text;
}

static void
check_line(const char *line)
{
	size_t		length = strlen(line);

	must(length <= 1024, "an error has at most 1 kB");
	must(pg_verifymbstr(line, (int) length, true), "an error is text of the database's encoding");
	must(strstr(line, API_KEY) == NULL, "no error holds the key");
	for (size_t i = 0; i < length; i++)
		must((unsigned char) line[i] >= ' ' && line[i] != 0x7f, "an error is one line");
}

/* The first byte chooses a status, the second where a redirect goes; the rest is the body. */
static void
try_answer(const uint8_t *bytes, size_t size)
{
	static const int statuses[] = {200, 200, 200, 400, 400, 404, 401, 403, 408, 429, 500, 503, 202, 204, 301, 302, 100, 999, 0};
	CancelOutcome outcome;
	HttpAnswer	answer = {.sent = true};
	char	   *body;

	if (size < 2)
		return;
	answer.status = statuses[bytes[0] % lengthof(statuses)];
	body = text_of(bytes + 2, size - 2);
	answer.body = body;
	answer.body_length = size - 2;
	if (answer.status == 0 || bytes[1] & 1)
	{
		/* libcurl's words and a host are the peer's text, too, but no body: NUL ends them. */
		strlcpy(answer.error, body, HTTP_ERROR_SIZE);
		strlcpy(answer.redirect_host, body, HTTP_HOST_SIZE);
	}
	(void) onesignal_glance(&answer);
	onesignal_judge(&outcome, &answer, API_KEY);
	must(list_length(outcome.errors) <= 8, "there are at most eight errors");
	for (int i = 0; i < list_length(outcome.errors); i++)
		check_line(list_nth(outcome.errors, i));
	must(outcome.verdict != CANCEL_DONE || answer.status == 200, "success has status 200");
	if (outcome.response != NULL)
	{
		must(strstr(outcome.response, API_KEY) == NULL, "no response holds the key");
		(void) DirectFunctionCall1(jsonb_in, CStringGetDatum(outcome.response));
	}
	onesignal_hint_doubt(&outcome, bytes[1] & 2);
	must(list_length(outcome.errors) <= 8, "nor are there more with a hint");
	(void) onesignal_may_have_worked(&outcome, &answer);
	(void) onesignal_judge_view(&answer);
	free(body);
}

static bool
uuid_in_reads(const char *text, pg_uuid_t *uuid)
{
	MemoryContext old = CurrentMemoryContext;
	volatile bool reads = true;

	PG_TRY();
	{
		*uuid = *DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(text)));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old);
		FlushErrorState();
		reads = false;
	}
	PG_END_TRY();
	return reads;
}

/* The first byte chooses what the rest is a value of. */
static void
try_option(const uint8_t *bytes, size_t size)
{
	char	   *text;
	double		rate;
	pg_uuid_t	uuid;
	pg_uuid_t	theirs;

	if (size < 1)
		return;
	text = text_of(bytes + 1, size - 1);
	switch (bytes[0] % 4)
	{
		case 0:
			if (options_url_problem(text) == NULL)
				must(strpbrk(text, "@?# \t\r\n") == NULL && strncasecmp(text, "http", 4) == 0, "a URL is a URL alone");
			break;
		case 1:
			must(options_parse_uuid(text, &uuid) == uuid_in_reads(text, &theirs), "a uuid is what PostgreSQL takes for one");
			if (options_parse_uuid(text, &uuid))
				must(memcmp(&uuid, &theirs, sizeof(uuid)) == 0, "it is the same");
			break;
		case 2:
			rate = strtod(text, NULL);
			if (options_rate_problem(text) == NULL)
				must(rate == 0 || (rate >= 0.001 && rate <= 1000000), "a rate is in its range");
			break;
		case 3:
			if (options_key_problem(text) == NULL)
				must(strpbrk(text, " \t\r\n") == NULL, "a key can stand in a header");
			break;
	}
	free(text);
}

static void
try_key_file(const uint8_t *bytes, size_t size)
{
	char	   *buffer = malloc(OPTIONS_KEY_MAX + 2);
	int			fd = memfd_create("key", 0);

	must(fd >= 0 && write(fd, bytes, size) == (ssize_t) size, "a file in memory can be made");
	if (read_key_file(psprintf("/proc/self/fd/%d", fd), buffer) == NULL)
	{
		size_t		length = strlen(buffer);

		must(length > 0 && length <= OPTIONS_KEY_MAX && length <= size && memcmp(buffer, bytes, length) == 0,
			 "a key is what the file begins with");
		for (size_t i = 0; i < length; i++)
			must(buffer[i] > ' ' && buffer[i] < 0x7f, "a key is printable ASCII without spaces");
	}
	close(fd);
	free(buffer);
}

static void (*target) (const uint8_t *bytes, size_t size);

static int
run_target(const uint8_t *bytes, size_t size)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	PG_TRY();
	{
		target(bytes, size);
	}
	PG_CATCH();
	{
		EmitErrorReport();
		must(false, "nothing is raised");
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextReset(context);
	return 0;
}

/* fuzz(target, VARIADIC arguments): what libFuzzer is told; it ends the process. */
Datum
fuzz(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum	   *elements;
	int			argc;
	char	  **argv;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &argc);
	argv = palloc0(sizeof(char *) * (argc + 2));
	argv[0] = name;
	for (int i = 0; i < argc; i++)
		argv[i + 1] = TextDatumGetCString(elements[i]);
	argc++;
	target = strcmp(name, "answer") == 0 ? try_answer : strcmp(name, "option") == 0 ? try_option : try_key_file;
	context = AllocSetContextCreate(TopMemoryContext, "fuzz", ALLOCSET_DEFAULT_SIZES);
	PG_RETURN_INT32(LLVMFuzzerRunDriver(&argc, &argv, run_target));
}
