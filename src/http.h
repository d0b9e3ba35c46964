/*
 * http.h
 *		Exchanges over libcurl, many in flight, interruptible (http.c), each of
 *		them (transfer.c), and the sockets that libcurl opens and closes (wire.c).
 */
#ifndef ONESIGNAL_CANCEL_HTTP_H
#define ONESIGNAL_CANCEL_HTTP_H

#include "lib/ilist.h"

/* What a process never exceeds. */
#define HTTP_IN_FLIGHT_MAX	800
#define HTTP_CONNECTIONS_MAX	256
#define HTTP_ERROR_SIZE		256
#define HTTP_HOST_SIZE		256

/* Unsent in a group.  libcurl opens connections only while some are, but looks at each of them whenever one ends. */
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
	const char *authorization;	/* the header with the key */
	const char *ca_file;		/* NULL: the system's CAs */
	const char *proxy;			/* NULL: what libcurl's environment says */
	int			timeout_ms;		/* connecting and sending again included, queueing not */
	int			connect_timeout_ms;
} HttpRequest;

typedef struct HttpAnswer
{
	void	   *owner;			/* as given to http_submit() */
	int			status;			/* 0: no usable answer, and error says why */
	char	   *body;			/* NUL-terminated, at most 64 kB */
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

extern bool http_in_flight(void);

/*
 * Starts an exchange.  Copies all of the request but the group, whose unsent
 * must be below HTTP_UNSENT_MAX.  Raises 53000 without file descriptors and
 * 53200 without memory; all other failures are in the answer.
 */
extern void http_submit(const HttpRequest *request, void *owner);

/*
 * Waits until an exchange has finished and returns its answer, which is valid
 * until the next call of http_wait(), http_next() or http_abandon().  NULL:
 * until_us (PG_INT64_MAX: no limit) has come, or the latch was set.  Serves
 * interrupts and so may throw: the caller must then call http_abandon().
 */
extern const HttpAnswer *http_wait(int64 until_us);

/* The answer of another exchange that has finished, without looking for more; else NULL. */
extern const HttpAnswer *http_next(void);

/* Ends all that is in flight without an answer, with this error; http_next() returns it. */
extern void http_give_up(const char *words);

/* At the end of a statement or run, also by an error: drops all exchanges, and ends what peers have closed. */
extern void http_abandon(void);

/* By the parser that the request itself will go through.  False: not an absolute URL with a host. */
extern bool http_parse_url(const char *url, HttpUrl *parts);

/* The loaded versions: "libcurl/7.88.1 OpenSSL/3.0.15 ... nghttp2/1.52.0 ..." */
extern const char *http_versions(void);

/* ---- transfer.c, for http.c alone.  Both include curl/curl.h before this file. ---- */

#ifdef CURLINC_CURL_H

StaticAssertDecl(HTTP_ERROR_SIZE >= CURL_ERROR_SIZE, "libcurl writes so many bytes");

typedef struct HttpExchange
{
	dlist_node	node;			/* http.c keeps them in lists */
	CURL	   *easy;
	struct curl_slist *headers; /* holds the key: wiped by transfer_release() */
	HttpGroup  *group;
	int64		launched_us;	/* when it was last handed to libcurl */
	int64		timeout_us;
	int64		connect_us;		/* how long it may stay unsent */
	int			resubmitted;	/* how often */
	bool		doomed;			/* it must not be sent over the connection that libcurl chose */
	long		connects;		/* how many connections libcurl had made for it when it was last sent */
	int			local_port;		/* of the connection that it is sent over; 0: it counts in group->unsent */
	size_t		header_bytes;
	bool		headers_ended;	/* the empty line after them has been seen */
	const char *too_large;		/* in words, or NULL */
	HttpAnswer	answer;			/* its body is malloc'd */
} HttpExchange;

/* Makes the handle of a zeroed exchange.  False: out of memory; transfer_release() is still needed. */
extern bool transfer_make(HttpExchange *exchange, const HttpRequest *request);
extern void transfer_release(HttpExchange *exchange);

/* Of its connection: does OpenSSL or GnuTLS hold input that libcurl has not read?  Was HTTP/2 agreed? */
extern void transfer_ask_tls(HttpExchange *exchange, bool *has_unread, bool *is_http2);

/* The exchange has ended: completes the answer. */
extern void transfer_conclude(HttpExchange *exchange, CURLcode result);

#endif							/* CURLINC_CURL_H */

/* ---- wire.c, for http.c and transfer.c alone ---- */

/* For what the socket is watched from now on; it is closed now. */
extern void wire_watch(int fd, bool readable, bool writable);
extern void wire_closed(int fd);
extern int	wire_count;

/* What is known of the connections with this local port, which can be several that lead to different hosts. */
#define WIRE_OPEN			1 /* neither side has closed it */
#define WIRE_BUSY			2 /* libcurl waits for it */
#define WIRE_UNASKED		4 /* nobody waits for it, but the peer has sent something or closed it */
extern int	wire_look(int port, bool busy_too); /* else WIRE_BUSY is all that it says of a busy one */

/*
 * End our side of the connections with this local port, or of all that are in
 * use, if silent since then; of the one from which most was read since the last
 * such look, a flooding peer's (false: nothing was, or end is false); and of
 * those that their peers have closed while they were idle.  A signal handler may call these.
 */
#define WIRE_ALL			(-1)
extern void wire_end(int port, int64 silent_since);
extern bool wire_end_flood(bool end);
extern void wire_tidy(void);

/* What is written to each connection waits for company, until it is uncorked. */
extern void wire_cork(bool corked);

/*
 * Waits until then (PG_INT64_MAX: no limit) for a socket, or for the latch,
 * which it resets.  Returns the socket, or -1, maybe early.  May throw.
 */
extern int	wire_wait(int64 until_us, bool *latched);

#endif
