/*
 * http.c
 *		Exchanges over libcurl, many in flight, interruptible.
 *
 * One multi handle a process, opened on first use and kept, so that
 * connections, TLS sessions, the parsed CA store and DNS answers outlive
 * statements and transactions.  libcurl never waits here: it tells which
 * sockets and which timer it is interested in, and http_wait() waits for them
 * (wire.c) together with the latch, so that an interrupt takes effect
 * at once, whether a name is being resolved, a handshake goes on or a body
 * drips in.
 *
 * This room knows requests and answers, nothing of OneSignal.  It and transfer.c,
 * its other half, are the only ones that see curl/curl.h.
 *
 * libcurl's callbacks only record: what they could throw or palloc would leave
 * through C frames that do not expect it.  For the same reason all memory in
 * here is malloc'd and hangs on the static engine, from which http_abandon()
 * and the exit callback free it, whatever happened in between.
 */
#include "postgres.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/hashfn.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"

#include "compat.h"
#include "http.h"
#include "transfer.h"
#include "window.h"
#include "wire.h"

/* At 100 streams each, 8 carry 22,700 requests a second over 30 ms. */
#define HTTP_HOST_CONNECTIONS	8
#define HTTP_TOTAL_CONNECTIONS	16

/* Two sockets a connection while it is made, and a resolver's pipe */
StaticAssertDecl(4 * HTTP_TOTAL_CONNECTIONS <= WIRE_SOCKETS_MAX, "too few sockets can be watched");

/*
 * How many exchanges may be handed to libcurl without a connection or stream
 * of their own yet.  It opens another connection only while some wait for one,
 * yet touches each waiting one whenever any finishes: few, but not none.
 */
#define HTTP_UNSENT_MAX		32

/* Connections, the losers of a race between IPv4 and IPv6, resolver pipes, epoll */
#define HTTP_FDS_RESERVED	24

/* An exchange whose reused connection turned out dead is sent again so often. */
#define HTTP_RESUBMIT_MAX	3

/*
 * And so often, if others have been answered in the meantime: before it has
 * read how many streams the peer allows, libcurl takes 100 for granted, and a
 * peer that allows one refuses the rest, connection after connection.
 */
#define HTTP_REFUSED_MAX	50

/* libcurl's own words come first, if it has any. */
#define HTTP_CONNECT_GRACE_US	INT64CONST(100000)

/*
 * Sent data that stays unacknowledged that long means a dead path: the kernel
 * then resets the connection, which otherwise would be reused, and time out,
 * for the quarter of an hour that TCP goes on trying.
 */
#define HTTP_UNACKNOWLEDGED_MS	20000

struct HttpExchange
{
	dlist_node	node;			/* in engine.idle, .flying, .finished or .returned */
	Transfer	transfer;
	void	   *owner;
	int64		begun_us;		/* from when its time runs */
	int64		deadline_us;
	int64		timeout_us;
	uint32		origin;			/* hash of scheme, host and port */
	int64		queued_us;		/* when it was handed to libcurl, or libcurl queued it again */
	int64		connect_timeout_us;
	int64		connect_by_us;	/* while it is not sent: when it is given up */
	int64		recheck_us;		/* ... and when that is looked at again */
	int64		answers_before; /* engine.answers when it was launched */
	int			resubmitted;
	bool		queues;			/* behind others: its time runs from when it is sent */
	int			local_port;		/* of the connection that it was sent on */
	bool		connecting;		/* it makes a connection, itself */
	bool		sent;
};

typedef struct HttpEngine
{
	CURLM	   *multi;
	dlist_head	idle;
	dlist_head	flying;
	dlist_head	finished;
	dlist_head	returned;		/* with the caller, who owes http_release() */
	int			in_flight;
	int			unsent;
	Window		window;			/* how many may be in flight now */
	int64		timer_us;		/* when libcurl wants to be called */
	int64		next_deadline_us;	/* no deadline is earlier */
	int64		last_finished_us;
	int64		answers;		/* exchanges that had one */
	bool		left_unsent;	/* one was dropped that may have a resolver at work */
	bool		signals_blocked;
	sigset_t	saved_signals;	/* while signals_blocked */
} HttpEngine;

