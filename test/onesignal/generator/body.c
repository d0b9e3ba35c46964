/*
 * body.c
 *		Bodies of all sorts, and what each says.
 *
 * Errors are given as the row has them, to_json(errors) of PostgreSQL, as a
 * regular expression of Perl's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hostile.h"

#define ANY_ERRORS	"\\[.*\\]"

typedef struct Making
{
	Body	   *body;
	Random	   *random;
	unsigned	variant;
	const char *tag;			/* of this answer alone */
	const char *authorization;
} Making;

/* What a body is, in one line; errors NULL: any. */
static void
is(Making *making, Says says, Has has, const char *errors)
{
	making->body->says = says;
	making->body->has = has;
	snprintf(making->body->errors, REGEX_SIZE, "%s", errors != NULL ? errors : ANY_ERRORS);
}

static void
text(Making *making, const char *json)
{
	buf_text(&making->body->bytes, json);
}

static void
success(Making *making)
{
	static const char *const spellings[] = {
		"{\"success\":true}", "{\"success\": true}", " { \"success\" : true } \n", "{\"success\":true,\"errors\":[]}",
		"{\"errors\":[],\"success\":true}", "{\"success\":\"true\"}", "{\"\\u0073uccess\":true}",
		"{\"success\":true,\"errors\":null}", "\r\n\t{\"success\"\n:\ttrue\r}", "{\"success\":true,\"x\":[{},[],-0.5e-3,\"\\\"\"]}"
	};

	text(making, spellings[making->variant % lengthof(spellings)]);
	is(making, SAYS_TRUE, HAS_PERHAPS, "\\[\\]");
	if (strstr(making->body->bytes.data, "errors\":[") == NULL)
		making->body->has = HAS_NONE;
	else
		making->body->has = HAS_ERRORS;
	making->body->json_end = (size_t) (strrchr(making->body->bytes.data, '}') - making->body->bytes.data) + 1;
}

static void
failure(Making *making)
{
	buf_print(&making->body->bytes, making->variant % 2 ? "{\"success\":false,\"errors\":[\"%s\"]}" :
			  "{\"errors\": [ \"%s\" ], \"success\": \"false\"}\n", making->tag);
	is(making, SAYS_FALSE, HAS_ERRORS, "");
	snprintf(making->body->errors, REGEX_SIZE, "\\[\"%s\"\\]", making->tag);
	making->body->json_end = (size_t) (strrchr(making->body->bytes.data, '}') - making->body->bytes.data) + 1;
}

static void
failure_alone(Making *making)
{
	text(making, "{\"success\":false}");
	is(making, SAYS_FALSE, HAS_NONE, "\\[\\]");
	making->body->json_end = making->body->bytes.length;
}

static void
errors_only(Making *making)
{
	static const struct
	{
		const char *json;
		const char *errors;
	}			shapes[] = {
		{"{\"errors\":[\"%1$s\",\"b\"]}", "\\[\"%1$s\",\"b\"\\]"},
		{"{\"errors\":\"%1$s\"}", "\\[\"%1$s\"\\]"},
		{"{\"errors\":[{\"code\":\"x\",\"title\":\"%1$s\"}]}", "\\[\"x: %1$s\"\\]"},
		{"{\"errors\":{\"code\":\"x\",\"title\":\"%1$s\"}}", "\\[\"x: %1$s\"\\]"},
		{"{\"errors\":[\"%1$s\",1,true,null]}", "\\[\"%1$s\",\"1\",\"true\",\"null\"\\]"},
		{"{\"errors\":[[\"%1$s\"]]}", "\\[\"\\[\\\\\"%1$s\\\\\"\\]\"\\]"},
		{"{\"errors\":{\"a\":\"%1$s\"}}", "\\[\"\\{\\\\\"a\\\\\": \\\\\"%1$s\\\\\"\\}\"\\]"},
		{"{\"errors\":[{\"code\":1,\"title\":\"%1$s\"}]}", ".*%1$s.*"},
		{"{\"errors\":[\"\\u0041\\n%1$s\"]}", "\\[\"A\\\\\\\\x0A%1$s\"\\]"},
	};
	size_t		shape = making->variant % lengthof(shapes);
	char		errors[REGEX_SIZE];

	snprintf(errors, sizeof(errors), shapes[shape].errors, making->tag);
	buf_print(&making->body->bytes, shapes[shape].json, making->tag);
	is(making, SAYS_NEITHER, HAS_ERRORS, errors);
}

