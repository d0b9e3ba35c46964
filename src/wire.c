/*
 * wire.c
 *		Sockets that somebody else opens and closes, and waiting for them.
 *
 * A WaitEventSet has the sockets and the latch.  It is made anew when it lacks a
 * socket; between two requests on one connection nothing changes.
 */
#include "postgres.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/latch.h"

#include "compat.h"
#include "wire.h"

/* Linux tells that the peer has closed although something is left to be read. */
#ifndef POLLRDHUP
#define POLLRDHUP	0
#endif

typedef struct WatchedSocket
{
	int			fd;
	ino_t		inode;			/* the file that had this number when we last looked */
	uint32		wanted;			/* WL_SOCKET_*; 0: not watched now */
	uint32		registered;		/* what the WaitEventSet has; 0: not in it */
	int			port;			/* local; 0: not known yet */
	bool		ours;			/* its end is told by wire_closed() */
} WatchedSocket;

static WaitEventSet *set = NULL;
static bool set_is_stale = true;
static int	socket_count = 0;
static WatchedSocket sockets[WIRE_SOCKETS_MAX];

/* ---- which sockets ---- */

static WatchedSocket *
find_socket(int fd)
{
	for (int i = 0; i < socket_count; i++)
	{
		if (sockets[i].fd == fd)
			return &sockets[i];
	}
	return NULL;
}

/* The last entry takes its place. */
void
wire_closed(int fd)
{
	WatchedSocket *watched = find_socket(fd);

	if (watched == NULL)
		return;
	set_is_stale |= watched->registered != 0;
	*watched = sockets[--socket_count];
}

/*
 * libcurl 7.88 does not tell when it closes a socket that was never connected.
 * The kernel drops it from the set, and the next file gets its number.  Of a
 * connection that was used again (port) it does.  NULL: there is no room.
 */
static WatchedSocket *
find_or_add_socket(int fd)
{
	WatchedSocket *watched = find_socket(fd);
	struct stat status = {0};

	if (watched != NULL && watched->port != 0)
		return watched;
	(void) fstat(fd, &status);
	if (watched != NULL && watched->inode == status.st_ino)
		return watched;
	wire_closed(fd);
	if (socket_count == WIRE_SOCKETS_MAX)
		return NULL;
	watched = &sockets[socket_count++];
	*watched = (WatchedSocket) {.fd = fd, .inode = status.st_ino};
	/* Programs that this process starts must not hold the connection. */
	(void) fcntl(fd, F_SETFD, FD_CLOEXEC);
	return watched;
}

void
wire_own(int fd)
{
	WatchedSocket *watched;

	wire_closed(fd);			/* what had this number before */
	watched = find_or_add_socket(fd);
	if (watched != NULL)
		watched->ours = true;
}

int
wire_count(void)
{
	return socket_count;
}

void
wire_watch(int fd, bool readable, bool writable)
{
	WatchedSocket *watched = find_or_add_socket(fd);
	uint32		wanted = (readable ? WL_SOCKET_READABLE : 0) | (writable ? WL_SOCKET_WRITEABLE : 0);

	if (watched == NULL)
		return;					/* its exchange times out */
	watched->wanted = wanted;
	/* An idle connection stays in the set for the next request.  Nobody tells the end of a resolver's pipe. */
	if (wanted == 0 && !watched->ours)
		wire_closed(fd);
	else if (wanted != 0 && wanted != watched->registered)
		set_is_stale = true;
}

/* ---- what a peer says or does unasked ---- */

/* IPv4 and IPv6 addresses have the port in the same place. */
static bool
has_port(WatchedSocket *watched, int port)
{
	struct sockaddr_in6 address = {0};
	socklen_t	length = sizeof(address);

	if (watched->port == 0 && watched->ours && getsockname(watched->fd, (struct sockaddr *) &address, &length) == 0)
		watched->port = pg_ntoh16(address.sin6_port);
	return port != 0 && watched->port == port;
}

