/*
 * onesignal.c
 *		OneSignal's API: a message to a request, an answer to an outcome.
 *
 * No I/O.  An answer is judged by its status, since OneSignal has no
 * machine-readable error codes; its text is only shown.
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "onesignal.h"

/* Enough to read, too little to fill a disk. */
#define ERRORS_MAX			8

static void
add_error(CancelOutcome *outcome, const char *text, const char *api_key)
{
	outcome->errors = lappend(outcome->errors, answer_line(text, api_key));
}

/* False: it is no object, or has no such field. */
static bool
find_field(JsonbContainer *json, const char *name, JsonbValue *value)
{
	return json != NULL && JsonContainerIsObject(json) &&
		getKeyJsonValueFromContainer(json, name, strlen(name), value) != NULL;
}

/* A string as it is, {"code", "title"} as "code: title", anything else as its JSON text. */
static char *
error_text(JsonbValue *error)
{
	JsonbValue	code;
	JsonbValue	title;

	if (error->type == jbvString)
		return pnstrdup(error->val.string.val, error->val.string.len);
	if (error->type == jbvBinary &&
		find_field(error->val.binary.data, "code", &code) && code.type == jbvString &&
		find_field(error->val.binary.data, "title", &title) && title.type == jbvString)
		return psprintf("%.*s: %.*s", code.val.string.len, code.val.string.val,
						title.val.string.len, title.val.string.val);
	return JsonbToCString(NULL, &JsonbValueToJsonb(error)->root, -1);
}

/* True: the answer is an object that has errors, in whatever shape. */
static bool
collect_errors(CancelOutcome *outcome, JsonbContainer *json, const char *api_key)
{
	JsonbValue	errors;
	JsonbValue *element;

	if (!find_field(json, "errors", &errors) || errors.type == jbvNull)
		return false;
	if (errors.type != jbvBinary || !JsonContainerIsArray(errors.val.binary.data))
		add_error(outcome, error_text(&errors), api_key);
	else
		for (int i = 0; i < ERRORS_MAX && (element = getIthJsonbValueFromContainer(errors.val.binary.data, i)); i++)
			add_error(outcome, error_text(element), api_key);
	return true;
}

/* Both are NULL where there is no body, or it is no JSON. */
static JsonbContainer *
parse_body(const HttpAnswer *answer, char **text)
{
	*text = answer->status != 0 ? answer_json(answer->body, answer->body_length) : NULL;
	return *text == NULL ? NULL : &DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(*text)))->root;
}

/* 1: the field is true, 0: false, also as text as in version 7 of the API; -1: anything else. */
static int
flag_field(JsonbContainer *json, const char *name)
{
	JsonbValue	value;
	const char *text = find_field(json, name, &value) ? error_text(&value) : "";

	if (strcmp(text, "true") == 0)
		return 1;
	return strcmp(text, "false") == 0 ? 0 : -1;
}

static CancelVerdict
judge_status(int status, int success, bool has_errors)
{
	if (status == 0)
		return CANCEL_UNANSWERED;
	if (status == 200 && success >= 0)
		return success ? CANCEL_DONE : CANCEL_REFUSED;
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

/* One line for an answer that does not explain itself. */
static char *
explanation(CancelVerdict verdict, const HttpAnswer *answer, const char *api_key)
{
	if (answer->status == 0)
		return answer_text(answer->error);
	if (answer->status < 300 || answer->status >= 400)
		return psprintf("%sHTTP %d with %s", verdict == CANCEL_UNEXPECTED ? "unexpected answer: " : "",
						answer->status, answer_excerpt(answer->body, api_key));
	if (answer->redirect_host[0] == '\0')
		return psprintf("HTTP %d redirects nowhere", answer->status);
	return psprintf("HTTP %d redirects to host \"%s\", which is not followed",
					answer->status, answer_text(answer->redirect_host));
}

/* An answer that is no JSON object is some proxy's page, which says as little as a 5xx. */
CancelVerdict
onesignal_glance(const HttpAnswer *answer)
{
	bool		is_object = answer->body[strspn(answer->body, " \t\r\n")] == '{';
	CancelVerdict verdict = judge_status(answer->status, is_object ? true : -1, is_object);

	return verdict == CANCEL_UNEXPECTED ? CANCEL_UNAVAILABLE : verdict;
}

void
onesignal_judge(CancelOutcome *outcome, const HttpAnswer *answer, const char *api_key)
{
	char	   *text;
	JsonbContainer *json = parse_body(answer, &text);

	*outcome = (CancelOutcome) {.status = answer->status};
	outcome->verdict = judge_status(answer->status, flag_field(json, "success"),
									collect_errors(outcome, json, api_key));
	if (outcome->verdict == CANCEL_UNEXPECTED)
		outcome->errors = NIL;	/* these are not OneSignal's words */
	if (outcome->errors == NIL && outcome->verdict > CANCEL_NOT_FOUND)
		add_error(outcome, explanation(outcome->verdict, answer, api_key), api_key);
	if (json != NULL && !(outcome->verdict == CANCEL_DONE && outcome->errors == NIL))
		outcome->response = answer_without_key(text, api_key);
}

void
onesignal_hint_doubt(CancelOutcome *outcome, bool was_attempted)
{
	outcome->errors = list_truncate(outcome->errors, ERRORS_MAX - 1);
	if (was_attempted)
		add_error(outcome, "an earlier attempt had no answer and may have canceled it", "");
	else
		add_error(outcome, "an attempt before the last restart, if there was one, may have canceled it", "");
}

/* A gateway that lost OneSignal's answer says 504, or shows a page; 503 says that the request was not taken. */
bool
onesignal_may_have_worked(const CancelOutcome *outcome, const HttpAnswer *answer)
{
	if (outcome->verdict == CANCEL_UNANSWERED)
		return answer->sent;
	return outcome->status != 503 && (outcome->status < 300 || outcome->status >= 400) &&
		(outcome->verdict == CANCEL_UNAVAILABLE || outcome->verdict == CANCEL_UNEXPECTED);
}

CancelVerdict
onesignal_judge_view(const HttpAnswer *answer)
{
	char	   *text;
	JsonbContainer *json = parse_body(answer, &text);
	CancelVerdict verdict = judge_status(answer->status, flag_field(json, "canceled"), false);

	if (answer->status == 404 && json != NULL)
		return CANCEL_REFUSED;
	return verdict == CANCEL_UNANSWERED || verdict == CANCEL_THROTTLED ? CANCEL_UNAVAILABLE : verdict;
}

HttpRequest *
onesignal_request(Credentials *credentials, const char *method, const pg_uuid_t *message_id)
{
	char	   *message = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(message_id)));
	StringInfo	url = &credentials->url;

	resetStringInfo(url);
	appendStringInfo(url, "%s/notifications/%s?app_id=%s", credentials->base_url, message, credentials->app_id);
	credentials->http.url = url->data;
	credentials->http.method = method;
	pfree(message);
	return &credentials->http;
}
