/*
 * apps.c
 *		What is known of each app and of its lanes: pace, circuits, keys.
 *
 * An app has a circuit, which a 429 or several failures in a row open; each of
 * its lanes has one for its key.  The status of an answer moves them, which
 * needs no transaction; the next transaction writes them to onesignal_app, for
 * people to read.  A new deliverer takes from there only the end of an app's
 * pause, and its pace.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "lanes.h"

/* A transaction that only saves apps comes this long after the last one; later where rows were locked. */
#define SAVE_US			INT64CONST(100000)
#define SAVE_LOCKED_US	INT64CONST(1000000)

/* Nobody tells us that a key file has changed. */
#define KEY_CHECK_US		INT64CONST(2000000)

/* When a pause ended longer ago than this, the app may be back: no probe. */
#define PROBE_AFTER		(5 * USECS_PER_MINUTE)

/* The deliverer before has probed, too: the next probe comes as late as its own would. */
#define PROBES_BEFORE	3

/*
 * How many requests of an app begin before the first outcomes are recorded:
 * they are sent in vain if that is impossible.  The maximum bounds what waits
 * for locked rows.
 */
#define APP_TRUST_FIRST	32
#define APP_TRUST_MAX	4096

static HTAB *apps;
static MemoryContext apps_context;
static dlist_head unsaved;
static TimestampTz save_after;

void
apps_open(MemoryContext context)
{
	HASHCTL		control = {.keysize = sizeof(pg_uuid_t), .entrysize = sizeof(DeliveryApp), .hcxt = context};

	apps_context = context;
	dlist_init(&unsaved);
	save_after = 0;
	apps = hash_create("onesignal apps", 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
set_unsaved(DeliveryApp *app)
{
	if (!app->unsaved)
		dlist_push_tail(&unsaved, &app->unsaved_node);
	app->unsaved = true;
}

/* text NULL: nothing */
static void
set_text(char **into, const char *text)
{
	char	   *copy = text != NULL ? MemoryContextStrdup(apps_context, text) : NULL;

	if (*into != NULL)
		pfree(*into);
	*into = copy;
}

static void
note_error(DeliveryApp *app, const char *reason)
{
	set_text(&app->last_error, reason);
	set_unsaved(app);
}

char *
apps_label(const DeliveryApp *app)
{
	char	   *app_id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&app->app_id)));

	return app->server[0] != '\0' ? psprintf("server \"%s\" (app %s)", app->server, app_id) :
		psprintf("app %s", app_id);
}

/* ---- pauses ---- */

/* lane NULL: all of the app */
static void
log_pause(const DeliveryApp *app, const DeliveryLane *lane, const char *what, const char *more)
{
	char	   *role = lane == NULL ? "" : psprintf(" for role \"%s\"", NameStr(lane->key.requested_by));

	ereport(LOG,
			(errmsg("onesignal_cancel: %s %s%s%s", what, apps_label(app), role, more),
			 errhidecontext(true)));
}

static void
note_opened(DeliveryApp *app, DeliveryLane *lane, const char *reason, TimestampTz now)
{
	TimestampTz until = lane != NULL ? lane->circuit.open_until : app->circuit.open_until;
	int			seconds = (int) ((until - now + USECS_PER_SEC - 1) / USECS_PER_SEC);

	note_error(app, reason);
	log_pause(app, lane, "pausing", psprintf(": %s; next probe in %d s", reason, seconds));
}

/* onesignal_app has room for one lane whose circuit is open. */
static void
tell_of_lane(DeliveryLane *lane)
{
	if (lane->app->paused_lane != NULL)
		return;
	lane->app->paused_lane = lane;
	set_unsaved(lane->app);
}

/* True: it was closed. */
static bool
open_lane(DeliveryLane *lane, TimestampTz begun_at, TimestampTz until, const char *reason, TimestampTz now)
{
	bool		is_news = circuit_open(&lane->circuit, begun_at, until, now);

	set_text(&lane->reason, reason);
	if (lane->circuit.open)
		tell_of_lane(lane);
	set_unsaved(lane->app);
	return is_news;
}

static void
note_closed(DeliveryApp *app, DeliveryLane *lane)
{
	set_unsaved(app);
	log_pause(app, lane, "resuming", "");
	if (lane == NULL)
		return;
	lane->rewind_at = 0;		/* rows that waited for the key */
	if (app->paused_lane == lane)
		app->paused_lane = NULL;
}

