/*
 * http.c
 *		Exchanges over libcurl, many in flight, interruptible.
 *
 * Each process has one multi handle, opened on first use and kept: connections,
 * TLS sessions, the parsed CA store and DNS answers outlive transactions.
 * libcurl never waits.  It names the sockets and the timer that it needs, and
 * http_wait() waits for them (wire.c) and for the latch, so that an interrupt
 * always takes effect at once.
 *
 * libcurl's callbacks only record: an error or a palloc would leave through C
 * frames that do not expect it.  All memory is malloc'd and belongs to the
 * static engine, so that no error loses it.  When the process exits, the kernel
 * closes what is open: libcurl could wait for a resolver.
 */
#include "postgres.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "lib/ilist.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "http.h"
#include "transfer.h"
#include "wire.h"

/* At 100 streams each, 8 carry 22,700 requests a second over 30 ms. */
#define HTTP_HOST_CONNECTIONS	8

/* A connection takes two sockets while it is made, and a resolver's pipe. */
StaticAssertDecl(4 * HTTP_CONNECTIONS_MAX <= WIRE_SOCKETS_MAX, "too few sockets can be watched");

/*
 * File descriptors are reserved in steps.  Two of three are for connections, the
 * others for epoll, resolver pipes and the loser when IPv4 and IPv6 are both tried.
 */
#define HTTP_FDS_STEP			24
#define fds_to_connections(fds)	((long) (fds) / 3 * 2)

/*
 * How often an exchange is sent again when its connection turned out dead, and
 * when its stream was refused while others had answers: libcurl opens 100
 * streams before it has read how many the peer allows, on each connection.
 */
#define HTTP_RESUBMIT_MAX	3
#define HTTP_REFUSED_MAX	50

/*
 * A call into libcurl returns only when nothing is left to read, which a
 * flooding peer can prevent.  A timer looks at the call every HTTP_LOOK_MS.  It
 * may use so much processor time, and less when some deadline has passed.  An
 * answer of 64 kB takes 1 ms; parsing the CAs during a handshake takes 17 ms.
 */
#define HTTP_LOOK_MS			50
#define HTTP_FLOOD_CPU_US		INT64CONST(250000)
#define HTTP_LATE_CPU_US		INT64CONST(5000)

/* All streams of a flooding connection fail when it is cut off: those that fail so soon after. */
#define HTTP_FLOOD_MEMORY_US	INT64CONST(500000)

struct HttpExchange
{
	dlist_node	node;			/* in engine.flying, .finished or .returned */
	Transfer	transfer;
	void	   *owner;
	HttpGroup  *group;
	int64		begun_us;		/* from when its time runs */
	int64		launched_us;	/* when it was last handed to libcurl */
	int64		timeout_us;
	int64		connect_us;		/* how long it may stay unsent */
	int			resubmitted;
	bool		sent;			/* since it was last handed to libcurl */
	bool		sent_before;	/* also before it was last sent */
	bool		unsent;			/* it counts in group->unsent */
};

typedef struct HttpEngine
{
	CURLM	   *multi;
	dlist_head	flying;
	dlist_head	finished;
	dlist_head	returned;		/* with the caller, who owes http_release() */
	int			in_flight;
	int			unsent;			/* of all groups */
	int			fds_reserved;
	int			unsent_groups;	/* groups that have unsent exchanges */
	long		host_share;		/* connections that a host may have now */
	int64		timer_us;		/* when libcurl wants to be called */
	int64		next_deadline_us;	/* no deadline is earlier */
	bool		signals_blocked;
	sigset_t	saved_signals;	/* while signals_blocked */
} HttpEngine;

static HttpEngine engine;

/* For the handler of SIGALRM */
static TimeoutId look_timeout = MAX_TIMEOUTS;	/* until it is registered */
static volatile sig_atomic_t calling = false;	/* libcurl */
static int64 cpu_before_us;		/* of this thread, at the first look at that call; 0: none yet */
static volatile int64 flooded_us = 0;	/* when a call was last cut short */

int64
http_clock_us(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/*
 * A resolver thread inherits this signal mask, so that PostgreSQL's handlers run
 * only on the main thread.  Faults stay deliverable.  The signals cannot be
 * blocked around each whole call: look_at_call() needs SIGALRM.
 */
static void
block_signals(void)
{
	sigset_t	blocked = BlockSig;

	if (engine.signals_blocked)
		return;
	sigaddset(&blocked, SIGQUIT);
	pthread_sigmask(SIG_SETMASK, &blocked, &engine.saved_signals);
	engine.signals_blocked = true;
}

static void
restore_signals(void)
{
	if (!engine.signals_blocked)
		return;
	engine.signals_blocked = false;
	pthread_sigmask(SIG_SETMASK, &engine.saved_signals, NULL);
}

/* ---- what libcurl calls ---- */

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
	/* libcurl names a resolver's pipe right after it has started the thread. */
	restore_signals();
	return 0;
}

