/*
 * hostile.h
 *		What the rooms of the generator of hostile answers share.
 *
 * A message's id says how it is answered:
 *
 *	KK BB EE SS - CC CC - PP PP - seed (8 bytes)
 *
 *	KK		the kind: an index into the table of kinds (--list)
 *	BB		the body: an index into the table of bodies
 *	EE		the end: 0 the kind's own; otherwise the answer is cut after CC CC
 *			bytes (modulo its length plus one), and the connection ends: 1 FIN,
 *			2 close_notify and FIN, 3 RST, 4 not at all (it hangs)
 *	SS		how the bytes are spread over writes, and so over TLS records
 *	PP PP	the kind's parameter: which variant of it, and which status
 *	seed	of everything that is left to chance
 *
 * A kind makes the bytes of an answer and, from what it has put into them,
 * says which outcomes are right.  --explain makes the same answer and prints
 * these instead of sending anything: the generator knows nothing of the
 * extension, only the contract of "What one cancel came to".
 */
#ifndef HOSTILE_H
#define HOSTILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ID_LENGTH	36			/* of a uuid as text */
#define OUTCOMES_MAX	6
#define REGEX_SIZE	512
#define lengthof(array)	(sizeof(array) / sizeof((array)[0]))

/* What is over this many bytes is no answer: a body, or all headers together. */
#define LARGE		(64 * 1024)

/* ---- bytes ---- */

typedef struct Buf
{
	char	   *data;
	size_t		length;
	size_t		room;
} Buf;

extern void buf_add(Buf *buf, const void *bytes, size_t length);
extern void buf_text(Buf *buf, const char *text);
extern void buf_fill(Buf *buf, char c, size_t count);
extern void buf_print(Buf *buf, const char *format,...) __attribute__((format(printf, 2, 3)));

/* xorshift64*: the same seed, the same answer */
typedef struct Random
{
	uint64_t	state;
} Random;

extern uint32_t random_below(Random *random, uint32_t bound);

/* ---- an id ---- */

typedef enum End
{
	END_OWN,					/* as the kind has it */
	END_FIN,
	END_NOTIFY,
	END_RST,
	END_HANG,
	END_COUNT
} End;

typedef enum Spread
{
	SPREAD_ONE,					/* all in one write: TLS records of up to 16 kB */
	SPREAD_TWO,					/* two, split anywhere */
	SPREAD_SMALL,				/* many of 1 to 40 bytes */
	SPREAD_PAGES,				/* 4 kB each */
	SPREAD_DRIP,				/* byte by byte, slowly */
	SPREAD_COUNT
} Spread;

typedef struct Id
{
	char		text[ID_LENGTH + 1];
	uint8_t		kind;
	uint8_t		body;
	uint8_t		end;
	uint8_t		spread;
	uint16_t	cut;
	uint16_t	parameter;
	uint64_t	seed;
} Id;

/* ---- a body ---- */

typedef enum Says
{
	SAYS_NEITHER,				/* no object with success true or false */
	SAYS_TRUE,
	SAYS_FALSE,
	SAYS_EITHER					/* one of these, and who could tell which */
} Says;

typedef enum Has
{
	HAS_NONE,					/* no object with errors */
	HAS_ERRORS,
	HAS_PERHAPS
} Has;

typedef struct Body
{
	Buf			bytes;
	Says		says;
	Has			has;
	size_t		json_end;		/* not complete before this many bytes; 0: before all */
	bool		may_shrink;		/* cut at the right place it is a success */
	char		errors[REGEX_SIZE]; /* of the row's errors as JSON, if they are the body's */
	const char *name;
} Body;

extern int	body_count(void);
extern bool body_is_small(int body);
extern void body_make(Body *body, const Id *id, Random *random, const char *authorization);

/* ---- an answer ---- */

typedef struct Outcome
{
	int			status;			/* 0: NULL */
	bool		success;
	const char *state;			/* in the queue */
	char		errors[REGEX_SIZE];
} Outcome;

/* What TLS does before the bytes are sent, or as the flood. */
typedef enum Records
{
	RECORDS_NONE,
	RECORDS_KEY_UPDATES,
	RECORDS_TICKETS,
	RECORDS_GARBAGE				/* an alert that is not encrypted */
} Records;

typedef struct Answer
{
	const Id   *id;
	Random		random;
	Body		body;
	int			status;
	uint32_t	stream;			/* HTTP/2 */
	const char *authorization;	/* as it came, NULL: unknown */

	Buf			bytes;			/* sent once, ... */
	Buf			unit;			/* ... then this again and again: a flood */
	Records		records;
	int			record_count;	/* 0: a flood */
	End			end;			/* END_OWN: the connection goes on */
	size_t		head_end;		/* not 0: the connection's end is the body's */
	size_t		complete_at;	/* not 0: from here on a length says that nothing is missing */
	bool		at_once;		/* in one write, whatever the id says */
	size_t		stray_at;		/* not 0: what follows has a TLS record of its own, and arrives together with the rest */
	bool		whole;			/* is not cut */
	bool		breaks;			/* others on the same connection suffer */

	Outcome		outcomes[OUTCOMES_MAX];
	int			outcome_count;
	const char *variant;		/* of the kind, for --explain */
	char		words[512];
} Answer;

typedef enum Protocol
{
	H1,
	H2
} Protocol;

/* When a kind is chosen, unless it is asked for by name */
typedef enum Choice
{
	MIXED,						/* at random */
	FLOOD,						/* among floods: its bytes come without end */
	APART						/* never: it does harm to the answer after it */
} Choice;

typedef struct Kind
{
	const char *name;
	void		(*make) (Answer *answer);
	Choice		choice;
	const char *words;
} Kind;

extern const Kind h1_kinds[];
extern const Kind h2_kinds[];

extern const Kind *kind_of(const Id *id);

/* Which outcomes are right */
extern void expect_usual(Answer *answer);
extern void expect_null(Answer *answer);
extern void expect_no_sense(Answer *answer);
extern void expect_part(Answer *answer);

#define EXPECT_USUAL	1		/* what status and body come to */
#define EXPECT_NULL		2
#define EXPECT_NO_SENSE	4		/* the status, and that the body is not understood */
extern void expect(Answer *answer, int which);

/* ---- HPACK ---- */

typedef struct HpackField
{
	char	   *name;
	char	   *value;
} HpackField;

typedef struct Hpack
{
	HpackField	entries[256];	/* the newest first */
	int			count;
	size_t		size;
	size_t		limit;
} Hpack;

extern void hpack_init(Hpack *hpack);
extern bool hpack_decode(Hpack *hpack, const uint8_t *block, size_t length,
						 void (*each) (const char *name, const char *value, void *context), void *context);
extern void hpack_integer(Buf *buf, int first, int prefix_bits, uint64_t value);
extern void hpack_huffman(Buf *buf, const char *text);

#endif
