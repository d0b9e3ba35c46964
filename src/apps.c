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

/* Somebody may have paused or resumed an app. */
#define READ_US		INT64CONST(1000000)

/* A key file changes without a word to us. */
#define KEY_CHECK_US		INT64CONST(2000000)

static HTAB *apps = NULL;
static MemoryContext keys_context;
static int64 read_us = 0;		/* when onesignal_app was */
static bool some_in_doubt = false;

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

static void
note_error(DeliveryApp *app, const char *reason)
{
	strlcpy(app->last_error, reason, sizeof(app->last_error));
	app->error_is_new = true;
}

/* Of several open circuits of an app the table tells of one: its own, or else some lane's. */
static void
blame_what_is_open(DeliveryApp *app)
{
	dlist_iter	iter;

	app->blamed = NULL;
	app->changed = true;
	if (app->circuit.open)
		return;
	dlist_foreach(iter, &app->lanes)
	{
		DeliveryLane *lane = dlist_container(DeliveryLane, node, iter.cur);

		if (lane->circuit.open)
			app->blamed = lane;
	}
}

/* A circuit opened just now; lane NULL: the app's own. */
static void
note_opened(DeliveryApp *app, DeliveryLane *lane, const char *reason)
{
	strlcpy(lane != NULL ? lane->reason : app->reason, reason, REASON_SIZE);
	note_error(app, reason);
	if (lane == NULL || !app->circuit.open)
		app->blamed = lane;
	app->changed = true;
	log_circuit(app, lane, "pausing", reason);
}

static void
note_closed(DeliveryApp *app, DeliveryLane *lane)
{
	blame_what_is_open(app);
	if (lane != NULL)
		lane->rewind_wanted = true; /* rows that waited for the key */
	log_circuit(app, lane, "resuming", "");
}

/* By hand: its server, mapping or key changed, or somebody resumed the app. */
static void
close_lane(DeliveryLane *lane, Moment now)
{
	if (!lane->key_missing && circuit_close(&lane->circuit, now.us))
		note_closed(lane->app, lane);
}

static void
close_app(DeliveryApp *app, Moment now)
{
	if (circuit_close(&app->circuit, now.us))
		note_closed(app, NULL);
}

/* No key to be had: the lane pauses without a request. */
static void
miss_key(DeliveryLane *lane, const char *reason, Moment now)
{
	lane->key_missing = true;
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

/*
 * An app's pace is stated by the server that its requests go through.  Where
 * roles use different ones, the first has the say as long as it is in use, so
 * that nobody can slow down or speed up others by a server of his own.
 */
static bool
may_set_pace(DeliveryLane *lane)
{
	dlist_iter	iter;

	dlist_foreach(iter, &lane->app->lanes)
	{
		DeliveryLane *other = dlist_container(DeliveryLane, node, iter.cur);

		if (other != lane && other->has_key && other->credentials.server == lane->app->server)
			return lane->credentials.server == lane->app->server;
	}
	lane->app->server = lane->credentials.server;
	return true;
}

/*
 * A new key, server or pace: what was learned of the old ones is void.  Of a
 * key that this process did not have, nobody knows whether it is a new one.
 */
static void
adopt_credentials(DeliveryLane *lane, MemoryContext context, const Credentials *credentials, Moment now)
{
	DeliveryApp *app = lane->app;
	bool		differs = lane->context != NULL;
	bool		was_missing = lane->key_missing;

	apps_drop_key(lane);
	MemoryContextSetParent(context, keys_context);
	lane->context = context;
	lane->credentials = *credentials;
	onesignal_request_begin(&lane->request, &app->app_id, credentials);
	lane->has_key = true;
	lane->adopted_us = now.us;
	if (app->rate_limit != credentials->rate_limit && may_set_pace(lane))
	{
		app->rate_limit = credentials->rate_limit;
		pace_init(&app->pace, app->rate_limit);
	}
	lane->key_missing = false;
	if (differs || was_missing)
		close_lane(lane, now);
	if (differs)
		close_app(app, now);
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

	context = AllocSetContextCreate(CurrentMemoryContext, "onesignal key", ALLOCSET_SMALL_SIZES);
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
		MemoryContextSwitchTo(old);
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

	/* It goes into the log and a table without further ado. */
	for (char *c = into; *c != '\0'; c++)
	{
		if (*c < ' ' || *c > '~')
			*c = '?';
	}
}

/* OneSignal took the key and is there. */
static void
learn_success(DeliveryLane *lane, int64 begun_us, int64 now_us)
{
	lane->success_us = Max(lane->success_us, begun_us);
	if (lane->has_key && circuit_success(&lane->circuit, begun_us, now_us))
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
	lane->denied_us = now_us;
	if (circuit_open(&lane->circuit, begun_us, now_us + CIRCUIT_KEY_PAUSE, now_us))
		note_opened(lane->app, lane, reason);
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
									  Min(answer->retry_after, RETRY_AFTER_MAX) * INT64CONST(1000000));

	circuit_abandon(&lane->circuit, begun_us);
	pace_throttled(&app->pace, begun_us, now_us);
	if (circuit_open(&app->circuit, begun_us, now_us + wait, now_us))
		note_opened(app, NULL, reason);
}

