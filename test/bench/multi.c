/*
 * multi.c
 *		Many requests at once by libcurl's multi interface: the limit of what
 *		one core and HTTP/2 streams give.
 *
 * multi COUNT CONNECTIONS IN_FLIGHT; one connection is made before the clock
 * starts.  Handles are reused, at most as many as there are streams, and
 * libcurl is driven by its sockets, through epoll: the fastest of the ways
 * that libcurl documents (curl_multi_poll() and _perform() visit each handle
 * each time: 0.55 of this with 100 in flight).
 */
#include "request.h"

#include <sys/epoll.h>
#include <unistd.h>

#define SOCKETS_MAX 1024

static CURLM *multi;
static int	epoll_fd;
static unsigned watched[SOCKETS_MAX];	/* by descriptor: for what */
static double timer_at = -1;	/* when libcurl wants to be called, < 0: never */

/* An idle connection stays watched: the next request is sure to come. */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *context, void *socket_context)
{
	struct epoll_event event = {.data.fd = fd};

	(void) easy;
	(void) context;
	(void) socket_context;
	event.events = ((what & CURL_POLL_IN) ? EPOLLIN : 0) | ((what & CURL_POLL_OUT) ? EPOLLOUT : 0);
	if (what == CURL_POLL_REMOVE || fd >= SOCKETS_MAX || watched[fd] == event.events)
		return 0;
	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event) < 0)
		epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
	watched[fd] = event.events;
	return 0;
}

static int
on_close(void *context, curl_socket_t fd)
{
	(void) context;
	if (fd < SOCKETS_MAX)
		watched[fd] = 0;
	return close(fd);
}

static int
on_timer(CURLM *handle, long timeout_ms, void *context)
{
	(void) handle;
	(void) context;
	timer_at = timeout_ms < 0 ? -1 : seconds() + timeout_ms / 1e3;
	return 0;
}

static void
make_multi(long connections)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
	multi = curl_multi_init();
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(multi, CURLMOPT_PIPELINING, CURLPIPE_MULTIPLEX);
	curl_multi_setopt(multi, CURLMOPT_MAX_HOST_CONNECTIONS, connections);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, connections);
}

static void
start(Request *request)
{
	request_next(request);
	curl_multi_add_handle(multi, request->easy);
}

static void
wait_and_act(void)
{
	struct epoll_event events[64];
	double		left = timer_at < 0 ? 10 : timer_at - seconds();
	int			running;
	int			count = epoll_wait(epoll_fd, events, 64, left > 0 ? (int) (left * 1e3 + 0.999) : 0);

	for (int i = 0; i < count; i++)
		curl_multi_socket_action(multi, events[i].data.fd,
								 ((events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) ? CURL_CSELECT_IN : 0) |
								 ((events[i].events & EPOLLOUT) ? CURL_CSELECT_OUT : 0), &running);
	if (timer_at >= 0 && timer_at <= seconds())
	{
		timer_at = -1;
		curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
	}
}

/* Sends count requests, at most in_flight at a time, and checks each answer. */
static void
run(Request *requests, int count, int in_flight)
{
	int			started = 0;
	int			done = 0;

	while (started < count && started < in_flight)
		start(&requests[started++]);
	while (done < count)
	{
		CURLMsg    *message;
		int			left;

		wait_and_act();
		while ((message = curl_multi_info_read(multi, &left)) != NULL)
		{
			Request    *request;

			curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &request);
			request_check(request, message->data.result);
			curl_multi_remove_handle(multi, request->easy);
			done++;
			if (started < count)
			{
				start(request);
				started++;
			}
		}
	}
}

int
main(int argc, char **argv)
{
	int			count = argc == 4 ? atoi(argv[1]) : 0;
	long		connections = argc == 4 ? atol(argv[2]) : 0;
	int			in_flight = argc == 4 ? atoi(argv[3]) : 0;
	Request    *requests;
	double		began;
	double		cpu_began;

	if (count <= 0 || connections <= 0 || in_flight <= 0)
		DIE("Usage: multi COUNT CONNECTIONS IN_FLIGHT");
	request_init();
	make_multi(connections);
	requests = calloc(in_flight, sizeof(Request));
	for (int i = 0; i < in_flight; i++)
	{
		request_make(&requests[i]);
		curl_easy_setopt(requests[i].easy, CURLOPT_CLOSESOCKETFUNCTION, on_close);
	}
	run(requests, 1, 1);

	began = seconds();
	cpu_began = cpu_seconds();
	run(requests, count, in_flight);
	print_figures(count, began, cpu_began);
	return 0;
}