static void
app_begin(DeliveryApp *app, const QueueAppState *state, TimestampTz now)
{
	app->rate_limit = CREDENTIALS_RATE_ADAPTS;
	app->resumed_at = state->resumed_at;
	pace_init(&app->pace, app->rate_limit);
	if (state->pace > 0)
		app->pace.rate = state->pace;
	allowance_init(&app->allowance);
	trust_init(&app->trust, APP_TRUST_FIRST, APP_TRUST_MAX);
	dlist_init(&app->lanes);
	dlist_init(&app->hungry);
	app->timer.kind = TIMER_APP;
	if (state->circuit_until > now - PROBE_AFTER)
	{
		(void) circuit_open(&app->circuit, now, state->circuit_until, now);
		app->circuit.probes = PROBES_BEFORE;
		set_text(&app->reason, "delivery was paused when it was last stopped");
	}
	else if (state->has_circuit)
		set_unsaved(app);		/* what stands there is not true any more */
}

/* onesignal_cancel_resume() was called. */
static void
app_resumed(DeliveryApp *app, TimestampTz now)
{
	dlist_iter	iter;

	if (circuit_close(&app->circuit, now))
		note_closed(app, NULL);
	dlist_foreach(iter, &app->lanes)
	{
		DeliveryLane *lane = dlist_container(DeliveryLane, node, iter.cur);

		lane->checked_at = lane->checks = 0;
		lane->judged = true;
		if (!lane->key_missing && circuit_close(&lane->circuit, now))
			note_closed(lane->app, lane);
	}
}

DeliveryApp *
apps_get(const pg_uuid_t *app_id, const QueueAppState *state, TimestampTz now)
{
	bool		found;
	DeliveryApp *app = hash_search(apps, app_id, HASH_ENTER, &found);

	if (!found)
	{
		memset((char *) app + sizeof(pg_uuid_t), 0, sizeof(*app) - sizeof(pg_uuid_t));
		app_begin(app, state, now);
	}
	app->paused_until = state->paused_until;
	if (state->resumed_at > app->resumed_at)
	{
		app->resumed_at = state->resumed_at;
		app_resumed(app, now);
	}
	return app;
}

/* ---- keys ---- */

void
apps_release_key(LaneKey *key)
{
	if (--key->refs > 0)
		return;
	onesignal_request_end(&key->request);
	credentials_wipe(&key->credentials);
	MemoryContextDelete(key->context);
}

void
apps_drop_key(DeliveryLane *lane)
{
	if (lane->credentials != NULL)
		apps_release_key(lane->credentials);
	lane->credentials = NULL;
}

TimestampTz
apps_next_key_check(const DeliveryLane *lane)
{
	return lane->checked_at + Min(KEY_CHECK_US << Min(lane->checks, 5), CIRCUIT_KEY_PAUSE);
}

void
apps_miss_key(DeliveryLane *lane, const char *reason, TimestampTz now)
{
	bool		is_news = !lane->key_missing || strcmp(lane->reason, reason) != 0;

	apps_drop_key(lane);
	lane->key_missing = true;
	lane->checked_at = now;
	lane->checks++;
	if (!is_news)
	{
		tell_of_lane(lane);
		return;
	}
	(void) open_lane(lane, now, now + CIRCUIT_KEY_PAUSE, reason, now);
	note_error(lane->app, reason);
	if (!lane->told)
		log_pause(lane->app, lane, "pausing", psprintf(": %s", reason));
	lane->told = true;
}

/* Tells whether credentials have changed, without keeping them.  Never 0. */
static uint64
fingerprint_of(const Credentials *credentials)
{
	const char *const parts[] = {
		credentials->base_url, credentials->api_key, credentials->ca_file, credentials->proxy
	};
	uint64		hash = credentials->server;

	for (size_t i = 0; i < lengthof(parts); i++)
		hash = hash_bytes_extended((const unsigned char *) (parts[i] != NULL ? parts[i] : ""),
								   parts[i] != NULL ? (int) strlen(parts[i]) + 1 : 0, hash);
	return hash | 1;
}

/* Where roles use different servers, the first that is seen states the app's pace. */
static void
adopt_rate(DeliveryApp *app, const Credentials *credentials)
{
	if (OidIsValid(app->rate_server) && app->rate_server != credentials->server)
		return;
	app->rate_server = credentials->server;
	strlcpy(app->server, credentials->server_name, NAMEDATALEN);
	if (app->rate_limit == credentials->rate_limit)
		return;
	app->rate_limit = credentials->rate_limit;
	pace_init(&app->pace, app->rate_limit);
}

