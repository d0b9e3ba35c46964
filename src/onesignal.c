/*
 * onesignal.c
 *		OneSignal's API: a message to a request, an answer to an outcome.
 *
 * No I/O.  Whatever came from outside is hostile here: it may be no JSON, no
 * UTF-8, too deep, too long, or echo the key.  It is judged by its status
 * (OneSignal has no machine-readable error codes) and its text only rendered.
 *
 * jsonb's input and the conversion to the database's encoding raise errors.
 * An internal subtransaction turns those into "this is no JSON"; that is also
 * why a transaction must be open and why the SQL functions are PARALLEL UNSAFE.
 */
#include "postgres.h"

#include "access/xact.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/uuid.h"

#include "onesignal.h"
#include "settings.h"

/* What is kept of a body's errors: enough to read, too little to fill a disk. */
#define ERRORS_MAX			8
#define ERROR_LENGTH_MAX	1024

/* What is shown of a body that is not OneSignal's */
#define EXCERPT_LENGTH_MAX	200

/* What may stand between JSON's tokens */
#define JSON_SPACE			" \t\r\n"

#define KEY_PLACEHOLDER		"[api key]"

/* ---- text from outside ---- */

/* The character that a \uXXXX escape stands for, or -1. */
static long
escaped_character(const char *json)
{
	char		digits[5];

	if (json[0] != '\\' || json[1] != 'u' || strspn(json + 2, "0123456789abcdefABCDEF") < 4)
		return -1;
	strlcpy(digits, json + 2, sizeof(digits));
	return strtol(digits, NULL, 16);
}

