/*
 * wire.c
 *		Waiting for sockets that somebody else opens and closes.
 *
 * libcurl opens and closes its sockets as it likes, and tells which of them it
 * wants watched, and for what.  They are kept in a WaitEventSet, together with
 * the latch, and the kernel is told of changes only: between two requests on
 * one connection there is none.
 *
 * This room knows what libcurl does with sockets, and calls nothing of it.
 */
#include "postgres.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "miscadmin.h"
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
	ino_t		inode;			/* which file had this number when last looked at */
	int			looked_at;		/* files_opened then */
	uint32		wanted;			/* WL_SOCKET_*; 0: not watched now */
	uint32		registered;		/* what the WaitEventSet has; 0: not in it */
	int			position;		/* in the WaitEventSet, while registered */
	bool		ours;			/* its end is told by wire_closed() */
	bool		shut;			/* by us */
} WatchedSocket;

static WaitEventSet *set = NULL;
static bool set_is_stale = false;
static bool set_is_behind = false;	/* some socket is wanted for something else */
static int	files_opened = 0;
static int	socket_count = 0;
static int	owned_count = 0;
static WatchedSocket sockets[WIRE_SOCKETS_MAX];

/* By its number, the place of a socket in the array, plus one. */
static int16 *places = NULL;
static int	place_count = 0;

/* ---- which sockets ---- */

static WatchedSocket *
find_socket(int fd)
{
	return fd < place_count && places[fd] > 0 ? &sockets[places[fd] - 1] : NULL;
}

static void
set_owned(WatchedSocket *watched, bool ours)
{
	owned_count += (int) ours - (int) watched->ours;
	watched->ours = ours;
}

/* The last entry takes the place; its position in the set stays its own. */
static void
forget_socket(WatchedSocket *watched)
{
	if (watched->registered != 0)
		set_is_stale = true;
	set_owned(watched, false);
	places[watched->fd] = 0;
	if (watched != &sockets[--socket_count])
	{
		*watched = sockets[socket_count];
		places[watched->fd] = (int16) (watched - sockets + 1);
	}
}

static void
forget_idle_sockets(void)
{
	for (int i = socket_count - 1; i >= 0; i--)
	{
		if (sockets[i].wanted == 0)
			forget_socket(&sockets[i]);
	}
}

/* NULL: there is no room for it. */
static WatchedSocket *
add_socket(int fd)
{
	WatchedSocket *watched;

	if (fd >= place_count)
	{
		int			count = Max(fd + 1, 2 * place_count);
		int16	   *more = realloc(places, sizeof(int16) * count);

		if (more == NULL)
			return NULL;
		memset(more + place_count, 0, sizeof(int16) * (count - place_count));
		places = more;
		place_count = count;
	}
	if (socket_count == WIRE_SOCKETS_MAX)
		forget_idle_sockets();
	if (socket_count == WIRE_SOCKETS_MAX)
		return NULL;
	watched = &sockets[socket_count++];
	memset(watched, 0, sizeof(*watched));
	watched->fd = fd;
	places[fd] = (int16) socket_count;
	return watched;
}

/*
 * The number alone says little: libcurl 7.88 closes a socket that it gave up
 * before it was connected without a word, and the kernel drops it from the
 * set.  The next file gets its number.
 */
static WatchedSocket *
find_or_add_socket(int fd)
{
	WatchedSocket *watched = find_socket(fd);
	struct stat status = {0};

	if (watched != NULL && watched->looked_at == files_opened)
		return watched;
	(void) fstat(fd, &status);
	if (watched != NULL && watched->inode != status.st_ino)
	{
		forget_socket(watched);
		watched = NULL;
	}
	if (watched == NULL)
	{
		watched = add_socket(fd);
		if (watched == NULL)
			return NULL;
		/* Programs that this process starts must not hold the connection. */
		(void) fcntl(fd, F_SETFD, FD_CLOEXEC);
	}
	watched->inode = status.st_ino;
	watched->looked_at = files_opened;
	return watched;
}

void
wire_opening(void)
{
	files_opened++;
}

void
wire_own(int fd)
{
	WatchedSocket *watched = find_or_add_socket(fd);

	if (watched != NULL)
		set_owned(watched, true);
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

	/*
	 * An idle connection stays in the set: the next request, usually at once,
	 * wants it back.  A resolver's pipe is closed without a word to us, and
	 * its number may name another file soon.
	 */
	if (wanted == 0 && !watched->ours)
		forget_socket(watched);
}

/*
 * We cannot close the descriptor, which is libcurl's: it does so when it next
 * looks for a connection.  To the peer and the kernel the connection is over.
 */
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

/* Linux resets the connection and drops what is unread; elsewhere that has to be read first. */
static void
cut_off(WatchedSocket *watched)
{
	struct sockaddr nobody = {.sa_family = AF_UNSPEC};

	(void) connect(watched->fd, &nobody, sizeof(nobody));
	(void) shutdown(watched->fd, SHUT_RDWR);
	watched->shut = true;
}

void
wire_cut_off(bool all)
{
	WatchedSocket *worst = NULL;
	int			most = -1;

	for (int i = 0; i < socket_count; i++)
	{
		WatchedSocket *watched = &sockets[i];
		int			unread = 0;

		if (!watched->ours || watched->wanted == 0 || watched->shut)
			continue;
		if (all)
			cut_off(watched);
		else if (ioctl(watched->fd, FIONREAD, &unread) == 0 && unread > most)
		{
			worst = watched;
			most = unread;
		}
	}
	if (worst != NULL)
		cut_off(worst);
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
	{
		sockets[i].registered = 0;
		sockets[i].position = -1;
	}
	set_is_behind = true;
	set_is_stale = false;
}

/* The set as it is wanted now; only what changed is told to the kernel. */
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
 * One event at a time, which epoll hands out in turn: eight connections may
 * have 800 answers, and the caller should send more before all are read.
 */
void
wire_wait(long timeout_ms, WireEvent *event)
{
	static uint32 wait_event = 0;
	WatchedSocket *watched;
	WaitEvent	occurred;

	event->occurred = false;
	event->fd = -1;
	event->ready = 0;
	event->latched = false;
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
		/*
		 * An idle connection has something to say, likely its end: libcurl
		 * looks when it next wants it, and until then we do not.
		 */
		set_is_stale = true;
		return;
	}
	event->fd = occurred.fd;
	event->ready = occurred.events & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE);
}