static HttpEngine engine = {.window = {.limit = WINDOW_MIN}};
static bool fds_reserved = false;
static bool exit_armed = false;

int64
http_clock_us(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/*
 * libcurl may start a thread to resolve a name.  Threads inherit the signal
 * mask: with everything blocked, PostgreSQL's handlers only ever run on the
 * main thread.  Faults stay deliverable.
 *
 * It says so beforehand, see resolver_callback(); blocking them for each call
 * would be two system calls more for each step of each request.
 */
static void
block_signals(void)
{
	sigset_t	blocked;

	if (engine.signals_blocked)
		return;
	sigfillset(&blocked);
	sigdelset(&blocked, SIGSEGV);
	sigdelset(&blocked, SIGBUS);
	sigdelset(&blocked, SIGFPE);
	sigdelset(&blocked, SIGILL);
	sigdelset(&blocked, SIGTRAP);
	sigdelset(&blocked, SIGABRT);
	pthread_sigmask(SIG_SETMASK, &blocked, &engine.saved_signals);
	engine.signals_blocked = true;
}

/* After each call into libcurl that may resolve a name or end a connection. */
static void
restore_signals(void)
{
	if (!engine.signals_blocked)
		return;
	engine.signals_blocked = false;
	pthread_sigmask(SIG_SETMASK, &engine.saved_signals, NULL);
}

/* ---- what libcurl calls: only to record ---- */

static int
socket_callback(CURL *easy, curl_socket_t fd, int what, void *context, void *socket_context)
{
	(void) easy;
	(void) context;
	(void) socket_context;

	/* CURL_POLL_REMOVE asks for nothing. */
	wire_watch(fd, what == CURL_POLL_REMOVE ? 0 :
			   ((what & CURL_POLL_IN) ? WL_SOCKET_READABLE : 0) |
			   ((what & CURL_POLL_OUT) ? WL_SOCKET_WRITEABLE : 0));
	return 0;
}

/* Called between socket() and connect(), for every socket that closesocket_callback() will see. */
static int
sockopt_callback(void *context, curl_socket_t fd, curlsocktype purpose)
{
#ifdef TCP_USER_TIMEOUT
	unsigned int unacknowledged_ms = HTTP_UNACKNOWLEDGED_MS;

	(void) setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacknowledged_ms, sizeof(unacknowledged_ms));
#endif
	(void) purpose;

	((HttpExchange *) context)->connecting = true;
	wire_opening();
	wire_own(fd);
	return CURL_SOCKOPT_OK;
}

/* It waits for a connection, or for a stream on one, from now on. */
static void
note_queued(HttpExchange *exchange)
{
	exchange->sent = false;
	exchange->connecting = false;
	exchange->queued_us = http_clock_us();
	exchange->connect_by_us = exchange->queued_us + exchange->connect_timeout_us;
	exchange->recheck_us = exchange->queued_us + exchange->connect_timeout_us / 2;
	engine.next_deadline_us = Min(engine.next_deadline_us, exchange->recheck_us);
	engine.unsent++;
}

/*
 * What was sent on a connection that ends and is in flight still, libcurl will
 * send again, if it may, on another: after a GOAWAY, or a refused stream.
 * Until then it waits for its turn.
 */
static void
note_requeued(curl_socket_t fd)
{
	struct sockaddr_storage address = {0};
	socklen_t	length = sizeof(address);
	int			local_port;
	dlist_iter	iter;

	(void) getsockname(fd, (struct sockaddr *) &address, &length);
	local_port = ntohs(address.ss_family == AF_INET6 ?
					   ((struct sockaddr_in6 *) &address)->sin6_port :
					   ((struct sockaddr_in *) &address)->sin_port);
	dlist_foreach(iter, &engine.flying)
	{
		HttpExchange *exchange = dlist_container(HttpExchange, node, iter.cur);

		if (exchange->sent && exchange->local_port == local_port)
			note_queued(exchange);
	}
}

