/*
 * message.h
 *		A row of onesignal_message in its trigger: columns, states, changes.
 */
#ifndef ONESIGNAL_CANCEL_MESSAGE_H
#define ONESIGNAL_CANCEL_MESSAGE_H

#include "commands/trigger.h"
#include "executor/tuptable.h"

/* In the order of CREATE TABLE; COLUMN_STATE and after belong to the extension. */
enum
{
	COLUMN_MESSAGE_ID = 1,
	COLUMN_APP_ID,
	COLUMN_SEND_AFTER,
	COLUMN_CANCEL,
	COLUMN_REASON,
	COLUMN_STATE,
	COLUMN_HTTP_STATUS,
	COLUMN_ERRORS,
	COLUMN_RESPONSE,
	COLUMN_ATTEMPTS,
	COLUMN_UNANSWERED,
	COLUMN_REQUESTED_BY,
	COLUMN_REQUESTED_AT,
	COLUMN_FIRST_ATTEMPT_AT,
	COLUMN_LAST_ATTEMPT_AT,
	COLUMN_NEXT_ATTEMPT_AT,
	COLUMN_FINISHED_AT,
	COLUMN_CREATED_AT
};

#define COLUMN_COUNT COLUMN_CREATED_AT

typedef enum MessageState
{
	STATE_SCHEDULED,
	STATE_PENDING,
	STATE_CANCELED,
	STATE_REFUSED,
	STATE_FAILED,
	STATE_COUNT
} MessageState;

/* The values of onesignal_message_state, as rows hold them. */
typedef struct MessageStates
{
	Oid			values[STATE_COUNT];
} MessageStates;

/* One row on its way, and what we change in it. */
typedef struct MessageRow
{
	TriggerData *trigger;
	const MessageStates *states;
	TupleTableSlot *old;		/* NULL: INSERT */
	TupleTableSlot *new;
	int			count;
	int			columns[COLUMN_COUNT];
	Datum		values[COLUMN_COUNT];
	bool		nulls[COLUMN_COUNT];
} MessageRow;

/*
 * Raises 39P01 unless the relation is onesignal_message of the schema that the
 * function is in, with the columns that it was made with (and maybe more).
 */
extern void message_check_table(Relation relation, Oid function);
extern void message_find_states(MessageStates *states, Relation relation);

/* For each row: begin, read, set, and hand the result to the executor. */
extern void message_begin(MessageRow *row, TriggerData *trigger, const MessageStates *states);
extern MessageState message_state(const MessageRow *row, TupleTableSlot *slot);
extern bool message_flag(TupleTableSlot *slot, int column);
extern void message_set(MessageRow *row, int column, Datum value);
extern void message_set_state(MessageRow *row, MessageState state);
extern void message_clear(MessageRow *row, int column);
extern HeapTuple message_result(MessageRow *row);

/* Is it another value than before (UPDATE only), by whoever? */
extern bool message_differs(const MessageRow *row, int column);

/* An UPDATE that names the column, even if it says what is there; or changed by a trigger before us. */
extern bool message_names(const MessageRow *row, int column);

/* The first of the extension's columns that the statement gave another value; 0: none. */
extern int	message_foreign_column(const MessageRow *row);

extern const char *message_column_name(int column);

#endif
