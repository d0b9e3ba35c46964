/*
 * wire.c
 *		Waiting for sockets that somebody else opens and closes.
 *
 * libcurl opens and closes sockets, and says which of them to watch and for what.
 * A WaitEventSet keeps them together with the latch.  The kernel is told only
 * of changes; between two requests on one connection there is none.
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
	int			position;		/* in the WaitEventSet, while registered */
	int			port;			/* the local one; 0: not known yet */
	bool		ours;			/* its end is told by wire_closed() */
	bool		serial;			/* HTTP/1.1: the peer may only speak when asked */
	bool		shut;			/* by us */
} WatchedSocket;

static WaitEventSet *set = NULL;
static bool set_is_stale = false;
static bool set_is_behind = false;	/* some socket is wanted for something else */
static int	socket_count = 0;
static int	owned_count = 0;
static WatchedSocket sockets[WIRE_SOCKETS_MAX];

/* Local ports of the connections that were cut off last. */
#define CUT_PORTS	16
static volatile int cut_ports[CUT_PORTS];
static volatile unsigned cut_next = 0;

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

/* The last entry takes the place; its position in the set stays its own. */
static void
forget_socket(WatchedSocket *watched)
{
	if (watched->registered != 0)
		set_is_stale = true;
	owned_count -= watched->ours;
	*watched = sockets[--socket_count];
}

/* NULL: there is no room for it. */
static WatchedSocket *
add_socket(int fd)
{
	WatchedSocket *watched;

	for (int i = socket_count - 1; i >= 0 && socket_count == WIRE_SOCKETS_MAX; i--)
	{
		if (sockets[i].wanted == 0)
			forget_socket(&sockets[i]);
	}
	if (socket_count == WIRE_SOCKETS_MAX)
		return NULL;
	watched = &sockets[socket_count++];
	*watched = (WatchedSocket) {.fd = fd};
	/* Programs that this process starts must not hold the connection. */
	(void) fcntl(fd, F_SETFD, FD_CLOEXEC);
	return watched;
}

/*
 * libcurl 7.88 does not tell when it closes a socket that was never connected.
 * The kernel drops it from the set, and the next file gets its number.
 */
static WatchedSocket *
find_or_add_socket(int fd)
{
	WatchedSocket *watched = find_socket(fd);
	struct stat status = {0};

	(void) fstat(fd, &status);
	if (watched != NULL && watched->inode != status.st_ino)
	{
		forget_socket(watched);
		watched = NULL;
	}
	if (watched == NULL)
		watched = add_socket(fd);
	if (watched != NULL)
		watched->inode = status.st_ino;
	return watched;
}

void
wire_own(int fd)
{
	WatchedSocket *watched = find_or_add_socket(fd);

	if (watched == NULL || watched->ours)
		return;
	watched->ours = true;
	owned_count++;
}

void
wire_closed(int fd)
{
	WatchedSocket *watched = find_socket(fd);

	if (watched != NULL)
		forget_socket(watched);
}

int
wire_owned(void)
{
	return owned_count;
}

void
wire_watch(int fd, uint32 wanted)
{
	WatchedSocket *watched = find_or_add_socket(fd);

	if (watched == NULL)
		return;					/* its exchange times out */
	watched->wanted = wanted;
	if (wanted != watched->registered)
		set_is_behind = true;

	/* An idle connection stays in the set for the next request.  Nobody tells the end of a resolver's pipe. */
	if (wanted == 0 && !watched->ours)
		forget_socket(watched);
}

/* ---- what a peer says or does unasked ---- */

/* The local one; 0: not known yet.  IPv4 and IPv6 addresses have it in the same place. */
static int
port_of(WatchedSocket *watched)
{
	struct sockaddr_storage address;
	socklen_t	length = sizeof(address);

	if (watched->port == 0 && watched->ours && getsockname(watched->fd, (struct sockaddr *) &address, &length) == 0)
		watched->port = pg_ntoh16(((struct sockaddr_in *) &address)->sin_port);
	return watched->port;
}

static bool
has_port(WatchedSocket *watched, int port)
{
	return port != 0 && port_of(watched) == port;
}