/* Nothing that was learned of another key or server holds for this one. */
static void
adopt_key(DeliveryLane *lane, LaneKey *key, TimestampTz now)
{
	uint64		fingerprint = fingerprint_of(&key->credentials);
	bool		changed = lane->fingerprint != fingerprint;
	bool		is_first = lane->fingerprint == 0;

	apps_drop_key(lane);
	MemoryContextSetParent(key->context, apps_context);
	key->refs = 1;
	lane->credentials = key;
	lane->fingerprint = fingerprint;
	lane->checked_at = now;
	lane->checks = changed ? 0 : lane->checks + 1;
	if (changed)
		lane->adopted_at = now;
	if (lane->key_missing || (changed && !is_first))
	{
		lane->judged = true;
		if (circuit_close(&lane->circuit, now))
			note_closed(lane->app, lane);
	}
	lane->key_missing = lane->told = false;
	adopt_rate(lane->app, &key->credentials);
}

void
apps_check_key(DeliveryLane *lane, TimestampTz now)
{
	Oid			role = get_role_oid(NameStr(lane->key.requested_by), true);
	MemoryContext context;
	MemoryContext old;
	LaneKey    *key;
	char	   *message = NULL;
	ErrorData  *error;

	if (lane->generation != credentials_generation())
		lane->checks = 0;
	else if (lane->credentials != NULL && now - lane->checked_at < KEY_CHECK_US)
		return;
	lane->generation = credentials_generation();

	context = AllocSetContextCreate(CurrentMemoryContext, "onesignal key", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	key = palloc0(sizeof(LaneKey));
	key->context = context;
	if (!OidIsValid(role))
		message = psprintf("role \"%s\" does not exist", NameStr(lane->key.requested_by));
	else if ((error = credentials_find(&lane->key.app_id, role, &key->credentials)) != NULL)
		message = error->message;
	else
		onesignal_request_begin(&key->request, &lane->key.app_id, &key->credentials);
	key->request.http.group = &lane->app->group;
	MemoryContextSwitchTo(old);
	if (message == NULL)
		adopt_key(lane, key, now);
	else
	{
		apps_miss_key(lane, message, now);
		MemoryContextDelete(context);
	}
}

/* ---- learning from the status of an answer ---- */

bool
apps_was_rejected(int http_status)
{
	return http_status == 401 || http_status == 403;
}

static char *
describe_status(const HttpAnswer *answer)
{
	char	   *text;

	if (answer->status == 0)
		text = psprintf("no answer: %s", answer->error);
	else if (apps_was_rejected(answer->status))
		text = psprintf("OneSignal rejected the API key (HTTP %d)", answer->status);
	else if (answer->status == 429 && answer->retry_after > 0)
		text = psprintf("OneSignal's rate limit is exceeded (HTTP 429, Retry-After %d s)", answer->retry_after);
	else
		text = psprintf("%sHTTP %d", answer->status == 429 ? "OneSignal's rate limit is exceeded: " : "", answer->status);

	/* It is for the log and a table, in any encoding. */
	for (char *c = text; *c != '\0'; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	return text;
}

void
apps_suspect(DeliveryLane *lane, int http_status, TimestampTz now)
{
	HttpAnswer	rejection = {.status = http_status};

	if (lane->judged)
		return;
	lane->judged = true;
	(void) open_lane(lane, now, now, describe_status(&rejection), now);
}

/*
 * Is it the message that OneSignal rejects?  It did so before, and has
 * accepted the same key for another message since.
 */
static bool
is_denied(const DeliveryItem *item)
{
	const DeliveryLane *lane = item->lane;
	TimestampTz last_at = item->row.last_attempt_at;

	return apps_was_rejected(item->row.http_status) &&
		last_at >= lane->adopted_at && lane->accepted_at > last_at;
}

/* OneSignal has judged the key. */
static void
learn_key(DeliveryItem *item, bool accepted, const char *reason, TimestampTz now)
{
	DeliveryLane *lane = item->lane;
	TimestampTz begun_at = item->begun;

	item->denied = !accepted && is_denied(item);
	lane->judged = true;
	if (item->denied)
		circuit_abandon(&lane->circuit, begun_at);
	else if (accepted)
	{
		lane->failing_since = 0;
		if (begun_at > lane->circuit.changed_at)
			lane->accepted_at = Max(lane->accepted_at, begun_at);
		if (!lane->key_missing && circuit_success(&lane->circuit, begun_at, now))
			note_closed(lane->app, lane);
	}
	else
	{
		lane->accepted_at = 0;
		if (open_lane(lane, begun_at, now + CIRCUIT_KEY_PAUSE, reason, now))
			note_opened(lane->app, lane, reason, now);
	}
}

/* It was throttled, failed or had no answer. */
static void
learn_trouble(DeliveryApp *app, const HttpAnswer *answer, const char *reason, TimestampTz begun_at)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		wait;
	bool		is_news;

	set_text(&app->reason, reason);
	if (answer->status == 429)
	{
		wait = backoff_direct(app->circuit.probes + 1, pg_prng_double(&pg_global_prng_state),
							  answer->retry_after * USECS_PER_SEC);
		pace_throttled(&app->pace, begun_at, now);
		is_news = circuit_open(&app->circuit, begun_at, now + wait, now);
	}
	else
		is_news = circuit_failure(&app->circuit, begun_at, now);
	if (is_news)
		note_opened(app, NULL, reason, now);
}

void
apps_learn(DeliveryItem *item, const HttpAnswer *answer)
{
	DeliveryApp *app = item->lane->app;
	TimestampTz now = GetCurrentTimestamp();
	CancelVerdict verdict = onesignal_glance(answer);
	char	   *reason = describe_status(answer);

	if (answer->status != 200)
		note_error(app, reason);
	if (answer->status != 0 && answer->status != 429)
		pace_answered(&app->pace, now);
	if (verdict == CANCEL_THROTTLED || verdict == CANCEL_UNAVAILABLE || verdict == CANCEL_UNANSWERED)
	{
		circuit_abandon(&item->lane->circuit, item->begun);
		learn_trouble(app, answer, reason, item->begun);
		return;
	}
	/* OneSignal is there, whatever it thinks of the key. */
	if (circuit_success(&app->circuit, item->begun, now))
		note_closed(app, NULL);
	learn_key(item, verdict != CANCEL_UNAUTHORIZED, reason, now);
}

void
apps_note_recording(DeliveryApp *app, const char *error)
{
	TimestampTz now = GetCurrentTimestamp();

	/* It comes and goes, where the disk is nearly full. */
	if (error == NULL && now - app->unrecordable_at < USECS_PER_MINUTE)
		return;
	if (error != NULL)
		app->unrecordable_at = now;
	if (error != NULL && (app->unrecordable == NULL || strcmp(app->unrecordable, error) != 0))
	{
		char	   *reason = psprintf("could not record outcomes: %s", error);

		ereport(LOG,
				(errmsg("onesignal_cancel: %s of %s", reason, apps_label(app)),
				 errdetail("Few requests are sent until outcomes can be recorded."),
				 errhidecontext(true)));
		note_error(app, reason);
	}
	set_text(&app->unrecordable, error);
}

/* ---- onesignal_app ---- */

void
apps_count(DeliveryApp *app, QueueState state, int count)
{
	app->totals[state] += count;
	set_unsaved(app);
}

TimestampTz
apps_save_at(void)
{
	return dlist_is_empty(&unsaved) ? DT_NOEND : save_after;
}

/* The app's own circuit comes first. */
static void
describe_app(DeliveryApp *app, QueueApp *row)
{
	const DeliveryLane *lane = app->paused_lane;

	row->app_id = app->app_id;
	row->pace = app->pace.rate;
	row->last_error = app->last_error;
	memcpy(row->totals, app->totals, sizeof(row->totals));
	if (app->circuit.open)
	{
		row->circuit_until = app->circuit.open_until;
		row->circuit_reason = app->reason;
	}
	else if (lane != NULL)
	{
		row->circuit_until = lane->circuit.open_until;
		row->circuit_role = NameStr(lane->key.requested_by);
		row->circuit_reason = lane->reason;
	}
}

/* What is not saved, since somebody has the app's row locked, is saved later. */
void
apps_save(void)
{
	dlist_mutable_iter iter;
	QueueApp   *rows;
	int			count = 0;

	if (dlist_is_empty(&unsaved))
		return;
	dlist_foreach_modify(iter, &unsaved)
		count++;
	rows = palloc0(sizeof(QueueApp) * count);
	count = 0;
	dlist_foreach_modify(iter, &unsaved)
		describe_app(dlist_container(DeliveryApp, unsaved_node, iter.cur), &rows[count++]);
	queue_save_apps(rows, count);
	dlist_foreach_modify(iter, &unsaved)
	{
		DeliveryApp *app = dlist_container(DeliveryApp, unsaved_node, iter.cur);

		if (rows++->saved)
		{
			memset(app->totals, 0, sizeof(app->totals));
			set_text(&app->last_error, NULL);
			app->unsaved = false;
			dlist_delete(&app->unsaved_node);
		}
	}
	save_after = GetCurrentTimestamp() + (dlist_is_empty(&unsaved) ? SAVE_US : SAVE_LOCKED_US);
}
