/*
 * h2.c
 *		Answers over HTTP/2: frames made by hand.
 *
 * What concerns the whole connection sets answer->breaks: then the streams
 * beside this one have an answer of their own or none.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "h2.h"

#define USUAL		EXPECT_USUAL
#define NULLED		EXPECT_NULL
#define EITHER		(EXPECT_USUAL | EXPECT_NULL)
#define ANYTHING	(EXPECT_USUAL | EXPECT_NULL | EXPECT_NO_SENSE)

void
h2_frame(Buf *buf, int type, int flags, uint32_t stream, const void *payload, size_t length)
{
	uint8_t		head[9] = {
		(uint8_t) (length >> 16), (uint8_t) (length >> 8), (uint8_t) length, (uint8_t) type, (uint8_t) flags,
		(uint8_t) (stream >> 24), (uint8_t) (stream >> 16), (uint8_t) (stream >> 8), (uint8_t) stream
	};

	buf_add(buf, head, sizeof(head));
	buf_add(buf, payload, length);
}

static void
frame_with_numbers(Buf *buf, int type, int flags, uint32_t stream, int count, uint32_t first, uint32_t second)
{
	uint8_t		payload[8];

	for (int i = 0; i < 4; i++)
	{
		payload[i] = (uint8_t) (first >> (24 - 8 * i));
		payload[4 + i] = (uint8_t) (second >> (24 - 8 * i));
	}
	h2_frame(buf, type, flags, stream, payload, 4 * (size_t) count);
}

static void
setting(Buf *buf, int which, uint32_t value)
{
	uint8_t		payload[6] = {0, (uint8_t) which, (uint8_t) (value >> 24), (uint8_t) (value >> 16), (uint8_t) (value >> 8), (uint8_t) value};

	h2_frame(buf, SETTINGS, 0, 0, payload, sizeof(payload));
}

static void
goaway(Buf *buf, uint32_t last, uint32_t code)
{
	frame_with_numbers(buf, GOAWAY, 0, 0, 2, last, code);
}

static void
rst_stream(Buf *buf, uint32_t stream, uint32_t code)
{
	frame_with_numbers(buf, RST_STREAM, 0, stream, 1, code, 0);
}

/* ---- header blocks ---- */

/* A literal that no table takes. */
static void
field(Buf *block, const char *name, const char *value)
{
	buf_fill(block, 0, 1);
	hpack_integer(block, 0, 7, strlen(name));
	buf_text(block, name);
	hpack_integer(block, 0, 7, strlen(value));
	buf_text(block, value);
}

static void
status_text(Buf *block, const char *status)
{
	hpack_integer(block, 0, 4, 8);
	hpack_integer(block, 0, 7, strlen(status));
	buf_text(block, status);
}

/* :status in one of the ways in which it can be said */
static void
status_field(Answer *answer, Buf *block, int status)
{
	char		text[16];

	snprintf(text, sizeof(text), "%03d", status);
	switch (random_below(&answer->random, 4))
	{
		case 0:
			field(block, ":status", text);
			break;
		case 1:
			hpack_integer(block, 0x40, 6, 8);	/* into the dynamic table */
			hpack_huffman(block, text);
			break;
		case 2:
			if (status == 200)
			{
				hpack_integer(block, 0x80, 7, 8);
				break;
			}
			/* fall through */
		default:
			status_text(block, text);
	}
}

/* True: the body's length is among them. */
static bool
sound_block(Answer *answer, Buf *block)
{
	bool		has_length = random_below(&answer->random, 2) == 0;
	char		length[24];

	status_field(answer, block, answer->status);
	field(block, "content-type", "application/json");
	snprintf(length, sizeof(length), "%zu", answer->body.bytes.length);
	if (has_length)
		field(block, "content-length", length);
	return has_length;
}

static void
headers_frame(Answer *answer, const Buf *block, int flags)
{
	h2_frame(&answer->bytes, HEADERS, flags, answer->stream, block->data, block->length);
}

/* ---- parts of an answer ---- */

static bool
headers(Answer *answer, int flags)
{
	Buf			block = {0};
	bool		has_length = sound_block(answer, &block);

	headers_frame(answer, &block, flags);
	free(block.data);
	return has_length;
}

/* All of the body in frames of up to 16 kB; END_STREAM with the last one if asked for. */
static void
data(Answer *answer, bool end_stream)
{
	const char *at = answer->body.bytes.data;
	size_t		left = answer->body.bytes.length;

	do
	{
		size_t		length = left < 16384 ? left : 16384;

		left -= length;
		h2_frame(&answer->bytes, DATA, end_stream && left == 0 ? END_STREAM : 0, answer->stream, at, length);
		at += length;
	} while (left > 0);
}

static void
complete(Answer *answer)
{
	headers(answer, END_HEADERS);
	data(answer, true);
	answer->complete_at = answer->bytes.length;
}

/* An answer after these bytes, in one go with them. */
static void
complete_after(Answer *answer, const Buf *before)
{
	buf_add(&answer->bytes, before->data, before->length);
	complete(answer);
}

static void
no_body_left(Answer *answer)
{
	answer->body.bytes.length = 0;
	answer->body.has = HAS_NONE;
	answer->body.says = SAYS_NEITHER;
}

/* ---- sound answers ---- */