/* How long the key is at the beginning of a text, spelled as JSON may spell it; 0: it is not there. */
static size_t
spelled_key_length(const char *text, const char *key)
{
	const char *begin = text;

	for (; *key != '\0'; key++)
	{
		if (escaped_character(text) == *key)
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

/* Where the key is in a text, as it is or spelled with escapes, and how long it is there. */
static const char *
find_key(const char *text, const char *key, size_t *length)
{
	for (; *text != '\0'; text++)
	{
		*length = strlen(key);
		if (strncmp(text, key, *length) == 0)
			return text;
		*length = spelled_key_length(text, key);
		if (*length > 0)
			return text;
	}
	return NULL;
}

/* Keys may be echoed: by a debugging proxy, or by an error page that shows the request. */
static char *
redact(const char *text, const char *key)
{
	StringInfoData out;
	const char *found;
	size_t		length;

	if (key == NULL || key[0] == '\0')
		return pstrdup(text);

	initStringInfo(&out);
	while ((found = find_key(text, key, &length)) != NULL)
	{
		appendBinaryStringInfo(&out, text, found - text);
		appendStringInfoString(&out, KEY_PLACEHOLDER);
		text = found + length;
	}
	appendStringInfoString(&out, text);
	return out.data;
}

static bool
is_ascii(const char *text)
{
	for (; *text != '\0'; text++)
	{
		if (IS_HIGHBIT_SET(*text))
			return false;
	}
	return true;
}

/* Is a byte from 0x80 to 0x9f a control character?  Elsewhere it is a letter or a part of one. */
static bool
has_c1_bytes(int encoding)
{
	return (encoding >= PG_LATIN1 && encoding <= PG_LATIN10) ||
		(encoding >= PG_ISO_8859_5 && encoding <= PG_ISO_8859_8);
}

/* Is this a control character, C1 among them?  *length: the bytes it takes. */
static bool
is_control(const char *text, int *length)
{
	int			encoding = GetDatabaseEncoding();
	unsigned char c = text[0];
	unsigned char next = c != 0 ? text[1] : 0;

	*length = 1;
	if (c < 0x20 || c == 0x7f)
		return true;
	/* SQL_ASCII takes the UTF-8 that came as it is. */
	if ((encoding == PG_UTF8 || encoding == PG_SQL_ASCII) && c == 0xc2 && next >= 0x80 && next < 0xa0)
	{
		*length = 2;
		return true;
	}
	return c >= 0x80 && c < 0xa0 && has_c1_bytes(encoding);
}

/*
 * One element of errors: control characters escaped, so that nothing can
 * forge log lines or move a terminal's cursor, and cut between characters.
 */
static char *
presentable(const char *text)
{
	StringInfoData out;

	initStringInfo(&out);
	while (*text != '\0' && out.len < ERROR_LENGTH_MAX)
	{
		int			length;

		if (is_control(text, &length))
		{
			for (int i = 0; i < length; i++)
				appendStringInfo(&out, "\\x%02X", (unsigned char) text[i]);
		}
		else
		{
			length = Min(pg_mblen(text), (int) strlen(text));
			appendBinaryStringInfo(&out, text, length);
		}
		text += length;
	}
	if (out.len > ERROR_LENGTH_MAX)
	{
		out.len = pg_mbcliplen(out.data, out.len, ERROR_LENGTH_MAX);
		out.data[out.len] = '\0';
	}
	return out.data;
}

/* Bytes that cannot be had in the database's encoding, made visible. */
static char *
escape_high_bytes(const char *text)
{
	StringInfoData out;

	initStringInfo(&out);
	for (; *text != '\0'; text++)
	{
		if (IS_HIGHBIT_SET(*text))
			appendStringInfo(&out, "\\x%02X", (unsigned char) *text);
		else
			appendStringInfoChar(&out, *text);
	}
	return out.data;
}

/* A \uXXXX escape of something that not every database encoding has? */
static bool
is_exotic_escape(const char *json)
{
	long		character = escaped_character(json);

	return character == 0 || character > 0x7f;
}

/*
 * The same JSON with everything that a database's encoding could lack replaced
 * by "?": other characters, and escapes for them and for U+0000.  The input is
 * valid UTF-8.
 */
static char *
plain_json(const char *json)
{
	StringInfoData out;

	initStringInfo(&out);
	while (*json != '\0')
	{
		if (IS_HIGHBIT_SET(*json))
		{
			appendStringInfoChar(&out, '?');
			json += pg_encoding_mblen(PG_UTF8, json);
		}
		else if (is_exotic_escape(json))
		{
			appendStringInfoChar(&out, '?');
			json += strlen("\\u0000");
		}
		else
		{
			/* A backslash takes the next character along: "\\u0000" is no escape. */
			int			length = json[0] == '\\' && json[1] != '\0' && !IS_HIGHBIT_SET(json[1]) ? 2 : 1;

			appendBinaryStringInfo(&out, json, length);
			json += length;
		}
	}
	return out.data;
}

/*
 * Is there a number with an exponent of three digits or more?  jsonb holds
 * 1e131071 in ten bytes and writes it in 131,072: a body full of these would
 * come out as a gigabyte.  Outside of strings no other e precedes a digit.
 */
static bool
has_long_number(const char *json)
{
	bool		in_string = false;

	for (; *json != '\0'; json++)
	{
		if (*json == '"')
			in_string = !in_string;
		else if (in_string && json[0] == '\\' && json[1] != '\0')
			json++;
		else if (!in_string && (*json == 'e' || *json == 'E'))
		{
			const char *digits = json + 1 + strspn(json + 1, "+-");

			if (strspn(digits, "0123456789") > 2)
				return true;
		}
	}
	return false;
}

/* ---- what throws, made a value ---- */

typedef struct Conversion
{
	const char *input;			/* UTF-8, NUL-terminated */
	bool		as_json;
	char	   *text;			/* in the database's encoding */
	Jsonb	   *json;
} Conversion;

static void
convert(Conversion *conversion)
{
	conversion->text = is_ascii(conversion->input) ? pstrdup(conversion->input) :
		pg_any_to_server(conversion->input, strlen(conversion->input), PG_UTF8);
	if (conversion->as_json)
		conversion->json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(conversion->text)));
}

/* What is wrong with the text stays within; what is wrong with us, or an interrupt, does not. */
static bool
is_about_the_text(int sqlstate)
{
	switch (sqlstate)
	{
		case ERRCODE_QUERY_CANCELED:
		case ERRCODE_ADMIN_SHUTDOWN:
		case ERRCODE_CRASH_SHUTDOWN:
		case ERRCODE_OUT_OF_MEMORY:
			return false;
		default:
			return true;
	}
}

/* False: it cannot be converted, or is no JSON that jsonb can hold. */
static bool
try_convert(Conversion *conversion)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool converted = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		convert(conversion);
		ReleaseCurrentSubTransaction();
		converted = true;
	}
	PG_CATCH();
	{
		int			sqlstate = geterrcode();

		if (!is_about_the_text(sqlstate))
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return converted;
}

