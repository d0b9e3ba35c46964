/*
 * answer.c
 *		Text from outside, made safe and readable.
 *
 * jsonb's input and the conversion to the database's encoding raise errors for
 * some texts.  Catching them would take a subtransaction for each answer, in
 * which lack of memory would leave the session.  So this file changes or refuses
 * a text until nothing else can raise an error.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"

#include "compat.h"
#include "onesignal.h"

/* Enough to read, too little to fill a disk. */
#define LINE_LENGTH_MAX		1024

/* What is shown of a body that is not OneSignal's */
#define EXCERPT_LENGTH_MAX	200

/* jsonb's parser recurses: so many levels fit on the smallest stack that PostgreSQL can be configured to. */
#define JSON_DEPTH_MAX		200

/* jsonb refuses more than 16,383 digits after the decimal point. */
#define JSON_NUMBER_LENGTH_MAX	1000

/* The UTF-16 unit that a \uXXXX escape stands for; -1: no escape. */
static long
escaped_unit(const char *json)
{
	char		digits[5];

	if (json[0] != '\\' || json[1] != 'u' || strspn(json + 2, "0123456789abcdefABCDEF") < 4)
		return -1;
	strlcpy(digits, json + 2, sizeof(digits));
	return strtol(digits, NULL, 16);
}

/* The length of the key at the beginning of a text, with JSON's escapes or without; 0: it is not there. */
static size_t
spelled_key_length(const char *text, const char *key)
{
	const char *begin = text;

	for (; *key != '\0'; key++)
	{
		if (escaped_unit(text) == *key)
			text += strlen("\\u0000");
		else if (text[0] == '\\' && text[1] == *key)
			text += 2;
		else if (text[0] == *key)
			text++;
		else
			return 0;
	}
	return text - begin;
}

/* A debugging proxy, or an error page that shows the request, may send the key back. */
static char *
redact(const char *text, const char *key)
{
	StringInfoData out;
	size_t		key_length = strlen(key);

	initStringInfo(&out);
	while (*text != '\0')
	{
		size_t		length = strncmp(text, key, key_length) == 0 ? key_length : spelled_key_length(text, key);

		if (length > 0)
			appendStringInfoString(&out, "[api key]");
		else
			appendStringInfoChar(&out, *text++);
		text += length;
	}
	return out.data;
}

/* The encoding of the texts that this file makes.  A database with SQL_ASCII takes UTF-8 as it comes. */
static int
text_encoding(void)
{
	return GetDatabaseEncoding() == PG_SQL_ASCII ? PG_UTF8 : GetDatabaseEncoding();
}

static void
append_values(StringInfo out, const char *bytes, int length)
{
	for (int i = 0; i < length; i++)
		appendStringInfo(out, "\\x%02X", (unsigned char) bytes[i]);
}

/* Shows the values of bytes that cannot be converted; in JSON, where a backslash does harm, "?". */
static char *
convert(const char *bytes, bool as_json)
{
	int			encoding = text_encoding();
	Oid			conversion = encoding == PG_UTF8 ? InvalidOid : FindDefaultConversionProc(PG_UTF8, encoding);
	int			size;
	StringInfoData out;

	initStringInfo(&out);
	for (; *bytes != '\0'; bytes += size)
	{
		int			valid = pg_encoding_verifymbchar(PG_UTF8, bytes, strnlen(bytes, MAX_MULTIBYTE_CHAR_LEN));
		char		character[MAX_CONVERSION_GROWTH * MAX_MULTIBYTE_CHAR_LEN + 1];

		size = Max(valid, 1);
		if (valid == 1 || (valid > 1 && encoding == PG_UTF8))
			appendBinaryStringInfo(&out, bytes, size);
		else if (valid > 1 && OidIsValid(conversion) &&
				 pg_do_encoding_conversion_buf(conversion, PG_UTF8, encoding, (unsigned char *) bytes, size,
											   (unsigned char *) character, sizeof(character), true) == size)
			appendStringInfoString(&out, character);
		else if (as_json)
			appendStringInfoChar(&out, '?');
		else
			append_values(&out, bytes, size);
	}
	return out.data;
}

char *
answer_text(const char *bytes)
{
	return convert(bytes, false);
}

/* In UTF-8 and the ISO 8859 encodings 0x80 to 0x9f are control characters too; in others, letters or parts of them. */
static bool
is_control(const char *character, int length)
{
	int			encoding = text_encoding();
	unsigned char last = character[length - 1];

	if (last < 0x80 || last >= 0xa0)
		return last < 0x20 || last == 0x7f;
	if (encoding == PG_UTF8)
		return length == 2 && (unsigned char) character[0] == 0xc2;
	return (encoding >= PG_LATIN1 && encoding <= PG_LATIN10) ||
		(encoding >= PG_ISO_8859_5 && encoding <= PG_ISO_8859_8);
}

