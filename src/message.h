/*
 * message.h
 *		The BEFORE ROW trigger of onesignal_message: columns, states, transitions.
 */
#ifndef ONESIGNAL_CANCEL_MESSAGE_H
#define ONESIGNAL_CANCEL_MESSAGE_H

/* When the library is loaded: the trigger has to know which statement fires it. */
extern void message_init(void);

#endif
