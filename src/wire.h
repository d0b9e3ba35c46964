/*
 * wire.h
 *		Sockets that somebody else opens and closes, and waiting for them.
 *
 * Only wire_wait() throws or allocates in PostgreSQL's memory: libcurl's
 * callbacks may call the others.
 */
#ifndef ONESIGNAL_CANCEL_WIRE_H
#define ONESIGNAL_CANCEL_WIRE_H

/* How many sockets can be watched at one time. */
#define WIRE_SOCKETS_MAX	1024

/* What wire_look() knows of a connection */
#define WIRE_OPEN			1 /* neither side has closed it */
#define WIRE_IDLE			2 /* no answer is awaited on it */
#define WIRE_UNASKED		4 /* idle, but the peer has sent something or closed it */

/* Of a socket that is ours, wire_closed() will tell the end. */
extern void wire_own(int fd);
extern void wire_closed(int fd);
extern int	wire_count(void);

/* For what the socket is watched from now on. */
extern void wire_watch(int fd, bool readable, bool writable);

/* A connection is found by its local port.  idle_only: of one that is not idle nothing needs to be known. */
extern int	wire_look(int port, bool idle_only);

/* Ends our side of the connection; of each that its peer has closed while it was idle. */
extern void wire_end(int port);
extern void wire_tidy(void);

/* What is written to each connection waits for company, until it is uncorked. */
extern void wire_cork(bool corked);

/*
 * For a signal handler: cuts off all that is watched, or the connection with the
 * most unread input, which a flooding peer has.  True: some had unread input.
 */
extern bool wire_cut_off(bool all);

/*
 * Waits for at most timeout_ms (-1: no limit), for a socket or the latch, which
 * it resets.  Returns the socket and for what it is ready (WL_SOCKET_*), or -1,
 * which it may return early.
 */
extern int	wire_wait(long timeout_ms, uint32 *ready, bool *latched);

#endif
