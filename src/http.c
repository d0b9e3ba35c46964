/*
 * http.c
 *		Exchanges over libcurl, many in flight, interruptible.
 *
 * Each process has one multi handle, opened on first use and kept: connections,
 * TLS sessions, the parsed CA store and DNS answers outlive transactions.
 * libcurl never waits.  It names the sockets and the timer that it needs, and
 * http_wait() waits for them and for the latch, so that interrupts take effect.
 *
 * libcurl's callbacks only record: an error or a palloc would leave through its
 * frames.  All memory is malloc'd and kept in static variables, so that no error
 * loses it.  What is open when the process exits is left to the kernel: libcurl
 * could wait for a resolver.
 */
#include "postgres.h"

#include <curl/curl.h>
#include <signal.h>
#include <time.h>

#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "http.h"

/* At 100 streams each, 8 carried 22,700 requests a second over 30 ms. */
#define HOST_CONNECTIONS_MAX	8

/* Two of three descriptors are for connections, the others for epoll, resolver pipes and a second address. */
#define FDS_MIN					24
#define FDS_MAX					(HTTP_CONNECTIONS_MAX / 2 * 3)

/* How often an exchange is sent again.  libcurl opens 100 streams before it has read how many the peer allows. */
#define RESUBMIT_MAX			3 /* when its connection turned out dead */
#define REFUSED_MAX				50 /* when it was doomed, or its stream was refused while others had answers */

/*
 * A call into libcurl returns only when nothing is left to read, which a
 * flooding peer can prevent.  A timer looks at the call every LOOK_MS.  It may
 * use so much processor time, and less when its answers are late or not wanted,
 * or a peer has flooded in the last second: where one floods, many may.  An
 * answer of 64 kB takes 1 ms; parsing the CAs during a handshake takes 17 ms.
 */
#define LOOK_MS					50
#define FLOOD_CPU_US			INT64CONST(250000)
#define LATE_CPU_US				INT64CONST(25000)

static CURLM *multi = NULL;
static dlist_head active = DLIST_STATIC_INIT(active);
static dlist_head finished = DLIST_STATIC_INIT(finished);
static HttpExchange *returned = NULL;	/* the caller reads its answer */
static int	handed_over = 0;	/* to libcurl since its last call: likely to be sent in the next one */
static int	strangers = 0;		/* groups with unsent exchanges that have never had an answer */
static long connections_max;
static int64 timer_us = PG_INT64_MAX;	/* when libcurl wants to be called */
static int64 next_deadline_us = PG_INT64_MAX;	/* no deadline is earlier */

/* For the handler of SIGALRM */
static TimeoutId look_timeout = MAX_TIMEOUTS;	/* until it is registered */
static int64 cpu_before_us;		/* of this thread, at the first look at a call; 0: none yet */
static bool letting_go;			/* the call ends an exchange: nothing that it reads is of use */
static volatile int64 flooded_us = -USECS_PER_SEC;	/* when a peer was last cut off */

int64
http_clock_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * USECS_PER_SEC + now.tv_nsec / 1000;
}

/* ---- what libcurl calls ---- */

/* The thread that libcurl starts to resolve a name inherits this mask: PostgreSQL's handlers run on the main thread. */
static int
resolver_callback(void *resolver pg_attribute_unused(), void *reserved pg_attribute_unused(),
				  void *context pg_attribute_unused())
{
	sigset_t	blocked = BlockSig;

	sigaddset(&blocked, SIGQUIT);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	return 0;
}

static int
socket_callback(CURL *easy pg_attribute_unused(), curl_socket_t fd, int what, void *context pg_attribute_unused(),
				void *socket_context pg_attribute_unused())
{
	wire_watch(fd, (what & CURL_POLL_IN) != 0, (what & CURL_POLL_OUT) != 0);
	/* libcurl names a resolver's pipe right after it has started the thread.  look_at_call() needs SIGALRM. */
	sigprocmask(SIG_SETMASK, &UnBlockSig, NULL);
	return 0;
}

