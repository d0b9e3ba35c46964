/*
 * wire.h
 *		Waiting for sockets that somebody else opens and closes.
 *
 * Only wire_wait() throws or allocates in PostgreSQL's memory: libcurl's
 * callbacks may call the others.
 */
#ifndef ONESIGNAL_CANCEL_WIRE_H
#define ONESIGNAL_CANCEL_WIRE_H

/* How many sockets can be watched at one time. */
#define WIRE_SOCKETS_MAX	1024

/* wire_closed() will tell the end of this socket.  wire_owned(): how many there are. */
extern void wire_own(int fd);
extern void wire_closed(int fd);
extern int	wire_owned(void);

/* For what the socket is watched: WL_SOCKET_*, 0: not now. */
extern void wire_watch(int fd, uint32 wanted);

/*
 * A local port names a connection.  On a serial one (HTTP/1.1) the peer sends
 * only when asked.  wire_is_serial(): it is serial and idle; *readable: the peer
 * has sent something or closed.  wire_has_ended(): either side has closed it.
 */
extern void wire_note_serial(int port);
extern bool wire_is_serial(int port, bool *readable);
extern bool wire_has_ended(int port);

/* Ends our side of each connection that its peer has closed while it was idle. */
extern void wire_tidy(void);

/*
 * For a signal handler: cuts off all that is watched, or the connection with the
 * most unread input, which a flooding peer has.  True: one had unread input.
 */
extern bool wire_cut_off(bool all);

/* Was the connection with this local port cut off lately? */
extern bool wire_was_cut_off(int port);

typedef struct WireEvent
{
	bool		occurred;		/* anything; else the time passed */
	int			fd;				/* a socket that is ready, or -1 */
	uint32		ready;			/* for what: WL_SOCKET_* */
	bool		latched;		/* the latch was set; it is reset now */
} WireEvent;

/* Waits for at most timeout_ms, -1: no limit.  May return early with no event. */
extern void wire_wait(long timeout_ms, WireEvent *event);

/* Corked, the sockets keep small writes back until they are let go. */
extern void wire_cork(bool corked);

#endif