static void
plain(Answer *answer)
{
	complete(answer);
	expect_usual(answer);
}

static void
headers_alone(Answer *answer)
{
	no_body_left(answer);
	headers(answer, END_HEADERS | END_STREAM);
	expect_usual(answer);
}

/* DATA of any size, some of it empty or padded */
static void
odd_data(Answer *answer)
{
	const char *at = answer->body.bytes.data;
	size_t		left = answer->body.bytes.length;

	headers(answer, END_HEADERS);
	for (int i = 0; left > 0; i++)
	{
		size_t		most = left < 200 ? 20 : 5000;
		uint32_t	length = random_below(&answer->random, (uint32_t) (left < most ? left + 1 : most));
		uint32_t	padding = random_below(&answer->random, 3) == 0 ? random_below(&answer->random, 256) : 0;
		Buf			payload = {0};

		if (i > 20)
			length = left < 16000 ? (uint32_t) left : 16000;
		if (padding > 0)
			buf_fill(&payload, (char) padding, 1);
		buf_add(&payload, at, length);
		buf_fill(&payload, 0, padding);
		h2_frame(&answer->bytes, DATA, padding > 0 ? PADDED : 0, answer->stream, payload.data, payload.length);
		free(payload.data);
		at += length;
		left -= length;
		/* Where only padding or END_STREAM is missing, the whole body has come. */
		if (length > 0)
			answer->complete_at = answer->bytes.length - padding;
	}
	h2_frame(&answer->bytes, DATA, END_STREAM, answer->stream, "", 0);
	expect_usual(answer);
}

/* HEADERS padded, with a priority, and split into CONTINUATION at every byte */
static void
odd_headers(Answer *answer)
{
	Buf			block = {0};
	Buf			payload = {0};
	int			flags = 0;
	uint32_t	padding = random_below(&answer->random, 2) ? random_below(&answer->random, 256) : 0;
	bool		split = random_below(&answer->random, 3) > 0;
	bool		bytewise = random_below(&answer->random, 4) == 0;
	uint32_t	first;

	sound_block(answer, &block);
	first = split ? random_below(&answer->random, (uint32_t) block.length + 1) : (uint32_t) block.length;
	if (padding > 0)
	{
		flags |= PADDED;
		buf_fill(&payload, (char) padding, 1);
	}
	if (random_below(&answer->random, 2))
	{
		flags |= PRIORITIZED;
		buf_add(&payload, "\x80\0\0\0\x10", 5);
	}
	buf_add(&payload, block.data, first);
	buf_fill(&payload, 0, padding);
	h2_frame(&answer->bytes, HEADERS, flags | (split ? 0 : END_HEADERS), answer->stream, payload.data, payload.length);
	for (int i = 0; split && bytewise && i < 5 && first + 1 < block.length; i++, first++)
		h2_frame(&answer->bytes, CONTINUATION, 0, answer->stream, block.data + first, 1);
	if (split)
		h2_frame(&answer->bytes, CONTINUATION, END_HEADERS, answer->stream, block.data + first, block.length - first);
	free(block.data);
	free(payload.data);
	data(answer, true);
	expect_usual(answer);
	/* Debian's nghttp2 1.52 takes each piece that it reads of a CONTINUATION for one more, and allows eight. */
	if (split)
		expect_null(answer);
}

static void
many_headers(Answer *answer)
{
	Buf			block = {0};
	uint32_t	count = random_below(&answer->random, 150);
	char		name[32];

	sound_block(answer, &block);
	for (uint32_t i = 0; i < count; i++)
	{
		snprintf(name, sizeof(name), "x-header-%u", i);
		if (random_below(&answer->random, 2))
			field(&block, name, "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy");
		else
		{
			hpack_integer(&block, 0x40, 6, 0);
			hpack_huffman(&block, name);
			hpack_huffman(&block, "Huffman, and into the dynamic table");
		}
	}
	headers_frame(answer, &block, END_HEADERS);
	free(block.data);
	data(answer, true);
	expect_usual(answer);
}

static void
interim(Answer *answer)
{
	static const char *const statuses[] = {"100", "103", "102", "199"};

	for (uint32_t i = 1 + random_below(&answer->random, 10); i > 0; i--)
	{
		Buf			block = {0};

		status_text(&block, statuses[random_below(&answer->random, lengthof(statuses))]);
		field(&block, "link", "</x>");
		headers_frame(answer, &block, END_HEADERS);
		free(block.data);
	}
	complete(answer);
	expect_usual(answer);
}

static void
trailers(Answer *answer)
{
	Buf			block = {0};
	bool		has_length = headers(answer, END_HEADERS);

	data(answer, false);
	answer->complete_at = has_length ? answer->bytes.length : 0;
	field(&block, "x-trailer", "yes");
	headers_frame(answer, &block, END_HEADERS | END_STREAM);
	free(block.data);
	expect_usual(answer);
}