static int
timer_callback(CURLM *handle pg_attribute_unused(), long timeout_ms, void *context pg_attribute_unused())
{
	timer_us = timeout_ms < 0 ? PG_INT64_MAX : http_clock_us() + timeout_ms * INT64CONST(1000);
	return 0;
}

/* While the group has answers, waiting for a connection costs an exchange none of its time. */
static int64
waits_since(const HttpExchange *exchange)
{
	return Max(exchange->answer.begun_us, exchange->group->answered_us);
}

static int64
deadline(const HttpExchange *exchange)
{
	if (exchange->local_port != 0)
		return exchange->answer.begun_us + exchange->timeout_us;
	/* What is sent again may connect again. */
	return Min(Max(waits_since(exchange), exchange->launched_us) + exchange->connect_us,
			   waits_since(exchange) + exchange->timeout_us);
}

/* So many more of the group's exchanges are unsent; or one of them had an answer. */
static void
count_unsent(HttpGroup *group, int more, bool answered)
{
	strangers -= group->unsent > 0 && group->answered_us == 0;
	group->unsent += more;
	if (answered)
		group->answered_us = http_clock_us();
	strangers += group->unsent > 0 && group->answered_us == 0;
}

/* It is sent over the connection with this local port, or (0) waits for one again. */
static void
set_port(HttpExchange *exchange, int local_port)
{
	count_unsent(exchange->group, (local_port == 0) - (exchange->local_port == 0), false);
	exchange->answer.sent_before |= exchange->local_port != 0;
	exchange->local_port = local_port;
	next_deadline_us = Min(next_deadline_us, deadline(exchange));
}

/* The connection is there and the request is about to go out, for the first time or again. */
static int
prereq_callback(void *context, char *peer_ip pg_attribute_unused(), char *local_ip pg_attribute_unused(),
				int peer_port pg_attribute_unused(), int local_port)
{
	HttpExchange *exchange = context;
	int			seen = wire_look(local_port, false);
	long		connects = exchange->connects;
	bool		was_there;
	bool		has_unread;
	bool		is_http2;

	transfer_ask_tls(exchange, &has_unread, &is_http2);
	curl_easy_getinfo(exchange->easy, CURLINFO_NUM_CONNECTS, &exchange->connects);
	was_there = exchange->connects == connects;

	/*
	 * Once libcurl has seen HTTP/2 from a host, even if only in a status line,
	 * it sends over the host's HTTP/1.1 connections without waiting for answers,
	 * and gives each answer to whom it reads for first.
	 */
	if (was_there && (seen & WIRE_BUSY) && !is_http2)
	{
		exchange->doomed = true;
		curl_easy_setopt(exchange->easy, CURLOPT_FRESH_CONNECT, 1L);
		return CURL_PREREQFUNC_ABORT;
	}

	/*
	 * libcurl would take what came unasked for the answer.  Its versions differ
	 * in whether they close a connection when this callback refuses it; when
	 * they cannot write to it, they all do.
	 */
	exchange->doomed = was_there && ((seen & WIRE_UNASKED) || (!(seen & WIRE_BUSY) && has_unread));
	if (exchange->doomed)
	{
		wire_end(local_port, PG_INT64_MAX);
		return CURL_PREREQFUNC_OK;
	}
	exchange->answer.begun_us = waits_since(exchange);
	exchange->answer.error[0] = '\0';	/* what ended an earlier connection */
	set_port(exchange, local_port);
	return CURL_PREREQFUNC_OK;
}

/* ---- a call that does not return ---- */

/* Runs in the handler of SIGALRM.  Processor time counts: a busy machine must not cut an honest peer off. */
static void
look_at_call(void)
{
	bool		is_over = ShutdownRequestPending || (InterruptPending && (QueryCancelPending || ProcDiePending));
	int64		now = http_clock_us();
	bool		is_late = is_over || letting_go || now >= next_deadline_us || now < flooded_us + USECS_PER_SEC;
	bool		spent;
	struct timespec cpu;
	int64		cpu_us;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
	cpu_us = cpu.tv_sec * INT64CONST(1000000) + cpu.tv_nsec / 1000;
	if (cpu_before_us == 0)
		cpu_before_us = cpu_us;
	spent = cpu_us - cpu_before_us >= (is_late ? LATE_CPU_US : FLOOD_CPU_US);
	if (spent && is_over)
		wire_end(WIRE_ALL, PG_INT64_MAX);
	else if (wire_end_flood(spent) && !letting_go)
		flooded_us = now;
}

