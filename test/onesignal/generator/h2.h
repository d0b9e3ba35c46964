/*
 * h2.h
 *		HTTP/2's frames.
 */
#ifndef H2_H
#define H2_H

#include "hostile.h"

enum
{
	DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION
};

enum
{
	ACK = 1, END_STREAM = 1, END_HEADERS = 4, PADDED = 8, PRIORITIZED = 32
};

extern void h2_frame(Buf *buf, int type, int flags, uint32_t stream, const void *payload, size_t length);

#endif
