/*
 * answer.c
 *		From an id to an answer, and to what must come of it.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"

/* ---- bytes ---- */

/* A zero follows, which does not count. */
void
buf_add(Buf *buf, const void *bytes, size_t length)
{
	if (buf->length + length >= buf->room)
	{
		buf->room = 2 * (buf->length + length) + 64;
		buf->data = realloc(buf->data, buf->room);
		if (buf->data == NULL)
			abort();
	}
	memcpy(buf->data + buf->length, bytes, length);
	buf->length += length;
	buf->data[buf->length] = '\0';
}

void
buf_text(Buf *buf, const char *text)
{
	buf_add(buf, text, strlen(text));
}

void
buf_fill(Buf *buf, char c, size_t count)
{
	while (count-- > 0)
		buf_add(buf, &c, 1);
}

void
buf_print(Buf *buf, const char *format,...)
{
	char		text[4096];
	va_list		arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	buf_text(buf, text);
}

static uint64_t
random_next(Random *random)
{
	random->state ^= random->state >> 12;
	random->state ^= random->state << 25;
	random->state ^= random->state >> 27;
	return random->state * UINT64_C(0x2545F4914F6CDD1D);
}

uint32_t
random_below(Random *random, uint32_t bound)
{
	return bound == 0 ? 0 : (uint32_t) ((random_next(random) >> 32) * bound >> 32);
}

/* ---- ids ---- */

bool
id_parse(Id *id, const char *text)
{
	uint8_t		bytes[16];
	int			digits = 0;

	memset(bytes, 0, sizeof(bytes));
	for (int i = 0; i < ID_LENGTH; i++)
	{
		char		digit[2] = {text[i], '\0'};

		if (text[i] == '-' && (i == 8 || i == 13 || i == 18 || i == 23))
			continue;
		if (text[i] == '\0' || strspn(digit, "0123456789abcdefABCDEF") != 1)
			return false;
		bytes[digits / 2] = (uint8_t) (bytes[digits / 2] << 4 | strtol(digit, NULL, 16));
		digits++;
	}
	memset(id, 0, sizeof(*id));
	memcpy(id->text, text, ID_LENGTH);
	id->kind = bytes[0];
	id->body = bytes[1];
	id->end = bytes[2] % END_COUNT;
	id->spread = bytes[3] % SPREAD_COUNT;
	id->cut = (uint16_t) (bytes[4] << 8 | bytes[5]);
	id->parameter = (uint16_t) (bytes[6] << 8 | bytes[7]);
	for (int i = 8; i < 16; i++)
		id->seed = id->seed << 8 | bytes[i];
	return true;
}

static void
id_print(char *text, const Id *id)
{
	snprintf(text, ID_LENGTH + 1, "%02x%02x%02x%02x-%04x-%04x-%04x-%012llx", id->kind, id->body, id->end, id->spread,
			 id->cut, id->parameter, (unsigned) (id->seed >> 48), (unsigned long long) (id->seed & 0xffffffffffff));
}

/* ---- kinds ---- */

/* H1's come first, H2's from 128 on, so that a new one moves no other protocol's. */
#define H2_KINDS	128

static int
kind_count(const Kind *kinds)
{
	int			count = 0;

	while (kinds[count].name != NULL)
		count++;
	return count;
}

const Kind *
kind_of(const Id *id)
{
	const Kind *kinds = id->kind >= H2_KINDS ? h2_kinds : h1_kinds;

	return &kinds[id->kind % H2_KINDS % kind_count(kinds)];
}

/* ---- which outcomes are right ---- */

static void
add_outcome(Answer *answer, int status, bool success, const char *state, const char *errors)
{
	Outcome    *outcome;

	if (answer->outcome_count == OUTCOMES_MAX)
		abort();
	outcome = &answer->outcomes[answer->outcome_count++];
	outcome->status = status;
	outcome->success = success;
	outcome->state = state;
	snprintf(outcome->errors, REGEX_SIZE, "%s", errors);
}

void
expect_null(Answer *answer)
{
	add_outcome(answer, 0, false, "pending", "\\[\".+\"\\]");
}

/* The status came through, and a body that is not OneSignal's. */
void
expect_no_sense(Answer *answer)
{
	add_outcome(answer, answer->status, false, "pending", "\\[\".+\"\\]");
}

/* A part of the body, less than its JSON, taken for all of it */
void
expect_part(Answer *answer)
{
	expect_no_sense(answer);
	if (answer->status == 200 && answer->body.may_shrink)
		add_outcome(answer, 200, true, "canceled", "\\[\\]");
}

/* The row of "What one cancel came to" for 200. */
static void
expect_for_200(Answer *answer)
{
	const Body *body = &answer->body;
	const char *errors = body->has == HAS_PERHAPS ? "\\[.*\\]" : body->errors;

	if (body->says == SAYS_TRUE || body->says == SAYS_EITHER)
		add_outcome(answer, 200, true, "canceled", errors);
	if (body->says == SAYS_FALSE || body->says == SAYS_EITHER)
		add_outcome(answer, 200, false, "refused", errors);
	if (body->says == SAYS_NEITHER || body->says == SAYS_EITHER)
		expect_no_sense(answer);
}