char *
answer_line(const char *text, const char *api_key)
{
	StringInfoData out;
	int			length;

	initStringInfo(&out);
	for (const char *in = redact(text, api_key); *in != '\0' && out.len < LINE_LENGTH_MAX; in += length)
	{
		length = strnlen(in, pg_encoding_mblen(text_encoding(), in));
		if (is_control(in, length))
			append_values(&out, in, length);
		else
			appendBinaryStringInfo(&out, in, length);
	}
	out.data[pg_encoding_mbcliplen(text_encoding(), out.data, out.len, LINE_LENGTH_MAX)] = '\0';
	return out.data;
}

char *
answer_excerpt(const char *body, const char *api_key)
{
	/* Redacted before it is cut: half a key is a secret too. */
	char	   *rest = answer_text(redact(body, api_key));
	char	   *word;
	StringInfoData out;

	/* Runs of white space become one blank: an HTML page is mostly that. */
	initStringInfo(&out);
	while (out.len < EXCERPT_LENGTH_MAX && (word = strsep(&rest, " \t\r\n\f\v")) != NULL)
		if (*word != '\0')
			appendStringInfo(&out, "%s%s", out.len > 0 ? " " : "", word);
	out.data[pg_encoding_mbcliplen(text_encoding(), out.data, out.len, EXCERPT_LENGTH_MAX)] = '\0';
	return out.len > 0 ? out.data : "an empty body";
}

/* Writes non-ASCII escapes out; jsonb refuses those of what the encoding lacks, of U+0000, of half a pair. */
static char *
unescape(const char *json)
{
	int			length;
	StringInfoData out;

	initStringInfo(&out);
	for (; *json != '\0'; json += length)
	{
		long		unit = escaped_unit(json);
		unsigned char utf8[MAX_MULTIBYTE_CHAR_LEN + 1] = {0};

		if (unit < 0 || (unit > 0 && unit <= 0x7f))
		{
			/* A backslash belongs to the next character: "\\u0000" is no escape. */
			length = json[0] == '\\' ? strnlen(json, 2) : strcspn(json, "\\");
			appendBinaryStringInfo(&out, json, length);
			continue;
		}
		length = strlen("\\u0000");
		if (is_utf16_surrogate_first(unit) && is_utf16_surrogate_second(escaped_unit(json + length)))
		{
			unit = surrogate_pair_to_codepoint(unit, escaped_unit(json + length));
			length *= 2;
		}
		if (unit == 0 || is_utf16_surrogate_first(unit) || is_utf16_surrogate_second(unit))
			unit = '?';
		appendStringInfoString(&out, (char *) unicode_to_utf8(unit, utf8));
	}
	return out.data;
}

/*
 * Can jsonb hold this unescaped text, and print it in not much more room?  It
 * prints the eight bytes 1e131071 in 131,072, so an exponent has two digits.
 */
static bool
fits_jsonb(const char *text)
{
	int			depth = 0;
	bool		in_string = false;

	for (const char *at = text; *at != '\0'; at++)
	{
		if (*at == '"')
			in_string = !in_string;
		else if (in_string)
			at += at[0] == '\\' && at[1] != '\0' ? 1 : 0;
		else if ((*at == '[' || *at == '{') && ++depth > JSON_DEPTH_MAX)
			return false;
		else if (*at == ']' || *at == '}')
			depth--;
		else if (strchr("-0123456789", *at) != NULL)
		{
			const char *exponent = at + strspn(at, "+-.0123456789");
			const char *end = at + strspn(at, "+-.0123456789eE");

			if (end - at > JSON_NUMBER_LENGTH_MAX ||
				(exponent < end && end - exponent > 3 + (int) strspn(exponent + 1, "+-")))
				return false;
			at = end - 1;
		}
	}
	return is_json(text, GetDatabaseEncoding());
}

char *
answer_json(const char *body, size_t length)
{
	char	   *text;

	/* This takes a NUL byte, which would end the text early, for an invalid one. */
	if (pg_encoding_verifymbstr(PG_UTF8, body, length) != (int) length)
		return NULL;
	text = convert(unescape(body), true);
	return fits_jsonb(text) ? text : NULL;
}

char *
answer_without_key(const char *json, const char *api_key)
{
	char	   *redacted = redact(json, api_key);

	return fits_jsonb(redacted) ? redacted : NULL;
}
