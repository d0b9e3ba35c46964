/*
 * apps.c
 *		What delivery learns of each app: pace, circuits, pauses.
 *
 * An app has a circuit that 429, and several failures in a row, open; each of
 * its lanes has one for its key.  Answers move them by their status alone,
 * which needs no transaction.  When one opens or closes, a line is logged and
 * the app's row in onesignal_app is written in the next transaction, so that
 * a pause outlives this process and onesignal_cancel_resume() can end it.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "apps.h"

/* How often a pace is written down, or a row that was locked tried again. */
#define SAVE_US		INT64CONST(1000000)

/* A key file changes without a word to us: design, section 6, "at once". */
#define KEY_CHECK_US		INT64CONST(2000000)

static HTAB *apps = NULL;
static MemoryContext keys_context;

/* ---- the apps ---- */

void
apps_open(MemoryContext context)
{
	HASHCTL		control = {0};

	control.keysize = sizeof(pg_uuid_t);
	control.entrysize = sizeof(DeliveryApp);
	control.hcxt = context;
	keys_context = context;
	apps = hash_create("onesignal apps", 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

DeliveryApp *
apps_get(const pg_uuid_t *app_id)
{
	bool		found;
	DeliveryApp *app = hash_search(apps, app_id, HASH_ENTER, &found);

	if (found)
		return app;
	memset((char *) app + sizeof(pg_uuid_t), 0, sizeof(*app) - sizeof(pg_uuid_t));
	dlist_init(&app->lanes);
	app->rate_limit = CREDENTIALS_RATE_ADAPTS;
	pace_init(&app->pace, app->rate_limit);
	circuit_init(&app->circuit);
	return app;
}

/* ---- circuits ---- */

static void
log_circuit(DeliveryApp *app, DeliveryLane *lane, const char *what, const char *reason)
{
	char	   *app_id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&app->app_id)));

	if (lane != NULL)
		ereport(LOG,
				(errmsg("onesignal_cancel: %s app %s for role \"%s\"%s%s", what, app_id,
						NameStr(lane->key.requested_by), reason[0] != '\0' ? ": " : "", reason)));
	else
		ereport(LOG,
				(errmsg("onesignal_cancel: %s app %s%s%s", what, app_id,
						reason[0] != '\0' ? ": " : "", reason)));
	pfree(app_id);
}

/* A circuit opened just now; lane NULL: the app's own. */
static void
note_opened(DeliveryApp *app, DeliveryLane *lane, const char *reason)
{
	strlcpy(app->reason, reason, sizeof(app->reason));
	strlcpy(app->last_error, reason, sizeof(app->last_error));
	app->blamed = lane;
	app->changed = true;
	log_circuit(app, lane, "pausing", reason);
}

static void
note_closed(DeliveryApp *app, DeliveryLane *lane)
{
	if (app->blamed == lane)
	{
		app->blamed = NULL;
		app->reason[0] = '\0';
	}
	app->changed = true;
	log_circuit(app, lane, "resuming", "");
}

/* By hand: its server, mapping or key changed, or somebody resumed the app. */
static void
close_circuits(DeliveryApp *app, DeliveryLane *lane, Moment now)
{
	if (lane != NULL && circuit_close(&lane->circuit, now.us))
		note_closed(app, lane);
	if (circuit_close(&app->circuit, now.us))
		note_closed(app, NULL);
}

/* No key to be had: the lane pauses without a request. */
static void
miss_key(DeliveryLane *lane, const char *reason, Moment now)
{
	if (circuit_open(&lane->circuit, now.us, now.us + CIRCUIT_KEY_PAUSE, now.us))
		note_opened(lane->app, lane, reason);
}

/* ---- keys ---- */

void
apps_drop_key(DeliveryLane *lane)
{
	if (lane->context == NULL)
		return;
	onesignal_request_end(&lane->request);
	credentials_wipe(&lane->credentials);
	MemoryContextDelete(lane->context);
	lane->context = NULL;
	lane->has_key = false;
}