static int
timer_callback(CURLM *multi, long timeout_ms, void *context)
{
	(void) multi;
	(void) context;

	engine.timer_us = timeout_ms < 0 ? PG_INT64_MAX : http_clock_us() + timeout_ms * INT64CONST(1000);
	return 0;
}

/* Called in this thread before libcurl starts one that resolves a name. */
static int
resolver_callback(void *resolver, void *reserved, void *context)
{
	(void) resolver;
	(void) reserved;
	(void) context;

	block_signals();
	return 0;
}

static void
set_unsent(HttpExchange *exchange, bool unsent)
{
	HttpGroup  *group = exchange->group;
	int			change = (int) unsent - (int) exchange->unsent;
	bool		had_unsent = group->unsent > 0;

	exchange->unsent = unsent;
	group->unsent += change;
	engine.unsent += change;
	engine.unsent_groups += (int) (group->unsent > 0) - (int) had_unsent;
}

/* While the group has answers, waiting for a connection costs an exchange none of its time. */
static int64
waits_since(const HttpExchange *exchange)
{
	return Max(exchange->begun_us, exchange->group->answered_us);
}

static int64
deadline(const HttpExchange *exchange)
{
	return exchange->transfer.local_port != 0 ? exchange->begun_us + exchange->timeout_us :
		waits_since(exchange) + exchange->connect_us;
}

/* The connection is there and the request is about to go out, for the first time or again. */
static int
prereq_callback(void *context, char *peer_ip, char *local_ip, int peer_port, int local_port)
{
	HttpExchange *exchange = context;

	(void) peer_ip;
	(void) local_ip;
	(void) peer_port;

	/* libcurl would take what the peer sent unasked for the answer. */
	if (!transfer_begin(&exchange->transfer, local_port))
		return CURL_PREREQFUNC_ABORT;
	exchange->sent_before |= exchange->sent;
	exchange->sent = true;
	exchange->begun_us = waits_since(exchange);
	set_unsent(exchange, false);
	engine.next_deadline_us = Min(engine.next_deadline_us, deadline(exchange));
	return CURL_PREREQFUNC_OK;
}

/* ---- a call that does not return ---- */

/*
 * Runs in the handler of SIGALRM.  It counts processor time: an honest peer must
 * not be cut off because the machine is busy.
 */
static void
look_at_call(void)
{
	struct timespec cpu;
	int64		cpu_us;
	int64		now;

	if (!calling)
		return;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
	cpu_us = cpu.tv_sec * INT64CONST(1000000) + cpu.tv_nsec / 1000;
	if (cpu_before_us == 0)
		cpu_before_us = cpu_us;
	now = http_clock_us();
	if (ShutdownRequestPending || (InterruptPending && (QueryCancelPending || ProcDiePending)))
		(void) wire_cut_off(true);
	if (cpu_us - cpu_before_us >= (now < engine.next_deadline_us ? HTTP_FLOOD_CPU_US : HTTP_LATE_CPU_US) &&
			 wire_cut_off(false))
		flooded_us = now;
}

/*
 * Around each call of libcurl that may read from a peer.  That includes letting
 * go of an exchange: to close a TLS connection, libcurl reads what is left of it.
 */
static void
enter_libcurl(void)
{
	cpu_before_us = 0;
	calling = true;
	enable_timeout_every(look_timeout, GetCurrentTimestamp() + HTTP_LOOK_MS * INT64CONST(1000), HTTP_LOOK_MS);
}

static void
leave_libcurl(void)
{
	calling = false;
	disable_timeout(look_timeout, false);
	restore_signals();
}

/*
 * Those that wait for connections share half of what is left, so that hosts that
 * hang leave some for the next.  PostgreSQL lets a third of its descriptors be
 * reserved.
 */
