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

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "miscadmin.h"
#include "storage/latch.h"

#include "compat.h"
#include "wire.h"

typedef struct WatchedSocket
{
	int			fd;
	ino_t		inode;			/* which file had this number when last looked at */
	int			looked_at;		/* files_opened then */
	uint32		wanted;			/* WL_SOCKET_*; 0: not watched now */
	uint32		registered;		/* what the WaitEventSet has; 0: not in it */
	int			position;		/* in the WaitEventSet, while registered */
	bool		ours;			/* its end is told by wire_closed() */
} WatchedSocket;

static WaitEventSet *set = NULL;
static bool set_is_stale = false;
static int	files_opened = 0;
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

/* The last entry takes the place; its position in the set stays its own. */
static void
forget_socket(WatchedSocket *watched)
{
	if (watched->registered != 0)
		set_is_stale = true;
	*watched = sockets[--socket_count];
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

/*
 * The number alone says little: a socket that was given up before it was
 * connected, libcurl 7.88 closes without a word, and the kernel drops it from
 * the set.  The next file gets its number.
 */
static WatchedSocket *
find_or_add_socket(int fd)
{
	WatchedSocket *watched = find_socket(fd);
	struct stat status = {0};

	if (watched != NULL && watched->looked_at == files_opened)
		return watched;
	(void) fstat(fd, &status);
	if (watched == NULL)
	{
		if (socket_count == WIRE_SOCKETS_MAX)
			forget_idle_sockets();
		if (socket_count == WIRE_SOCKETS_MAX)
			return NULL;
		watched = &sockets[socket_count++];
		memset(watched, 0, sizeof(*watched));
		watched->fd = fd;
	}
	else if (watched->inode != status.st_ino)
	{
		if (watched->registered != 0)
			set_is_stale = true;
		watched->ours = false;
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
		watched->ours = true;
}

void
wire_closed(int fd)
{
	WatchedSocket *watched = find_socket(fd);

	if (watched != NULL)
		forget_socket(watched);
}

void
wire_watch(int fd, uint32 wanted)
{
	WatchedSocket *watched = find_or_add_socket(fd);

	if (watched == NULL)
		return;					/* cannot be: WIRE_SOCKETS_MAX; its exchange times out */
	watched->wanted = wanted;

	/*
	 * An idle connection stays in the set: the next request, usually at once,
	 * wants it back.  A resolver's pipe is closed without a word to us, and
	 * its number may name another file soon.
	 */
	if (wanted == 0 && !watched->ours)
		forget_socket(watched);
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
	{
		sockets[i].registered = 0;
		sockets[i].position = -1;
	}
	set_is_stale = false;
}

/* The set as it is wanted now; only what changed is told to the kernel. */
static void
update_set(void)
{
	if (set == NULL || set_is_stale)
		rebuild_set();
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

void
wire_shut(void)
{
	if (set != NULL)
		FreeWaitEventSet(set);
	set = NULL;
	socket_count = 0;
}