static bool
same_text(const char *a, const char *b)
{
	return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

static bool
same_credentials(const Credentials *a, const Credentials *b)
{
	return a->server == b->server && a->rate_limit == b->rate_limit &&
		same_text(a->base_url, b->base_url) && same_text(a->api_key, b->api_key) &&
		same_text(a->ca_file, b->ca_file) && same_text(a->proxy, b->proxy);
}

/* A new key, server or pace: what was learned of the old ones is void. */
static void
adopt_credentials(DeliveryLane *lane, MemoryContext context, const Credentials *credentials, Moment now)
{
	DeliveryApp *app = lane->app;
	bool		was_known = lane->context != NULL || lane->circuit.open;

	apps_drop_key(lane);
	lane->context = context;
	lane->credentials = *credentials;
	onesignal_request_begin(&lane->request, &app->app_id, credentials);
	lane->has_key = true;
	lane->adopted_us = now.us;
	if (app->rate_limit != credentials->rate_limit)
	{
		app->rate_limit = credentials->rate_limit;
		pace_init(&app->pace, app->rate_limit);
	}
	if (was_known)
		close_circuits(app, lane, now);
}

/*
 * Looks the lane's credentials up when they may have changed.  A transaction
 * is open.  What is missing pauses the lane, and is looked for again.
 */
void
apps_check_key(DeliveryLane *lane, Moment now)
{
	Credentials credentials = {0};
	MemoryContext context;
	MemoryContext old;
	char	   *message = NULL;
	Oid			role;
	bool		found;

	if (lane->checked_us != 0 && lane->generation == credentials_generation() &&
		now.us - lane->checked_us < KEY_CHECK_US)
		return;
	lane->checked_us = now.us;
	lane->generation = credentials_generation();

	context = AllocSetContextCreate(keys_context, "onesignal key", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	role = get_role_oid(NameStr(lane->key.requested_by), true);
	if (!OidIsValid(role))
		message = psprintf("role \"%s\" does not exist", NameStr(lane->key.requested_by));
	found = OidIsValid(role) &&
		credentials_find(&lane->key.app_id, role, &credentials, &message) == CREDENTIALS_OK;
	if (found && !(lane->has_key && same_credentials(&credentials, &lane->credentials)))
		adopt_credentials(lane, context, &credentials, now);
	else
	{
		if (!found)
		{
			apps_drop_key(lane);
			miss_key(lane, message != NULL ? message : "no API key", now);
		}
		credentials_wipe(&credentials);
		MemoryContextDelete(context);
	}
	MemoryContextSwitchTo(old);
}

int64
apps_next_key_check(const DeliveryLane *lane)
{
	return lane->checked_us + KEY_CHECK_US;
}

/* Is it time to look for the lane's key again? */
bool
apps_needs_key_check(const DeliveryLane *lane, Moment now)
{
	return lane->listed && (lane->circuit.open || !lane->has_key) &&
		now.us >= apps_next_key_check(lane);
}

/* ---- learning from an answer's status ---- */

static void
say_status(char *into, size_t size, const HttpAnswer *answer)
{
	if (answer->status == 0)
		snprintf(into, size, "no answer: %s", answer->error);
	else if (answer->retry_after > 0)
		snprintf(into, size, "HTTP %d, Retry-After %d s", answer->status, answer->retry_after);
	else
		snprintf(into, size, "HTTP %d", answer->status);
}

/* OneSignal took the key and is there. */
static void
learn_success(DeliveryLane *lane, int64 begun_us, int64 now_us)
{
	lane->success_us = begun_us;
	if (circuit_success(&lane->circuit, begun_us, now_us))
		note_closed(lane->app, lane);
	if (circuit_success(&lane->app->circuit, begun_us, now_us))
		note_closed(lane->app, NULL);
}

static void
learn_unauthorized(DeliveryLane *lane, const char *reason, int64 begun_us, int64 now_us)
{
	/* The app is there, whatever it thinks of this key. */
	if (circuit_success(&lane->app->circuit, begun_us, now_us))
		note_closed(lane->app, NULL);
	if (circuit_open(&lane->circuit, begun_us, now_us + CIRCUIT_KEY_PAUSE, now_us))
	{
		lane->denied_us = now_us;
		note_opened(lane->app, lane, reason);
	}
}

/*
 * Is it this message that OneSignal does not let us have, and not the key?  It
 * was denied before with the same key, and since then that key has been taken
 * for another message.  Ask before apps_learn().
 */
bool
apps_denies(const DeliveryLane *lane, const QueueRow *row, Moment now)
{
	int64		denied_before_us = now.us - (now.ts - row->last_attempt_at);

	return (row->http_status == 401 || row->http_status == 403) &&
		denied_before_us >= lane->adopted_us && denied_before_us <= lane->denied_us &&
		lane->success_us > lane->denied_us;
}

static void
learn_throttled(DeliveryLane *lane, const HttpAnswer *answer, const char *reason,
				int64 begun_us, int64 now_us)
{
	DeliveryApp *app = lane->app;
	int64		wait = backoff_direct(app->circuit.probes + 1, pg_prng_double(&pg_global_prng_state),
									  answer->retry_after * INT64CONST(1000000));

	circuit_abandon(&lane->circuit, begun_us);
	pace_throttled(&app->pace, begun_us, now_us);
	if (circuit_open(&app->circuit, begun_us, now_us + wait, now_us))
		note_opened(app, NULL, reason);
}

/* An answer, or the lack of one, to a request that began at begun_us. */
void
apps_learn(DeliveryLane *lane, const HttpAnswer *answer, int64 begun_us)
{
	int64		now_us = http_clock_us();
	char		reason[HTTP_ERROR_SIZE + 32];

	say_status(reason, sizeof(reason), answer);
	if (answer->status != 0 && answer->status != 429)
		pace_answered(&lane->app->pace, now_us);
	switch (onesignal_glance(answer))
	{
		case CANCEL_UNAUTHORIZED:
			learn_unauthorized(lane, reason, begun_us, now_us);
			break;
		case CANCEL_THROTTLED:
			learn_throttled(lane, answer, reason, begun_us, now_us);
			break;
		case CANCEL_UNAVAILABLE:
		case CANCEL_UNANSWERED:
			circuit_abandon(&lane->circuit, begun_us);
			if (circuit_failure(&lane->app->circuit, begun_us, now_us))
				note_opened(lane->app, NULL, reason);
			break;
		default:
			learn_success(lane, begun_us, now_us);
			break;
	}
}

/* ---- onesignal_app ---- */

/* What onesignal_app says: pauses and circuits from before, and their end by onesignal_cancel_resume(). */
void
apps_read(Moment now)
{
	ListCell   *cell;

	foreach(cell, queue_apps())
	{
		QueueApp   *saved = lfirst(cell);
		DeliveryApp *app = apps_get(&saved->app_id);
		int64		until_us = now.us + (saved->circuit_until - now.ts);
		dlist_iter	iter;

		app->paused_until = saved->paused_until;
		if (saved->circuit_until == 0 && app->saved_open && !app->changed)
		{
			dlist_foreach(iter, &app->lanes)
				close_circuits(app, dlist_container(DeliveryLane, node, iter.cur), now);
			app->changed = app->saved_open = false;
		}
		else if (saved->circuit_until > now.ts && !app->saved_open && !app->changed &&
				 NameStr(saved->circuit_role)[0] == '\0')
		{
			/* From before this deliverer: no news to log. */
			(void) circuit_open(&app->circuit, now.us, until_us, now.us);
			strlcpy(app->reason, saved->circuit_reason != NULL ? saved->circuit_reason : "",
					sizeof(app->reason));
			app->saved_open = true;
		}
	}
}

static void
save_app(DeliveryApp *app, Moment now)
{
	QueueApp	row = {0};
	const Circuit *circuit = app->blamed != NULL ? &app->blamed->circuit : &app->circuit;

	row.app_id = app->app_id;
	if (circuit->open)
	{
		row.circuit_until = now.ts + (circuit->open_until - now.us);
		row.circuit_reason = app->reason;
		if (app->blamed != NULL)
			row.circuit_role = app->blamed->key.requested_by;
	}
	row.pace = app->pace.rate;
	row.last_error = app->last_error[0] != '\0' ? app->last_error : NULL;
	app->saved_us = now.us;
	app->saved_pace = app->pace.rate;
	if (!queue_save_app(&row))
	{
		app->refused_us = now.us;
		return;
	}
	app->saved_open = circuit->open;
	app->changed = false;
}

/*
 * A circuit opened or closed: that does not wait, unless somebody had the
 * app's row locked just now.
 */
bool
apps_wants_saving(const DeliveryApp *app, Moment now)
{
	return app->changed && now.us - app->refused_us > SAVE_US;
}

/* The pace is for people who look how far it is: each second will do. */
static bool
has_new_pace(const DeliveryApp *app, Moment now)
{
	return now.us - app->saved_us > SAVE_US && app->pace.rate != app->saved_pace;
}

/* Writes what changed since the last visit. */
void
apps_save(Moment now)
{
	HASH_SEQ_STATUS status;
	DeliveryApp *app;

	hash_seq_init(&status, apps);
	while ((app = hash_seq_search(&status)) != NULL)
	{
		if (apps_wants_saving(app, now) || has_new_pace(app, now))
			save_app(app, now);
	}
}