static bool
is_utf8(const char *text)
{
	return pg_verify_mbstr(PG_UTF8, text, strlen(text), true);
}

/* Any bytes, as text of the database's encoding. */
static char *
to_server(const char *bytes)
{
	Conversion	conversion = {.input = bytes};

	if (is_ascii(bytes))
		return pstrdup(bytes);
	if (is_utf8(bytes) && try_convert(&conversion))
		return conversion.text;
	return escape_high_bytes(bytes);
}

/*
 * The body as jsonb, or NULL.  What is JSON by its own standard is not refused
 * because this database's encoding lacks a character: only that is lost.  It
 * is refused if writing it out would take much more room than it does.
 */
static Jsonb *
parse(const char *body, char **text)
{
	Conversion	conversion = {.input = body, .as_json = true};

	if (!is_utf8(body) || has_long_number(body))
		return NULL;
	if (!try_convert(&conversion))
	{
		conversion.input = plain_json(body);
		if (strcmp(conversion.input, body) == 0 || !try_convert(&conversion))
			return NULL;
	}
	*text = conversion.text;
	return conversion.json;
}

/* ---- errors ---- */

static void
add_error(CancelOutcome *outcome, const char *text, const char *api_key)
{
	if (outcome->error_count >= ERRORS_MAX)
		return;
	if (outcome->errors == NULL)
		outcome->errors = palloc(ERRORS_MAX * sizeof(char *));
	/* Here, too, before it is cut. */
	outcome->errors[outcome->error_count++] = presentable(redact(text, api_key));
}

static JsonbValue *
get_field(JsonbContainer *object, const char *name, JsonbValue *into)
{
	return getKeyJsonValueFromContainer(object, name, strlen(name), into);
}

static char *
string_value(const JsonbValue *value)
{
	return pnstrdup(value->val.string.val, value->val.string.len);
}

/* A string as it is, {"code", "title"} as "code: title", anything else as its JSON text. */
static char *
render_error(JsonbValue *element)
{
	JsonbValue	code;
	JsonbValue	title;

	if (element->type == jbvString)
		return string_value(element);
	if (element->type == jbvBinary && JsonContainerIsObject(element->val.binary.data) &&
		get_field(element->val.binary.data, "code", &code) != NULL && code.type == jbvString &&
		get_field(element->val.binary.data, "title", &title) != NULL && title.type == jbvString)
		return psprintf("%s: %s", string_value(&code), string_value(&title));
	if (element->type == jbvBinary)
		return JsonbToCString(NULL, element->val.binary.data, element->val.binary.len);
	{
		Jsonb	   *scalar = JsonbValueToJsonb(element);

		return JsonbToCString(NULL, &scalar->root, VARSIZE(scalar));
	}
}

/* True when the answer is an object that has errors, in whatever shape. */
static bool
collect_errors(CancelOutcome *outcome, Jsonb *json, const char *api_key)
{
	JsonbValue	errors;
	JsonbValue	element;
	JsonbContainer *array;
	JsonbIterator *iterator;
	JsonbIteratorToken token;

	if (get_field(&json->root, "errors", &errors) == NULL || errors.type == jbvNull)
		return false;
	if (errors.type != jbvBinary || !JsonContainerIsArray(errors.val.binary.data))
	{
		add_error(outcome, render_error(&errors), api_key);
		return true;
	}
	array = errors.val.binary.data;
	iterator = JsonbIteratorInit(array);
	token = JsonbIteratorNext(&iterator, &element, true);
	Assert(token == WJB_BEGIN_ARRAY);	/* it is an array */
	while (outcome->error_count < ERRORS_MAX &&
		   (token = JsonbIteratorNext(&iterator, &element, true)) == WJB_ELEM)
		add_error(outcome, render_error(&element), api_key);
	return true;
}