static int
closesocket_callback(void *context, curl_socket_t fd)
{
	(void) context;

	note_requeued(fd);
	wire_closed(fd);
	return close(fd);
}

static int
timer_callback(CURLM *multi, long timeout_ms, void *context)
{
	(void) multi;
	(void) context;

	engine.timer_us = timeout_ms < 0 ? PG_INT64_MAX : http_clock_us() + timeout_ms * INT64CONST(1000);
	return 0;
}

/*
 * Called in this thread each time before a name is resolved, and so before a
 * thread for that is started: CURLOPT_RESOLVER_START_FUNCTION.
 */
static int
resolver_callback(void *resolver, void *reserved, void *context)
{
	(void) resolver;
	(void) reserved;

	((HttpExchange *) context)->connecting = true;
	block_signals();
	wire_opening();				/* its pipe comes next */
	return 0;
}

static void
start_time(HttpExchange *exchange)
{
	exchange->begun_us = http_clock_us();
	exchange->deadline_us = exchange->begun_us + exchange->timeout_us;
	engine.next_deadline_us = Min(engine.next_deadline_us, exchange->deadline_us);
}

/*
 * The connection is there and the request is about to go out: from now on its
 * time runs, if it had to wait for others until now.
 */
static int
prereq_callback(void *context, char *peer_ip, char *local_ip, int peer_port, int local_port)
{
	HttpExchange *exchange = context;

	(void) peer_ip;
	(void) local_ip;
	(void) peer_port;

	if (!exchange->sent)
		engine.unsent--;
	exchange->sent = true;
	exchange->connecting = false;
	exchange->local_port = local_port;
	if (exchange->queues)
		start_time(exchange);
	return CURL_PREREQFUNC_OK;
}

/* ---- opening and closing ---- */

static void
free_exchanges(dlist_head *list)
{
	while (!dlist_is_empty(list))
	{
		HttpExchange *exchange = dlist_container(HttpExchange, node, dlist_pop_head_node(list));

		transfer_free(&exchange->transfer);
		free(exchange);
	}
}

static void
close_at_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;

	if (engine.multi == NULL)
		return;
	http_abandon();

	/*
	 * Newer libcurls would wait for a resolver that is still at work for an
	 * exchange that is long gone.  The kernel closes all there is as well.
	 */
	if (!engine.left_unsent)
	{
		block_signals();
		free_exchanges(&engine.idle);
		curl_multi_cleanup(engine.multi);
		curl_global_cleanup();
		restore_signals();
		engine.multi = NULL;
	}
	wire_shut();
}

/* All of them or none, so that a refusal leaves nothing behind.  Kept for the process's life. */
static void
reserve_fds(void)
{
	for (int i = 0; i < HTTP_FDS_RESERVED; i++)
	{
		if (AcquireExternalFD())
			continue;
		while (i-- > 0)
			ReleaseExternalFD();
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not reserve file descriptors for HTTP connections"),
				 errhint("Raise max_files_per_process and the server's ulimit -n.")));
	}
	fds_reserved = true;
}

static void
open_engine(void)
{
	CURLM	   *multi;

	if (engine.multi != NULL)
		return;
	if (!fds_reserved)
		reserve_fds();
	if (!exit_armed)
		before_shmem_exit(close_at_exit, (Datum) 0);
	exit_armed = true;

	block_signals();
	multi = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK ? curl_multi_init() : NULL;
	restore_signals();
	if (multi == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not initialize libcurl")));

	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, socket_callback);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, timer_callback);
	curl_multi_setopt(multi, CURLMOPT_PIPELINING, CURLPIPE_MULTIPLEX);
	curl_multi_setopt(multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long) HTTP_HOST_CONNECTIONS);
	curl_multi_setopt(multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long) HTTP_TOTAL_CONNECTIONS);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) HTTP_TOTAL_CONNECTIONS);

	dlist_init(&engine.idle);
	dlist_init(&engine.flying);
	dlist_init(&engine.finished);
	dlist_init(&engine.returned);
	engine.timer_us = PG_INT64_MAX;
	engine.next_deadline_us = PG_INT64_MAX;
	engine.multi = multi;
}