/* 1: something can be read, 0: the connection has ended, -1: nothing. */
static int
peek(const WatchedSocket *watched)
{
	char		byte;
	int			got = (int) recv(watched->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	return got < 0 && errno != EAGAIN ? 0 : got;
}

void
wire_note_serial(int port)
{
	for (int i = 0; i < socket_count; i++)
		sockets[i].serial |= has_port(&sockets[i], port);
}

bool
wire_is_serial(int port, bool *readable)
{
	bool		serial = false;

	*readable = false;
	for (int i = 0; i < socket_count; i++)
	{
		WatchedSocket *watched = &sockets[i];

		if (!watched->serial || watched->wanted != 0 || !has_port(watched, port))
			continue;
		serial = true;
		*readable |= peek(watched) >= 0;
	}
	return serial;
}

bool
wire_has_ended(int port)
{
	for (int i = 0; i < socket_count; i++)
	{
		if (has_port(&sockets[i], port) && peek(&sockets[i]) != 0)
			return false;
	}
	return true;
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

		if (!watched->ours || watched->wanted != 0 || watched->shut)
			continue;
		if (fstat(watched->fd, &status) != 0 || status.st_ino != watched->inode)
			forget_socket(watched);
		else if (poll(&look, 1, 0) == 1)
		{
			(void) shutdown(watched->fd, SHUT_RDWR);
			watched->shut = true;
		}
	}
}

/* connect() makes Linux reset the connection and drop what is unread. */
static void
cut_off(WatchedSocket *watched)
{
	struct sockaddr nobody = {.sa_family = AF_UNSPEC};

	/* Before the socket forgets it. */
	cut_ports[cut_next++ % CUT_PORTS] = port_of(watched);
	(void) connect(watched->fd, &nobody, sizeof(nobody));
	(void) shutdown(watched->fd, SHUT_RDWR);
	watched->shut = true;
}

bool
wire_was_cut_off(int port)
{
	for (int i = 0; i < CUT_PORTS; i++)
	{
		if (port != 0 && cut_ports[i] == port)
			return true;
	}
	return false;
}

bool
wire_cut_off(bool all)
{
	WatchedSocket *worst = NULL;
	int			most = 0;

	for (int i = 0; i < socket_count; i++)
	{
		WatchedSocket *watched = &sockets[i];
		int			unread = 0;

		if (!watched->ours || watched->shut)
			continue;
		if (all && watched->wanted != 0)
			cut_off(watched);
		else if (!all && ioctl(watched->fd, FIONREAD, &unread) == 0 && unread > most)
		{
			worst = watched;
			most = unread;
		}
	}
	if (worst != NULL)
		cut_off(worst);
	return worst != NULL;
}

void
wire_cork(bool corked)
{
#ifdef TCP_CORK
	int			value = corked;

	for (int i = 0; i < socket_count; i++)
	{
		if (sockets[i].ours)
			(void) setsockopt(sockets[i].fd, IPPROTO_TCP, TCP_CORK, &value, sizeof(value));
	}
#else
	(void) corked;
#endif
}

/* ---- waiting ---- */

static void
rebuild_set(void)
{
	if (set != NULL)
		FreeWaitEventSet(set);
	set = NULL;
	set_is_stale = true;		/* should something throw */
	set = create_wait_event_set(WIRE_SOCKETS_MAX + 2);
	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	if (IsUnderPostmaster)
		AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < socket_count; i++)
		sockets[i].registered = 0;
	set_is_behind = true;
	set_is_stale = false;
}

static void
update_set(void)
{
	if (set == NULL || set_is_stale)
		rebuild_set();
	if (!set_is_behind)
		return;
	for (int i = 0; i < socket_count; i++)
	{
		WatchedSocket *watched = &sockets[i];

		if (watched->wanted == 0 || watched->wanted == watched->registered)
			continue;
		if (watched->registered == 0)
			watched->position = AddWaitEventToSet(set, watched->wanted, watched->fd, NULL, NULL);
		else
			ModifyWaitEvent(set, watched->position, watched->wanted, NULL);
		watched->registered = watched->wanted;
	}
	set_is_behind = false;
}

/*
 * Takes one event at a time (epoll takes turns): eight connections may have 800
 * answers, and the caller should send more before all are read.
 */
void
wire_wait(long timeout_ms, WireEvent *event)
{
	static uint32 wait_event = 0;
	WatchedSocket *watched;
	WaitEvent	occurred;

	*event = (WireEvent) {.fd = -1};
	update_set();
	if (WaitEventSetWait(set, timeout_ms, &occurred, 1, wait_event_named(&wait_event, "OnesignalCancelHttp")) == 0)
		return;
	event->occurred = true;
	if (occurred.events & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		event->latched = true;
		/* However often it is set, the sockets have their turn. */
		if (WaitEventSetWait(set, 0, &occurred, 1, PG_WAIT_EXTENSION) == 0 || occurred.events & WL_LATCH_SET)
			return;
	}
	watched = find_socket(occurred.fd);
	if (watched == NULL)
		return;
	if (watched->wanted == 0)
	{
		/* An idle connection's end, likely: libcurl looks when it next needs it.  Until then we do not watch it. */
		set_is_stale = true;
		return;
	}
	event->fd = occurred.fd;
	event->ready = occurred.events & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE);
}