/* One line from status and body, for an answer that does not explain itself. */
static void
add_excerpt(CancelOutcome *outcome, const char *what, const char *body, const char *api_key)
{
	/* Redacted before it is cut: half a key is a secret too. */
	char	   *text = to_server(redact(body, api_key));
	char	   *out = text;
	bool		blank = true;

	/* Runs of white space become one blank: an HTML page is mostly that. */
	for (const char *in = text; *in != '\0'; in++)
	{
		bool		space = strchr(" \t\r\n\f\v", *in) != NULL;

		if (!space)
			*out++ = *in;
		else if (!blank)
			*out++ = ' ';
		blank = space;
	}
	if (out > text && out[-1] == ' ')
		out--;
	*out = '\0';
	text[pg_mbcliplen(text, strlen(text), EXCERPT_LENGTH_MAX)] = '\0';
	if (text[0] == '\0')
		text = "an empty body";
	add_error(outcome, psprintf("%s %d with %s", what, outcome->status, text), api_key);
}

/* ---- judging ---- */

/* 200: only what says plainly whether it was canceled counts. */
static CancelVerdict
judge_success(Jsonb *json)
{
	JsonbValue	success;

	if (json == NULL || !JB_ROOT_IS_OBJECT(json) || get_field(&json->root, "success", &success) == NULL)
		return CANCEL_UNEXPECTED;
	if (success.type == jbvBool)
		return success.val.boolean ? CANCEL_DONE : CANCEL_REFUSED;

	/* Version 7 of the API answered with a string. */
	if (success.type == jbvString && success.val.string.len == 4 &&
		memcmp(success.val.string.val, "true", 4) == 0)
		return CANCEL_DONE;
	if (success.type == jbvString && success.val.string.len == 5 &&
		memcmp(success.val.string.val, "false", 5) == 0)
		return CANCEL_REFUSED;
	return CANCEL_UNEXPECTED;
}

/* The outcome table of design section 3, by status. */
static CancelVerdict
judge_status(int status, Jsonb *json, bool has_errors)
{
	if (status == 200)
		return judge_success(json);
	if (status == 401 || status == 403)
		return CANCEL_UNAUTHORIZED;
	if (status == 429)
		return CANCEL_THROTTLED;
	if (status == 408 || status >= 500)
		return CANCEL_UNAVAILABLE;
	if (status >= 400 && has_errors)
		return status == 404 ? CANCEL_NOT_FOUND : CANCEL_REFUSED;
	return CANCEL_UNEXPECTED;
}

static void
explain(CancelOutcome *outcome, const HttpAnswer *answer, const char *body, const char *api_key)
{
	if (outcome->verdict == CANCEL_UNEXPECTED)
		outcome->error_count = 0;	/* whatever it says, the news is that it is not OneSignal's */

	if (outcome->verdict == CANCEL_UNEXPECTED && answer->status >= 300 && answer->status < 400)
		add_error(outcome,
				  answer->redirect_host[0] != '\0' ?
				  psprintf("HTTP %d redirects to host \"%s\", which is not followed",
						   answer->status, to_server(answer->redirect_host)) :
				  psprintf("HTTP %d redirects nowhere", answer->status),
				  api_key);
	else if (outcome->verdict == CANCEL_UNEXPECTED)
		add_excerpt(outcome, "unexpected answer: HTTP", body, api_key);
	else if (outcome->error_count == 0 &&
			 (outcome->verdict == CANCEL_UNAVAILABLE || outcome->verdict == CANCEL_THROTTLED ||
			  outcome->verdict == CANCEL_UNAUTHORIZED))
		add_excerpt(outcome, "HTTP", body, api_key);
}

/*
 * What an answer tells of app and key, at once and without a transaction:
 * CANCEL_DONE for whatever OneSignal itself decided on the message.  A proxy's
 * page, which is no JSON object, tells as little as a 5xx.
 */
CancelVerdict
onesignal_glance(const HttpAnswer *answer)
{
	bool		is_object = answer->body[strspn(answer->body, " \t\r\n")] == '{';

	if (answer->status == 0)
		return CANCEL_UNANSWERED;
	if (answer->status == 401 || answer->status == 403)
		return CANCEL_UNAUTHORIZED;
	if (answer->status == 429)
		return CANCEL_THROTTLED;
	if (answer->status == 200 || (answer->status >= 400 && answer->status < 500 && answer->status != 408))
		return is_object ? CANCEL_DONE : CANCEL_UNAVAILABLE;
	return CANCEL_UNAVAILABLE;
}

/*
 * What may be kept of a body that is JSON: all of it, but for the key.  NULL
 * when what is left is none, as when an escape's backslash went with the key.
 */
