/*
 * apps.c
 *		What delivery knows of each app and of its lanes: pace, circuits, keys.
 *
 * An app has a circuit that 429, and several failures in a row, open; each of
 * its lanes has one for its key.  Answers move them by their status alone,
 * which needs no transaction.  When one opens or closes, a line is logged and
 * the app's row in onesignal_app is written in the next transaction, for
 * people to see.  Of what stands there a new deliverer takes over only how
 * long the app is paused, and its pace.
 *
 * A lane keeps its key only while it has something to send: thousands of lanes
 * may wait.
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

#include "apps.h"
#include "settings.h"

/*
 * A transaction that only saves what is known of apps waits this long after
 * the last one, or after one that found rows of onesignal_app locked.
 */
#define SAVE_US			INT64CONST(100000)
#define SAVE_LOCKED_US	INT64CONST(1000000)

/* A key file changes without a word to us. */
#define KEY_CHECK_US		INT64CONST(2000000)

/* So long after a pause should have ended, nobody knows whether the app is back. */
#define PROBE_AFTER		(5 * USECS_PER_MINUTE)

/* Another deliverer has probed before: the next probe but one follows as late as ever. */
#define PROBES_BEFORE	3

/*
 * Requests that are begun before the first outcomes of an app are recorded,
 * and before any are recorded at all: should that be impossible, they are
 * sent in vain.  The second figure bounds what waits for locked rows.
 */
#define APP_TRUST_FIRST	32
#define APP_TRUST_MAX	4096

static HTAB *apps = NULL;
static MemoryContext apps_context;
static dlist_head unsaved = DLIST_STATIC_INIT(unsaved);
static int64 save_after_us = 0;
static bool found_locked = false;	/* the last save left out some */

/* What the open transaction saves, and of which apps. */
static QueueApp *saving;
static DeliveryApp **saving_apps;
static int	saving_count = 0;

Moment
apps_now(void)
{
	Moment		now;

	now.us = http_clock_us();
	now.ts = GetCurrentTimestamp();
	return now;
}

/* ---- the apps ---- */

void
apps_open(MemoryContext context)
{
	HASHCTL		control = {0};

	control.keysize = sizeof(pg_uuid_t);
	control.entrysize = sizeof(DeliveryApp);
	control.hcxt = context;
	apps_context = context;
	dlist_init(&unsaved);
	saving_count = 0;
	apps = hash_create("onesignal apps", 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
app_set_unsaved(DeliveryApp *app)
{
	if (!app->unsaved)
		dlist_push_tail(&unsaved, &app->unsaved_node);
	app->unsaved = true;
}

/* text NULL: nothing */
static void
set_text(char **into, const char *text)
{
	if (*into != NULL)
		pfree(*into);
	*into = text != NULL ? MemoryContextStrdup(apps_context, text) : NULL;
}

static void
app_begin(DeliveryApp *app, const QueueAppState *state, Moment now)
{
	app->rate_limit = CREDENTIALS_RATE_ADAPTS;
	app->resumed_at = state->resumed_at;
	app->has_row = state->exists;
	pace_init(&app->pace, app->rate_limit);
	if (state->pace > 0)
		app->pace.rate = state->pace;
	circuit_init(&app->circuit);
	allowance_init(&app->allowance);
	trust_init(&app->trust, APP_TRUST_FIRST, APP_TRUST_MAX);
	dlist_init(&app->lanes);
	dlist_init(&app->dormant);

	/*
	 * It is no news to log.  A pause that ended lately ends with a probe all the
	 * same; any other circuit that stands there is forgotten.
	 */
	if (state->circuit_until > now.ts - PROBE_AFTER)
	{
		(void) circuit_open(&app->circuit, now.us, now.us + Max(state->circuit_until - now.ts, 0), now.us);
		app->circuit.probes = PROBES_BEFORE;
	}
	else if (state->has_circuit)
		app_set_unsaved(app);
}

DeliveryApp *
apps_get(const pg_uuid_t *app_id, const QueueAppState *state, Moment now)
{
	bool		found;
	DeliveryApp *app = hash_search(apps, app_id, HASH_ENTER, &found);

	if (found)
		return app;
	memset((char *) app + sizeof(pg_uuid_t), 0, sizeof(*app) - sizeof(pg_uuid_t));
	app_begin(app, state, now);
	return app;
}

char *
apps_label(const DeliveryApp *app)
{
	char	   *app_id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&app->app_id)));

	return app->server[0] != '\0' ? psprintf("server \"%s\" (app %s)", app->server, app_id) :
		psprintf("app %s", app_id);
}