/* For what makes and ends the connection that it goes over. */
static void
watch_connection(HttpExchange *exchange)
{
	CURL	   *easy = exchange->transfer.easy;

	curl_easy_setopt(easy, CURLOPT_SOCKOPTFUNCTION, sockopt_callback);
	curl_easy_setopt(easy, CURLOPT_SOCKOPTDATA, exchange);
	curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, closesocket_callback);
	curl_easy_setopt(easy, CURLOPT_RESOLVER_START_FUNCTION, resolver_callback);
	curl_easy_setopt(easy, CURLOPT_RESOLVER_START_DATA, exchange);
	curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, prereq_callback);
	curl_easy_setopt(easy, CURLOPT_PREREQDATA, exchange);
}

static void
out_of_memory(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("out of memory"),
			 errdetail("Failed while preparing an HTTP request.")));
}

static HttpExchange *
make_exchange(void)
{
	HttpExchange *exchange = calloc(1, sizeof(HttpExchange));

	if (exchange == NULL)
		out_of_memory();
	if (!transfer_make(&exchange->transfer, exchange))
	{
		free(exchange);
		out_of_memory();
	}
	watch_connection(exchange);
	dlist_push_head(&engine.idle, &exchange->node);
	return exchange;
}

/* ---- one exchange ---- */

/* From engine.idle into engine.flying. */
static bool
launch(HttpExchange *exchange)
{
	transfer_reset(&exchange->transfer);
	exchange->answers_before = engine.answers;
	curl_easy_setopt(exchange->transfer.easy, CURLOPT_CONNECTTIMEOUT_MS, (long) (exchange->connect_timeout_us / 1000));
	/* Resolves nothing yet: that begins with the next act(). */
	if (curl_multi_add_handle(engine.multi, exchange->transfer.easy) != CURLM_OK)
		return false;

	dlist_delete(&exchange->node);
	dlist_push_tail(&engine.flying, &exchange->node);
	engine.in_flight++;
	note_queued(exchange);
	return true;
}

/* From engine.flying into the list given; libcurl lets go of it. */
static void
land(HttpExchange *exchange, dlist_head *list)
{
	curl_multi_remove_handle(engine.multi, exchange->transfer.easy);
	restore_signals();

	dlist_delete(&exchange->node);
	dlist_push_tail(list, &exchange->node);
	engine.in_flight--;
	if (!exchange->sent)
	{
		engine.unsent--;
		engine.left_unsent = true;
	}
}

/*
 * A connection that the peer closed while it was idle, or let go in
 * mid-flight, says nothing about the request, and DELETE may be sent again.
 */
static bool
may_resubmit(HttpExchange *exchange, CURLcode result)
{
	long		connects = 1;

	if (exchange->transfer.header_bytes > 0)
		return false;
	/* libcurl tried it again and again, but not all streams were refused meanwhile. */
	if (strncmp(exchange->transfer.error, "Connection died", strlen("Connection died")) == 0 &&
		engine.answers > exchange->answers_before)
		return exchange->resubmitted++ < HTTP_REFUSED_MAX;

	switch (result)
	{
		case CURLE_SEND_ERROR:
		case CURLE_RECV_ERROR:
		case CURLE_GOT_NOTHING:
		case CURLE_HTTP2:
		case CURLE_HTTP2_STREAM:
		case CURLE_PARTIAL_FILE:	/* closed in mid-stream, here before any header */
			break;
		default:
			return false;
	}
	curl_easy_getinfo(exchange->transfer.easy, CURLINFO_NUM_CONNECTS, &connects);
	return connects == 0 && exchange->resubmitted++ < HTTP_RESUBMIT_MAX;
}

