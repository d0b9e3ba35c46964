/*
 * hpack.c
 *		Enough of HPACK (RFC 7541) to read a request and to write an answer.
 */
#include <stdlib.h>
#include <string.h>

#include "hostile.h"

/* The static table's names (appendix A); of its values only what requests need. */
static const char *const static_names[62] = {
	NULL, ":authority", ":method", ":method", ":path", ":path", ":scheme", ":scheme",
	":status", ":status", ":status", ":status", ":status", ":status", ":status",
	"accept-charset", "accept-encoding", "accept-language", "accept-ranges", "accept",
	"access-control-allow-origin", "age", "allow", "authorization", "cache-control",
	"content-disposition", "content-encoding", "content-language", "content-length",
	"content-location", "content-range", "content-type", "cookie", "date", "etag", "expect",
	"expires", "from", "host", "if-match", "if-modified-since", "if-none-match", "if-range",
	"if-unmodified-since", "last-modified", "link", "location", "max-forwards",
	"proxy-authenticate", "proxy-authorization", "range", "referer", "refresh", "retry-after",
	"server", "set-cookie", "strict-transport-security", "transfer-encoding", "user-agent",
	"vary", "via", "www-authenticate"
};

/* The lengths of appendix B's codes: the code is canonical, so that they make it. */
static const uint8_t huffman_bits[257] = {
	13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
	28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
	6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
	5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
	13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
	7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
	15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
	6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
	20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
	24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
	22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
	21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
	26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
	19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
	20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
	26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
	30
};

static uint32_t huffman_codes[257];

static void
make_codes(void)
{
	uint32_t	code = 0;

	for (int bits = 1; bits <= 30; bits++)
	{
		code <<= 1;
		for (int symbol = 0; symbol < 257; symbol++)
			if (huffman_bits[symbol] == bits)
				huffman_codes[symbol] = code++;
	}
}

static int
symbol_of(uint32_t code, int bits)
{
	for (int symbol = 0; symbol < 256; symbol++)
		if (huffman_bits[symbol] == bits && huffman_codes[symbol] == code)
			return symbol;
	return -1;
}

static void
decode_huffman(const uint8_t *bytes, size_t length, Buf *out)
{
	uint32_t	code = 0;
	int			bits = 0;

	for (size_t i = 0; i < 8 * length; i++)
	{
		int			symbol;

		code = code << 1 | (bytes[i / 8] >> (7 - i % 8) & 1);
		if (++bits > 30)
			return;
		symbol = bits >= 5 ? symbol_of(code, bits) : -1;
		if (symbol < 0)
			continue;
		buf_fill(out, (char) symbol, 1);
		code = 0;
		bits = 0;
	}
}

void
hpack_huffman(Buf *buf, const char *text)
{
	Buf			bytes = {0};
	uint64_t	pending = 0;
	int			bits = 0;

	for (; *text != '\0'; text++)
	{
		uint8_t		c = (uint8_t) *text;

		pending = pending << huffman_bits[c] | huffman_codes[c];
		for (bits += huffman_bits[c]; bits >= 8; bits -= 8)
			buf_fill(&bytes, (char) (pending >> (bits - 8)), 1);
	}
	if (bits > 0)
		buf_fill(&bytes, (char) (pending << (8 - bits) | (0xff >> bits)), 1);
	hpack_integer(buf, 0x80, 7, bytes.length);
	buf_add(buf, bytes.data, bytes.length);
	free(bytes.data);
}

void
hpack_integer(Buf *buf, int first, int prefix_bits, uint64_t value)
{
	uint64_t	most = (1u << prefix_bits) - 1;

	if (value < most)
	{
		buf_fill(buf, (char) (first | (int) value), 1);
		return;
	}
	buf_fill(buf, (char) (first | (int) most), 1);
	for (value -= most; value >= 128; value >>= 7)
		buf_fill(buf, (char) (value % 128 + 128), 1);
	buf_fill(buf, (char) value, 1);
}

typedef struct Reader
{
	const uint8_t *at;
	const uint8_t *end;
	bool		bad;
} Reader;

