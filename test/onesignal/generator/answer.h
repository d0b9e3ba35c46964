/*
 * answer.h
 *		From an id to an answer, and to what must come of it.
 */
#ifndef ANSWER_H
#define ANSWER_H

#include "hostile.h"

extern bool id_parse(Id *id, const char *text);
extern void answer_make(Answer *answer, const Id *id, uint32_t stream, const char *authorization);
extern void answer_free(Answer *answer);
extern void answer_explain_key(const char *key);
extern bool answer_explain(const char *text);
extern void answer_print_ids(Protocol protocol, uint64_t seed, int count, bool floods, const char *only);
extern void answer_list_kinds(void);

#endif
