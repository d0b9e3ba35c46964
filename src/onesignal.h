/*
 * onesignal.h
 *		OneSignal's API: a message to a request, an answer to an outcome.
 */
#ifndef ONESIGNAL_CANCEL_ONESIGNAL_H
#define ONESIGNAL_CANCEL_ONESIGNAL_H

#include "credentials.h"
#include "http.h"
#include "utils/array.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* What an answer means for the message. */
typedef enum CancelVerdict
{
	CANCEL_DONE,				/* 200 with success */
	CANCEL_REFUSED,				/* OneSignal said no: usually too late */
	CANCEL_NOT_FOUND,			/* 404 in OneSignal's own words: refused, or not there yet */
	CANCEL_UNEXPECTED,			/* an undocumented answer, a proxy's page, a redirect */
	CANCEL_THROTTLED,			/* 429 */
	CANCEL_UNAUTHORIZED,		/* 401, 403 */
	CANCEL_UNAVAILABLE,			/* 408, 5xx */
	CANCEL_UNANSWERED			/* no answer: DNS, connect, TLS, timeout, ... */
} CancelVerdict;

typedef struct CancelOutcome
{
	CancelVerdict verdict;
	int			status;			/* HTTP status, 0: no answer */
	int			retry_after;	/* seconds, 0..3600, 0: not asked for */
	int			error_count;
	char	  **errors;			/* in the database's encoding, the key removed */
	char	   *response;		/* the body when it is JSON (fit for jsonb), else NULL */
} CancelOutcome;

/* Built once an app and reused for each message. */
typedef struct CancelRequest
{
	HttpRequest http;
	StringInfoData url;
	int			url_prefix;		/* length of "{base_url}/notifications/" */
	char	   *app_id;
	char	   *authorization;	/* holds the key: wiped by onesignal_request_end() */
	const char *headers[4];		/* the last one NULL */
} CancelRequest;

extern void onesignal_request_begin(CancelRequest *request, const pg_uuid_t *app_id, const Credentials *credentials);
extern HttpRequest *onesignal_request(CancelRequest *request, const char *method, const pg_uuid_t *message_id);
extern void onesignal_request_end(CancelRequest *request);

extern CancelVerdict onesignal_glance(const HttpAnswer *answer);
extern void onesignal_judge(CancelOutcome *outcome, const HttpAnswer *answer, const char *api_key);
extern void onesignal_hint_doubt(CancelOutcome *outcome, bool was_attempted);
extern ArrayType *onesignal_errors(const CancelOutcome *outcome);
extern bool onesignal_may_have_worked(const CancelOutcome *outcome, const HttpAnswer *answer);
extern CancelVerdict onesignal_judge_view(const HttpAnswer *answer);

/* Text from outside, made safe and readable (answer.c) */
extern char *answer_text(const char *bytes);
extern char *answer_line(const char *text, const char *api_key);
extern char *answer_excerpt(const char *body, const char *api_key);
extern Jsonb *answer_json(const char *body, size_t length, char **text);
extern char *answer_without_key(const char *json, const char *api_key);
extern JsonbValue *answer_field(JsonbContainer *object, const char *name, JsonbValue *into);
extern char *answer_error_text(JsonbValue *error);

#endif