static size_t
read_integer(Reader *reader, int prefix_bits)
{
	size_t		most = (1u << prefix_bits) - 1;
	size_t		value;
	int			shift = 0;

	if (reader->at >= reader->end)
		return reader->bad = true, 0;
	value = *reader->at++ & most;
	if (value < most)
		return value;
	for (;;)
	{
		uint8_t		c;

		if (reader->at >= reader->end || shift > 28)
			return reader->bad = true, 0;
		c = *reader->at++;
		value += (size_t) (c & 127) << shift;
		shift += 7;
		if ((c & 128) == 0)
			return value;
	}
}

static char *
read_string(Reader *reader)
{
	bool		huffman = reader->at < reader->end && (*reader->at & 0x80) != 0;
	size_t		length = read_integer(reader, 7);
	Buf			out = {0};

	if (reader->bad || length > (size_t) (reader->end - reader->at))
		return reader->bad = true, NULL;
	if (huffman)
		decode_huffman(reader->at, length, &out);
	else
		buf_add(&out, reader->at, length);
	buf_fill(&out, '\0', 1);
	reader->at += length;
	return out.data;
}

static void
evict(Hpack *hpack, size_t room)
{
	while (hpack->count > 0 && (hpack->size + room > hpack->limit || hpack->count == lengthof(hpack->entries)))
	{
		HpackField *oldest = &hpack->entries[--hpack->count];

		hpack->size -= strlen(oldest->name) + strlen(oldest->value) + 32;
		free(oldest->name);
		free(oldest->value);
	}
}

static void
remember(Hpack *hpack, const char *name, const char *value)
{
	size_t		size = strlen(name) + strlen(value) + 32;
	HpackField	field = {strdup(name), strdup(value)};

	evict(hpack, size);
	if (size > hpack->limit)
	{
		free(field.name);
		free(field.value);
		return;
	}
	memmove(hpack->entries + 1, hpack->entries, hpack->count * sizeof(HpackField));
	hpack->entries[0] = field;
	hpack->count++;
	hpack->size += size;
}

static const HpackField *
look_up(const Hpack *hpack, size_t index)
{
	static HpackField field;

	if (index == 0 || index > 61 + (size_t) hpack->count)
		return NULL;
	if (index > 61)
		return &hpack->entries[index - 62];
	field.name = (char *) static_names[index];
	field.value = index == 2 ? "GET" : "";
	return &field;
}

/* A literal, whose name may be in a table. */
static bool
read_literal(Hpack *hpack, Reader *reader, int prefix_bits, bool keep,
			 void (*each) (const char *name, const char *value, void *context), void *context)
{
	size_t		index = read_integer(reader, prefix_bits);
	const HpackField *known = index > 0 ? look_up(hpack, index) : NULL;
	char	   *name = known != NULL ? strdup(known->name) : index == 0 ? read_string(reader) : NULL;
	char	   *value = name != NULL ? read_string(reader) : NULL;

	if (value != NULL)
	{
		each(name, value, context);
		if (keep)
			remember(hpack, name, value);
	}
	free(name);
	free(value);
	return value != NULL;
}

void
hpack_init(Hpack *hpack)
{
	memset(hpack, 0, sizeof(*hpack));
	hpack->limit = 4096;
	make_codes();
}

/* False: this is no HPACK, or more than is understood here. */
bool
hpack_decode(Hpack *hpack, const uint8_t *block, size_t length,
			 void (*each) (const char *name, const char *value, void *context), void *context)
{
	Reader		reader = {block, block + length, false};

	while (reader.at < reader.end && !reader.bad)
	{
		uint8_t		first = *reader.at;

		if (first & 0x80)
		{
			const HpackField *field = look_up(hpack, read_integer(&reader, 7));

			if (field == NULL)
				return false;
			each(field->name, field->value, context);
		}
		else if (first & 0x40)
		{
			if (!read_literal(hpack, &reader, 6, true, each, context))
				return false;
		}
		else if (first & 0x20)
		{
			hpack->limit = read_integer(&reader, 5);
			evict(hpack, 0);
		}
		else if (!read_literal(hpack, &reader, 4, false, each, context))
			return false;
	}
	return !reader.bad;
}
