/*
 * slots.h
 *		Which databases have a worker: a few kB of shared memory.
 */
#ifndef ONESIGNAL_CANCEL_SLOTS_H
#define ONESIGNAL_CANCEL_SLOTS_H

#include "datatype/timestamp.h"

typedef enum SlotsAnswer
{
	SLOTS_SERVED,				/* a worker is there or on its way, or none is wanted */
	SLOTS_START,				/* the caller registers one and says slots_started() */
	SLOTS_FULL					/* more databases have workers than there are slots */
} SlotsAnswer;

/* Who delivers in a database. */
typedef enum SlotsDelivery
{
	SLOTS_NOBODY,				/* until the next commit of a request */
	SLOTS_AT_WORK,				/* a worker is there, on its way, or will be started in time */
	SLOTS_NO_WORKER				/* the last one died, or could not start */
} SlotsDelivery;

/* In _PG_init of a preloaded library: reserves the memory. */
extern void slots_reserve(void);

/* Where an error may be thrown, before any of the following, which throw none. */
extern void slots_attach(void);

/*
 * After a commit: wakes the database's worker, or claims the start of one if
 * may_start.  prepared: the transaction is only prepared so far.
 */
extern SlotsAnswer slots_wake(Oid database, bool may_start, bool prepared);

/* Like slots_wake() for the launcher. look: slots_looks_until() will tell when it has looked. */
extern SlotsAnswer slots_launch(Oid database, bool look);

/* A start that was claimed has been registered with the postmaster, or could not be. */
extern void slots_started(Oid database, bool registered);

extern SlotsDelivery slots_delivery(Oid database);

/*
 * A worker's own slot.  It may deliver when slots_enter() is true: no other
 * worker is there.  slots_leave() is false when it has to stay: a commit woke
 * it meanwhile, or it has to be back at next_due (0: it does not) but there is
 * no launcher to start it then.
 */
extern bool slots_enter(Oid database);
extern bool slots_take_wake(void);	/* was it woken since it last asked? */
extern void slots_looked(void); /* by now it knows whether something is pending */
extern bool slots_leave(TimestampTz next_due);
extern void slots_hand_over(void);	/* to a successor that the caller registers, ... */
extern void slots_take_back(void);	/* ... or cannot */
extern void slots_died(void);

/*
 * When a transaction with requests was last prepared in the worker's database,
 * as far as is known; 0: none is.  slots_note_prepared(): whether there is
 * still one, asked after slots_prepared_at() returned that time.
 */
extern TimestampTz slots_prepared_at(void);
extern void slots_note_prepared(TimestampTz prepared_at, bool still);

/*
 * Requests that are older than this (requested_at) may have been sent by a
 * deliverer that could not record it.  Whoever loses requests that are on the
 * wire raises it to now, once it sends no more.
 */
extern TimestampTz slots_doubt(void);
extern void slots_raise_doubt(void);

/*
 * The launcher's view.  slots_due(): when it has to start a worker, and for
 * which database (InvalidOid: for all that have something pending); DT_NOEND:
 * never.
 */
extern void slots_set_launcher(bool here);
extern TimestampTz slots_due(Oid *database);
extern TimestampTz slots_looks_until(Oid database); /* 0: it has looked, or will not */
extern void slots_forget(Oid database); /* it is gone, or takes no connections */
extern void slots_swept(void);	/* all databases are about to be looked into */

#endif