static void
expect_for_4xx(Answer *answer)
{
	if (answer->body.has != HAS_NONE)
		add_outcome(answer, answer->status, false, "refused", answer->body.errors);
	if (answer->body.has != HAS_ERRORS)
		expect_no_sense(answer);
}

static void
expect_for_retry(Answer *answer)
{
	const Body *body = &answer->body;

	/* An empty array says as little as a page does. */
	if (body->has != HAS_NONE && strcmp(body->errors, "\\[\\]") != 0)
		add_outcome(answer, answer->status, false, "pending", body->errors);
	if (body->has != HAS_ERRORS || strcmp(body->errors, "\\[\\]") == 0)
		expect_no_sense(answer);
}

void
expect_usual(Answer *answer)
{
	int			status = answer->status;

	if (answer->body.bytes.length >= LARGE)
		expect_null(answer);
	if (answer->body.bytes.length > LARGE)
		return;
	if (status == 200)
		expect_for_200(answer);
	else if (status >= 300 && status < 400)
		add_outcome(answer, status, false, "pending", "\\[\".*redirect.*\"\\]");
	else if (status == 401 || status == 403 || status == 408 || status == 429 || status >= 500)
		expect_for_retry(answer);
	else if (status >= 400)
		expect_for_4xx(answer);
	else
		expect_no_sense(answer);
}

void
expect(Answer *answer, int which)
{
	if (which & EXPECT_USUAL)
		expect_usual(answer);
	if (which & EXPECT_NO_SENSE)
		expect_no_sense(answer);
	if (which & EXPECT_NULL)
		expect_null(answer);
}

/* ---- an answer ---- */

/* Half of all are 200. */
static int
pick_status(unsigned parameter)
{
	static const int statuses[] = {
		400, 404, 401, 403, 408, 409, 410, 418, 422, 429, 451, 499, 500, 501, 502, 503, 504, 520, 599,
		201, 202, 203, 206, 226, 299, 300, 301, 302, 303, 307, 308, 399, 400, 400, 404
	};

	return parameter % 2 == 0 ? 200 : statuses[parameter / 2 % lengthof(statuses)];
}

/*
 * A body that the connection's end ends may be cut and nobody knows it: then
 * it is not understood, but for one that was complete and lacks only its blanks.
 */
static void
expect_cut(Answer *answer, size_t cut)
{
	size_t		body_cut;

	if (answer->complete_at > 0 && cut >= answer->complete_at)
	{
		expect_null(answer);
		return;
	}
	body_cut = answer->head_end > 0 && cut > answer->head_end ? cut - answer->head_end : 0;

	if (answer->head_end == 0 || cut < answer->head_end || answer->id->end == END_HANG)
	{
		answer->outcome_count = 0;
		expect_null(answer);
		return;
	}
	if (answer->body.json_end == 0 || body_cut < answer->body.json_end)
	{
		answer->outcome_count = 0;
		expect_part(answer);
		if (answer->status >= 300 && answer->status < 400)
			expect_usual(answer);
	}
	else if (answer->body.bytes.length >= LARGE)
	{
		/* What is left may not be too large. */
		answer->body.bytes.length = body_cut;
		answer->outcome_count = 0;
		expect_usual(answer);
	}
	expect_null(answer);
}

static const char *const end_names[] = {"", "FIN", "close_notify", "RST", "nothing more"};
static const char *const spread_names[] = {"one write", "two writes", "small writes", "writes of 4 kB", "drops"};

/* The id's end, and a cut where it comes. */
static void
apply_end(Answer *answer)
{
	size_t		cut;

	if (answer->id->end == END_OWN || answer->whole || answer->unit.length > 0 || answer->records != RECORDS_NONE)
		return;
	cut = answer->id->cut % (answer->bytes.length + 1);
	answer->breaks = true;
	answer->end = answer->id->end;
	if (cut < answer->bytes.length)
	{
		snprintf(answer->words + strlen(answer->words), sizeof(answer->words) - strlen(answer->words),
				 ", cut after %zu of %zu bytes, then %s", cut, answer->bytes.length, end_names[answer->end]);
		answer->bytes.length = cut;
		expect_cut(answer, cut);
	}
	else if (answer->end == END_RST || answer->head_end > 0 || (answer->stream > 0 && answer->body.json_end == 0))
	{
		/*
		 * A reset may overtake what was sent before; a body without end has none; over HTTP/2 one without a length
		 * that is no JSON may have been cut.
		 */
		if (answer->end == END_HANG && answer->head_end > 0)
			answer->outcome_count = 0;
		expect_null(answer);
	}
}

