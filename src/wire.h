/*
 * wire.h
 *		Waiting for sockets that somebody else opens and closes.
 *
 * None of these throws or allocates but wire_wait(), so that the others may be
 * called from within libcurl.
 */
#ifndef ONESIGNAL_CANCEL_WIRE_H
#define ONESIGNAL_CANCEL_WIRE_H

/* Connections and what is opened for them at one time. */
#define WIRE_SOCKETS_MAX	64

/* A file is about to be opened: from now on a number may name another one. */
extern void wire_opening(void);

/* This socket's end is told by wire_closed(), at least while it is connected. */
extern void wire_own(int fd);
extern void wire_closed(int fd);

/* For what it is watched: WL_SOCKET_*, 0: not now. */
extern void wire_watch(int fd, uint32 wanted);

/* While corked, what is written waits for a full segment; then all of it goes out. */
extern void wire_cork(bool corked);

typedef struct WireEvent
{
	bool		occurred;		/* anything; else the time passed */
	int			fd;				/* a socket that is ready, or -1 */
	uint32		ready;			/* for what: WL_SOCKET_* */
	bool		latched;		/* the latch was set; it is reset now */
} WireEvent;

/* At most timeout_ms, -1: no limit.  May return early, with nothing to tell. */
extern void wire_wait(long timeout_ms, WireEvent *event);

/* Forgets the sockets, at the process's end. */
extern void wire_shut(void);

#endif
