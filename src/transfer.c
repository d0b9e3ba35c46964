/*
 * transfer.c
 *		One exchange: a request's options go in, an answer comes out.
 *
 * Each request has a fresh handle.  libcurl 7.83 to 8.0 reads freed memory when
 * a reused one gets an answer whose first header begins with a blank (curl
 * issue 11101).  Nothing here throws or pallocs.
 */
#include "postgres.h"

#include <ctype.h>
#include <curl/curl.h>
#include <dlfcn.h>
#include <unistd.h>

#include "compat.h"
#include "http.h"

/* A cancel's answer is under 1 kB, and Cloudflare's headers take 1 to 2 kB.  Much more is some proxy's. */
#define HEADERS_MAX			(32 * 1024)
#define BODY_MAX			(64 * 1024)

/* Ends the connection, too: libcurl 7.88 may not see the end of the next stream after it dropped one in the middle. */
static size_t
refuse_more(HttpExchange *exchange, const char *problem)
{
	exchange->too_large = problem;
	curl_easy_setopt(exchange->easy, CURLOPT_FORBID_REUSE, 1L);
	return 0;
}

/* Called for each line, also of trailers, of interim answers and of a proxy's answer to CONNECT. */
static size_t
header_callback(char *data, size_t size, size_t count, void *context)
{
	HttpExchange *exchange = context;
	size_t		length = size * count;

	/* What was left in the TLS library of a connection that is cut off */
	if (exchange->doomed)
		return 0;
	exchange->header_bytes += length;
	if (exchange->header_bytes > HEADERS_MAX)
		return refuse_more(exchange, "the answer's headers are larger than 32 kB");
	if (length >= 5 && memcmp(data, "HTTP/", 5) == 0)
		exchange->headers_ended = false;
	else if (length <= 2 && (data[0] == '\r' || data[0] == '\n') && data[length - 1] == '\n')
		exchange->headers_ended = true;
	return length;
}

static size_t
body_callback(char *data, size_t size, size_t count, void *context)
{
	HttpExchange *exchange = context;
	HttpAnswer *answer = &exchange->answer;
	size_t		length = size * count;
	char	   *body;

	if (answer->body_length + length > BODY_MAX)
		return refuse_more(exchange, "the answer is larger than 64 kB");
	body = realloc(answer->body, answer->body_length + length + 1);
	if (body == NULL)
		return 0;
	answer->body = body;
	memcpy(body + answer->body_length, data, length);
	answer->body_length += length;
	body[answer->body_length] = '\0';
	return length;
}

static int
closesocket_callback(void *context pg_attribute_unused(), curl_socket_t fd)
{
	wire_closed(fd);
	return close(fd);
}

/* What all exchanges share.  Where the key's safety depends on it, nothing is left to a default. */
static void
set_constant_options(HttpExchange *exchange)
{
	CURL	   *easy = exchange->easy;
	const char *tls = curl_version_info(CURLVERSION_NOW)->ssl_version;

	curl_easy_setopt(easy, CURLOPT_PRIVATE, exchange);
	curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, exchange->answer.error);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
	/* The key goes to nobody but the host that was named.  options_url_problem() has checked the URL's scheme. */
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	curl_easy_setopt(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	curl_easy_setopt(easy, CURLOPT_HEADEROPT, (long) CURLHEADER_SEPARATE);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	curl_easy_setopt(easy, CURLOPT_CA_CACHE_TIMEOUT, 10L);	/* seconds: the file may have another CA, or one less */
	/* A server chooses the size of a finite field: computing in a large one takes a second that nothing interrupts. */
	if (tls != NULL && strncmp(tls, "OpenSSL", strlen("OpenSSL")) == 0)
		curl_easy_setopt(easy, CURLOPT_SSL_CIPHER_LIST, "DEFAULT:!kDHE");
	/* Few connections, streams before connections */
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_2TLS);
	curl_easy_setopt(easy, CURLOPT_PIPEWAIT, 1L);
	/* A TLS record of 16 kB and headers as text must fit: libcurl 7.88 waits for the rest, of which no socket tells. */
	curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, HEADERS_MAX + 16 * 1024L);
	curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, closesocket_callback);
	curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, header_callback);
	curl_easy_setopt(easy, CURLOPT_HEADERDATA, exchange);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, body_callback);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, exchange);
}