static char *
keepable(char *text, const char *api_key)
{
	char	   *redacted = redact(text, api_key);

	return strcmp(redacted, text) == 0 || parse(redacted, &redacted) != NULL ? redacted : NULL;
}

/*
 * {"success": true} and nothing else: what nearly all answers are, and not
 * worth a subtransaction each.
 */
static bool
is_plain_success(const HttpAnswer *answer)
{
	static const char *const tokens[] = {"{", "\"success\"", ":", "true", "}"};
	const char *rest = answer->body;

	if (answer->status != 200)
		return false;
	for (size_t i = 0; i < lengthof(tokens); i++)
	{
		size_t		length = strlen(tokens[i]);

		rest += strspn(rest, JSON_SPACE);
		if (strncmp(rest, tokens[i], length) != 0)
			return false;
		rest += length;
	}
	rest += strspn(rest, JSON_SPACE);
	return rest == answer->body + answer->body_length;	/* no NUL byte before the end either */
}

/*
 * What an answer means.  Never raises an error on account of the answer;
 * palloc's in the current context a small multiple of the body's size (at most
 * 64 kB).  A transaction must be open.
 */
void
onesignal_judge(CancelOutcome *outcome, const HttpAnswer *answer, const char *api_key)
{
	const char *body = answer->body;
	Jsonb	   *json;
	char	   *text = NULL;
	bool		has_errors = false;

	memset(outcome, 0, sizeof(*outcome));
	outcome->status = answer->status;
	outcome->retry_after = Max(0, Min(answer->retry_after, RETRY_AFTER_MAX));
	if (answer->status == 0)
	{
		outcome->verdict = CANCEL_UNANSWERED;
		add_error(outcome, to_server(redact(answer->error, api_key)), api_key);
		return;
	}

	if (is_plain_success(answer))
	{
		outcome->verdict = CANCEL_DONE;
		return;
	}

	/* A NUL byte would end the text early and make JSON of what is none. */
	json = strlen(body) == answer->body_length && body[0] != '\0' ? parse(body, &text) : NULL;
	if (json != NULL && JB_ROOT_IS_OBJECT(json))
		has_errors = collect_errors(outcome, json, api_key);
	outcome->verdict = judge_status(answer->status, json, has_errors);
	explain(outcome, answer, body, api_key);
	if (json != NULL && !(outcome->verdict == CANCEL_DONE && outcome->error_count == 0))
		outcome->response = keepable(text, api_key);
}

/*
 * Prepares the requests of one app; app_id and credentials are copied.  The
 * caller owes onesignal_request_end(), on its error path too, for the key.
 */
void
onesignal_request_begin(CancelRequest *request, const pg_uuid_t *app_id,
						const Credentials *credentials)
{
	char	   *app = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(app_id)));

	memset(request, 0, sizeof(*request));
	strlcpy(request->app_id, app, sizeof(request->app_id));
	initStringInfo(&request->url);
	appendStringInfo(&request->url, "%s/notifications/", credentials->base_url);
	request->url_prefix = request->url.len;

	request->authorization = psprintf("Authorization: Key %s", credentials->api_key);
	request->headers[0] = request->authorization;
	request->headers[1] = "Accept: application/json";
	request->headers[2] = "User-Agent: onesignal_cancel/" ONESIGNAL_CANCEL_VERSION;

	request->http.method = "DELETE";
	request->http.headers = request->headers;
	request->http.ca_file = credentials->ca_file != NULL ? pstrdup(credentials->ca_file) : NULL;
	request->http.proxy = credentials->proxy != NULL ? pstrdup(credentials->proxy) : NULL;
	request->http.timeout_ms = settings_timeout;
	request->http.connect_timeout_ms = settings_connect_timeout;
}

/* The request that cancels this message; valid until the next call. */
HttpRequest *
onesignal_request(CancelRequest *request, const pg_uuid_t *message_id)
{
	char	   *message = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(message_id)));

	request->url.len = request->url_prefix;
	appendStringInfo(&request->url, "%s?app_id=%s", message, request->app_id);
	request->http.url = request->url.data;
	pfree(message);
	return &request->http;
}

void
onesignal_request_end(CancelRequest *request)
{
	if (request->authorization != NULL)
		explicit_bzero(request->authorization, strlen(request->authorization));
	request->authorization = NULL;
}