/* Frames that mean nothing here, before and within the answer */
static void
frames_between(Answer *answer)
{
	Buf			noise = {0};
	uint32_t	stream = answer->stream;

	switch (random_below(&answer->random, 7))
	{
		case 0:
			answer->variant = "PING";
			h2_frame(&noise, PING, 0, 0, "hostile!", 8);
			break;
		case 1:
			answer->variant = "SETTINGS";
			h2_frame(&noise, SETTINGS, 0, 0, "", 0);
			setting(&noise, 4, 65535);
			break;
		case 2:
			answer->variant = "WINDOW_UPDATE";
			frame_with_numbers(&noise, WINDOW_UPDATE, 0, 0, 1, 1, 0);
			frame_with_numbers(&noise, WINDOW_UPDATE, 0, stream, 1, 1000, 0);
			break;
		case 3:
			answer->variant = "PRIORITY";
			h2_frame(&noise, PRIORITY, 0, stream, "\0\0\0\0\x10", 5);
			h2_frame(&noise, PRIORITY, 0, stream + 100, "\0\0\0\0\x10", 5);
			break;
		case 4:
			answer->variant = "unknown frames";
			h2_frame(&noise, 0x20 + (int) random_below(&answer->random, 200), 0xff, stream, "unknown", 7);
			h2_frame(&noise, 0xfe, 0, 0, "", 0);
			break;
		case 5:
			answer->variant = "ALTSVC and ORIGIN";
			h2_frame(&noise, 0x0a, 0, stream, "\0\0h2=\":1\"", 9);
			h2_frame(&noise, 0x0c, 0, 0, "\0\x10https://a.exampl", 18);
			break;
		default:
			answer->variant = "unknown settings";
			setting(&noise, 0x99, 0xffffffff);
			setting(&noise, 8, 1);
	}
	buf_add(&answer->bytes, noise.data, noise.length);
	headers(answer, END_HEADERS);
	buf_add(&answer->bytes, noise.data, noise.length);
	data(answer, true);
	free(noise.data);
	expect_usual(answer);
}

static void
table_updates(Answer *answer)
{
	Buf			block = {0};

	hpack_integer(&block, 0x20, 5, 0);
	if (random_below(&answer->random, 2))
		hpack_integer(&block, 0x20, 5, random_below(&answer->random, 4097));
	field(&block, ":status", "200");
	answer->status = 200;
	headers_frame(answer, &block, END_HEADERS);
	free(block.data);
	data(answer, true);
	answer->breaks = true;		/* the table is the connection's */
	expect_usual(answer);
}

/* ---- streams that end in other ways ---- */

static void
no_end_stream(Answer *answer)
{
	Buf			block = {0};

	status_field(answer, &block, answer->status);
	headers_frame(answer, &block, END_HEADERS);
	free(block.data);
	if (random_below(&answer->random, 2))
		data(answer, false);
	expect_null(answer);
}

static uint32_t
any_code(Answer *answer)
{
	static const uint32_t codes[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255, 0x7fffffff, 0xffffffff};

	return codes[random_below(&answer->random, lengthof(codes))];
}

static void
rst_before(Answer *answer)
{
	rst_stream(&answer->bytes, answer->stream, any_code(answer));
	expect_null(answer);
}

static void
rst_refused(Answer *answer)
{
	rst_stream(&answer->bytes, answer->stream, 7);
	answer->breaks = true;		/* libcurl leaves the connection */
	expect_null(answer);
}

/* An answer that NO_ERROR cuts short is none; but nobody who has no length can tell. */
static void
rst_amid(Answer *answer)
{
	uint32_t	code = any_code(answer);
	size_t		half;

	headers(answer, END_HEADERS);
	half = random_below(&answer->random, (uint32_t) answer->body.bytes.length + 1);
	if (answer->body.json_end > 0 && half >= answer->body.json_end)
		half = answer->body.json_end - 1;
	half = half < 16384 ? half : 16384;
	h2_frame(&answer->bytes, DATA, 0, answer->stream, answer->body.bytes.data, half);
	rst_stream(&answer->bytes, answer->stream, code);
	expect_null(answer);
	/* While other streams share the connection, libcurl 7.88 may take what has come for the whole. */
	expect_no_sense(answer);
	if (code == 0)
	{
		answer->variant = "NO_ERROR";
		expect_part(answer);
	}
}

static void
rst_instead_of_end(Answer *answer)
{
	uint32_t	code = any_code(answer);
	bool		has_length = headers(answer, END_HEADERS);

	data(answer, false);
	answer->complete_at = has_length ? answer->bytes.length : 0;
	rst_stream(&answer->bytes, answer->stream, code);
	expect_null(answer);
	/* Nothing is missing: the length says so, or whoever has read that much before the end.  Or less: see rst_amid(). */
	expect_usual(answer);
	expect_no_sense(answer);
}

static void
rst_after(Answer *answer)
{
	complete(answer);
	rst_stream(&answer->bytes, answer->stream, any_code(answer));
	expect(answer, EITHER);
}

static void
goaway_before(Answer *answer)
{
	static const uint32_t lasts[] = {0, 1, 0x7fffffff};

	goaway(&answer->bytes, lasts[random_below(&answer->random, lengthof(lasts))], any_code(answer));
	answer->breaks = true;
	if (random_below(&answer->random, 2))
	{
		complete(answer);
		expect(answer, EITHER);
	}
	else
		expect_null(answer);
	answer->end = END_NOTIFY;
}

static void
goaway_amid(Answer *answer)
{
	bool		ours = random_below(&answer->random, 2) == 0;

	headers(answer, END_HEADERS);
	goaway(&answer->bytes, ours ? answer->stream : 0, any_code(answer));
	data(answer, true);
	answer->breaks = true;
	answer->end = END_NOTIFY;
	expect(answer, EITHER);
}