int
wire_look(int port, bool idle_only)
{
	int			seen = 0;

	for (WatchedSocket *watched = sockets; watched < sockets + socket_count; watched++)
	{
		char		byte;
		ssize_t		got;

		/* Most requests are sent beside others on their connection: then this costs no system call. */
		if (!has_port(watched, port) || (idle_only && watched->wanted != 0))
			continue;
		got = recv(watched->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
		if (got > 0 || (got < 0 && errno == EAGAIN))
			seen |= WIRE_OPEN;
		if (watched->wanted == 0)
			seen |= got < 0 && errno == EAGAIN ? WIRE_IDLE : WIRE_IDLE | WIRE_UNASKED;
	}
	return seen;
}

/* The descriptor is libcurl's, which closes it when it next looks for a connection.  The connection is over. */
void
wire_tidy(void)
{
	for (int i = socket_count - 1; i >= 0; i--)
	{
		WatchedSocket *watched = &sockets[i];
		struct pollfd look = {.fd = watched->fd, .events = POLLRDHUP};
		struct stat status = {0};

		if (!watched->ours || watched->wanted != 0)
			continue;
		if (fstat(watched->fd, &status) != 0 || status.st_ino != watched->inode)
			wire_closed(watched->fd);
		else if (poll(&look, 1, 0) == 1)
			(void) shutdown(watched->fd, SHUT_RDWR);
	}
}

/* connect() makes Linux reset the connection and drop what is unread. */
static void
cut_off(const WatchedSocket *watched)
{
	struct sockaddr nobody = {.sa_family = AF_UNSPEC};

	(void) connect(watched->fd, &nobody, sizeof(nobody));
	(void) shutdown(watched->fd, SHUT_RDWR);
}

void
wire_end(int port)
{
	for (WatchedSocket *watched = sockets; watched < sockets + socket_count; watched++)
		if (has_port(watched, port))
			cut_off(watched);
}

bool
wire_cut_off(bool all)
{
	WatchedSocket *worst = NULL;
	int			most = 0;

	for (WatchedSocket *watched = sockets; watched < sockets + socket_count; watched++)
	{
		int			unread = 0;

		if (watched->ours && ioctl(watched->fd, FIONREAD, &unread) == 0 && unread > most)
		{
			worst = watched;
			most = unread;
		}
	}
	for (WatchedSocket *watched = sockets; watched < sockets + socket_count; watched++)
		if (all ? watched->ours && watched->wanted != 0 : watched == worst)
			cut_off(watched);
	return worst != NULL;
}

void
wire_cork(bool corked pg_attribute_unused())
{
#ifdef TCP_CORK
	int			value = corked;

	for (int i = 0; i < socket_count; i++)
	{
		if (sockets[i].ours)
			(void) setsockopt(sockets[i].fd, IPPROTO_TCP, TCP_CORK, &value, sizeof(value));
	}
#endif
}

/* ---- waiting ---- */

static void
rebuild_set(void)
{
	if (set != NULL)
		FreeWaitEventSet(set);
	set = NULL;
	set = create_wait_event_set(WIRE_SOCKETS_MAX + 2);
	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	if (IsUnderPostmaster)
		AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < socket_count; i++)
	{
		sockets[i].registered = sockets[i].wanted;
		if (sockets[i].wanted != 0)
			AddWaitEventToSet(set, sockets[i].wanted, sockets[i].fd, NULL, NULL);
	}
	set_is_stale = false;
}

/*
 * Takes one event at a time (epoll takes turns): eight connections may have 800
 * answers, and the caller should send more before all are read.
 */
int
wire_wait(long timeout_ms, uint32 *ready, bool *latched)
{
	WaitEvent	occurred;

	for (;;)
	{
		WatchedSocket *watched;

		if (set_is_stale)
			rebuild_set();
		if (WaitEventSetWait(set, timeout_ms, &occurred, 1, wait_event_named("OnesignalCancelHttp")) == 0)
			return -1;
		watched = find_socket(occurred.fd);
		if (occurred.events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			*latched = true;
		}
		else if (watched != NULL && watched->wanted != 0)
		{
			*ready = occurred.events & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE);
			return occurred.fd;
		}
		else
			set_is_stale = true;	/* an idle connection's end, likely: libcurl looks when it next needs it */
		/* However often the latch is set, the sockets have their turn. */
		timeout_ms = 0;
	}
}