/* For a ready socket or libcurl's timer (gone is NULL), or to let go of an exchange, which may read, too. */
static void
call_libcurl(HttpExchange *gone, curl_socket_t fd)
{
	int			running;

	cpu_before_us = 0;
	letting_go = gone != NULL;
	enable_timeout_every(look_timeout, GetCurrentTimestamp() + LOOK_MS * INT64CONST(1000), LOOK_MS);
	if (gone != NULL)
		curl_multi_remove_handle(multi, gone->easy);
	else
		curl_multi_socket_action(multi, fd, CURL_CSELECT_IN | CURL_CSELECT_OUT, &running);
	disable_timeout(look_timeout, false);
	sigprocmask(SIG_SETMASK, &UnBlockSig, NULL);
}

/* Reserving descriptors may close files and log, which no callback may do.  Other extensions need some, too. */
static void
open_libcurl(void)
{
	static int	fds = 0;

	if (multi != NULL)
		return;
	while (fds < Min(FDS_MAX, max_safe_fds / 4) && AcquireExternalFD())
		fds++;
	if (fds < FDS_MIN)
	{
		for (; fds > 0; fds--)
			ReleaseExternalFD();
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not reserve file descriptors for HTTP connections"),
				 errhint("Raise max_files_per_process and the server's ulimit -n.")));
	}
	connections_max = fds / 3 * 2;
	if (look_timeout == MAX_TIMEOUTS)
		look_timeout = RegisterTimeout(USER_TIMEOUT, look_at_call);
	if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK)
		multi = curl_multi_init();
	if (multi == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not initialize libcurl")));
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, socket_callback);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, timer_callback);
	curl_multi_setopt(multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, connections_max);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, connections_max);
}

/* ---- one exchange ---- */

/* Completes the answer, or the words that say why there is none: from active into finished. */
static void
conclude(HttpExchange *exchange, CURLcode result)
{
	HttpAnswer *answer = &exchange->answer;
	char	   *url = NULL;
	long		version = 0;

	transfer_conclude(exchange, result);
	call_libcurl(exchange, 0);
	/* A machine may acknowledge for ever what nobody there reads.  Cut off earlier, libcurl would find other words. */
	if (answer->status == 0 && http_clock_us() - answer->begun_us >= USECS_PER_SEC)
		wire_end(exchange->local_port, (answer->begun_us + http_clock_us()) / 2);
	answer->sent = exchange->local_port != 0 || answer->sent_before;
	count_unsent(exchange->group, -(exchange->local_port == 0), answer->status != 0);
	dlist_delete(&exchange->node);
	dlist_push_tail(&finished, &exchange->node);
	if (!message_level_is_interesting(DEBUG3))
		return;
	/* This shows neither headers nor texts from outside, which may have the key. */
	curl_easy_getinfo(exchange->easy, CURLINFO_EFFECTIVE_URL, &url);
	curl_easy_getinfo(exchange->easy, CURLINFO_HTTP_VERSION, &version);
	elog(DEBUG3, "onesignal_cancel: %s from port %d, HTTP/%s, %.1f ms: %d (%s)", url, exchange->local_port,
		 version >= CURL_HTTP_VERSION_2_0 ? "2" : "1", (http_clock_us() - answer->begun_us) / 1000.0,
		 answer->status, curl_easy_strerror(result));
}

/* For the first time or again.  This resolves nothing yet: the next run_libcurl() does. */
static void
hand_to_libcurl(HttpExchange *exchange)
{
	exchange->launched_us = http_clock_us();
	exchange->doomed = false;
	exchange->connects = 0;
	set_port(exchange, 0);
	handed_over++;
	if (curl_multi_add_handle(multi, exchange->easy) != CURLM_OK)
		conclude(exchange, CURLE_OUT_OF_MEMORY);
}