static void
many_errors(Making *making)
{
	unsigned	count = 9 + making->variant % 3000;

	text(making, "{\"errors\":[\"first\"");
	for (unsigned i = 1; i < count; i++)
		buf_print(&making->body->bytes, ",\"e%u\"", i);
	text(making, "]}");
	is(making, SAYS_NEITHER, HAS_ERRORS, "\\[\"first\",\"e1\",\"e2\",\"e3\",\"e4\",\"e5\",\"e6\",\"e7\"\\]");
}

/* Cut at 1 kB: the pieces take 1 to 4 bytes each, as text and escaped. */
static void
long_error(Making *making)
{
	static const char *const pieces[] = {"x", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\\u20ac", "\\ud83d\\ude00", "\\n", "\\u0085"};
	const char *piece = pieces[making->variant % lengthof(pieces)];

	text(making, "{\"success\":false,\"errors\":[\"");
	for (unsigned i = 0; i < making->variant / lengthof(pieces) % 4; i++)
		text(making, "y");
	while (making->body->bytes.length < 3000 + making->variant % 20000)
		text(making, piece);
	text(making, "\"]}");
	is(making, SAYS_FALSE, HAS_ERRORS, "\\[\"y{0,3}[^y].+\"\\]");
}

static void
page(Making *making)
{
	static const char *const pages[] = {
		"<html><body><h1>502 Bad Gateway</h1></body></html>\n", "", " ", "\r\n\r\n", "Service Unavailable", "OK", "null and void",
		"<!DOCTYPE html>\n<p>caf\xc3\xa9 \xe2\x80\xae</p>", "caf\xe9", "success", "{success:true}", "success=true",
		"{'success':true}", "<success>true</success>", "\x1b]0;title\x07\x1b[2J"
	};

	text(making, pages[making->variant % lengthof(pages)]);
	is(making, SAYS_NEITHER, HAS_NONE, NULL);
}

static void
long_page(Making *making)
{
	unsigned	length = making->variant % 60000;

	text(making, "<html>");
	while (making->body->bytes.length < length)
		text(making, making->variant % 2 ? "<p>\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80</p>\n" : "  \n\n\t ");
	is(making, SAYS_NEITHER, HAS_NONE, NULL);
}

static void
no_json(Making *making)
{
	static const char *const texts[] = {
		"{\"success\":true,\"errors\":[\"x\"],}", "{\"success\":true} // done", "{\"success\":true}}", "{\"success\":true", "{\"success\":tru}",
		"{\"success\":true]", "{\"success\":NaN}", "{\"success\":true,\"errors\":[\"x\\q\"]}", "{\"errors\":[\"x\\u12\"]}", "{\"success\":true \"x\":1}",
		"{\"errors\":[\"x\ny\"]}", "[{\"success\":true}", "{\"success\":TRUE}", "{\"success\":01}", "{\"success\":true}{\"success\":true}",
		"\xef\xbb\xbf{\"success\":true}", "{\"success\":.5}", "{\"success\":1e}", "{\"errors\":[\"x\"", "{,}", "\"success", "{\"a\"}", "{1:2}",
		"{\"success\":true,\"x\":\"\xff\xfe\xc0\xaf \xed\xa0\x80\"}", "{\"errors\":[\"\xf5\x80\x80\x80\"]}", "{\"errors\":[\"caf\xc3\"]}", "\xfe\xff\0{"
	};

	text(making, texts[making->variant % lengthof(texts)]);
	is(making, SAYS_NEITHER, HAS_NONE, NULL);
	making->body->may_shrink = true;
}

static void
other_json(Making *making)
{
	static const char *const texts[] = {
		"true", "\"true\"", "1", "null", "[]", "{}", "[{\"success\":true}]", "[\"success\",true]", "{\"success\":1}", "{\"success\":null}",
		"{\"success\":{}}", "{\"success\":[true]}", "{\"Success\":true}", "{\"success\":\"yes\"}", "{\"success\":\"TRUE\"}", "{\"success \":true}",
		"{\"data\":{\"success\":true}}", "{\"success\":\"true \"}", "{\"errors\":null}", "{\"\":{\"\":\"\"}}", "{\"success\":0.0}", "[[[[]]]]"
	};

	text(making, texts[making->variant % lengthof(texts)]);
	is(making, SAYS_NEITHER, HAS_NONE, NULL);
}

static void
duplicate_keys(Making *making)
{
	static const char *const texts[] = {
		"{\"success\":false,\"success\":true}", "{\"success\":true,\"success\":false}", "{\"success\":true,\"success\":\"false\",\"success\":true}",
		"{\"success\":true,\"errors\":[\"a\"],\"errors\":[\"b\"]}"
	};

	text(making, texts[making->variant % lengthof(texts)]);
	is(making, SAYS_EITHER, HAS_PERHAPS, NULL);
}

/* What jsonb cannot hold: the contract says no more than that nothing is raised. */
static void
nul_escape(Making *making)
{
	static const char *const texts[] = {
		"{\"success\":true,\"a\\u0000\":\"\\u0000\"}", "{\"success\":true,\"x\":\"\\ud800\"}", "{\"success\":true,\"x\":\"\\udc00\\ud800\"}",
		"{\"success\":true,\"x\":\"\\\\u0000 \\u0000\"}", "{\"success\":true,\"\\ud83d\":0,\"\\ude00\":0}"
	};

	text(making, texts[making->variant % lengthof(texts)]);
	is(making, SAYS_TRUE, HAS_NONE, "\\[\\]");
}

static void
nul_escape_in_errors(Making *making)
{
	static const char *const texts[] = {"\\u0000", "a\\u0000b", "\\ud800", "\\udc00x", "\\ud83d\\ud83d\\ude00", "\\u00e9\\u0000", "\\uffff\\ufffe\\u202e"};

	buf_print(&making->body->bytes, "{\"errors\":[\"%s %s\"]}", texts[making->variant % lengthof(texts)], making->tag);
	is(making, SAYS_NEITHER, HAS_ERRORS, "");
	snprintf(making->body->errors, REGEX_SIZE, ".*%s.*", making->tag);
}

static void
nul_byte(Making *making)
{
	static const struct
	{
		const char *bytes;
		size_t		length;
	}			texts[] = {{"{\"success\":true}\0", 17}, {"\0{\"success\":true}", 17}, {"{\"errors\":[\"a\0b\"]}", 18}, {"\0", 1}, {"{\"success\":true\0}", 17}};
	size_t		i = making->variant % lengthof(texts);

	buf_add(&making->body->bytes, texts[i].bytes, texts[i].length);
	is(making, SAYS_NEITHER, HAS_NONE, NULL);
	making->body->may_shrink = true;
}

static void
absurd_numbers(Making *making)
{
	static const char *const numbers[] = {
		"1e999999", "1e131071", "-1e-131071", "1e99999999999999999999", "123456789012345678901234567890123456789012345678901234567890",
		"0.000000000000000000000000000000000000000000000000000000000000000001", "1E400", "-0", "1e-16383", "9e131072"
	};
	unsigned	count = 1 + (making->variant / 16 % 3 == 0 ? making->variant % 2000 : 0);

	text(making, making->variant % 2 ? "{\"success\":true,\"x\":[0" : "{\"errors\":[[0");
	while (count-- > 0)
		buf_print(&making->body->bytes, ",%s", numbers[making->variant % lengthof(numbers)]);
	text(making, making->variant % 2 ? "]}" : "]]}");
	is(making, making->variant % 2 ? SAYS_EITHER : SAYS_NEITHER, HAS_PERHAPS, NULL);
	/* It may be too much to be understood, never a refusal by success. */
	if (making->variant % 2)
		snprintf(making->body->errors, REGEX_SIZE, ANY_ERRORS);
}

static void
nested(Making *making)
{
	unsigned	depths[] = {100, 1000, 6000, 15000, 30000, 100000};
	unsigned	depth = depths[making->variant % lengthof(depths)];
	bool		objects = making->variant / 8 % 2;
	bool		closed = making->variant / 16 % 2;

	if (objects)
		depth = depth < 10000 ? depth : depth / 10;
	text(making, making->variant / 32 % 2 ? "{\"success\":true,\"x\":" : "{\"errors\":");
	for (unsigned i = 0; i < depth; i++)
		text(making, objects ? "{\"a\":" : "[");
	if (objects)
		text(making, "1");
	if (closed)
		buf_fill(&making->body->bytes, objects ? '}' : ']', depth);
	if (closed)
		text(making, "}");
	if (closed)
		is(making, making->variant / 32 % 2 ? SAYS_EITHER : SAYS_NEITHER, HAS_PERHAPS, NULL);
	else
		is(making, SAYS_NEITHER, HAS_NONE, NULL);
}

static void
huge_keys(Making *making)
{
	unsigned	length = 1000 + making->variant % 50000;

	text(making, "{\"");
	buf_fill(&making->body->bytes, 'k', length);
	text(making, "\":1,\"success\":false,\"errors\":[{\"");
	buf_fill(&making->body->bytes, 'q', 10000);
	text(making, "\":\"x\"}]}");
	is(making, SAYS_FALSE, HAS_ERRORS, "\\[\"\\{\\\\\"q{1000,1024}\"\\]");
}

static void
many_keys(Making *making)
{
	unsigned	count = making->variant % 4000;

	text(making, "{");
	for (unsigned i = 0; i < count; i++)
		buf_print(&making->body->bytes, "\"k%u\":%u,", (i * 7919u) % 65536, i);
	text(making, "\"success\":true}");
	is(making, SAYS_TRUE, HAS_NONE, "\\[\\]");
	making->body->json_end = making->body->bytes.length;
}

/* Every size, from nothing to what is refused. */
static void
sized(Making *making)
{
	unsigned	length = making->variant % (LARGE + 8192);

	text(making, "{\"success\":true}");
	making->body->json_end = making->body->bytes.length;
	if (length > making->body->bytes.length)
		buf_fill(&making->body->bytes, making->variant % 3 == 0 ? '\n' : ' ', length - making->body->bytes.length);
	is(making, SAYS_TRUE, HAS_NONE, "\\[\\]");
}

static void
random_bytes(Making *making)
{
	unsigned	length = making->variant % 9000;

	buf_fill(&making->body->bytes, '\1', 1);	/* never JSON */
	for (unsigned i = 1; i < length; i++)
		buf_fill(&making->body->bytes, (char) random_below(making->random, 256), 1);
	is(making, SAYS_NEITHER, HAS_NONE, NULL);
}

static void
control_characters(Making *making)
{
	buf_print(&making->body->bytes, "{\"success\":false,\"errors\":[\"%s\\u001b[31m\\u0007\\u0080\\u009b31m \\u009f\\u00a0\\u2028\\u202e \\u007f\"]}", making->tag);
	is(making, SAYS_FALSE, HAS_ERRORS, "");
	snprintf(making->body->errors, REGEX_SIZE, "\\[\"%s\\\\\\\\x1B\\[31m\\\\\\\\x07.*\\\\\\\\x7F\"\\]", making->tag);
}

/* What a debugging proxy would show, also spelled so that only a parser sees it. */
static void
echoed_key(Making *making)
{
	const char *key = making->authorization;

	text(making, "{\"errors\":[\"");
	if (making->variant % 4 == 1)
		buf_fill(&making->body->bytes, 'x', 1024 - 8);
	for (; *key != '\0'; key++)
		buf_print(&making->body->bytes, making->variant % 4 == 2 ? "\\u%04x" : "%c", (unsigned char) *key);
	text(making, making->variant % 4 == 3 ? "\"]" : "\"]}");
	is(making, SAYS_NEITHER, making->variant % 4 == 3 ? HAS_NONE : HAS_ERRORS, making->variant % 4 == 1 ? NULL : ".*\\[api key\\].*");
}

static void
gzipped(Making *making)
{
	/* {"success":true} */
	static const char bytes[] =
	"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x2a\x2e\x4d\x4e\x4e\x2d\x2e\x56\xb2\x2a\x29\x2a\x4d\xad\x05\x00\x88\x70\xa7\x84\x10\x00\x00\x00";

	buf_add(&making->body->bytes, bytes, sizeof(bytes) - 1);
	is(making, SAYS_NEITHER, HAS_NONE, NULL);
}

static const struct
{
	const char *name;
	void		(*make) (Making *making);
}			bodies[] = {
	{"success", success},
	{"failure", failure},
	{"failure_alone", failure_alone},
	{"errors", errors_only},
	{"page", page},
	{"other_json", other_json},
	{"no_json", no_json},
	{"control_characters", control_characters},
	{"many_errors", many_errors},	/* from here on they may be large */
	{"long_error", long_error},
	{"long_page", long_page},
	{"duplicate_keys", duplicate_keys},
	{"nul_escape", nul_escape},
	{"nul_escape_in_errors", nul_escape_in_errors},
	{"nul_byte", nul_byte},
	{"absurd_numbers", absurd_numbers},
	{"nested", nested},
	{"huge_keys", huge_keys},
	{"many_keys", many_keys},
	{"sized", sized},
	{"random_bytes", random_bytes},
	{"echoed_key", echoed_key},
	{"gzipped", gzipped},
};

#define SMALL_BODIES 8

int
body_count(void)
{
	return lengthof(bodies);
}

bool
body_is_small(int body)
{
	return body % body_count() < SMALL_BODIES;
}

void
body_make(Body *body, const Id *id, Random *random, const char *authorization)
{
	int			index = id->body % body_count();
	char		tag[16];
	Making		making = {body, random, random_below(random, 1u << 30), tag, authorization};

	snprintf(tag, sizeof(tag), "t%08x", (unsigned) (id->seed & 0xffffffff));
	memset(body, 0, sizeof(*body));
	body->name = bodies[index].name;
	bodies[index].make(&making);
	buf_fill(&body->bytes, '\0', 1);	/* for whoever prints it; not a part of it */
	body->bytes.length--;
}
