/*
 * wire.c
 *		Sockets that somebody else opens and closes, and waiting for them.
 *
 * A WaitEventSet has the sockets and the latch.  It is made anew when what is to
 * be waited for changes; between two requests on one connection nothing changes.
 */
#include "postgres.h"

#include <fcntl.h>
#include <netinet/in.h>
#ifdef __linux__
#include <linux/tcp.h>
#else
#include <netinet/tcp.h>
#endif
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "miscadmin.h"
#include "port/pg_bswap.h"

#include "compat.h"
#include "http.h"

/* Linux tells that the peer has closed although something is left to be read. */
#ifndef POLLRDHUP
#define POLLRDHUP	0
#endif

/* A connection takes two sockets while it is made, and a resolver's pipe. */
#define SOCKETS_MAX			(4 * HTTP_CONNECTIONS_MAX)

typedef struct WatchedSocket
{
	int			fd;
	int			port;			/* local; 0: it is no connection, but a resolver's pipe */
	int64		heard_us;		/* when it was last ready to be read, or first watched */
	uint32		wanted;			/* WL_SOCKET_*; 0: not watched now */
	uint32		registered;		/* what the WaitEventSet has; 0: not in it */
	int64		bytes_read;		/* until the last look for a flood */
} WatchedSocket;

static WaitEventSet *set = NULL;
static bool set_is_stale = true;
static WatchedSocket sockets[SOCKETS_MAX];
int			wire_count = 0;

/* IPv4 and IPv6 addresses have the port in the same place. */
static int
local_port(int fd)
{
	struct sockaddr_in6 address = {0};
	socklen_t	length = sizeof(address);

	return getsockname(fd, (struct sockaddr *) &address, &length) == 0 ? pg_ntoh16(address.sin6_port) : 0;
}

/* libcurl 7.88 closes what was never connected, and c-ares its sockets, untold: the next file gets the number. */
static bool
is_there(const WatchedSocket *watched)
{
	return local_port(watched->fd) == watched->port;
}

static WatchedSocket *
find_socket(int fd)
{
	for (int i = 0; i < wire_count; i++)
		if (sockets[i].fd == fd)
			return &sockets[i];
	return NULL;
}

void
wire_closed(int fd)
{
	WatchedSocket *watched = find_socket(fd);

	if (watched == NULL)
		return;
	set_is_stale |= watched->registered != 0;
	*watched = sockets[--wire_count];
}

void
wire_watch(int fd, bool readable, bool writable)
{
	WatchedSocket *watched = find_socket(fd);

	/* One that goes on being read is the same: no system call for each message. */
	if (watched == NULL || (!(readable && (watched->wanted & WL_SOCKET_READABLE)) && !is_there(watched)))
	{
		wire_closed(fd);
		if (wire_count == SOCKETS_MAX)
			return;				/* its exchange times out */
		watched = &sockets[wire_count++];
		*watched = (WatchedSocket) {.fd = fd, .port = local_port(fd), .heard_us = http_clock_us()};
		/* Programs that this process starts must not hold the connection. */
		(void) fcntl(fd, F_SETFD, FD_CLOEXEC);
#ifdef TCP_USER_TIMEOUT
		/* Otherwise requests would use a dead path for the quarter of an hour that TCP goes on trying. */
		(void) setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &(unsigned int){20000}, sizeof(unsigned int));
#endif
	}
	watched->wanted = (readable ? WL_SOCKET_READABLE : 0) | (writable ? WL_SOCKET_WRITEABLE : 0);
	/* An idle connection stays in the set for the next request.  Nobody tells the end of a resolver's pipe. */
	if (watched->wanted == 0 && watched->port == 0)
		wire_closed(fd);
	else if (watched->wanted != 0 && watched->wanted != watched->registered)
		set_is_stale = true;
}