/* ---- circuits ---- */

static void
note_error(DeliveryApp *app, const char *reason)
{
	set_text(&app->last_error, reason);
	app_set_unsaved(app);
}

/* lane NULL: the app's own circuit */
static void
log_circuit(DeliveryApp *app, DeliveryLane *lane, const char *what, const char *more)
{
	char	   *role = lane == NULL ? "" : psprintf(" for role \"%s\"", NameStr(lane->key.requested_by));

	ereport(LOG,
			(errmsg("onesignal_cancel: %s %s%s%s", what, apps_label(app), role, more),
			 errhidecontext(true)));
}

static void
note_opened(DeliveryApp *app, DeliveryLane *lane, const char *reason, Moment now)
{
	const Circuit *circuit = lane != NULL ? &lane->circuit : &app->circuit;

	note_error(app, reason);
	log_circuit(app, lane, "pausing",
				psprintf(": %s; next probe in %d s", reason,
						 (int) ((circuit->open_until - now.us + USECS_PER_SEC - 1) / USECS_PER_SEC)));
}

static void
note_closed(DeliveryApp *app, DeliveryLane *lane)
{
	app_set_unsaved(app);
	if (lane != NULL)
		lane->rewind_wanted = true; /* rows that waited for the key */
	log_circuit(app, lane, "resuming", "");
}

/* It may have opened, opened once more, or changed its end: the table has to say until when. */
static void
pause_lane(DeliveryLane *lane, const char *reason, int64 begun_us, Moment now)
{
	bool		news = circuit_open(&lane->circuit, begun_us, now.us + CIRCUIT_KEY_PAUSE, now.us);

	set_text(&lane->reason, reason);
	app_set_unsaved(lane->app);
	if (news)
		note_opened(lane->app, lane, reason, now);
}

static void
resume_lane(DeliveryLane *lane, Moment now)
{
	if (circuit_close(&lane->circuit, now.us))
		note_closed(lane->app, lane);
}

void
apps_miss_key(DeliveryLane *lane, const char *reason, bool log, Moment now)
{
	bool		is_news = lane->reason == NULL || strcmp(lane->reason, reason) != 0;

	apps_drop_key(lane);
	lane->key_missing = true;
	lane->server = InvalidOid;
	lane->checked_us = now.us;
	lane->checks++;
	(void) circuit_open(&lane->circuit, now.us, now.us + CIRCUIT_KEY_PAUSE, now.us);
	if (!is_news)
		return;
	set_text(&lane->reason, reason);
	note_error(lane->app, reason);
	if (log && !lane->told)
		log_circuit(lane->app, lane, "pausing", psprintf(": %s; looking for it now and then", reason));
}