bool
transfer_make(HttpExchange *exchange, const HttpRequest *request)
{
	CURL	   *easy = curl_easy_init();
	const char *ca_file = request->ca_file != NULL ? request->ca_file : curl_version_info(CURLVERSION_NOW)->cainfo;

	exchange->easy = easy;
	exchange->answer.body = calloc(1, 1);
	exchange->headers = curl_slist_append(NULL, request->authorization);
	if (easy == NULL || exchange->answer.body == NULL || exchange->headers == NULL ||
		curl_slist_append(exchange->headers, "Accept: application/json") == NULL ||
		curl_slist_append(exchange->headers, "User-Agent: onesignal_cancel/" ONESIGNAL_CANCEL_VERSION) == NULL)
		return false;

	set_constant_options(exchange);
	/* Plain HTTP is for loopback addresses, and so never for a proxy, which would see the key. */
	curl_easy_setopt(easy, CURLOPT_NOPROXY, pg_strncasecmp(request->url, "http:", 5) == 0 ? "*" : NULL);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, exchange->headers);
	/* libcurl divides it among a name's addresses. */
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) request->connect_timeout_ms);
	/* With a bundle and no directory, libcurl parses the CAs once for the multi handle: 1.2 instead of 17 ms. */
	if (ca_file != NULL)		/* else a libcurl that only knows a directory */
		curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
	return (ca_file == NULL || curl_easy_setopt(easy, CURLOPT_CAINFO, ca_file) == CURLE_OK) &&
		curl_easy_setopt(easy, CURLOPT_URL, request->url) == CURLE_OK &&
		curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request->method) == CURLE_OK &&
		curl_easy_setopt(easy, CURLOPT_PROXY, request->proxy) == CURLE_OK;
}

/*
 * libcurl reads only as much of a TLS record as the body lacks, and newer
 * versions let OpenSSL read more than one.  The library that libcurl is linked
 * with is asked: the server may have loaded another.
 */
void
transfer_ask_tls(HttpExchange *exchange, bool *has_unread, bool *is_http2)
{
	static void *libcurl = NULL;
	static void *pending = NULL;
	static void *alpn = NULL;
	const struct curl_tlssessioninfo *tls = NULL;
	struct						/* what GnuTLS calls a datum */
	{
		const char *name;
		unsigned int length;
	} agreed = {NULL, 0};
	Dl_info		where;
	bool		is_openssl;

	*has_unread = *is_http2 = false;
	curl_easy_getinfo(exchange->easy, CURLINFO_TLS_SSL_PTR, &tls);
	if (tls == NULL || tls->internals == NULL ||
		(tls->backend != CURLSSLBACKEND_OPENSSL && tls->backend != CURLSSLBACKEND_GNUTLS))
		return;
	is_openssl = tls->backend == CURLSSLBACKEND_OPENSSL;
	if (libcurl == NULL && dladdr((void *) curl_easy_init, &where) != 0 &&
		(libcurl = dlopen(where.dli_fname, RTLD_LAZY | RTLD_NOLOAD)) != NULL)
	{
		pending = dlsym(libcurl, is_openssl ? "SSL_has_pending" : "gnutls_record_check_pending");
		alpn = dlsym(libcurl, is_openssl ? "SSL_get0_alpn_selected" : "gnutls_alpn_get_selected_protocol");
	}
	if (pending == NULL || alpn == NULL)
		return;
	if (is_openssl)
		((void (*) (const void *, const char **, unsigned int *)) alpn)(tls->internals, &agreed.name, &agreed.length);
	else
		((int (*) (const void *, void *)) alpn)(tls->internals, &agreed);
	*has_unread = ((int (*) (const void *)) pending)(tls->internals) > 0;
	*is_http2 = agreed.length == 2 && memcmp(agreed.name, "h2", 2) == 0;
}