int
wire_look(int port, bool busy_too)
{
	int			seen = 0;

	for (WatchedSocket *watched = sockets; watched < sockets + wire_count; watched++)
	{
		char		byte;
		ssize_t		got;
		bool		silent;

		if (watched->port != port)
			continue;
		/* Most requests are sent beside others on their connection: then this costs no system call. */
		if (watched->wanted != 0)
			seen |= WIRE_BUSY;
		if (watched->wanted != 0 && !busy_too)
			continue;
		got = recv(watched->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
		silent = got < 0 && errno == EAGAIN;
		if (got > 0 || silent)
			seen |= WIRE_OPEN;
		if (watched->wanted == 0 && !silent)
			seen |= WIRE_UNASKED;
	}
	return seen;
}

/* The descriptor is libcurl's, which closes it when it next looks for a connection.  The connection is over. */
void
wire_tidy(void)
{
	for (WatchedSocket *watched = sockets; watched < sockets + wire_count; watched++)
	{
		struct pollfd look = {.fd = watched->fd, .events = POLLRDHUP};

		if (watched->wanted == 0 && is_there(watched) && poll(&look, 1, 0) == 1)
			(void) shutdown(look.fd, SHUT_RDWR);
	}
}

/* connect() makes Linux reset the connection and drop what is unread. */
static void
cut_off(WatchedSocket *watched)
{
	struct sockaddr nobody = {.sa_family = AF_UNSPEC};

	if (!is_there(watched))
		return;
	watched->heard_us = PG_INT64_MAX;	/* wire_end() need not do it again */
	(void) connect(watched->fd, &nobody, sizeof(nobody));
	(void) shutdown(watched->fd, SHUT_RDWR);
}

void
wire_end(int port, int64 silent_since)
{
	for (WatchedSocket *watched = sockets; watched < sockets + wire_count; watched++)
		if (watched->port != 0 && (port == WIRE_ALL ? watched->wanted != 0 : watched->port == port) &&
			watched->heard_us < silent_since)
			cut_off(watched);
}

/* What has been read from it: what came, where the system tells, without what is left. */
static int64
bytes_read(int fd)
{
	int			unread = 0;
	int64		came = 0;
#ifdef __linux__
	struct tcp_info info = {0};
	socklen_t	length = sizeof(info);

	(void) getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
	came = (int64) info.tcpi_bytes_received;
#endif
	(void) ioctl(fd, FIONREAD, &unread);
	return came - unread;
}

bool
wire_end_flood(bool end)
{
	WatchedSocket *worst = NULL;
	int64		most = 0;

	for (WatchedSocket *watched = sockets; watched < sockets + wire_count; watched++)
	{
		int64		before = watched->bytes_read;

		watched->bytes_read = bytes_read(watched->fd);
		if (watched->port != 0 && watched->bytes_read - before > most && is_there(watched))
		{
			worst = watched;
			most = watched->bytes_read - before;
		}
	}
	if (end && worst != NULL)
		cut_off(worst);
	return end && worst != NULL;
}

void
wire_cork(bool corked pg_attribute_unused())
{
#ifdef TCP_CORK
	int			value = corked;

	for (int i = 0; i < wire_count; i++)
		if (sockets[i].port != 0)
			(void) setsockopt(sockets[i].fd, IPPROTO_TCP, TCP_CORK, &value, sizeof(value));
#endif
}

static void
rebuild_set(void)
{
	if (set != NULL)
		FreeWaitEventSet(set);
	set = NULL;
	set = create_wait_event_set(SOCKETS_MAX + 2);
	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	if (IsUnderPostmaster)
		AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < wire_count; i++)
	{
		sockets[i].registered = sockets[i].wanted;
		if (sockets[i].wanted != 0)
			AddWaitEventToSet(set, sockets[i].wanted, sockets[i].fd, NULL, NULL);
	}
	set_is_stale = false;
}

/* Takes one event at a time (epoll takes turns): the caller should send more before it has read all of 800 answers. */
int
wire_wait(int64 until_us, bool *latched)
{
	int64		left_us = until_us - http_clock_us();
	WaitEvent	ready;
	WatchedSocket *watched;

	if (set_is_stale)
		rebuild_set();
	/* Rounded up: a wait that ends early would spin through the last millisecond. */
	if (WaitEventSetWait(set, Min(Max(left_us + 999, 0) / 1000, PG_INT32_MAX), &ready, 1,
						 wait_event_named("OnesignalCancelHttp")) == 0)
		return -1;
	if (ready.events & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		*latched = true;
		/* However often the latch is set, the sockets have their turn. */
		return wire_wait(0, latched);
	}
	watched = find_socket(ready.fd);
	if (watched == NULL || watched->wanted == 0)
	{
		set_is_stale = true;	/* an idle connection's end, likely: libcurl looks when it next needs it */
		return -1;
	}
	if (ready.events & WL_SOCKET_READABLE)
		watched->heard_us = http_clock_us();
	return ready.fd;
}