static void
share_connections(void)
{
	long		available = Min(HTTP_CONNECTIONS_MAX, fds_to_connections(max_safe_fds / 3 / HTTP_FDS_STEP * HTTP_FDS_STEP));
	long		share = (available - wire_owned()) / (2 * Max(1, engine.unsent_groups));

	share = Max(1, Min(HTTP_HOST_CONNECTIONS, share));
	if (share != engine.host_share)
		curl_multi_setopt(engine.multi, CURLMOPT_MAX_HOST_CONNECTIONS, share);
	engine.host_share = share;
}

/* Calls libcurl for a socket that is ready, or for its timer. */
static void
act(curl_socket_t fd, int what)
{
	int			running;
	bool		many = engine.unsent > 1;

	/* libcurl writes each request by itself, which as a segment of its own costs both sides more than its contents. */
	if (many)
		wire_cork(true);
	share_connections();
	enter_libcurl();
	curl_multi_socket_action(engine.multi, fd, what, &running);
	leave_libcurl();
	if (many)
		wire_cork(false);
}

/* ---- opening and closing ---- */

/*
 * Each unsent exchange may need a connection.  Reserving descriptors may close
 * files and log, which no callback may do.  If there are no more, exchanges wait
 * for the connections that exist.
 */
static void
make_room_for_connections(void)
{
	int			wanted = Min(wire_owned() + engine.unsent + 1, HTTP_CONNECTIONS_MAX);

	while (fds_to_connections(engine.fds_reserved) < wanted)
	{
		int			step = 0;

		while (step < HTTP_FDS_STEP && AcquireExternalFD())
			step++;
		if (step < HTTP_FDS_STEP)
		{
			while (step-- > 0)
				ReleaseExternalFD();
			break;
		}
		engine.fds_reserved += HTTP_FDS_STEP;
		curl_multi_setopt(engine.multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, fds_to_connections(engine.fds_reserved));
		curl_multi_setopt(engine.multi, CURLMOPT_MAXCONNECTS, fds_to_connections(engine.fds_reserved));
	}
	if (engine.fds_reserved == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not reserve file descriptors for HTTP connections"),
				 errhint("Raise max_files_per_process and the server's ulimit -n.")));
}

static void
open_engine(void)
{
	CURLM	   *multi;

	if (engine.multi != NULL)
		return;
	if (look_timeout == MAX_TIMEOUTS)
		look_timeout = RegisterTimeout(USER_TIMEOUT, look_at_call);
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
	engine.host_share = HTTP_HOST_CONNECTIONS;
	curl_multi_setopt(multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long) HTTP_HOST_CONNECTIONS);

	dlist_init(&engine.flying);
	dlist_init(&engine.finished);
	dlist_init(&engine.returned);
	engine.timer_us = PG_INT64_MAX;
	engine.next_deadline_us = PG_INT64_MAX;
	engine.multi = multi;
}

/* ---- one exchange ---- */

/* Makes an exchange's handle. */
static bool
make_handle(HttpExchange *exchange, const HttpRequest *request)
{
	CURL	   *easy;

	if (!transfer_make(&exchange->transfer, request))
		return false;
	easy = exchange->transfer.easy;
	curl_easy_setopt(easy, CURLOPT_PRIVATE, exchange);
	curl_easy_setopt(easy, CURLOPT_RESOLVER_START_FUNCTION, resolver_callback);
	curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, prereq_callback);
	curl_easy_setopt(easy, CURLOPT_PREREQDATA, exchange);
	return true;
}

/* Hands it to libcurl, for the first time or again. */
static bool
launch(HttpExchange *exchange)
{
	transfer_reset(&exchange->transfer);
	exchange->sent_before |= exchange->sent;
	exchange->sent = false;
	exchange->launched_us = http_clock_us();
	/* This resolves nothing yet: the next act() does. */
	if (curl_multi_add_handle(engine.multi, exchange->transfer.easy) != CURLM_OK)
		return false;
	set_unsent(exchange, true);
	engine.next_deadline_us = Min(engine.next_deadline_us, deadline(exchange));
	return true;
}

/* libcurl lets go of it. */
static void
ground(HttpExchange *exchange)
{
	enter_libcurl();
	curl_multi_remove_handle(engine.multi, exchange->transfer.easy);
	leave_libcurl();
	set_unsent(exchange, false);
}

/* From engine.flying into engine.finished, with or without an answer. */
static void
land(HttpExchange *exchange)
{
	ground(exchange);
	dlist_delete(&exchange->node);
	dlist_push_tail(&engine.finished, &exchange->node);
	engine.in_flight--;
}

