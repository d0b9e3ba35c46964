/*
 * http.h
 *		Exchanges over libcurl, many in flight, interruptible.
 */
#ifndef ONESIGNAL_CANCEL_HTTP_H
#define ONESIGNAL_CANCEL_HTTP_H

#include "lib/stringinfo.h"

/* What a process never exceeds. */
#define HTTP_IN_FLIGHT_MAX	800
#define HTTP_ERROR_SIZE		256
#define HTTP_HOST_SIZE		256

/*
 * Callers keep the unsent exchanges of a group below this.  libcurl opens
 * connections only while some wait, but looks at each of them whenever one ends.
 */
#define HTTP_UNSENT_MAX		32

/* Exchanges that share a peer.  It outlives them. */
typedef struct HttpGroup
{
	int			unsent;			/* handed to libcurl: they resolve, connect, or wait for a stream */
	int64		answered_us;	/* when the last of them had an answer, by http_clock_us() */
} HttpGroup;

typedef struct HttpRequest
{
	HttpGroup  *group;
	const char *method;
	const char *url;
	const char *const *headers; /* "Name: value", NULL-terminated */
	const char *ca_file;		/* NULL: the system's CAs */
	const char *proxy;			/* NULL: what libcurl's environment says */
	int			timeout_ms;		/* connecting and sending again included, queueing not */
	int			connect_timeout_ms;
} HttpRequest;

typedef struct HttpAnswer
{
	void	   *owner;			/* as given to http_submit() */
	int			status;			/* 0: no usable answer, and error says why */
	const char *body;			/* NUL-terminated, at most 64 kB */
	size_t		body_length;
	int			retry_after;	/* seconds, at most an hour; 0: not asked for */
	char		error[HTTP_ERROR_SIZE]; /* libcurl's own words, or "" */
	char		redirect_host[HTTP_HOST_SIZE];	/* of a 3xx with a Location, or "" */
	bool		sent;			/* the request, or a part of it, may have left this machine */
	bool		sent_before;	/* it was also sent before that, with no answer */
	int64		begun_us;		/* when its time began: submitted, or no longer waiting for others */
} HttpAnswer;

typedef struct HttpUrl
{
	char		scheme[8];
	char		host[HTTP_HOST_SIZE];
} HttpUrl;

/* A clock that no administrator turns back: microseconds since some moment. */
extern int64 http_clock_us(void);

extern int	http_in_flight(void);
extern void http_submit(const HttpRequest *request, void *owner);
extern const HttpAnswer *http_wait(int64 until_us);
extern const HttpAnswer *http_next(void);
extern void http_give_up(const char *words);
extern void http_abandon(void);

extern bool http_parse_url(const char *url, HttpUrl *parts);
extern void http_append_versions(StringInfo out);

#endif