void
apps_update(DeliveryApp *app, const QueueAppState *state, Moment now)
{
	dlist_iter	iter;

	app->has_row |= state->exists;
	app->paused_until = state->paused_until;
	if (state->resumed_at <= app->resumed_at)
		return;
	app->resumed_at = state->resumed_at;
	if (circuit_close(&app->circuit, now.us))
		note_closed(app, NULL);
	dlist_foreach(iter, &app->lanes)
	{
		DeliveryLane *lane = dlist_container(DeliveryLane, node, iter.cur);

		lane->checked_us = 0;
		if (!lane->key_missing)
			resume_lane(lane, now);
	}
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

/* Tells changed credentials from unchanged ones without keeping them.  Never 0. */
static uint64
fingerprint_of(const Credentials *credentials)
{
	static uint64 seed = 0;
	const char *const parts[] = {
		credentials->base_url, credentials->api_key, credentials->ca_file, credentials->proxy
	};
	uint64		hash;

	if (seed == 0)
		seed = pg_prng_uint64(&pg_global_prng_state) | 1;
	hash = seed + credentials->server;
	for (size_t i = 0; i < lengthof(parts); i++)
		hash = hash_bytes_extended((const unsigned char *) (parts[i] != NULL ? parts[i] : ""),
								   parts[i] != NULL ? (int) strlen(parts[i]) + 1 : 0, hash);
	return hash | 1;
}

/*
 * An app's pace is stated by the server that its requests go through.  Where
 * roles use different ones, the first has the say as long as it is in use, so
 * that nobody can slow down or speed up others by a server of his own.
 */
static bool
may_state_rate(const DeliveryLane *lane)
{
	dlist_iter	iter;

	if (lane->app->server_oid == lane->server)
		return true;
	dlist_foreach(iter, &lane->app->lanes)
	{
		DeliveryLane *other = dlist_container(DeliveryLane, node, iter.cur);

		if (other != lane && other->server == lane->app->server_oid)
			return false;
	}
	return true;
}

static void
adopt_rate(DeliveryLane *lane, const Credentials *credentials)
{
	DeliveryApp *app = lane->app;

	if (!may_state_rate(lane))
		return;
	app->server_oid = credentials->server;
	strlcpy(app->server, credentials->server_name, NAMEDATALEN);
	if (app->rate_limit == credentials->rate_limit)
		return;
	app->rate_limit = credentials->rate_limit;
	pace_init(&app->pace, app->rate_limit);
}

/* What was learned of another key or server is void, for this lane alone. */
static void
adopt_key(DeliveryLane *lane, LaneKey *key, Moment now)
{
	uint64		fingerprint = fingerprint_of(&key->credentials);
	bool		changed = lane->fingerprint != fingerprint;

	apps_drop_key(lane);
	lane->checked_us = now.us;
	MemoryContextSetParent(key->context, apps_context);
	key->refs = 1;
	lane->credentials = key;
	lane->server = key->credentials.server;
	lane->checks = changed ? 0 : lane->checks + 1;
	if (changed)
		lane->adopted_us = now.us;
	if (lane->key_missing || (changed && lane->fingerprint != 0))
	{
		lane->has_new_key = true;
		resume_lane(lane, now);
	}
	if (lane->key_missing)
		set_text(&lane->reason, NULL);
	lane->key_missing = false;
	lane->fingerprint = fingerprint;
	adopt_rate(lane, &key->credentials);
}

/* In the context given; NULL: there are none, and *message says why. */
static LaneKey *
find_key(DeliveryLane *lane, MemoryContext context, char **message)
{
	Oid			role = get_role_oid(NameStr(lane->key.requested_by), true);
	LaneKey    *key = palloc0(sizeof(LaneKey));
	ErrorData  *error;

	key->context = context;
	if (!OidIsValid(role))
	{
		*message = psprintf("role \"%s\" does not exist", NameStr(lane->key.requested_by));
		return NULL;
	}
	error = credentials_find(&lane->key.app_id, role, &key->credentials);
	if (error != NULL)
	{
		*message = error->message;
		return NULL;
	}
	onesignal_request_begin(&key->request, &lane->key.app_id, &key->credentials);
	key->request.http.group = &lane->app->group;
	return key;
}

bool
apps_check_key(DeliveryLane *lane, Moment now)
{
	MemoryContext context;
	MemoryContext old;
	LaneKey    *key;
	char	   *message = NULL;

	if (lane->checked_us != 0 && lane->generation == credentials_generation() &&
		(lane->credentials != NULL ? now.us - lane->checked_us < KEY_CHECK_US :
		 lane->key_missing && now.us < apps_next_key_check(lane)))
		return lane->credentials != NULL;
	if (lane->generation != credentials_generation())
		lane->checks = 0;
	lane->generation = credentials_generation();

	context = AllocSetContextCreate(CurrentMemoryContext, "onesignal key", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	key = find_key(lane, context, &message);
	MemoryContextSwitchTo(old);
	if (key != NULL)
		adopt_key(lane, key, now);
	else
	{
		apps_miss_key(lane, message, true, now);
		MemoryContextDelete(context);
	}
	return key != NULL;
}

int64
apps_next_key_check(const DeliveryLane *lane)
{
	return lane->checked_us + Min(KEY_CHECK_US << Min(lane->checks, 5), CIRCUIT_KEY_PAUSE);
}

/* ---- learning from an answer's status ---- */

static char *
describe_rejection(int status)
{
	return psprintf("OneSignal rejected the API key (HTTP %d)", status);
}

void
apps_suspect(DeliveryLane *lane, int http_status, Moment now)
{
	if (lane->circuit.open || lane->success_us != 0 || lane->has_new_key)
		return;
	(void) circuit_open(&lane->circuit, now.us, now.us, now.us);
	set_text(&lane->reason, describe_rejection(http_status));
}

static char *
describe_status(const HttpAnswer *answer)
{
	char	   *text;

	if (answer->status == 0)
		text = psprintf("no answer: %s", answer->error);
	else if (answer->status == 401 || answer->status == 403)
		text = describe_rejection(answer->status);
	else if (answer->status == 429 && answer->retry_after > 0)
		text = psprintf("OneSignal's rate limit is exceeded (HTTP 429, Retry-After %d s)", answer->retry_after);
	else if (answer->status == 429)
		text = pstrdup("OneSignal's rate limit is exceeded (HTTP 429)");
	else
		text = psprintf("HTTP %d", answer->status);

	/* It goes into the log and a table without further ado. */
	for (char *c = text; *c != '\0'; c++)
	{
		if (*c < ' ' || *c > '~')
			*c = '?';
	}
	return text;
}

/* OneSignal is there, and took the request for what it is. */
static void
learn_success(DeliveryApp *app, int64 begun_us, Moment now)
{
	if (circuit_success(&app->circuit, begun_us, now.us))
		note_closed(app, NULL);
}

/*
 * It was denied before with the same key, and since then that key has been
 * taken for another message.
 */
bool
apps_denies(const DeliveryLane *lane, const QueueRow *row, Moment now)
{
	int64		denied_before_us = now.us - (now.ts - row->last_attempt_at);

	return (row->http_status == 401 || row->http_status == 403) &&
		denied_before_us >= lane->adopted_us && denied_before_us <= lane->denied_us &&
		lane->success_us > lane->denied_us;
}

void
apps_excuse(DeliveryLane *lane, int64 begun_us, bool answered)
{
	circuit_abandon(&lane->circuit, begun_us);
	if (answered)
		learn_success(lane->app, begun_us, apps_now());
	else
		circuit_abandon(&lane->app->circuit, begun_us);
}

static void
learn_throttled(DeliveryApp *app, const HttpAnswer *answer, int64 begun_us, Moment now)
{
	int64		wait = backoff_direct(app->circuit.probes + 1, pg_prng_double(&pg_global_prng_state),
									  answer->retry_after * USECS_PER_SEC);

	pace_throttled(&app->pace, begun_us, now.us);
	if (circuit_open(&app->circuit, begun_us, now.us + wait, now.us))
		note_opened(app, NULL, app->reason, now);
}

/*
 * A request may have been sent after another's answer paused the app: that
 * makes it no probe.
 */
void
apps_learn(DeliveryLane *lane, const HttpAnswer *answer, int64 begun_us)
{
	DeliveryApp *app = lane->app;
	Moment		now = apps_now();
	char	   *reason = describe_status(answer);

	if (answer->status != 200)
		note_error(app, reason);
	if (answer->status != 0 && answer->status != 429)
		pace_answered(&app->pace, now.us);
	switch (onesignal_glance(answer))
	{
		case CANCEL_UNAUTHORIZED:
			/* The app is there, whatever it thinks of this key. */
			learn_success(app, begun_us, now);
			lane->denied_us = now.us;
			pause_lane(lane, reason, begun_us, now);
			break;
		case CANCEL_THROTTLED:
			circuit_abandon(&lane->circuit, begun_us);
			set_text(&app->reason, reason);
			learn_throttled(app, answer, begun_us, now);
			break;
		case CANCEL_UNAVAILABLE:
		case CANCEL_UNANSWERED:
			circuit_abandon(&lane->circuit, begun_us);
			set_text(&app->reason, reason);
			if (circuit_failure(&app->circuit, begun_us, now.us))
				note_opened(app, NULL, reason, now);
			break;
		default:
			lane->success_us = Max(lane->success_us, begun_us);
			if (!lane->key_missing && circuit_success(&lane->circuit, begun_us, now.us))
				note_closed(app, lane);
			learn_success(app, begun_us, now);
			break;
	}
}

void
apps_note_recording(DeliveryApp *app, const char *error)
{
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
	app->change[state] += count;
	app_set_unsaved(app);
}

bool
apps_are_unsaved(void)
{
	return !dlist_is_empty(&unsaved);
}

bool
apps_want_saving(Moment now, bool idle)
{
	return apps_are_unsaved() && (now.us >= save_after_us || (idle && !found_locked));
}

/* Of several open circuits of an app the table tells of one: its own, or else some lane's. */
static void
describe_circuit(DeliveryApp *app, QueueApp *row, Moment now)
{
	const Circuit *circuit = &app->circuit;
	dlist_iter	iter;

	row->circuit_reason = app->reason;
	dlist_foreach(iter, &app->lanes)
	{
		DeliveryLane *lane = dlist_container(DeliveryLane, node, iter.cur);

		if (circuit->open)
			break;
		if (!lane->circuit.open)
			continue;
		circuit = &lane->circuit;
		row->circuit_role = NameStr(lane->key.requested_by);
		row->circuit_reason = lane->reason;
	}
	if (circuit->open)
		row->circuit_until = now.ts + Max(circuit->open_until - now.us, 0);
	else
		row->circuit_reason = NULL;
}

/*
 * Writes what changed.  The totals change in the same transaction as the rows
 * that they count; while somebody has an app's row locked, they are kept here.
 */
void
apps_save(Moment now)
{
	dlist_iter	iter;
	int			count = 0;

	saving_count = 0;
	dlist_foreach(iter, &unsaved)
		count++;
	if (count == 0)
		return;
	saving = palloc0(sizeof(QueueApp) * count);
	saving_apps = palloc(sizeof(DeliveryApp *) * count);
	dlist_foreach(iter, &unsaved)
	{
		DeliveryApp *app = dlist_container(DeliveryApp, unsaved_node, iter.cur);
		QueueApp   *row = &saving[saving_count];

		saving_apps[saving_count++] = app;
		row->app_id = app->app_id;
		row->exists = app->has_row;
		row->pace = app->pace.rate;
		row->last_error = app->last_error;
		for (int state = 0; state < QUEUE_STATES; state++)
			row->totals[state] = app->unsaved_totals[state] + app->change[state];
		describe_circuit(app, row, now);
	}
	queue_save_apps(saving, saving_count);
}

static void
app_saved(DeliveryApp *app)
{
	memset(app->unsaved_totals, 0, sizeof(app->unsaved_totals));
	memset(app->change, 0, sizeof(app->change));
	set_text(&app->last_error, NULL);
	app->has_row = true;
	app->unsaved = false;
	dlist_delete(&app->unsaved_node);
}

void
apps_saved(void)
{
	dlist_iter	iter;

	for (int i = 0; i < saving_count; i++)
	{
		if (saving[i].saved)
			app_saved(saving_apps[i]);
		else
			saving_apps[i]->has_row = false;	/* it is locked, or somebody has deleted it */
	}
	saving_count = 0;
	found_locked = apps_are_unsaved();
	save_after_us = http_clock_us() + (found_locked ? SAVE_LOCKED_US : SAVE_US);
	dlist_foreach(iter, &unsaved)
	{
		DeliveryApp *app = dlist_container(DeliveryApp, unsaved_node, iter.cur);

		for (int state = 0; state < QUEUE_STATES; state++)
			app->unsaved_totals[state] += app->change[state];
		memset(app->change, 0, sizeof(app->change));
	}
}