/* As a server does that shuts down: what it has answered counts. */
static void
goaway_after(Answer *answer)
{
	complete(answer);
	goaway(&answer->bytes, answer->stream, 0);
	answer->breaks = true;
	answer->end = END_NOTIFY;
	expect_usual(answer);
}

static void
goaway_before_end(Answer *answer)
{
	headers(answer, END_HEADERS);
	h2_frame(&answer->bytes, DATA, 0, answer->stream, "{\"su", 4);
	goaway(&answer->bytes, answer->stream, 0);
	answer->breaks = true;
	answer->end = random_below(&answer->random, 2) ? END_NOTIFY : END_FIN;
	expect_null(answer);
	/* libcurl may conclude before anybody can see that the connection has ended.  The row is tried again all the same. */
	expect_no_sense(answer);
}

/* ---- frames that must not be ---- */

/* Against the protocol: the connection or the stream ends, and no answer comes of it. */
static void
forbidden_frame(Answer *answer)
{
	static const struct
	{
		const char *words;
		int			type;
		int			flags;
		int			stream;		/* 1: the answer's, 0: none, 2: of another, n: that many later */
		size_t		length;
	}			frames[] = {
		{"DATA on stream 0", DATA, 0, 0, 4}, {"HEADERS on stream 0", HEADERS, END_HEADERS, 0, 1}, {"RST_STREAM on stream 0", RST_STREAM, 0, 0, 4},
		{"RST_STREAM of 3 bytes", RST_STREAM, 0, 1, 3}, {"PING of 7 bytes", PING, 0, 0, 7}, {"PING on a stream", PING, 0, 1, 8},
		{"SETTINGS of 5 bytes", SETTINGS, 0, 0, 5}, {"SETTINGS on a stream", SETTINGS, 0, 1, 0}, {"SETTINGS ack with a payload", SETTINGS, 1, 0, 6},
		{"WINDOW_UPDATE of 3 bytes", WINDOW_UPDATE, 0, 0, 3}, {"GOAWAY of 4 bytes", GOAWAY, 0, 0, 4}, {"GOAWAY on a stream", GOAWAY, 0, 1, 8},
		{"CONTINUATION alone", CONTINUATION, END_HEADERS, 1, 1}, {"PUSH_PROMISE", PUSH_PROMISE, END_HEADERS, 1, 5},
		{"DATA of a stream to come", DATA, 0, 100, 4}, {"RST_STREAM of a stream to come", RST_STREAM, 0, 100, 4},
		{"WINDOW_UPDATE of 0", WINDOW_UPDATE, 0, 0, 4}, {"HEADERS of a stream to come", HEADERS, END_HEADERS, 100, 1},
		{"HEADERS of an even stream", HEADERS, END_HEADERS, 101, 1}, {"DATA of 100 kB", DATA, 0, 1, 100000},
		{"HEADERS of 100 kB", HEADERS, END_HEADERS, 1, 100000}, {"an unknown frame of 100 kB", 0x77, 0, 0, 100000}
	};
	uint32_t	i = random_below(&answer->random, lengthof(frames));
	uint32_t	stream = frames[i].stream <= 1 ? answer->stream * (uint32_t) frames[i].stream : answer->stream + (uint32_t) frames[i].stream;
	char	   *zeros = calloc(1, frames[i].length + 1);

	answer->variant = frames[i].words;
	h2_frame(&answer->bytes, frames[i].type, frames[i].flags, stream, zeros, frames[i].length);
	free(zeros);
	complete(answer);
	answer->breaks = true;
	expect(answer, EITHER);
	answer->end = END_NOTIFY;
	answer->whole = true;
}

static void
data_first(Answer *answer)
{
	data(answer, false);
	complete(answer);
	answer->breaks = true;
	answer->whole = true;
	expect_null(answer);
}

static void
continuation_amiss(Answer *answer)
{
	Buf			block = {0};

	sound_block(answer, &block);
	h2_frame(&answer->bytes, HEADERS, 0, answer->stream, block.data, 1);
	switch (random_below(&answer->random, 4))
	{
		case 0:
			answer->variant = "a PING between";
			h2_frame(&answer->bytes, PING, 0, 0, "hostile!", 8);
			h2_frame(&answer->bytes, CONTINUATION, END_HEADERS, answer->stream, block.data + 1, block.length - 1);
			break;
		case 1:
			answer->variant = "of another stream";
			h2_frame(&answer->bytes, CONTINUATION, END_HEADERS, answer->stream + 2, block.data + 1, block.length - 1);
			break;
		case 2:
			answer->variant = "DATA instead";
			break;
		default:
			answer->variant = "never";
			break;
	}
	if (strcmp(answer->variant, "never") != 0)
		data(answer, true);
	free(block.data);
	answer->breaks = true;
	answer->whole = true;
	answer->end = END_NOTIFY;
	expect_null(answer);
}

