/*
 * onesignal.h
 *		OneSignal's API: a message to a request, an answer to an outcome.
 */
#ifndef ONESIGNAL_CANCEL_ONESIGNAL_H
#define ONESIGNAL_CANCEL_ONESIGNAL_H

#include "credentials.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* What an answer means for the message.  The first three explain themselves. */
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
	List	   *errors;			/* strings in the database's encoding, the key removed */
	char	   *response;		/* the body when it is JSON (fit for jsonb), else NULL */
} CancelOutcome;

/* "DELETE" cancels the message, "GET" asks whether it was canceled (View message).  Valid until the next call. */
extern HttpRequest *onesignal_request(Credentials *credentials, const char *method, const pg_uuid_t *message_id);

/* What an answer says about app and key, without a look at the message.  The others here need a transaction. */
extern CancelVerdict onesignal_glance(const HttpAnswer *answer);

/* What an answer means.  No answer raises an error, or costs more memory than a small multiple of its size. */
extern void onesignal_judge(CancelOutcome *outcome, const HttpAnswer *answer, const char *api_key);

/* View message: CANCEL_DONE: it is canceled; CANCEL_REFUSED: it is not; CANCEL_UNAVAILABLE: ask again; else: do not. */
extern CancelVerdict onesignal_judge_view(const HttpAnswer *answer);

/* Adds to a refusal that could not be checked why it is in doubt: an attempt, or maybe one before a restart. */
extern void onesignal_hint_doubt(CancelOutcome *outcome, bool was_attempted);

/* May the request have had its effect, although the answer does not say so? */
extern bool onesignal_may_have_worked(const CancelOutcome *outcome, const HttpAnswer *answer);

/* ---- text from outside, made safe and readable: answer.c ---- */

/* Any bytes as text in the database's encoding; it shows the values of those that cannot be converted. */
extern char *answer_text(const char *bytes);

/* One line, cut between characters, without the key, and without control characters, which could forge log lines. */
extern char *answer_line(const char *text, const char *api_key);

/* The beginning of a body that is not OneSignal's. */
extern char *answer_excerpt(const char *body, const char *api_key);

/* A body as text that jsonb takes, without what the encoding lacks; and that without the key.  NULL: it is no JSON. */
extern char *answer_json(const char *body, size_t length);
extern char *answer_without_key(const char *json, const char *api_key);

#endif