/* Has the connection failed in a way that says nothing about the request?  DELETE may be sent again. */
static bool
may_resubmit(HttpExchange *exchange, CURLcode result)
{
	bool		others_answered = exchange->group->answered_us > exchange->launched_us;
	bool		refused;
	long		connects = 1;

	if (exchange->doomed)
		return exchange->resubmitted++ < REFUSED_MAX;
	if (exchange->header_bytes > 0)
		return false;
	if (result == CURLE_OPERATION_TIMEDOUT) /* to libcurl, waiting for a stream is connecting */
		return others_answered && deadline(exchange) > http_clock_us();
	if (result != CURLE_SEND_ERROR && result != CURLE_RECV_ERROR && result != CURLE_GOT_NOTHING &&
		result != CURLE_HTTP2 && result != CURLE_HTTP2_STREAM && result != CURLE_PARTIAL_FILE)
		return false;

	/* The peer closed a connection that was there before, or refused this stream until libcurl gave up. */
	curl_easy_getinfo(exchange->easy, CURLINFO_NUM_CONNECTS, &connects);
	refused = others_answered && strncmp(exchange->answer.error, "Connection died", strlen("Connection died")) == 0;
	return (connects == 0 || refused) && exchange->resubmitted++ < (refused ? REFUSED_MAX : RESUBMIT_MAX);
}

/* Calls libcurl for its timer and a socket that is ready (CURL_SOCKET_TIMEOUT: none), and takes what has finished. */
static void
run_libcurl(curl_socket_t fd)
{
	CURLMsg    *message;
	int			left;
	bool		many = handed_over > 1;
	int64		begun_us = http_clock_us();
	long		share = (connections_max - wire_count) / Max(HOST_CONNECTIONS_MAX, 2 * strangers);

	if (multi == NULL)			/* nothing was sent yet: it only waited */
		return;
	/* A host may have an eighth of those that are left, many that may hang half of them together: some stay. */
	curl_multi_setopt(multi, CURLMOPT_MAX_HOST_CONNECTIONS, Max(1, Min(HOST_CONNECTIONS_MAX, share)));
	handed_over = 0;
	/* It names the next timer, if there is one.  8.10 to 8.11.0 would not, if this one were not due. */
	if (fd == CURL_SOCKET_TIMEOUT && timer_us <= begun_us)
		timer_us = PG_INT64_MAX;
	/* libcurl writes each request by itself, which as a segment of its own costs both sides more than its contents. */
	if (many)
		wire_cork(true);
	call_libcurl(NULL, fd);
	if (many)
		wire_cork(false);
	while ((message = curl_multi_info_read(multi, &left)) != NULL)
	{
		HttpExchange *exchange = NULL;
		CURLcode	result = message->data.result;

		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &exchange);
		/* When the next connection fails as it is made, libcurl keeps the words for how the one before ended. */
		if (exchange->local_port != 0 &&
			(result == CURLE_OPERATION_TIMEDOUT || result == CURLE_COULDNT_CONNECT ||
			 result == CURLE_SSL_CONNECT_ERROR || result == CURLE_PEER_FAILED_VERIFICATION))
			exchange->answer.error[0] = '\0';
		/* Newer versions of libcurl would keep a connection of which nghttp2 cannot go on reading. */
		if (result == CURLE_HTTP2)
			wire_end(exchange->local_port, PG_INT64_MAX);
		if (flooded_us >= begun_us && result != CURLE_OK && exchange->local_port != 0)
			strlcpy(exchange->answer.error, "the peer kept sending without an end of the answer", HTTP_ERROR_SIZE);
		else if (may_resubmit(exchange, result))
		{
			call_libcurl(exchange, 0);
			hand_to_libcurl(exchange);
			continue;
		}
		conclude(exchange, result);
	}
}

