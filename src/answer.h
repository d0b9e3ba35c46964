/*
 * answer.h
 *		Text from outside, made safe and readable.
 */
#ifndef ONESIGNAL_CANCEL_ANSWER_H
#define ONESIGNAL_CANCEL_ANSWER_H

#include "utils/jsonb.h"

extern char *answer_text(const char *bytes);
extern char *answer_line(const char *text, const char *api_key);
extern char *answer_excerpt(const char *body, const char *api_key);
extern Jsonb *answer_json(const char *body, size_t length, char **text);
extern char *answer_without_key(const char *json, const char *api_key);
extern JsonbValue *answer_field(JsonbContainer *object, const char *name, JsonbValue *into);
extern char *answer_error_text(JsonbValue *error);

#endif
