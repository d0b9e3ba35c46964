/*
 * h1.c
 *		Answers over HTTP/1.1: status lines, headers, lengths and chunks of all sorts.
 */
#include <stdio.h>
#include <string.h>

#include "hostile.h"

#define USUAL		EXPECT_USUAL
#define NULLED		EXPECT_NULL
#define EITHER		(EXPECT_USUAL | EXPECT_NULL)
#define ANYTHING	(EXPECT_USUAL | EXPECT_NULL | EXPECT_NO_SENSE)

/* A text of which one variant is chosen, and what must come of it */
typedef struct Variant
{
	const char *text;
	int			expected;
} Variant;

#define CHOOSE(answer, variants) choose(answer, variants, lengthof(variants))

static const Variant *
choose(Answer *answer, const Variant *variants, size_t count)
{
	const Variant *variant = &variants[random_below(&answer->random, (uint32_t) count)];

	answer->variant = variant->text;
	expect(answer, variant->expected);
	return variant;
}

/* ---- parts ---- */

static void
status_line(Answer *answer)
{
	buf_print(&answer->bytes, "HTTP/1.1 %d %s\r\n", answer->status, answer->status == 200 ? "OK" : "So What");
}

static void
finish_head(Answer *answer)
{
	buf_print(&answer->bytes, "Content-Length: %zu\r\n\r\n", answer->body.bytes.length);
}

static void
body(Answer *answer)
{
	buf_add(&answer->bytes, answer->body.bytes.data, answer->body.bytes.length);
}

/* Status line, these headers, the length and the body */
static void
answer_with(Answer *answer, const char *headers)
{
	status_line(answer);
	buf_text(&answer->bytes, headers);
	finish_head(answer);
	body(answer);
}

static void
chunk(Answer *answer, const char *bytes, size_t length, const char *extension)
{
	buf_print(&answer->bytes, "%zx%s\r\n", length, extension);
	buf_add(&answer->bytes, bytes, length);
	buf_text(&answer->bytes, "\r\n");
}

/* The body in chunks of any size, without the last one. */
static void
chunks(Answer *answer, const char *extension)
{
	const char *at = answer->body.bytes.data;
	size_t		left = answer->body.bytes.length;

	while (left > 0)
	{
		size_t		most = left < 100 ? 10 : 5000;
		size_t		length = 1 + random_below(&answer->random, (uint32_t) (left < most ? left : most));

		length = length < left ? length : left;
		chunk(answer, at, length, extension);
		at += length;
		left -= length;
	}
}

static void
chunked_head(Answer *answer)
{
	status_line(answer);
	buf_text(&answer->bytes, "Transfer-Encoding: chunked\r\n\r\n");
}

/* ---- sound answers ---- */

static void
plain(Answer *answer)
{
	answer_with(answer, "Content-Type: application/json\r\n");
	expect_usual(answer);
}

static void
chunked(Answer *answer)
{
	static const char *const extensions[] = {"", ";a=b", " ; name=\"quoted\"", ";;;"};
	static const char *const trailers[] = {"", "X-Trailer: yes\r\n", "Content-Length: 3\r\n", "A: b\r\nC: d\r\n"};

	chunked_head(answer);
	chunks(answer, extensions[random_below(&answer->random, lengthof(extensions))]);
	buf_print(&answer->bytes, "0\r\n%s\r\n", trailers[random_below(&answer->random, lengthof(trailers))]);
	expect_usual(answer);
}

static void
until_close(Answer *answer)
{
	status_line(answer);
	buf_text(&answer->bytes, random_below(&answer->random, 2) ? "\r\n" : "Connection: close\r\n\r\n");
	answer->head_end = answer->bytes.length;
	body(answer);
	answer->end = END_NOTIFY;
	expect_usual(answer);
	/* An object that does not end looks as if it had been cut. */
	if (answer->body.bytes.length > 0 && answer->body.bytes.data[0] == '{' &&
		answer->body.bytes.data[answer->body.bytes.length - 1] != '}')
		expect_null(answer);
}

static void
interim(Answer *answer)
{
	static const char *const interims[] = {
		"HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n",
		"HTTP/1.1 199 What\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 100\r\nX: y\r\n\r\n"
	};

	for (uint32_t i = 1 + random_below(&answer->random, 20); i > 0; i--)
		buf_text(&answer->bytes, interims[random_below(&answer->random, lengthof(interims))]);
	answer_with(answer, "");
	expect(answer, USUAL);
}