static void
collect_finished(void)
{
	int64		now = http_clock_us();
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(engine.multi, &left)) != NULL)
	{
		HttpExchange *exchange = NULL;
		CURLcode	result = message->data.result;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &exchange);
		if (exchange->sent && result == CURLE_OK)
			window_ended(&engine.window, now - exchange->begun_us);
		if (may_resubmit(exchange, result))
		{
			land(exchange, &engine.idle);
			/* What it spent on the wire is spent; it may have to queue again. */
			if (exchange->queues)
				exchange->timeout_us = exchange->deadline_us - now;
			if (launch(exchange))
				continue;
			transfer_conclude(&exchange->transfer, CURLE_OUT_OF_MEMORY);
			dlist_delete(&exchange->node);
			dlist_push_tail(&engine.finished, &exchange->node);
			continue;
		}
		transfer_conclude(&exchange->transfer, result);
		land(exchange, &engine.finished);
		if (result == CURLE_OK)
			engine.answers++;
		engine.last_finished_us = now;
	}
}

/* Does its peer let others through now?  Then its turn will come. */
static bool
others_are_sent(const HttpExchange *exchange)
{
	dlist_iter	iter;

	dlist_foreach(iter, &engine.flying)
	{
		HttpExchange *other = dlist_container(HttpExchange, node, iter.cur);

		if (other->sent && other->origin == exchange->origin)
			return true;
	}
	return false;
}

/*
 * To libcurl all of the time before a request is sent is time to connect: that
 * of a request which only waits for its turn is put off as long as others go.
 * One that makes a connection has what it had when it began.
 */
static void
put_off_connect(HttpExchange *exchange, int64 now)
{
	if (now < exchange->recheck_us)
		return;
	if (!exchange->connecting && others_are_sent(exchange))
	{
		exchange->connect_by_us = now + exchange->connect_timeout_us;
		curl_easy_setopt(exchange->transfer.easy, CURLOPT_CONNECTTIMEOUT_MS,
						 (long) ((exchange->connect_by_us - exchange->queued_us) / 1000 + 1));
	}
	/* Sooner and sooner, for nothing may be on the wire just now. */
	exchange->recheck_us = Max(now + (exchange->connect_by_us - now) / 2, now + HTTP_CONNECT_GRACE_US / 10);
}

/*
 * When it is given up, as of now.  The time runs from the sending of the
 * request, which libcurl's own timeout does not know, or from its submission
 * if there was nobody to wait for.  An exchange that still queues behind others
 * has all of it before it as long as those finish.
 */
static int64
deadline(HttpExchange *exchange, int64 now)
{
	if (exchange->sent)
		return exchange->deadline_us;
	put_off_connect(exchange, now);
	if (exchange->queues)
		exchange->deadline_us = Max(exchange->deadline_us, engine.last_finished_us + exchange->timeout_us);
	return Min(exchange->deadline_us, exchange->connect_by_us + HTTP_CONNECT_GRACE_US);
}

static void
give_up(HttpExchange *exchange)
{
	bool		late = exchange->sent || exchange->deadline_us < exchange->connect_by_us;

	land(exchange, &engine.finished);
	transfer_conclude(&exchange->transfer, CURLE_OPERATION_TIMEDOUT);
	if (late)
		snprintf(exchange->transfer.error, HTTP_ERROR_SIZE, "no answer within " INT64_FORMAT " ms",
				 exchange->timeout_us / 1000);
	else
		snprintf(exchange->transfer.error, HTTP_ERROR_SIZE,
				 "Connection timed out after " INT64_FORMAT " milliseconds",
				 exchange->connect_timeout_us / 1000);
}

static void
expire(int64 now)
{
	dlist_mutable_iter iter;

	if (now < engine.next_deadline_us)
		return;
	engine.next_deadline_us = PG_INT64_MAX;
	dlist_foreach_modify(iter, &engine.flying)
	{
		HttpExchange *exchange = dlist_container(HttpExchange, node, iter.cur);
		int64		next = deadline(exchange, now);

		if (next <= now)
		{
			give_up(exchange);
			continue;
		}
		if (!exchange->sent)
			next = Min(next, exchange->recheck_us);
		engine.next_deadline_us = Min(engine.next_deadline_us, next);
	}
}