static void
expire(bool *latched)
{
	int64		now = http_clock_us();
	dlist_mutable_iter iter;

	if (now < next_deadline_us)
		return;
	/* What has arrived is not late, even if the caller could not read it earlier: it waited for a lock, say. */
	for (int i = wire_count; i > 0; i--)
		run_libcurl(wire_wait(0, latched));
	next_deadline_us = PG_INT64_MAX;
	dlist_foreach_modify(iter, &active)
	{
		HttpExchange *exchange = dlist_container(HttpExchange, node, iter.cur);
		bool		unconnected;

		/* After a refused stream or GOAWAY libcurl lets the request wait for another connection. */
		if (deadline(exchange) <= now && exchange->local_port != 0 &&
			!(wire_look(exchange->local_port, true) & WIRE_OPEN))
			set_port(exchange, 0);
		if (deadline(exchange) > now)
		{
			next_deadline_us = Min(next_deadline_us, deadline(exchange));
			continue;
		}
		unconnected = exchange->local_port == 0 && now < waits_since(exchange) + exchange->timeout_us;
		snprintf(exchange->answer.error, HTTP_ERROR_SIZE, "%s " INT64_FORMAT " ms",
				 unconnected ? "Connection timed out after" : "no answer within",
				 (unconnected ? exchange->connect_us : exchange->timeout_us) / 1000);
		conclude(exchange, CURLE_OPERATION_TIMEDOUT);
	}
}

/* ---- the public functions ---- */

bool
http_in_flight(void)
{
	return !dlist_is_empty(&active);
}

void
http_submit(const HttpRequest *request, void *owner)
{
	HttpExchange *exchange;

	open_libcurl();
	exchange = calloc(1, sizeof(HttpExchange));
	if (exchange == NULL || !transfer_make(exchange, request))
	{
		if (exchange != NULL)
			transfer_release(exchange);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while preparing an HTTP request.")));
	}
	curl_easy_setopt(exchange->easy, CURLOPT_RESOLVER_START_FUNCTION, resolver_callback);
	curl_easy_setopt(exchange->easy, CURLOPT_PREREQFUNCTION, prereq_callback);
	curl_easy_setopt(exchange->easy, CURLOPT_PREREQDATA, exchange);
	exchange->answer.owner = owner;
	exchange->answer.begun_us = http_clock_us();
	exchange->timeout_us = request->timeout_ms * INT64CONST(1000);
	exchange->connect_us = Min(request->connect_timeout_ms, request->timeout_ms) * INT64CONST(1000);
	exchange->group = request->group;
	count_unsent(exchange->group, 1, false);
	dlist_push_tail(&active, &exchange->node);
	hand_to_libcurl(exchange);
}

const HttpAnswer *
http_wait(int64 until_us)
{
	bool		latched = false;

	for (bool looked = false;; looked = true)
	{
		const HttpAnswer *answer;

		CHECK_FOR_INTERRUPTS();
		answer = http_next();
		if (answer != NULL || latched || (looked && until_us <= http_clock_us()))
			return answer;
		/* While a peer floods, libcurl may want to be called again at once, for ever: all others have their turn. */
		run_libcurl(wire_wait(Min(until_us, Min(timer_us, next_deadline_us)), &latched));
		expire(&latched);
	}
}

const HttpAnswer *
http_next(void)
{
	if (returned != NULL)
		transfer_release(returned);
	returned = NULL;
	if (dlist_is_empty(&finished))
		return NULL;
	returned = dlist_container(HttpExchange, node, dlist_pop_head_node(&finished));
	return &returned->answer;
}

void
http_give_up(const char *words)
{
	int64		began_us = http_clock_us();

	while (!dlist_is_empty(&active))
	{
		HttpExchange *exchange = dlist_head_element(HttpExchange, node, &active);

		/* Reading what is left of many connections, to close them, could take long. */
		if (http_clock_us() - began_us >= LOOK_MS * INT64CONST(1000))
			wire_end(WIRE_ALL, PG_INT64_MAX);
		strlcpy(exchange->answer.error, words, HTTP_ERROR_SIZE);
		conclude(exchange, CURLE_ABORTED_BY_CALLBACK);
	}
	next_deadline_us = PG_INT64_MAX;
}

void
http_abandon(void)
{
	/* A line for the log would take the next interrupt. */
	HOLD_INTERRUPTS();
	http_give_up("");
	while (http_next() != NULL)
		;
	wire_tidy();
	RESUME_INTERRUPTS();
}

const char *
http_versions(void)
{
	return curl_version();
}