static void
bad_padding(Answer *answer)
{
	Buf			block = {0};

	answer->breaks = true;
	answer->whole = true;
	answer->end = END_NOTIFY;
	expect_null(answer);
	if (random_below(&answer->random, 2))
	{
		headers(answer, END_HEADERS);
		h2_frame(&answer->bytes, DATA, PADDED | END_STREAM, answer->stream, "\xff{}", 3);
		return;
	}
	buf_fill(&block, '\xff', 1);
	sound_block(answer, &block);
	headers_frame(answer, &block, PADDED | END_HEADERS);
	free(block.data);
	data(answer, true);
}

static void
window_overflow(Answer *answer)
{
	uint32_t	stream = random_below(&answer->random, 2) ? answer->stream : 0;

	headers(answer, END_HEADERS);
	frame_with_numbers(&answer->bytes, WINDOW_UPDATE, 0, stream, 1, 0x7fffffff, 0);
	frame_with_numbers(&answer->bytes, WINDOW_UPDATE, 0, stream, 1, 0x7fffffff, 0);
	data(answer, true);
	answer->breaks = true;
	answer->whole = true;
	answer->end = END_NOTIFY;
	expect(answer, EITHER);
}

static void
odd_settings(Answer *answer)
{
	static const struct
	{
		const char *words;
		int			which;
		uint32_t	value;
	}			settings[] = {
		{"a header table of 0", 1, 0}, {"a header table of 4 GB", 1, 0xffffffff}, {"push is on", 2, 1}, {"push is 2", 2, 2}, {"no streams", 3, 0},
		{"one stream", 3, 1}, {"a window of 0", 4, 0}, {"a window that is too large", 4, 0xffffffff}, {"frames of 1 byte", 5, 1},
		{"frames of 16 MB", 5, 0xffffff}, {"frames of 4 GB", 5, 0xffffffff}, {"headers of 0 bytes", 6, 0}
	};
	uint32_t	i = random_below(&answer->random, lengthof(settings));

	answer->variant = settings[i].words;
	setting(&answer->bytes, settings[i].which, settings[i].value);
	complete(answer);
	answer->breaks = true;
	answer->end = END_NOTIFY;
	answer->whole = true;
	expect(answer, EITHER);
}

/* ---- header blocks that must not be ---- */