/* ---- waiting ---- */

static void
act(curl_socket_t fd, int what)
{
	int			running;

	curl_multi_socket_action(engine.multi, fd, what, &running);
	restore_signals();
}

/*
 * libcurl writes each request by itself, which as a segment of its own costs
 * both sides more than its contents.
 */
static void
act_on_timer(void)
{
	bool		many = engine.unsent > 1;

	engine.timer_us = PG_INT64_MAX;
	if (many)
		wire_cork(true);
	act(CURL_SOCKET_TIMEOUT, 0);
	if (many)
		wire_cork(false);
}

/*
 * One wait of at most timeout_ms (-1: no limit).  True: something occurred;
 * *latched becomes true when the latch was set.
 */
static bool
wait_once(long timeout_ms, bool *latched)
{
	int64		began = http_clock_us();
	int			patience_ms = window_patience_ms(&engine.window, engine.in_flight, HTTP_IN_FLIGHT_MAX);
	WireEvent	event;

	if (patience_ms >= 0 && (timeout_ms < 0 || timeout_ms > patience_ms))
		timeout_ms = patience_ms;
	wire_wait(timeout_ms, &event);
	if (timeout_ms != 0)
		window_waited(&engine.window, engine.in_flight, HTTP_IN_FLIGHT_MAX, began, http_clock_us());
	if (event.fd >= 0)
		act(event.fd,
			((event.ready & WL_SOCKET_READABLE) ? CURL_CSELECT_IN : 0) |
			((event.ready & WL_SOCKET_WRITEABLE) ? CURL_CSELECT_OUT : 0));
	*latched |= event.latched;
	return event.occurred;
}

/*
 * What has arrived is not late, however long the caller was kept from reading
 * it: by a lock on a table, say.
 */
static void
read_arrived(bool *latched)
{
	for (int i = 0; i < WIRE_SOCKETS_MAX && wait_once(0, latched); i++)
		collect_finished();
}

static long
timeout_until(int64 now, int64 until_us)
{
	int64		until = Min(until_us, Min(engine.timer_us, engine.next_deadline_us));

	if (until == PG_INT64_MAX)
		return -1;
	if (until <= now)
		return 0;
	/* Rounded up: a wait that ends early would spin through the last millisecond. */
	return (long) Min((until - now + 999) / 1000, PG_INT32_MAX);
}

/* ---- the public functions ---- */

static uint32
origin_of(const char *url)
{
	const char *host = strstr(url, "://");
	size_t		length = host != NULL ? (host - url) + 3 + strcspn(host + 3, "/") : strlen(url);

	return hash_bytes((const unsigned char *) url, (int) length);
}

/* How many exchanges may be submitted now. */
int
http_room(void)
{
	return Min(engine.window.limit - engine.in_flight, HTTP_UNSENT_MAX - engine.unsent);
}

int
http_in_flight(void)
{
	return engine.in_flight;
}

/*
 * Starts an exchange; http_wait() returns it when it has finished.  Everything
 * in the request is copied.  Call only while http_room() > 0.  Raises 53000
 * when no file descriptors are to be had and 53200 without memory; what becomes
 * of the request itself is in its answer.
 */
HttpExchange *
http_submit(const HttpRequest *request, void *owner)
{
	HttpExchange *exchange;

	open_engine();
	Assert(http_room() > 0);
	exchange = dlist_is_empty(&engine.idle) ? make_exchange() :
		dlist_head_element(HttpExchange, node, &engine.idle);

	exchange->owner = owner;
	exchange->resubmitted = 0;
	exchange->timeout_us = request->timeout_ms * INT64CONST(1000);
	exchange->connect_timeout_us = request->connect_timeout_ms * INT64CONST(1000);
	exchange->origin = origin_of(request->url);
	exchange->queues = engine.in_flight > 0;
	start_time(exchange);
	if (engine.in_flight == 0)
		window_start(&engine.window, engine.last_finished_us, exchange->begun_us);
	if (!transfer_prepare(&exchange->transfer, request) || !launch(exchange))
	{
		transfer_release(&exchange->transfer);
		out_of_memory();
	}
	return exchange;
}

