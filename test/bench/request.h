/*
 * request.h
 *		The request that easy.c and multi.c send: what the extension sends, by
 *		plain libcurl.
 *
 * Server, CA, app and key come from the stand-in's env file, in the
 * environment.  Any answer but {"success":true} ends the program: a fast
 * client that is refused would measure nothing.
 */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define DIE(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))

typedef struct Request
{
	CURL	   *easy;
	size_t		length;
	char		body[256];
} Request;

static char url_prefix[256];
static char url_suffix[256];
static struct curl_slist *headers;
static int	message_number;

static double
seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static double
cpu_seconds(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
		(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static const char *
environment(const char *name)
{
	const char *value = getenv(name);

	if (value == NULL)
		DIE("%s is not set: source the stand-in's env file", name);
	return value;
}

static size_t
keep_body(char *data, size_t size, size_t count, void *context)
{
	Request    *request = context;

	if (request->length + size * count >= sizeof(request->body))
		return 0;
	memcpy(request->body + request->length, data, size * count);
	request->length += size * count;
	return size * count;
}

static void
request_init(void)
{
	char		authorization[256];

	curl_global_init(CURL_GLOBAL_DEFAULT);
	snprintf(url_prefix, sizeof(url_prefix), "%s/notifications/", environment("ONESIGNAL_URL"));
	snprintf(url_suffix, sizeof(url_suffix), "?app_id=%s", environment("ONESIGNAL_APP_ID"));
	snprintf(authorization, sizeof(authorization), "Authorization: Key %s", environment("ONESIGNAL_API_KEY"));
	headers = curl_slist_append(headers, authorization);
	headers = curl_slist_append(headers, "Accept: application/json");
	headers = curl_slist_append(headers, "User-Agent: onesignal_cancel/bench");
}

static void
request_make(Request *request)
{
	CURL	   *easy = curl_easy_init();

	request->easy = easy;
	curl_easy_setopt(easy, CURLOPT_PRIVATE, request);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, "DELETE");
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_CAINFO, environment("ONESIGNAL_CA"));
	curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
	curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_2TLS);
	curl_easy_setopt(easy, CURLOPT_PIPEWAIT, 1L);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, keep_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, request);
}

/* The next of the message ids that all take: 00000000-0000-4000-8000-000000000001 and so on. */
static void
request_next(Request *request)
{
	char		url[1024];

	snprintf(url, sizeof(url), "%s00000000-0000-4000-8000-%012x%s", url_prefix, ++message_number, url_suffix);
	curl_easy_setopt(request->easy, CURLOPT_URL, url);
	request->length = 0;
}

static void
request_check(Request *request, CURLcode code)
{
	long		status = 0;

	if (code != CURLE_OK)
		DIE("%s", curl_easy_strerror(code));
	curl_easy_getinfo(request->easy, CURLINFO_RESPONSE_CODE, &status);
	request->body[request->length] = '\0';
	if (status != 200 || strcmp(request->body, "{\"success\":true}") != 0)
		DIE("HTTP %ld: %s", status, request->body);
}

/* Requests a second, and microseconds of CPU a request. */
static void
print_figures(int count, double began, double cpu_began)
{
	printf("%.1f %.2f\n", count / (seconds() - began), (cpu_seconds() - cpu_began) * 1e6 / count);
}
