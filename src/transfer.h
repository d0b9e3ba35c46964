/*
 * transfer.h
 *		One exchange, for http.c alone: it brings curl/curl.h with it.
 */
#ifndef ONESIGNAL_CANCEL_TRANSFER_H
#define ONESIGNAL_CANCEL_TRANSFER_H

#include <curl/curl.h>

#include "http.h"
#include "lib/ilist.h"

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
	int			local_port;		/* of the connection that it is sent over; 0: it counts in group->unsent */
	long		connects;		/* how many connections libcurl had made for it when it was last sent */
	size_t		header_bytes;
	bool		headers_ended;	/* the empty line after them has been seen */
	const char *too_large;		/* in words, or NULL */
	HttpAnswer	answer;			/* its body is malloc'd */
} HttpExchange;

/* Makes the handle of a zeroed exchange.  False: out of memory; transfer_release() is still needed. */
extern bool transfer_make(HttpExchange *exchange, const HttpRequest *request);

/* Of its connection: does OpenSSL or GnuTLS hold input that libcurl has not read?  Was HTTP/2 agreed? */
extern void transfer_ask_tls(HttpExchange *exchange, bool *has_unread, bool *is_http2);

/* The exchange has ended: completes the answer. */
extern void transfer_conclude(HttpExchange *exchange, CURLcode result);

/* Wipes the request, and frees the exchange. */
extern void transfer_release(HttpExchange *exchange);

#endif