static void
bad_hpack(Answer *answer)
{
	static const struct
	{
		const char *words;
		const char *bytes;
		size_t		length;
	}			blocks[] = {
		{"index 0", "\x88\x80", 2}, {"an index that is not there", "\x88\xff\x50", 3}, {"a literal that ends early", "\x88\x00\x05" "abc", 6},
		{"an integer without end", "\x88\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12}, {"a name index that is not there", "\x88\x7f\x80\x08\x01x", 6},
		{"Huffman's end within a text", "\x88\x00\x84\xff\xff\xff\xff\x01x", 9}, {"Huffman's padding of zeros", "\x88\x00\x81\x00\x01x", 6},
		{"a table that is too large", "\x3f\xff\xff\xff\x07\x88", 6}, {"a table update within", "\x88\x20\x00\x01x\x01y", 7}, {"a text of 4 GB", "\x88\x00\x7f\xff\xff\xff\xff\x0f", 8}
	};
	uint32_t	i = random_below(&answer->random, lengthof(blocks));

	answer->variant = blocks[i].words;
	h2_frame(&answer->bytes, HEADERS, END_HEADERS, answer->stream, blocks[i].bytes, blocks[i].length);
	data(answer, true);
	answer->status = 200;
	answer->breaks = true;
	answer->end = END_NOTIFY;
	answer->whole = true;
	expect_null(answer);
}

static void
odd_status(Answer *answer)
{
	static const struct
	{
		const char *text;
		int			expected;
		int			status;
	}			statuses[] = {
		{"000", NULLED, 0}, {"001", NULLED, 0}, {"099", NULLED, 0}, {"abc", NULLED, 0}, {"", NULLED, 0}, {"20", NULLED, 0}, {"2000", NULLED, 0}, {" 200", NULLED, 0},
		{"200 OK", NULLED, 0}, {"2e2", NULLED, 0}, {"-20", NULLED, 0}, {"+20", NULLED, 0}, {"20\x01", NULLED, 0}, {"600", EITHER, 600}, {"999", EITHER, 999},
		{"0x1", NULLED, 0}, {"20 ", NULLED, 0}, {"\xd9\xa2\xd9\xa0\xd9\xa0", NULLED, 0}
	};
	uint32_t	i = random_below(&answer->random, lengthof(statuses));
	Buf			block = {0};

	answer->variant = statuses[i].text;
	answer->status = statuses[i].status;
	status_text(&block, statuses[i].text);
	headers_frame(answer, &block, END_HEADERS);
	free(block.data);
	data(answer, true);
	expect(answer, statuses[i].expected);
}

/* Pseudo headers and names against the rules; RFC 9113 calls each of them malformed. */
static void
malformed_headers(Answer *answer)
{
	static const struct
	{
		const char *words;
		const char *name;
		const char *value;
		int			expected;
		bool		before;
	}			fields[] = {
		{"a second :status", ":status", "404", EITHER, false}, {":status after a header", "x", "y", NULLED, true}, {"an unknown pseudo header", ":foo", "bar", EITHER, false},
		{"a request's pseudo header", ":path", "/", EITHER, false}, {"upper case", "X-Upper", "y", EITHER, false}, {"an empty name", "", "y", EITHER, false},
		{"connection", "connection", "close", EITHER, false}, {"transfer-encoding", "transfer-encoding", "chunked", EITHER, false}, {"te", "te", "gzip", EITHER, false},
		{"keep-alive", "keep-alive", "timeout=0", EITHER, false}, {"a blank in a name", "x y", "z", EITHER, false}, {"a line break in a value", "x", "y\r\nz: 1", EITHER, false},
		{"a colon in a name", "a:b", "c", EITHER, false}, {"bytes that are no text", "\xff\xfe", "\xff", EITHER, false}, {"blanks around a value", "x", " y ", EITHER, false},
		{"upgrade", "upgrade", "h2c", EITHER, false}, {"a control character", "x", "\x01\x02", EITHER, false}, {"a length that is none", "content-length", "abc", EITHER, false},
		{"a negative length", "content-length", "-1", EITHER, false}, {"a length of 20 digits", "content-length", "99999999999999999999", EITHER, false}
	};
	uint32_t	i = random_below(&answer->random, lengthof(fields));
	Buf			block = {0};

	answer->variant = fields[i].words;
	if (fields[i].before)
		field(&block, fields[i].name, fields[i].value);
	status_field(answer, &block, answer->status);
	if (!fields[i].before)
		field(&block, fields[i].name, fields[i].value);
	headers_frame(answer, &block, END_HEADERS);
	free(block.data);
	data(answer, true);
	expect(answer, fields[i].expected);
}

static void
no_status(Answer *answer)
{
	Buf			block = {0};

	field(&block, "content-type", "application/json");
	headers_frame(answer, &block, END_HEADERS);
	free(block.data);
	data(answer, true);
	expect_null(answer);
}

static void
two_heads(Answer *answer)
{
	headers(answer, END_HEADERS);
	headers(answer, END_HEADERS);
	data(answer, true);
	expect(answer, EITHER);
}

static void
interim_alone(Answer *answer)
{
	Buf			block = {0};
	bool		ends = random_below(&answer->random, 2) == 0;

	answer->variant = ends ? "with END_STREAM" : "and nothing more";
	status_text(&block, "103");
	headers_frame(answer, &block, END_HEADERS | (ends ? END_STREAM : 0));
	free(block.data);
	expect_null(answer);
}

static void
switching(Answer *answer)
{
	Buf			block = {0};

	status_text(&block, "101");
	headers_frame(answer, &block, END_HEADERS);
	free(block.data);
	complete(answer);
	expect(answer, EITHER);
}

static void
odd_trailers(Answer *answer)
{
	Buf			block = {0};
	bool		ends = random_below(&answer->random, 2) == 0;
	bool		has_length;

	has_length = headers(answer, END_HEADERS);
	data(answer, false);
	answer->complete_at = has_length ? answer->bytes.length : 0;
	field(&block, random_below(&answer->random, 2) ? ":status" : "content-length", "404");
	headers_frame(answer, &block, END_HEADERS | (ends ? END_STREAM : 0));
	free(block.data);
	expect(answer, ends || has_length ? EITHER : NULLED);
}

static void
large_headers(Answer *answer)
{
	Buf			block = {0};
	uint32_t	length = 110000 + random_below(&answer->random, 100000);

	status_field(answer, &block, answer->status);
	while (block.length < length)
		field(&block, "x", "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy");
	for (size_t at = 0; at < block.length; at += 16000)
	{
		size_t		left = block.length - at;

		h2_frame(&answer->bytes, at == 0 ? HEADERS : CONTINUATION, left <= 16000 ? END_HEADERS : 0, answer->stream,
				 block.data + at, left < 16000 ? left : 16000);
	}
	free(block.data);
	data(answer, true);
	answer->breaks = true;
	expect_null(answer);
}

static void
length_amiss(Answer *answer)
{
	Buf			block = {0};
	char		length[24];
	size_t		real = answer->body.bytes.length;
	size_t		json = answer->body.json_end > 0 ? answer->body.json_end : real;
	bool		longer = random_below(&answer->random, 2) || real == 0;
	size_t		said = longer ? real + 1 + random_below(&answer->random, 9) : random_below(&answer->random, (uint32_t) json);

	snprintf(length, sizeof(length), "%zu", said);
	status_field(answer, &block, answer->status);
	field(&block, "content-length", length);
	headers_frame(answer, &block, END_HEADERS);
	free(block.data);
	/* Whoever has read that much, behind the frame's head, may think that this was all. */
	if (!longer)
		answer->complete_at = answer->bytes.length + 9 + said;
	data(answer, true);
	expect_null(answer);
	if (!longer)
		expect_part(answer);
}

/* ---- no HTTP/2 ---- */

static void
garbage(Answer *answer)
{
	for (uint32_t i = 20 + random_below(&answer->random, 5000); i > 0; i--)
		buf_fill(&answer->bytes, (char) random_below(&answer->random, 256), 1);
	answer->breaks = true;
	answer->end = END_NOTIFY;
	answer->whole = true;
	expect_null(answer);
}

static void
http1_answer(Answer *answer)
{
	buf_text(&answer->bytes, "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"success\":true}");
	answer->breaks = true;
	answer->end = END_NOTIFY;
	answer->whole = true;
	expect_null(answer);
}

static void
hang(Answer *answer)
{
	answer->whole = true;
	answer->end = random_below(&answer->random, 2) ? END_HANG : END_OWN;
	answer->breaks = answer->end == END_HANG;
	expect_null(answer);
}

/* The answers of others must not suffer from one for a stream that has ended. */
static void
after_the_end(Answer *answer)
{
	Buf			again = {0};

	complete(answer);
	buf_add(&again, answer->bytes.data, answer->bytes.length);
	buf_add(&answer->bytes, again.data, again.length);
	free(again.data);
	answer->breaks = true;
	answer->whole = true;
	answer->end = END_NOTIFY;
	expect(answer, EITHER);
}

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
	answer->breaks = true;
	expect_null(answer);
}