static void
many_headers(Answer *answer)
{
	uint32_t	count = random_below(&answer->random, 400);

	status_line(answer);
	for (uint32_t i = 0; i < count; i++)
		buf_print(&answer->bytes, "X-Header-%u: %.*s\r\n", i, (int) random_below(&answer->random, 60),
				  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
	finish_head(answer);
	body(answer);
	expect_usual(answer);
}

/* Headers that ask for something, which must not be done. */
static void
asking_headers(Answer *answer)
{
	static const char *const headers[] = {
		"Set-Cookie: a=b; Path=/; Max-Age=99999999\r\n", "Alt-Svc: h2=\":1\"; ma=99999999; persist=1\r\n", "Alt-Svc: clear\r\n",
		"Strict-Transport-Security: max-age=99999999; includeSubDomains\r\n", "Upgrade: h2c, websocket\r\nConnection: Upgrade\r\n",
		"Content-Encoding: gzip\r\n", "Content-Encoding: br, zstd, gzip\r\n", "Refresh: 0; url=http://127.0.0.1:1/\r\n",
		"Link: <http://127.0.0.1:1/>; rel=preload\r\n", "Content-Range: bytes 5-9/3\r\n", "Trailer: Content-Length\r\n",
		"Content-Disposition: attachment; filename=\"/etc/passwd\"\r\n", "Keep-Alive: timeout=0, max=0\r\n", "Keep-Alive: timeout=-1\r\n",
		"Content-Type: text/html; charset=utf-16\r\n", "Content-Type:\r\n", "Clear-Site-Data: \"*\"\r\n", "Connection: close\r\n",
		"WWW-Authenticate: Basic realm=\"x\"\r\n", "WWW-Authenticate: NTLM\r\nWWW-Authenticate: Negotiate\r\n",
		"WWW-Authenticate: Digest realm=\"x\", nonce=\"y\", algorithm=MD5\r\n", "Proxy-Authenticate: Basic realm=\"x\"\r\n"
	};
	const char *chosen = headers[random_below(&answer->random, lengthof(headers))];

	answer->variant = chosen;
	answer_with(answer, chosen);
	if (strstr(chosen, "Connection: close") != NULL)
		answer->end = END_NOTIFY;
	expect_usual(answer);
}

static void
retry_after(Answer *answer)
{
	static const char *const values[] = {
		"-1", "0", "99999999999999999999", "2147483648", "1e9", "Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "soon", "",
		"1, 2", "0x10", "+5", "1.5", "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 99 Foo 99999 99:99:99 GMT"
	};
	const char *value = values[random_below(&answer->random, lengthof(values))];

	answer->variant = value;
	if (random_below(&answer->random, 2))
		answer->status = random_below(&answer->random, 2) ? 429 : 503;
	status_line(answer);
	buf_print(&answer->bytes, "Retry-After: %s\r\n", value);
	if (random_below(&answer->random, 4) == 0)
		buf_text(&answer->bytes, "Retry-After: 7\r\n");
	finish_head(answer);
	body(answer);
	expect_usual(answer);
}

static void
redirect(Answer *answer)
{
	static const char *const targets[] = {
		"http://127.0.0.1:1/", "//elsewhere.example/", "/relative", "", "http://", "file:///etc/passwd", "javascript:alert(1)",
		"http://[::1]:99999/", "http://user:secret@elsewhere.example:80/x?y#z", "http://caf\xc3\xa9.example/", "http://caf\xe9.example/", "\x01\x02\x03",
		"https://elsewhere.example:-1/", "http://%00.example/", "HTTP://ELSEWHERE.EXAMPLE", "gopher://x", "http://0x7f000001/", "http://a b/"
	};
	static const int statuses[] = {300, 301, 302, 303, 305, 307, 308};

	answer->status = statuses[random_below(&answer->random, lengthof(statuses))];
	status_line(answer);
	answer->variant = targets[random_below(&answer->random, lengthof(targets))];
	buf_print(&answer->bytes, "Location: %s", answer->variant);
	if (random_below(&answer->random, 4) == 0)
	{
		answer->variant = "a very long host";
		buf_text(&answer->bytes, "http://");
		buf_fill(&answer->bytes, 'h', random_below(&answer->random, 20000));
	}
	buf_text(&answer->bytes, "\r\n");
	finish_head(answer);
	body(answer);
	expect_usual(answer);
}

/* A status that has no body */
static void
bodyless_status(Answer *answer)
{
	answer->status = random_below(&answer->random, 2) ? 204 : 304;
	status_line(answer);
	buf_text(&answer->bytes, "\r\n");
	answer->body.bytes.length = 0;
	answer->body.has = HAS_NONE;
	answer->body.says = SAYS_NEITHER;
	expect_usual(answer);
}

static void
no_body(Answer *answer)
{
	answer->body.bytes.length = 0;
	answer->body.has = HAS_NONE;
	answer->body.says = SAYS_NEITHER;
	answer_with(answer, "");
	expect_usual(answer);
}

/* ---- status lines ---- */

/* A status line for 200 of all sorts: the first is what crashed libcurl 7.88.1. */
static void
odd_status_line(Answer *answer)
{
	static const Variant lines[] = {
		{"HTTP/1.1 200 OK\r\n folded: x\r\n", EITHER},
		{"HTTP/1.1 200 OK\r\n\tfolded\r\n", EITHER},
		{"HTTP/1.1 200 OK\r\n \r\n", EITHER},
		{"HTTP/1.1 200\r\n", USUAL},
		{"HTTP/1.1 200 \r\n", USUAL},
		{"HTTP/1.0 200 OK\r\n", USUAL},
		{"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", USUAL},
		{"HTTP/2.0 200 OK\r\n", EITHER},
		{"HTTP/2 200 OK\r\n", EITHER},
		{"HTTP/3 200 OK\r\n", EITHER},
		{"HTTP/1.2 200 OK\r\n", EITHER},
		{"HTTP/0.9 200 OK\r\n", EITHER},
		{"HTTP/9.9 200 OK\r\n", EITHER},
		{"HTTP/11.1 200 OK\r\n", EITHER},
		{"HTTP/1 200 OK\r\n", EITHER},
		{"HTTP/1.1  200 OK\r\n", EITHER},
		{"HTTP/1.1\t200\tOK\r\n", EITHER},
		{"HTTP/1.1200 OK\r\n", NULLED},
		{"HTTP1.1 200 OK\r\n", NULLED},
		{"http/1.1 200 OK\r\n", EITHER},
		{"Http/1.1 200 OK\r\n", EITHER},
		{"HTTPS/1.1 200 OK\r\n", NULLED},
		{" HTTP/1.1 200 OK\r\n", EITHER},
		{"\r\nHTTP/1.1 200 OK\r\n", EITHER},
		{"\nHTTP/1.1 200 OK\r\n", EITHER},
		{"HTTP/1.1 200 OK\n", EITHER},
		{"HTTP/1.1 200 OK\r", EITHER},
		{"HTTP/1.1 200 OK\r\r\n", EITHER},
		{"HTTP/1.1 +200 OK\r\n", EITHER},
		{"HTTP/1.1 -200 OK\r\n", NULLED},
		{"HTTP/1.1 0200 OK\r\n", NULLED},
		{"HTTP/1.1 2000 OK\r\n", EITHER},
		{"HTTP/1.1 200OK\r\n", EITHER},
		{"HTTP/1.1 20 OK\r\n", NULLED},
		{"HTTP/1.1 2 OK\r\n", NULLED},
		{"HTTP/1.1 abc OK\r\n", NULLED},
		{"HTTP/1.1 OK\r\n", NULLED},
		{"HTTP/1.1\r\n", NULLED},
		{"HTTP/\r\n", NULLED},
		{"HTTP", NULLED},
		{"200 OK\r\n", NULLED},
		{"220 mail.example ESMTP\r\n", NULLED},
		{"ICY 200 OK\r\n", NULLED},
		{"RTSP/1.0 200 OK\r\n", NULLED},
		{"SSH-2.0-OpenSSH\r\n", NULLED},
		{"HTTP/1.1 200 \xff\xfe\xc3\r\n", USUAL},
		{"HTTP/1.1 200 OK\x01\x7f\x1b[2J\r\n", EITHER},
		{"HTTP/1.1 200 OK\r\nHTTP/1.1 404 Not Found\r\n", EITHER},
		{"HTTP/1.1 2 0 0 OK\r\n", NULLED},
		{"HTTP/1.1 2e2 OK\r\n", NULLED},
		{"HTTP/1.1 0xC8 OK\r\n", NULLED},
	};
	const Variant *line;

	answer->status = 200;
	line = CHOOSE(answer, lines);
	buf_text(&answer->bytes, line->text);
	finish_head(answer);
	body(answer);
	answer->end = END_NOTIFY;
	answer->whole = true;
}

/* A status that is none: no usable answer. */
static void
odd_status(Answer *answer)
{
	static const int statuses[] = {0, 1, 7, 20, 99, 600, 700, 777, 999};

	answer->status = statuses[random_below(&answer->random, lengthof(statuses))];
	buf_print(&answer->bytes, "HTTP/1.1 %03d What\r\n", answer->status);
	finish_head(answer);
	body(answer);
	answer->end = END_NOTIFY;
	expect_null(answer);
	if (answer->status >= 600)
		expect_usual(answer);
}

static void
long_reason(Answer *answer)
{
	uint32_t	length = random_below(&answer->random, 30000);

	buf_print(&answer->bytes, "HTTP/1.1 %d ", answer->status);
	buf_fill(&answer->bytes, 'r', length);
	buf_text(&answer->bytes, "\r\n");
	finish_head(answer);
	body(answer);
	expect_usual(answer);
}

static void
body_alone(Answer *answer)
{
	body(answer);
	if (answer->bytes.length == 0)
		buf_text(&answer->bytes, " ");
	answer->end = END_NOTIFY;
	answer->whole = true;
	expect_null(answer);
}

static void
garbage(Answer *answer)
{
	buf_fill(&answer->bytes, '\x05', 1);
	for (uint32_t i = random_below(&answer->random, 5000); i > 0; i--)
		buf_fill(&answer->bytes, (char) random_below(&answer->random, 256), 1);
	answer->end = random_below(&answer->random, 2) ? END_FIN : END_NOTIFY;
	answer->whole = true;
	expect_null(answer);
}

/* ---- headers ---- */

static void
odd_header(Answer *answer)
{
	static const Variant headers[] = {
		{"X: a\r\n folded\r\n", EITHER},
		{"X: a\r\n\tfolded\r\n \t folded\r\n", EITHER},
		{"X:\r\n \r\n \r\n", EITHER},
		{"no colon\r\n", EITHER},
		{": no name\r\n", EITHER},
		{":\r\n", EITHER},
		{"X : blank before the colon\r\n", EITHER},
		{"X: \x01\x02\x7f\r\n", EITHER},
		{"X: \xff\xfe\r\n", EITHER},
		{"\xff\xfe: x\r\n", EITHER},
		{"X: line feed only\n", EITHER},
		{"X: carriage return only\rY: z\r\n", EITHER},
		{"X: y\r\r\n", EITHER},
		{"Content-Length\r\n", EITHER},
		{"Transfer-Encoding: identity\r\n", EITHER},
		{"Connection: close, keep-alive, upgrade\r\n", EITHER},
		{"Location: \r\n folded\r\n", EITHER},
		{"Content-Encoding: \r\n gzip\r\n", EITHER},
	};
	const Variant *header = CHOOSE(answer, headers);

	answer_with(answer, header->text);
	answer->end = END_NOTIFY;
	/* libcurl 7.88 then takes no notice of the length. */
	if (strncmp(header->text, "Transfer", 8) == 0)
		answer->head_end = answer->bytes.length - answer->body.bytes.length;
}

static void
nul_in_header(Answer *answer)
{
	status_line(answer);
	buf_add(&answer->bytes, "X: a\0b\r\n", 8);
	finish_head(answer);
	body(answer);
	answer->end = END_NOTIFY;
	expect(answer, EITHER);
}

/* A header, or all of them together, over the limit of 32 kB. */
static void
large_headers(Answer *answer)
{
	uint32_t	length = 110000 + random_below(&answer->random, 200000);
	bool		one = random_below(&answer->random, 2) == 0;

	status_line(answer);
	if (one)
		buf_text(&answer->bytes, "X: ");
	while (answer->bytes.length < length)
		buf_text(&answer->bytes, one ? "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" : "X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n");
	if (one)
		buf_text(&answer->bytes, "\r\n");
	finish_head(answer);
	body(answer);
	expect_null(answer);
}

/* ---- lengths ---- */

/* What is too much comes at once, or it would be there for the request after it. */
static void
at_once(Answer *answer)
{
	answer->at_once = true;
	answer->end = END_NOTIFY;
	answer->whole = true;
	if (answer->body.bytes.length <= 2000)
		return;
	answer->body.bytes.length = 2000;
	answer->body.says = SAYS_EITHER;
	answer->body.has = HAS_PERHAPS;
	strcpy(answer->body.errors, "\\[.*\\]");
}

static void
odd_length(Answer *answer)
{
	static const Variant lengths[] = {
		{"-1", NULLED}, {"-5", NULLED}, {"abc", NULLED}, {"99999999999999999999999", ANYTHING}, {"9223372036854775807", NULLED},
		{"9223372036854775808", ANYTHING}, {"18446744073709551617", ANYTHING}, {"0x10", ANYTHING}, {"", ANYTHING}, {"1000000", NULLED},
		{"+5", ANYTHING}, {"1,1", ANYTHING}, {"7, 8", ANYTHING}, {"1e3", ANYTHING}, {"5 5", ANYTHING}, {"\x01", NULLED}
	};
	const Variant *length;

	at_once(answer);
	length = CHOOSE(answer, lengths);
	status_line(answer);
	buf_print(&answer->bytes, "Content-Length: %s\r\n\r\n", length->text);
	body(answer);
}

static void
longer_than_it_is(Answer *answer)
{
	static const End ends[] = {END_FIN, END_NOTIFY, END_RST, END_NOTIFY};

	status_line(answer);
	buf_print(&answer->bytes, "Content-Length: %zu\r\n\r\n", answer->body.bytes.length + 1 + random_below(&answer->random, 1000));
	body(answer);
	answer->end = ends[random_below(&answer->random, lengthof(ends))];
	expect_null(answer);
}

/* What comes behind the length must not be taken for a part, nor for another answer. */
static void
shorter_than_it_is(Answer *answer)
{
	size_t		whole;
	size_t		length;

	at_once(answer);
	whole = answer->body.json_end > 0 && answer->body.json_end < 2000 ? answer->body.json_end : answer->body.bytes.length;
	length = random_below(&answer->random, (uint32_t) (whole > 0 ? whole : 1));
	status_line(answer);
	buf_print(&answer->bytes, "Content-Length: %zu\r\n\r\n", length);
	body(answer);
	answer->body.bytes.length = answer->body.bytes.length > length ? length : answer->body.bytes.length;
	expect_part(answer);
	expect_null(answer);
}

static void
two_lengths(Answer *answer)
{
	size_t		length = answer->body.bytes.length;
	bool		same = random_below(&answer->random, 2) == 0;

	status_line(answer);
	buf_print(&answer->bytes, "Content-Length: %zu\r\nContent-Length: %zu\r\n\r\n", length, same ? length : length + 1);
	body(answer);
	answer->end = END_NOTIFY;
	answer->whole = true;
	expect(answer, EITHER);
}

static void
length_and_chunks(Answer *answer)
{
	bool		chunked_first = random_below(&answer->random, 2) == 0;

	at_once(answer);
	status_line(answer);
	if (chunked_first)
		buf_text(&answer->bytes, "Transfer-Encoding: chunked\r\n");
	buf_print(&answer->bytes, "Content-Length: %u\r\n", random_below(&answer->random, 100));
	if (!chunked_first)
		buf_text(&answer->bytes, "Transfer-Encoding: chunked\r\n");
	buf_text(&answer->bytes, "\r\n");
	chunks(answer, "");
	buf_text(&answer->bytes, "0\r\n\r\n");
	expect(answer, EITHER);
}

static void
odd_coding(Answer *answer)
{
	static const Variant codings[] = {
		{"gzip", ANYTHING}, {"gzip, chunked", ANYTHING}, {"chunked, gzip", ANYTHING}, {"chunked, chunked", ANYTHING}, {"xchunked", ANYTHING}, {"deflate", ANYTHING},
		{"chunked;q=1", ANYTHING}, {" chunked", ANYTHING}, {"CHUNKED", ANYTHING}, {"", ANYTHING}, {"identity, chunked", ANYTHING}, {"\x01", ANYTHING}
	};
	const Variant *coding = CHOOSE(answer, codings);

	status_line(answer);
	buf_print(&answer->bytes, "Transfer-Encoding: %s\r\n\r\n", coding->text);
	chunks(answer, "");
	buf_text(&answer->bytes, "0\r\n\r\n");
	answer->end = END_NOTIFY;
	answer->whole = true;
}

/* ---- chunks ---- */

static void
odd_chunk(Answer *answer)
{
	static const Variant sizes[] = {
		{"xyz\r\n", NULLED}, {"-5\r\n", NULLED}, {"FFFFFFFFFFFFFFFFF\r\n", NULLED}, {"7fffffffffffffff\r\n", NULLED}, {"ffffffffffffffff\r\n", NULLED},
		{"\r\n", NULLED}, {" 5\r\n", NULLED}, {"0x5\r\n", ANYTHING}, {"5", NULLED}, {"100000\r\n", NULLED}, {";ext\r\n", NULLED},
		{"10000000000000000000000000000000000000\r\n", NULLED}, {"5\r", NULLED}
	};
	const Variant *size = CHOOSE(answer, sizes);

	chunked_head(answer);
	buf_text(&answer->bytes, size->text);
	body(answer);
	answer->end = END_NOTIFY;
	answer->whole = true;
}

static void
sloppy_chunks(Answer *answer)
{
	static const Variant breaks[] = {{"\n", EITHER}, {"\r\r\n", EITHER}, {"", NULLED}, {"x\r\n", NULLED}, {"\r", NULLED}, {" \r\n", EITHER}};
	const Variant *line_break;

	if (answer->body.bytes.length == 0)
		buf_text(&answer->body.bytes, " ");
	line_break = CHOOSE(answer, breaks);
	chunked_head(answer);
	buf_print(&answer->bytes, "%zx\r\n", answer->body.bytes.length);
	body(answer);
	buf_print(&answer->bytes, "%s0\r\n\r\n", line_break->text);
	answer->end = END_NOTIFY;
	answer->whole = true;
}

static void
no_last_chunk(Answer *answer)
{
	static const Variant ends[] = {{"", NULLED}, {"0", NULLED}, {"0\r\n", NULLED}, {"0\r\nX: y\r\n", NULLED}, {"5\r\nabc", NULLED}};
	const Variant *end = CHOOSE(answer, ends);

	chunked_head(answer);
	chunks(answer, "");
	buf_text(&answer->bytes, end->text);
	answer->end = random_below(&answer->random, 2) ? END_NOTIFY : END_FIN;
}

static void
long_extension(Answer *answer)
{
	chunked_head(answer);
	if (answer->body.bytes.length > 0)
	{
		buf_print(&answer->bytes, "%zx;", answer->body.bytes.length);
		buf_fill(&answer->bytes, 'e', random_below(&answer->random, 30000));
		buf_text(&answer->bytes, "\r\n");
		body(answer);
		buf_text(&answer->bytes, "\r\n");
	}
	buf_text(&answer->bytes, "0\r\n\r\n");
	expect(answer, EITHER);
}

static void
odd_trailers(Answer *answer)
{
	static const Variant trailers[] = {
		{"HTTP/1.1 200 OK\r\n", EITHER}, {"no colon\r\n", EITHER}, {" folded\r\n", EITHER}, {"X: y\r\n folded\r\n", EITHER}, {": no name\r\n", EITHER},
		{"X: y\n", EITHER}, {"X: \x01\xff\r\n", EITHER}, {"Transfer-Encoding: chunked\r\n", EITHER}, {"X: y\r\r\n", EITHER}
	};
	const Variant *trailer = CHOOSE(answer, trailers);

	chunked_head(answer);
	chunks(answer, "");
	buf_print(&answer->bytes, "0\r\n%s\r\n", trailer->text);
	answer->end = END_NOTIFY;
}

static void
large_trailers(Answer *answer)
{
	chunked_head(answer);
	chunks(answer, "");
	buf_text(&answer->bytes, "0\r\n");
	while (answer->bytes.length < 2 * LARGE + answer->body.bytes.length)
		buf_text(&answer->bytes, "X-Trailer: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n");
	buf_text(&answer->bytes, "\r\n");
	expect_null(answer);
}

/* ---- ends and other protocols ---- */

static void
switching(Answer *answer)
{
	buf_text(&answer->bytes, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
	if (random_below(&answer->random, 2))
		plain(answer);
	answer->outcome_count = 0;
	answer->end = END_NOTIFY;
	answer->whole = true;
	if (answer->bytes.length > 100)
		expect_usual(answer);
	expect_null(answer);
	/* Not a final one, but the connection's last. */
	answer->status = 101;
	expect_no_sense(answer);
}

static void
interim_alone(Answer *answer)
{
	for (uint32_t i = 1 + random_below(&answer->random, 5); i > 0; i--)
		buf_text(&answer->bytes, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
	answer->end = random_below(&answer->random, 2) ? END_NOTIFY : END_RST;
	expect_null(answer);
}

/* A second answer that nobody asked for, in the same write as the first. */
static void
two_answers(Answer *answer)
{
	plain(answer);
	if (answer->bytes.length > LARGE / 2)
		return;					/* would not fit into one packet */
	answer->stray_at = answer->bytes.length - random_below(&answer->random, 2);
	buf_text(&answer->bytes, "HTTP/1.1 200 OK\r\nContent-Length: 41\r\n\r\n{\"success\":false,\"errors\":[\"for nobody\"]}");
	answer->variant = answer->bytes.data[answer->stray_at] == 'H' ? "in a record of its own" : "in a record that begins with the answer's last byte";
	answer->whole = true;
}

static void
http2_frames(Answer *answer)
{
	static const char frames[] = "\0\0\0\4\0\0\0\0\0" "\0\0\1\1\5\0\0\0\1\x88";

	buf_add(&answer->bytes, frames, sizeof(frames) - 1);
	answer->end = END_NOTIFY;
	answer->whole = true;
	expect_null(answer);
}

/* ---- TLS; nothing to see over plain TCP ---- */

static void
key_updates(Answer *answer)
{
	plain(answer);
	answer->records = RECORDS_KEY_UPDATES;
	answer->record_count = 1 + (int) random_below(&answer->random, 8);
}

static void
tickets(Answer *answer)
{
	plain(answer);
	answer->records = RECORDS_TICKETS;
	answer->record_count = 1 + (int) random_below(&answer->random, 8);
}

static void
tls_garbage(Answer *answer)
{
	answer->records = RECORDS_GARBAGE;
	answer->record_count = 1;
	answer->end = END_FIN;
	answer->whole = true;
	expect_null(answer);
}

/* ---- floods: each ends by itself after some seconds ---- */

static void
flood_headers(Answer *answer)
{
	status_line(answer);
	buf_text(&answer->unit, "X-Header: more\r\n");
}

static void
flood_header(Answer *answer)
{
	status_line(answer);
	buf_text(&answer->bytes, "X-Header: ");
	buf_fill(&answer->unit, 'x', 1000);
}

static void
flood_reason(Answer *answer)
{
	buf_text(&answer->bytes, "HTTP/1.1 200 ");
	buf_fill(&answer->unit, 'x', 1000);
}

static void
flood_status(Answer *answer)
{
	buf_text(&answer->bytes, "HTTP/1.1 ");
	buf_fill(&answer->unit, '2', 1000);
}

static void
flood_blank_lines(Answer *answer)
{
	buf_text(&answer->unit, "\r\n");
}

static void
flood_interim(Answer *answer)
{
	buf_text(&answer->unit, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
}

static void
flood_body(Answer *answer)
{
	status_line(answer);
	buf_text(&answer->bytes, "Content-Length: 999999999999\r\n\r\n");
	buf_fill(&answer->unit, ' ', 1000);
}

static void
flood_body_without_length(Answer *answer)
{
	status_line(answer);
	buf_text(&answer->bytes, "\r\n");
	buf_fill(&answer->unit, '[', 1000);
}

static void
flood_chunks(Answer *answer)
{
	chunked_head(answer);
	buf_text(&answer->unit, "1\r\n \r\n");
}

static void
flood_extension(Answer *answer)
{
	chunked_head(answer);
	buf_text(&answer->bytes, "1;");
	buf_fill(&answer->unit, 'e', 1000);
}

static void
flood_trailers(Answer *answer)
{
	chunked_head(answer);
	chunks(answer, "");
	buf_text(&answer->bytes, "0\r\n");
	buf_text(&answer->unit, "X: y\r\n");
}

static void
flood_folded(Answer *answer)
{
	status_line(answer);
	buf_text(&answer->bytes, "X: y\r\n");
	buf_text(&answer->unit, " folded\r\n");
}

/* The length is behind it: what follows is never read, unless somebody does. */
static void
flood_behind(Answer *answer)
{
	status_line(answer);
	buf_text(&answer->bytes, "Content-Length: 100000\r\n\r\n");
	buf_text(&answer->unit, "HTTP/1.1 200 OK\r\n\r\n");
}

static void
flood_garbage(Answer *answer)
{
	buf_text(&answer->unit, "\x05\x00\xff garbage");
}

static void
flood_key_updates(Answer *answer)
{
	flood_headers(answer);		/* where there is no TLS 1.3 */
	answer->records = RECORDS_KEY_UPDATES;
}

static void
flood_tickets(Answer *answer)
{
	flood_headers(answer);
	answer->records = RECORDS_TICKETS;
}

const Kind	h1_kinds[] = {
	{"plain", plain, MIXED, "a sound answer with its length"},
	{"chunked", chunked, MIXED, "sound chunks, with extensions and trailers"},
	{"until_close", until_close, MIXED, "a sound answer that the connection's end ends"},
	{"interim", interim, MIXED, "1xx answers before it"},
	{"many_headers", many_headers, MIXED, "up to 400 headers"},
	{"asking_headers", asking_headers, MIXED, "a header that asks for something"},
	{"retry_after", retry_after, MIXED, "Retry-After"},
	{"redirect", redirect, MIXED, "a redirect"},
	{"bodyless_status", bodyless_status, MIXED, "204 or 304"},
	{"no_body", no_body, MIXED, "no body at all"},
	{"odd_status_line", odd_status_line, MIXED, "an odd status line"},
	{"odd_status", odd_status, MIXED, "a status that is none"},
	{"long_reason", long_reason, MIXED, "a reason of up to 30 kB"},
	{"body_alone", body_alone, MIXED, "a body without status line and headers"},
	{"garbage", garbage, MIXED, "random bytes"},
	{"odd_header", odd_header, MIXED, "an odd header"},
	{"nul_in_header", nul_in_header, MIXED, "a NUL byte in a header"},
	{"large_headers", large_headers, MIXED, "headers of over 100 kB"},
	{"odd_length", odd_length, MIXED, "Content-Length"},
	{"longer_than_it_is", longer_than_it_is, MIXED, "a length that never comes"},
	{"shorter_than_it_is", shorter_than_it_is, MIXED, "a length that cuts the body"},
	{"two_lengths", two_lengths, MIXED, "two lengths"},
	{"length_and_chunks", length_and_chunks, MIXED, "a length and chunks"},
	{"odd_coding", odd_coding, MIXED, "Transfer-Encoding"},
	{"odd_chunk", odd_chunk, MIXED, "a chunk's size"},
	{"sloppy_chunks", sloppy_chunks, MIXED, "what follows a chunk"},
	{"no_last_chunk", no_last_chunk, MIXED, "chunks that break off with"},
	{"long_extension", long_extension, MIXED, "a chunk extension of up to 30 kB"},
	{"odd_trailers", odd_trailers, MIXED, "a trailer"},
	{"large_trailers", large_trailers, MIXED, "trailers of over 32 kB"},
	{"switching", switching, MIXED, "101, perhaps with an answer behind it"},
	{"interim_alone", interim_alone, MIXED, "1xx answers and then nothing"},
	{"two_answers", two_answers, APART, "another answer behind it"},
	{"http2_frames", http2_frames, MIXED, "HTTP/2 frames over HTTP/1.1"},
	{"key_updates", key_updates, MIXED, "some TLS KeyUpdates before it"},
	{"tickets", tickets, MIXED, "some TLS session tickets before it"},
	{"tls_garbage", tls_garbage, MIXED, "a TLS record that is not encrypted"},
	{"flood_headers", flood_headers, FLOOD, "headers without end"},
	{"flood_header", flood_header, FLOOD, "a header without end"},
	{"flood_reason", flood_reason, FLOOD, "a reason without end"},
	{"flood_status", flood_status, FLOOD, "a status without end"},
	{"flood_blank_lines", flood_blank_lines, FLOOD, "blank lines before the status line"},
	{"flood_interim", flood_interim, FLOOD, "1xx answers without end"},
	{"flood_body", flood_body, FLOOD, "a body without end"},
	{"flood_body_without_length", flood_body_without_length, FLOOD, "a body without end and length"},
	{"flood_chunks", flood_chunks, FLOOD, "chunks of one byte without end"},
	{"flood_extension", flood_extension, FLOOD, "a chunk extension without end"},
	{"flood_trailers", flood_trailers, FLOOD, "trailers without end"},
	{"flood_folded", flood_folded, FLOOD, "lines that go on with a header, without end"},
	{"flood_behind", flood_behind, FLOOD, "a length, and more than that"},
	{"flood_garbage", flood_garbage, FLOOD, "garbage without end"},
	{"flood_key_updates", flood_key_updates, FLOOD, "TLS KeyUpdates without end"},
	{"flood_tickets", flood_tickets, FLOOD, "TLS session tickets without end"},
	{NULL, NULL, MIXED, NULL}
};