/* Has the connection failed in a way that says nothing about the request?  DELETE may be sent again. */
static bool
may_resubmit(HttpExchange *exchange, CURLcode result)
{
	bool		others_answered = exchange->group->answered_us > exchange->launched_us;
	bool		refused;
	long		connects = 1;

	if (exchange->transfer.header_bytes > 0)
		return false;
	switch (result)
	{
		case CURLE_ABORTED_BY_CALLBACK:	/* before it was sent; libcurl has closed that connection */
			return true;
		case CURLE_OPERATION_TIMEDOUT:	/* to libcurl, waiting for a stream is connecting */
			return others_answered && waits_since(exchange) + exchange->connect_us > http_clock_us();
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

	/*
	 * The peer closed a connection that was there before, or refused this
	 * stream so often that libcurl gave up, but answered others.
	 */
	curl_easy_getinfo(exchange->transfer.easy, CURLINFO_NUM_CONNECTS, &connects);
	refused = others_answered && strncmp(exchange->transfer.error, "Connection died", strlen("Connection died")) == 0;
	return (connects == 0 || refused) && exchange->resubmitted++ < (refused ? HTTP_REFUSED_MAX : HTTP_RESUBMIT_MAX);
}

/* Completes the answer, or the words that say why there is none. */
static void
conclude(HttpExchange *exchange, CURLcode result)
{
	HttpAnswer *answer = &exchange->transfer.answer;

	transfer_conclude(&exchange->transfer, result);
	land(exchange);
	answer->sent = exchange->sent || exchange->sent_before;
	answer->sent_before = exchange->sent_before;
	answer->begun_us = exchange->begun_us;
	if (answer->status != 0)
		exchange->group->answered_us = http_clock_us();
}

static void
finish(HttpExchange *exchange, CURLcode result)
{
	int			port = exchange->transfer.local_port;
	bool		flooded = result != CURLE_OK && !exchange->transfer.oversized &&
		flooded_us != 0 && http_clock_us() - flooded_us < HTTP_FLOOD_MEMORY_US;

	/* Until the connection is complete, only its failure tells. */
	flooded = flooded && (port != 0 ? wire_was_cut_off(port) : result != CURLE_COULDNT_CONNECT);

	if (flooded)
		strlcpy(exchange->transfer.error, "the peer kept sending without an end of the answer", HTTP_ERROR_SIZE);
	else if (may_resubmit(exchange, result))
	{
		ground(exchange);
		if (launch(exchange))
			return;
		result = CURLE_OUT_OF_MEMORY;
	}
	conclude(exchange, result);
}

static void
collect_finished(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(engine.multi, &left)) != NULL)
	{
		HttpExchange *exchange = NULL;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &exchange);
		finish(exchange, message->data.result);
	}
}

static void
give_up(HttpExchange *exchange)
{
	bool		late = exchange->transfer.local_port != 0 || exchange->connect_us == exchange->timeout_us;

	snprintf(exchange->transfer.error, HTTP_ERROR_SIZE,
			 late ? "no answer within " INT64_FORMAT " ms" : "Connection timed out after " INT64_FORMAT " milliseconds",
			 (late ? exchange->timeout_us : exchange->connect_us) / 1000);
	conclude(exchange, CURLE_OPERATION_TIMEDOUT);
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
		int			port = exchange->transfer.local_port;

		/* After a refused stream or GOAWAY libcurl lets the request wait for another connection. */
		if (deadline(exchange) <= now && port != 0 && wire_has_ended(port))
		{
			exchange->transfer.local_port = 0;
			set_unsent(exchange, true);
		}
		if (deadline(exchange) <= now)
			give_up(exchange);
		else
			engine.next_deadline_us = Min(engine.next_deadline_us, deadline(exchange));
	}
}

/* ---- waiting ---- */

/*
 * One wait of at most timeout_ms (-1: no limit).  True: something occurred;
 * *latched becomes true when the latch was set.
 */
static bool
wait_once(long timeout_ms, bool *latched)
{
	WireEvent	event;

	wire_wait(timeout_ms, &event);
	if (event.fd >= 0)
	{
		act(event.fd,
			((event.ready & WL_SOCKET_READABLE) ? CURL_CSELECT_IN : 0) |
			((event.ready & WL_SOCKET_WRITEABLE) ? CURL_CSELECT_OUT : 0));
		collect_finished();
	}
	*latched |= event.latched;
	return event.occurred;
}