static void
settings_then_answer(Answer *answer)
{
	Buf			acks = {0};

	for (uint32_t i = random_below(&answer->random, 5); i > 0; i--)
		h2_frame(&acks, SETTINGS, 1, 0, "", 0);
	h2_frame(&acks, PING, 1, 0, "hostile!", 8);
	complete_after(answer, &acks);
	free(acks.data);
	answer->breaks = true;
	expect(answer, EITHER);
}

/* ---- floods ---- */

static void
flood_empty_data(Answer *answer)
{
	headers(answer, END_HEADERS);
	h2_frame(&answer->unit, DATA, 0, answer->stream, "", 0);
}

static void
flood_padding(Answer *answer)
{
	char		payload[201] = {(char) 200};

	headers(answer, END_HEADERS);
	h2_frame(&answer->unit, DATA, PADDED, answer->stream, payload, sizeof(payload));
}

static void
flood_body(Answer *answer)
{
	char		blanks[1000];

	headers(answer, END_HEADERS);
	memset(blanks, ' ', sizeof(blanks));
	h2_frame(&answer->unit, DATA, 0, answer->stream, blanks, sizeof(blanks));
}

static void
flood_window_update(Answer *answer)
{
	frame_with_numbers(&answer->unit, WINDOW_UPDATE, 0, answer->stream, 1, 1, 0);
}

static void
flood_connection_window(Answer *answer)
{
	frame_with_numbers(&answer->unit, WINDOW_UPDATE, 0, 0, 1, 1, 0);
}

static void
flood_goaway(Answer *answer)
{
	goaway(&answer->unit, 0x7fffffff, 0);
}

static void
flood_rst_stream(Answer *answer)
{
	rst_stream(&answer->unit, answer->stream, 8);
}

static void
flood_priority(Answer *answer)
{
	h2_frame(&answer->unit, PRIORITY, 0, answer->stream, "\0\0\0\0\x10", 5);
}

static void
flood_ping(Answer *answer)
{
	h2_frame(&answer->unit, PING, 0, 0, "hostile!", 8);
}

static void
flood_ping_ack(Answer *answer)
{
	h2_frame(&answer->unit, PING, 1, 0, "hostile!", 8);
}

static void
flood_settings(Answer *answer)
{
	setting(&answer->unit, 4, 65535);
}

static void
flood_settings_ack(Answer *answer)
{
	h2_frame(&answer->unit, SETTINGS, 1, 0, "", 0);
}

static void
flood_continuation(Answer *answer)
{
	h2_frame(&answer->bytes, HEADERS, 0, answer->stream, "\x88", 1);
	h2_frame(&answer->unit, CONTINUATION, 0, answer->stream, "\0\1x\1y", 5);
}

static void
flood_empty_continuation(Answer *answer)
{
	h2_frame(&answer->bytes, HEADERS, 0, answer->stream, "\x88", 1);
	h2_frame(&answer->unit, CONTINUATION, 0, answer->stream, "", 0);
}

static void
flood_interim(Answer *answer)
{
	Buf			block = {0};

	status_text(&block, "103");
	h2_frame(&answer->unit, HEADERS, END_HEADERS, answer->stream, block.data, block.length);
	free(block.data);
}

static void
flood_unknown(Answer *answer)
{
	h2_frame(&answer->unit, 0x77, 0, 0, "unknown", 7);
}

static void
flood_altsvc(Answer *answer)
{
	h2_frame(&answer->unit, 0x0a, 0, answer->stream, "\0\0h2=\":1\"", 9);
}

static void
flood_push_promise(Answer *answer)
{
	h2_frame(&answer->unit, PUSH_PROMISE, END_HEADERS, answer->stream, "\0\0\0\2\x88", 5);
}

static void
flood_trailers(Answer *answer)
{
	headers(answer, END_HEADERS);
	data(answer, false);
	h2_frame(&answer->unit, HEADERS, END_HEADERS, answer->stream, "\0\1x\1y", 5);
}

static void
flood_key_updates(Answer *answer)
{
	flood_ping_ack(answer);		/* where there is no TLS 1.3 */
	answer->records = RECORDS_KEY_UPDATES;
}

static void
flood_tickets(Answer *answer)
{
	flood_ping_ack(answer);
	answer->records = RECORDS_TICKETS;
}