/*
 * Without a length, libcurl sometimes takes the end of an HTTP/2 connection for
 * the end of the answer: after GOAWAY, or when nghttp2 has reset the stream.
 * Only the body shows it then: it is empty, or JSON without its end.
 */
static bool
may_be_cut(HttpExchange *exchange)
{
	const HttpAnswer *answer = &exchange->answer;
	curl_off_t	length = -1;
	long		version = 0;
	size_t		end = answer->body_length;
	char		first = answer->body[strspn(answer->body, " \t\r\n")];

	curl_easy_getinfo(exchange->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
	curl_easy_getinfo(exchange->easy, CURLINFO_HTTP_VERSION, &version);
	if (length >= 0)
		return (size_t) length > end;
	while (end > 0 && isspace((unsigned char) answer->body[end - 1]))
		end--;
	if (end == 0)
		return version >= CURL_HTTP_VERSION_2_0;
	return (first == '{' && answer->body[end - 1] != '}') || (first == '[' && answer->body[end - 1] != ']');
}

void
transfer_conclude(HttpExchange *exchange, CURLcode result)
{
	HttpAnswer *answer = &exchange->answer;
	const char *problem = NULL;
	char	   *target = NULL;
	long		status = 0;
	curl_off_t	retry_after = 0;
	HttpUrl		parts;

	curl_easy_getinfo(exchange->easy, CURLINFO_RESPONSE_CODE, &status);
	if (exchange->too_large != NULL)
		problem = exchange->too_large;
	else if (result != CURLE_OK && answer->error[0] != '\0')
		return;
	else if (result != CURLE_OK)
		problem = curl_easy_strerror(result);
	else if (!exchange->headers_ended)
		problem = "the answer ended within its headers";
	else if (status < 200 || status > 999)
		problem = "the answer has no valid status";
	else if (status != 204 && status != 304 && may_be_cut(exchange) &&
			 !(wire_look(exchange->local_port, true) & WIRE_OPEN))
		problem = "the connection ended within the answer";
	if (problem != NULL)
	{
		strlcpy(answer->error, problem, HTTP_ERROR_SIZE);
		return;
	}
	answer->status = (int) status;
	curl_easy_getinfo(exchange->easy, CURLINFO_RETRY_AFTER, &retry_after);
	answer->retry_after = (int) Max(Min(retry_after, 3600), 0);
	curl_easy_getinfo(exchange->easy, CURLINFO_REDIRECT_URL, &target);
	if (target != NULL && http_parse_url(target, &parts))
		strlcpy(answer->redirect_host, parts.host, HTTP_HOST_SIZE);
}

void
transfer_release(HttpExchange *exchange)
{
	curl_easy_cleanup(exchange->easy);
	for (struct curl_slist *item = exchange->headers; item != NULL; item = item->next)
		explicit_bzero(item->data, strlen(item->data));
	curl_slist_free_all(exchange->headers);
	free(exchange->answer.body);
	free(exchange);
}

bool
http_parse_url(const char *text, HttpUrl *parts)
{
	CURLU	   *url = curl_url();
	char	   *scheme = NULL;
	char	   *host = NULL;
	bool		parsed = curl_url_set(url, CURLUPART_URL, text, CURLU_NON_SUPPORT_SCHEME) == CURLUE_OK &&
		curl_url_get(url, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
		curl_url_get(url, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
		strlcpy(parts->scheme, scheme, sizeof(parts->scheme)) < sizeof(parts->scheme) &&
		strlcpy(parts->host, host, sizeof(parts->host)) < sizeof(parts->host);

	curl_free(scheme);
	curl_free(host);
	curl_url_cleanup(url);
	return parsed;
}
