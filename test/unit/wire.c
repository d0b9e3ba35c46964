/*
 * wire.c
 *		A program that tries src/wire.c on sockets that are closed without a word.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/latch.h"

#include "compat.h"
#include "http.h"
#include "tap.h"

/* What wire_wait() needs of the server; it is not called here. */
struct Latch *MyLatch = NULL;
bool		IsUnderPostmaster = false;
MemoryContext TopMemoryContext = NULL;

/* All that is heard is heard at 1. */
int64
http_clock_us(void)
{
	return 1;
}

void
ResetLatch(Latch *latch)
{
	(void) latch;
}

void
FreeWaitEventSet(WaitEventSet *events)
{
	(void) events;
}

#if PG_VERSION_NUM >= 170000
WaitEventSet *
CreateWaitEventSet(ResourceOwner owner, int count)
{
	(void) owner;
	(void) count;
	return NULL;
}

uint32
WaitEventExtensionNew(const char *name)
{
	(void) name;
	return 0;
}
#else
WaitEventSet *
CreateWaitEventSet(MemoryContext context, int count)
{
	(void) context;
	(void) count;
	return NULL;
}
#endif

int
AddWaitEventToSet(WaitEventSet *events, uint32 what, pgsocket fd, Latch *latch, void *data)
{
	(void) events;
	(void) what;
	(void) fd;
	(void) latch;
	(void) data;
	return 0;
}

int
WaitEventSetWait(WaitEventSet *events, long timeout, WaitEvent *occurred, int count, uint32 info)
{
	(void) events;
	(void) timeout;
	(void) occurred;
	(void) count;
	(void) info;
	return 0;
}

static struct sockaddr_in peer = {.sin_family = AF_INET};

/* A socket connected to the peer, with this number */
static int
connected(int type, int fd)
{
	int			made = socket(AF_INET, type, 0);

	if (connect(made, (struct sockaddr *) &peer, sizeof(peer)) != 0)
		return -1;
	if (made != fd)
	{
		dup2(made, fd);
		close(made);
	}
	return fd;
}

static int
port_of(int fd)
{
	struct sockaddr_in address;
	socklen_t	length = sizeof(address);

	getsockname(fd, (struct sockaddr *) &address, &length);
	return ntohs(address.sin_port);
}

/* As c-ares does: a datagram socket is read, and is closed by itself. */
static void
ask_name_server(int fd, bool told)
{
	connected(SOCK_DGRAM, fd);
	wire_watch(fd, true, false);
	if (told)
		wire_watch(fd, false, false);
	close(fd);
}

static void
try_connection(int fd, const char *after)
{
	char		name[100];

	connected(SOCK_STREAM, fd);
	wire_watch(fd, false, true);
	wire_watch(fd, true, false);
	wire_watch(fd, true, true);
	snprintf(name, sizeof(name), "%s: the connection is found by its port", after);
	check(wire_look(port_of(fd), true) == (WIRE_OPEN | WIRE_BUSY), name);
	snprintf(name, sizeof(name), "%s: somebody waits for it", after);
	check((wire_look(port_of(fd), true) & WIRE_BUSY) != 0, name);
	snprintf(name, sizeof(name), "%s: it is close-on-exec", after);
	check(fcntl(fd, F_GETFD) == FD_CLOEXEC, name);
	wire_watch(fd, false, false);
	snprintf(name, sizeof(name), "%s: it is idle", after);
	check(wire_look(port_of(fd), true) == WIRE_OPEN, name);
	wire_watch(fd, true, false);
	wire_end(port_of(fd), 1);
	snprintf(name, sizeof(name), "%s: it is left alone when it was heard of since", after);
	check(send(fd, "x", 1, MSG_NOSIGNAL) == 1, name);
	wire_end(port_of(fd), 2);
	snprintf(name, sizeof(name), "%s: it can be ended", after);
	check(send(fd, "x", 1, MSG_NOSIGNAL) < 0, name);
	wire_closed(fd);
	close(fd);
	snprintf(name, sizeof(name), "%s: nothing is left", after);
	check(wire_count == 0, name);
}

/* What a peer has sent, and nobody reads now, is no flood; what is read, is. */
static void
try_floods(int listener, int fd)
{
	static const char bytes[1000] = {0};
	int			peers[3];
	char		read_now[1000];

	for (int i = 0; i < 3; i++)
	{
		connected(SOCK_STREAM, fd + i);
		wire_watch(fd + i, true, false);
		peers[i] = accept(listener, NULL, NULL);
		if (send(peers[i], bytes, sizeof(bytes), 0) != sizeof(bytes))
			check(false, "the peer sends");
		(void) recv(fd + i, read_now, sizeof(bytes), MSG_PEEK | MSG_WAITALL);	/* until it has arrived */
	}
	(void) recv(fd + 2, read_now, 900, 0);
	check(!wire_end_flood(false) && !wire_end_flood(true), "flood: what was read before is none");
	(void) recv(fd, read_now, 10, 0);
	(void) recv(fd + 1, read_now, 100, 0);
	check(wire_end_flood(true) && send(fd + 1, "x", 1, MSG_NOSIGNAL) < 0, "flood: the connection from which most is read is ended");
	check(send(fd, "x", 1, MSG_NOSIGNAL) == 1, "flood: others are left alone until then");
	(void) recv(fd, read_now, 10, 0);
	check(wire_end_flood(true) && send(fd, "x", 1, MSG_NOSIGNAL) < 0, "flood: then the next, while it is read");
	check(!wire_end_flood(true) && send(fd + 2, "x", 1, MSG_NOSIGNAL) == 1, "flood: the one from which nothing is read is left");
	for (int i = 0; i < 3; i++)
	{
		wire_closed(fd + i);
		close(fd + i);
		close(peers[i]);
	}
}

int
main(void)
{
	socklen_t	length = sizeof(peer);
	int			listener = socket(AF_INET, SOCK_STREAM, 0);
	int			fd = listener + 10;

	peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (struct sockaddr *) &peer, sizeof(peer)) != 0 || listen(listener, 10) != 0 ||
		getsockname(listener, (struct sockaddr *) &peer, &length) != 0)
		return 1;
	try_connection(fd, "at first");
	ask_name_server(fd, true);
	try_connection(fd, "after a socket whose end was told");
	ask_name_server(fd, false);
	try_connection(fd, "after one whose end was not");
	connected(SOCK_STREAM, fd);
	wire_watch(fd, false, true);
	close(fd);
	try_connection(fd, "after one that lost the race");
	/* Those that were made before are still to be accepted. */
	for (int i = 0; i < 5; i++)
		close(accept(listener, NULL, NULL));
	try_floods(listener, fd);
	return done_testing();
}