/*
 * Waits until an exchange has finished, and returns it; it stays valid until
 * http_release().  NULL: until_us (of http_clock_us(); PG_INT64_MAX: no limit)
 * has come, there is room again where there was none, or the latch was set:
 * the caller may have something to do.
 * Interrupts are served, and so this may throw: the caller then owes
 * http_abandon().
 */
HttpExchange *
http_wait(int64 until_us)
{
	bool		had_room;

	open_engine();
	had_room = http_room() > 0;
	for (;;)
	{
		int64		now;
		bool		latched = false;

		CHECK_FOR_INTERRUPTS();
		if (!dlist_is_empty(&engine.finished))
			return http_next();
		if (!had_room && http_room() > 0)
			return NULL;

		now = http_clock_us();
		if (engine.timer_us <= now)
		{
			act_on_timer();
			collect_finished();
			continue;
		}
		wait_once(timeout_until(now, until_us), &latched);
		collect_finished();
		now = http_clock_us();
		if (now >= engine.next_deadline_us)
			read_arrived(&latched);
		window_review(&engine.window, HTTP_IN_FLIGHT_MAX, now);
		expire(now);
		if (dlist_is_empty(&engine.finished) && (latched || now >= until_us))
		{
			CHECK_FOR_INTERRUPTS();
			return NULL;
		}
	}
}

/* Another exchange that has finished, without looking for more; else NULL. */
HttpExchange *
http_next(void)
{
	HttpExchange *exchange;

	if (engine.multi == NULL || dlist_is_empty(&engine.finished))
		return NULL;
	exchange = dlist_container(HttpExchange, node, dlist_pop_head_node(&engine.finished));
	dlist_push_tail(&engine.returned, &exchange->node);
	return exchange;
}

const HttpAnswer *
http_answer(const HttpExchange *exchange)
{
	return &exchange->transfer.answer;
}

void *
http_owner(const HttpExchange *exchange)
{
	return exchange->owner;
}

/* When its request was sent; or submitted, if it never was or had nobody to wait for. */
int64
http_begun_us(const HttpExchange *exchange)
{
	return exchange->begun_us;
}

/* Gives a finished exchange back; its answer is gone. */
void
http_release(HttpExchange *exchange)
{
	transfer_release(&exchange->transfer);
	dlist_delete(&exchange->node);
	dlist_push_head(&engine.idle, &exchange->node);
}

/*
 * Drops whatever is in flight, finished, or returned and not released.  For
 * the error path of http_wait()'s caller; does nothing when there is nothing,
 * never throws.
 */
void
http_abandon(void)
{
	if (engine.multi == NULL)
		return;
	while (!dlist_is_empty(&engine.flying))
		land(dlist_head_element(HttpExchange, node, &engine.flying), &engine.finished);
	while (!dlist_is_empty(&engine.finished))
		http_release(dlist_head_element(HttpExchange, node, &engine.finished));
	while (!dlist_is_empty(&engine.returned))
		http_release(dlist_head_element(HttpExchange, node, &engine.returned));
}

/* "libcurl 7.88.1, OpenSSL/3.0.15, nghttp2 1.52.0": what is loaded, not what it was built with */
void
http_append_versions(StringInfo out)
{
	const curl_version_info_data *info = curl_version_info(CURLVERSION_NOW);

	appendStringInfo(out, "libcurl %s, %s, nghttp2 %s", info->version,
					 info->ssl_version != NULL ? info->ssl_version : "no TLS",
					 (info->features & CURL_VERSION_HTTP2) && info->nghttp2_version != NULL ?
					 info->nghttp2_version : "none");
}