/* What has arrived is not late, even if the caller could not read it earlier: it waited for a lock, say. */
static void
read_arrived(bool *latched)
{
	for (int i = wire_owned(); i > 0 && wait_once(0, latched); i--)
		;
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

int
http_in_flight(void)
{
	return engine.in_flight;
}

/*
 * Starts an exchange; http_wait() returns it when it has finished.  Copies all
 * of the request but the group.  Call it only while group->unsent is below
 * HTTP_UNSENT_MAX.  Raises 53000 without file descriptors and 53200 without
 * memory; all other failures are in the answer.
 */
HttpExchange *
http_submit(const HttpRequest *request, void *owner)
{
	HttpExchange *exchange;

	open_engine();
	make_room_for_connections();
	exchange = calloc(1, sizeof(HttpExchange));
	if (exchange != NULL)
	{
		exchange->owner = owner;
		exchange->group = request->group;
		exchange->begun_us = http_clock_us();
		exchange->timeout_us = request->timeout_ms * INT64CONST(1000);
		exchange->connect_us = Min(request->connect_timeout_ms, request->timeout_ms) * INT64CONST(1000);
	}
	if (exchange == NULL || !make_handle(exchange, request) || !launch(exchange))
	{
		if (exchange != NULL)
			transfer_release(&exchange->transfer);
		free(exchange);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while preparing an HTTP request.")));
	}
	dlist_push_tail(&engine.flying, &exchange->node);
	engine.in_flight++;
	return exchange;
}

/*
 * Waits until an exchange has finished and returns it; it is valid until
 * http_release().  NULL: until_us (of http_clock_us(); PG_INT64_MAX: no limit)
 * has come, or the latch was set.  Serves interrupts and so may throw: the
 * caller must then call http_abandon().
 */
HttpExchange *
http_wait(int64 until_us)
{
	bool		latched = false;
	bool		looked = false;

	open_engine();
	for (;;)
	{
		int64		now;

		CHECK_FOR_INTERRUPTS();
		if (!dlist_is_empty(&engine.finished))
			return http_next();
		now = http_clock_us();
		if (latched || (looked && until_us <= now))
			return NULL;
		if (engine.timer_us <= now)
		{
			engine.timer_us = PG_INT64_MAX;
			act(CURL_SOCKET_TIMEOUT, 0);
			collect_finished();
			continue;
		}
		wait_once(timeout_until(now, until_us), &latched);
		if (http_clock_us() >= engine.next_deadline_us)
			read_arrived(&latched);
		expire(http_clock_us());
		looked = true;
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

/* Frees a finished exchange and its answer. */
void
http_release(HttpExchange *exchange)
{
	dlist_delete(&exchange->node);
	transfer_release(&exchange->transfer);
	free(exchange);
}

/* Ends all that is in flight without an answer, with this error; http_next() returns it. */
void
http_give_up(const char *words)
{
	/* Reading what is left of many connections, to close them, could take long. */
	if (engine.in_flight > 0)
		(void) wire_cut_off(true);
	while (engine.multi != NULL && !dlist_is_empty(&engine.flying))
	{
		HttpExchange *exchange = dlist_head_element(HttpExchange, node, &engine.flying);

		strlcpy(exchange->transfer.error, words, HTTP_ERROR_SIZE);
		conclude(exchange, CURLE_OPERATION_TIMEDOUT);
	}
}

/* Drops all that is in flight, finished, or returned and not released.  For error paths: never throws. */
void
http_abandon(void)
{
	if (engine.multi == NULL)
		return;
	/* All of them are late now, so that a peer that floods is cut off soon. */
	engine.next_deadline_us = 0;
	while (!dlist_is_empty(&engine.flying))
		land(dlist_head_element(HttpExchange, node, &engine.flying));
	while (http_next() != NULL)
		;
	while (!dlist_is_empty(&engine.returned))
		http_release(dlist_head_element(HttpExchange, node, &engine.returned));
	engine.next_deadline_us = PG_INT64_MAX;
}

/* "libcurl 7.88.1, OpenSSL/3.0.15, nghttp2 1.52.0": the loaded versions */
void
http_append_versions(StringInfo out)
{
	const curl_version_info_data *info = curl_version_info(CURLVERSION_NOW);

	appendStringInfo(out, "libcurl %s, %s, nghttp2 %s", info->version,
					 info->ssl_version != NULL ? info->ssl_version : "no TLS",
					 (info->features & CURL_VERSION_HTTP2) && info->nghttp2_version != NULL ?
					 info->nghttp2_version : "none");
}

/* At the end of a statement or a run: ends the connections that their peers have closed. */
void
http_tidy(void)
{
	wire_tidy();
}