/*
 * An answer, or the lack of one, to a request that was decided on at begun_us.
 * It may have been sent later, after another's answer that paused the app:
 * that makes it no probe.
 */
void
apps_learn(DeliveryLane *lane, const HttpAnswer *answer, int64 begun_us)
{
	DeliveryApp *app = lane->app;
	int64		now_us = http_clock_us();
	char		reason[HTTP_ERROR_SIZE + 32];

	say_status(reason, sizeof(reason), answer);
	if (answer->status != 200)
		note_error(app, reason);
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

	/* Opened, opened once more, or closed: the table has to say until when. */
	if (app->circuit.changed_at == now_us || lane->circuit.changed_at == now_us)
		app->changed = true;
}

/* OneSignal denied this message, and not the key (apps_denies): the lane goes on. */
void
apps_excuse(DeliveryLane *lane, int64 begun_us)
{
	int64		now_us = http_clock_us();

	circuit_abandon(&lane->circuit, begun_us);
	if (circuit_success(&lane->app->circuit, begun_us, now_us))
		note_closed(lane->app, NULL);
}

/* The lane is about to go: it is out of its app's list. */
void
apps_forget_lane(DeliveryLane *lane)
{
	if (lane->app->blamed == lane)
		blame_what_is_open(lane->app);
}

/* The transaction has ended.  Without a commit, what it wrote is to be written again. */
void
apps_end_saving(bool committed)
{
	HASH_SEQ_STATUS status;
	DeliveryApp *app;

	if (!some_in_doubt)
		return;
	some_in_doubt = false;
	hash_seq_init(&status, apps);
	while ((app = hash_seq_search(&status)) != NULL)
	{
		app->changed |= app->in_doubt && !committed;
		app->in_doubt = false;
	}
}

/* ---- onesignal_app ---- */

static DeliveryLane *
lane_of_role(DeliveryApp *app, const NameData *role)
{
	dlist_iter	iter;

	dlist_foreach(iter, &app->lanes)
	{
		DeliveryLane *lane = dlist_container(DeliveryLane, node, iter.cur);

		if (strcmp(NameStr(lane->key.requested_by), NameStr(*role)) == 0)
			return lane;
	}
	return NULL;
}

/* onesignal_cancel_resume() has cleared what we wrote. */
static void
resume_app(DeliveryApp *app, Moment now)
{
	dlist_iter	iter;

	close_app(app, now);
	dlist_foreach(iter, &app->lanes)
		close_lane(dlist_container(DeliveryLane, node, iter.cur), now);
	app->changed = app->saved_open = false;
}

/*
 * From before this deliverer, and so no news to log.  Should its time be over,
 * a probe comes first all the same.
 */
static void
restore_circuit(DeliveryApp *app, const QueueApp *saved, Moment now)
{
	bool		of_lane = NameStr(saved->circuit_role)[0] != '\0';
	DeliveryLane *lane = of_lane ? lane_of_role(app, &saved->circuit_role) : NULL;
	int64		until_us = now.us + Max(saved->circuit_until - now.ts, 0);

	app->saved_open = true;
	if (of_lane && lane == NULL)
	{
		app->changed = true;	/* it has nothing pending any more */
		return;
	}
	(void) circuit_open(lane != NULL ? &lane->circuit : &app->circuit, now.us, until_us, now.us);
	strlcpy(lane != NULL ? lane->reason : app->reason,
			saved->circuit_reason != NULL ? saved->circuit_reason : "", REASON_SIZE);
	app->blamed = lane;
}

/* Is it time to look what onesignal_app says?  Not every pause comes with a wake-up. */
bool
apps_are_old(Moment now)
{
	return now.us - read_us > READ_US;
}

/* What onesignal_app says: pauses and circuits from before, and their end by onesignal_cancel_resume(). */
void
apps_read(Moment now)
{
	ListCell   *cell;

	read_us = now.us;
	foreach(cell, queue_apps())
	{
		QueueApp   *saved = lfirst(cell);
		DeliveryApp *app = apps_get(&saved->app_id);

		app->paused_until = saved->paused_until;
		if (saved->circuit_until == 0 && app->saved_open && !app->changed)
			resume_app(app, now);
		else if (saved->circuit_until != 0 && !app->saved_open && !app->changed)
			restore_circuit(app, saved, now);
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
		row.circuit_reason = app->blamed != NULL ? app->blamed->reason : app->reason;
		if (app->blamed != NULL)
			row.circuit_role = app->blamed->key.requested_by;
	}
	row.pace = app->pace.rate;
	row.last_error = app->error_is_new ? app->last_error : NULL;
	app->saved_us = now.us;
	app->saved_pace = app->pace.rate;
	app->in_doubt = some_in_doubt = true;
	if (!queue_save_app(&row))
	{
		app->refused_us = now.us;
		return;
	}
	app->saved_open = circuit->open;
	app->changed = app->error_is_new = false;
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

/*
 * Pace and last error are for people who look how it goes: each second will
 * do, and of an app with nothing pending there is none.
 */
static bool
has_small_news(DeliveryApp *app, Moment now)
{
	return now.us - app->saved_us > SAVE_US && !dlist_is_empty(&app->lanes) &&
		(app->pace.rate != app->saved_pace || app->error_is_new);
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
		if (apps_wants_saving(app, now) || has_small_news(app, now))
			save_app(app, now);
	}
}