void
answer_make(Answer *answer, const Id *id, uint32_t stream, const char *authorization)
{
	const Kind *kind = kind_of(id);

	memset(answer, 0, sizeof(*answer));
	answer->id = id;
	answer->random.state = id->seed ^ UINT64_C(0x9E3779B97F4A7C15);
	if (answer->random.state == 0)
		answer->random.state = 1;
	answer->stream = stream;
	answer->authorization = authorization;
	answer->status = pick_status(id->parameter);
	body_make(&answer->body, id, &answer->random, authorization);
	kind->make(answer);
	snprintf(answer->words, sizeof(answer->words), "%s%s%s; status %d, body %s of %zu bytes, in %s", kind->words,
			 answer->variant != NULL ? ": " : "", answer->variant != NULL ? answer->variant : "",
			 answer->status, answer->body.name, answer->body.bytes.length, spread_names[id->spread]);
	for (char *c = answer->words; *c != '\0'; c++)
		if (*c < ' ')
			*c = ' ';
	apply_end(answer);
	if (kind->choice == FLOOD)
	{
		answer->outcome_count = 0;
		expect_null(answer);
	}
}

void
answer_free(Answer *answer)
{
	free(answer->bytes.data);
	free(answer->unit.data);
	free(answer->body.bytes.data);
}

/* ---- in words ---- */

static const char *
reach_of(const Answer *answer)
{
	if (answer->breaks)
		return "connection";
	return "itself";
}

static char explain_authorization[512] = "Key somekey";

/* Some bodies echo the key, and so are as long as that. */
void
answer_explain_key(const char *key)
{
	snprintf(explain_authorization, sizeof(explain_authorization), "Key %s", key);
}

/* id, kind, whom it concerns, right outcomes, words: between tabs */
bool
answer_explain(const char *text)
{
	Id			id;
	Answer		answer;

	if (!id_parse(&id, text))
		return false;
	answer_make(&answer, &id, 1, explain_authorization);
	printf("%s\t%s\t%s\t", id.text, kind_of(&id)->name, reach_of(&answer));
	for (int i = 0; i < answer.outcome_count; i++)
	{
		Outcome    *outcome = &answer.outcomes[i];

		printf("%s", i > 0 ? " || " : "");
		if (outcome->status == 0)
			printf("NULL");
		else
			printf("%d", outcome->status);
		printf(" %s %s %s", outcome->success ? "t" : "f", outcome->state, outcome->errors);
	}
	printf("\t%s\n", answer.words);
	answer_free(&answer);
	return true;
}

/*
 * Every fourth is a short answer cut at the next byte, with the next end; of
 * the others each kind has its turn.
 */
static void
make_id(Id *id, const Kind *kinds, int first_kind, const int *chosen, int chosen_count, int i, Random *random)
{
	bool		sweeps = chosen_count > 1 && kinds[chosen[0]].choice == MIXED;
	bool		sweep = sweeps && i % 4 == 3;
	int			turn = !sweeps ? i : sweep ? i / 4 : i - i / 4;

	memset(id, 0, sizeof(*id));
	id->seed = random_next(random);
	id->parameter = (uint16_t) random_next(random);
	id->kind = (uint8_t) (first_kind + chosen[sweep ? 0 : turn % chosen_count]);
	id->spread = (uint8_t) (random_below(random, 3) == 0 ? random_below(random, SPREAD_DRIP) : SPREAD_ONE);
	if (random_below(random, 50) == 0)
		id->spread = SPREAD_DRIP;
	do
		id->body = (uint8_t) random_below(random, (uint32_t) body_count());
	while (sweep && !body_is_small(id->body));
	id->cut = (uint16_t) random_next(random);
	if (sweep)
	{
		id->end = (uint8_t) (END_FIN + turn % 3);
		id->cut = (uint16_t) (turn / 3);
	}
	else if (random_below(random, 8) == 0)
		id->end = (uint8_t) (END_FIN + random_below(random, 4));
	/* What hangs costs the test its timeout. */
	if (id->end == END_HANG && random_below(random, 4) != 0)
		id->end = END_FIN;
}

void
answer_print_ids(Protocol protocol, uint64_t seed, int count, bool floods, const char *only)
{
	const Kind *kinds = protocol == H2 ? h2_kinds : h1_kinds;
	Random		random = {seed * UINT64_C(0x9E3779B97F4A7C15) + 1};
	int			chosen[256];
	int			chosen_count = 0;

	for (int i = 0; i < kind_count(kinds); i++)
		if (only != NULL ? strcmp(only, kinds[i].name) == 0 : kinds[i].choice == (floods ? FLOOD : MIXED))
			chosen[chosen_count++] = i;
	if (count == 0)
		count = chosen_count;
	for (int i = 0; chosen_count > 0 && i < count; i++)
	{
		Id			id;
		char		text[ID_LENGTH + 1];

		make_id(&id, kinds, protocol == H2 ? H2_KINDS : 0, chosen, chosen_count, i, &random);
		id_print(text, &id);
		puts(text);
	}
}

void
answer_list_kinds(void)
{
	for (const Kind *kind = h1_kinds; kind->name != NULL; kind++)
		printf("%02x %s %s%s\n", (int) (kind - h1_kinds), kind->name, kind->choice == FLOOD ? "(flood) " : "", kind->words);
	for (const Kind *kind = h2_kinds; kind->name != NULL; kind++)
		printf("%02x %s %s%s\n", (int) (kind - h2_kinds) + H2_KINDS, kind->name, kind->choice == FLOOD ? "(flood) " : "", kind->words);
}
