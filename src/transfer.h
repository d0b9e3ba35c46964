/*
 * transfer.h
 *		One libcurl handle, for http.c alone: it brings curl/curl.h with it.
 */
#ifndef ONESIGNAL_CANCEL_TRANSFER_H
#define ONESIGNAL_CANCEL_TRANSFER_H

#include <curl/curl.h>

#include "http.h"

StaticAssertDecl(HTTP_ERROR_SIZE >= CURL_ERROR_SIZE, "libcurl writes so many bytes");

typedef struct Transfer
{
	CURL	   *easy;
	struct curl_slist *headers; /* holds the key: wiped by transfer_release() */
	char	   *body;
	size_t		header_bytes;
	int			local_port;		/* of the connection that it is sent over; 0: not yet */
	bool		headers_ended;	/* the empty line after them has been seen */
	bool		oversized;
	char		error[HTTP_ERROR_SIZE]; /* libcurl's, unless we know better */
	char		redirect_host[HTTP_HOST_SIZE];
	HttpAnswer	answer;			/* with pointers to these */
} Transfer;

/* Makes the handle of one that is zeroed.  False: out of memory; transfer_release() is still needed. */
extern bool transfer_make(Transfer *transfer, const HttpRequest *request);

/* Forgets the answer, before the request is sent, for the first time or again. */
extern void transfer_reset(Transfer *transfer);

/*
 * It is about to be sent over the connection with this local port.  False: the
 * peer has sent something over it that nobody asked for.
 */
extern bool transfer_begin(Transfer *transfer, int local_port);

/* It has ended: completes the answer. */
extern void transfer_conclude(Transfer *transfer, CURLcode result);

/* Wipes the request, and frees the handle and the answer. */
extern void transfer_release(Transfer *transfer);

#endif