const Kind	h2_kinds[] = {
	{"plain", plain, MIXED, "a sound answer"},
	{"headers_alone", headers_alone, MIXED, "HEADERS with END_STREAM"},
	{"odd_data", odd_data, MIXED, "DATA of any sizes, padded and empty"},
	{"odd_headers", odd_headers, MIXED, "HEADERS padded, prioritized and continued"},
	{"many_headers", many_headers, MIXED, "up to 150 headers, in both spellings"},
	{"interim", interim, MIXED, "1xx answers before it"},
	{"trailers", trailers, MIXED, "trailers behind it"},
	{"frames_between", frames_between, MIXED, "harmless frames in between"},
	{"table_updates", table_updates, MIXED, "updates of HPACK's table size"},
	{"no_end_stream", no_end_stream, MIXED, "no END_STREAM"},
	{"rst_before", rst_before, MIXED, "RST_STREAM instead of an answer"},
	{"rst_refused", rst_refused, MIXED, "REFUSED_STREAM"},
	{"rst_amid", rst_amid, MIXED, "RST_STREAM within the body"},
	{"rst_instead_of_end", rst_instead_of_end, MIXED, "RST_STREAM in place of END_STREAM"},
	{"rst_after", rst_after, MIXED, "RST_STREAM behind the answer"},
	{"goaway_before", goaway_before, MIXED, "GOAWAY, perhaps with an answer behind it"},
	{"goaway_amid", goaway_amid, MIXED, "GOAWAY between HEADERS and DATA"},
	{"goaway_after", goaway_after, MIXED, "GOAWAY behind the answer"},
	{"goaway_before_end", goaway_before_end, MIXED, "GOAWAY within the body, and the end"},
	{"forbidden_frame", forbidden_frame, MIXED, "a frame that must not be"},
	{"data_first", data_first, MIXED, "DATA before HEADERS"},
	{"continuation_amiss", continuation_amiss, MIXED, "CONTINUATION that should follow"},
	{"bad_padding", bad_padding, MIXED, "more padding than frame"},
	{"window_overflow", window_overflow, MIXED, "WINDOW_UPDATE over the limit"},
	{"odd_settings", odd_settings, MIXED, "settings"},
	{"bad_hpack", bad_hpack, MIXED, "HPACK"},
	{"odd_status", odd_status, MIXED, ":status"},
	{"malformed_headers", malformed_headers, MIXED, "a malformed header"},
	{"no_status", no_status, MIXED, "no :status"},
	{"two_heads", two_heads, MIXED, "HEADERS twice"},
	{"interim_alone", interim_alone, MIXED, "a 1xx answer alone"},
	{"switching", switching, MIXED, "101 before the answer"},
	{"odd_trailers", odd_trailers, MIXED, "trailers that must not be"},
	{"large_headers", large_headers, MIXED, "headers of over 100 kB"},
	{"length_amiss", length_amiss, MIXED, "a length that is not the body's"},
	{"garbage", garbage, MIXED, "random bytes"},
	{"http1_answer", http1_answer, MIXED, "an answer of HTTP/1.1"},
	{"hang", hang, MIXED, "nothing"},
	{"after_the_end", after_the_end, MIXED, "the answer twice"},
	{"settings_then_answer", settings_then_answer, MIXED, "acknowledgements that nobody waits for"},
	{"key_updates", key_updates, MIXED, "some TLS KeyUpdates before it"},
	{"tickets", tickets, MIXED, "some TLS session tickets before it"},
	{"tls_garbage", tls_garbage, MIXED, "a TLS record that is not encrypted"},
	{"flood_empty_data", flood_empty_data, FLOOD, "empty DATA without end"},
	{"flood_padding", flood_padding, FLOOD, "DATA of nothing but padding without end"},
	{"flood_body", flood_body, FLOOD, "a body without end"},
	{"flood_window_update", flood_window_update, FLOOD, "WINDOW_UPDATE of the stream without end"},
	{"flood_connection_window", flood_connection_window, FLOOD, "WINDOW_UPDATE of the connection without end"},
	{"flood_goaway", flood_goaway, FLOOD, "GOAWAY without end"},
	{"flood_rst_stream", flood_rst_stream, FLOOD, "RST_STREAM without end"},
	{"flood_priority", flood_priority, FLOOD, "PRIORITY without end"},
	{"flood_ping", flood_ping, FLOOD, "PING without end"},
	{"flood_ping_ack", flood_ping_ack, FLOOD, "PING acknowledgements without end"},
	{"flood_settings", flood_settings, FLOOD, "SETTINGS without end"},
	{"flood_settings_ack", flood_settings_ack, FLOOD, "SETTINGS acknowledgements without end"},
	{"flood_continuation", flood_continuation, FLOOD, "CONTINUATION without end"},
	{"flood_empty_continuation", flood_empty_continuation, FLOOD, "empty CONTINUATION without end"},
	{"flood_interim", flood_interim, FLOOD, "1xx answers without end"},
	{"flood_unknown", flood_unknown, FLOOD, "unknown frames without end"},
	{"flood_altsvc", flood_altsvc, FLOOD, "ALTSVC without end"},
	{"flood_push_promise", flood_push_promise, FLOOD, "PUSH_PROMISE without end"},
	{"flood_trailers", flood_trailers, FLOOD, "trailers without end"},
	{"flood_key_updates", flood_key_updates, FLOOD, "TLS KeyUpdates without end"},
	{"flood_tickets", flood_tickets, FLOOD, "TLS session tickets without end"},
	{NULL, NULL, MIXED, NULL}
};
