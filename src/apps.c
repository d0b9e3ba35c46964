/*
 * apps.c
 *		What is known of each app and of its lanes: pace, circuits, keys.
 *
 * An app has a circuit, which a 429 or several failures in a row open; each of
 * its lanes has one for its key.  The status of an answer moves them, which
 * needs no transaction; the next transaction writes them to onesignal_app, for
 * people to read.  A new deliverer takes from there the app's pauses and pace,
 * and which of its lanes was paused.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "delivery.h"
#include "settings.h"

/* A transaction that only saves apps comes this long after the last one. */
#define SAVE_US			USECS_PER_SEC

/* One transaction saves so many apps, each in a subtransaction, and waits for so many locked rows. */
#define SAVE_MAX		50
#define SAVE_FAILURES	10

/* The deliverer before has probed, too: when our first probe fails, the next comes as late as its own would. */
#define PROBES_BEFORE	3

/*
 * How many requests of an app begin before the first outcomes are recorded: in
 * vain if that is impossible.  The maximum bounds what waits for locked rows.
 */
#define APP_TRUST_FIRST	32
#define APP_TRUST_MAX	4096

static HTAB *apps;
static dlist_head unsaved;
static TimestampTz save_after;

void
apps_open(void)
{
	HASHCTL		control = {.keysize = sizeof(pg_uuid_t), .entrysize = sizeof(DeliveryApp), .hcxt = delivery_context};

	dlist_init(&unsaved);
	save_after = 0;
	apps = hash_create("onesignal apps", 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* text NULL: nothing */
static void
set_text(char **into, const char *text)
{
	char	   *copy = text != NULL ? MemoryContextStrdup(delivery_context, text) : NULL;

	if (*into != NULL)
		pfree(*into);
	*into = copy;
}

static void
note_error(DeliveryApp *app, const char *reason)
{
	set_text(&app->row.last_error, reason);
	place_in_list(&app->unsaved, &unsaved);
}

char *
apps_label(const DeliveryApp *app)
{
	char	   *app_id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&app->row.app_id)));

	return app->server[0] != '\0' ? psprintf("server \"%s\" (app %s)", app->server, app_id) :
		psprintf("app %s", app_id);
}

/* ---- pauses ---- */

/* The circuit of the lane, or (NULL) of all of the app, has opened for this reason, or (NULL) closed. */
static void
note_circuit(DeliveryApp *app, DeliveryLane *lane, const char *reason)
{
	const Circuit *circuit = lane != NULL ? &lane->circuit : &app->circuit;
	int64		wait = circuit->open_until - circuit->changed_at;
	char	   *role = lane == NULL ? "" : psprintf(" for role \"%s\"", NameStr(lane->key.requested_by));
	char	   *more = reason == NULL ? "" :
		psprintf(": %s; next probe in %d s", reason, (int) ((wait + USECS_PER_SEC - 1) / USECS_PER_SEC));

	place_in_list(&app->unsaved, &unsaved);
	if (lane != NULL && reason == NULL)
		lane->rewind_at = 0;	/* rows that waited for the key */
	ereport(LOG,
			(errmsg("onesignal_cancel: %s %s%s%s",
					reason == NULL ? "resuming" : "pausing", apps_label(app), role, more),
			 errhidecontext(true)));
}

/* onesignal_app has room for one lane whose circuit is open.  True: it was closed. */
static bool
open_lane(DeliveryLane *lane, TimestampTz begun_at, TimestampTz until, const char *reason, TimestampTz now)
{
	DeliveryApp *app = lane->app;
	bool		is_news = circuit_open(&lane->circuit, begun_at, until, now);

	set_text(&lane->reason, reason);
	if (lane->circuit.open && (app->paused_lane == NULL || !app->paused_lane->circuit.open))
	{
		app->paused_lane = lane;
		place_in_list(&app->unsaved, &unsaved);
	}
	return is_news;
}

DeliveryApp *
apps_get(const QueueListed *listed, TimestampTz now)
{
	bool		found;
	DeliveryApp *app = hash_search(apps, &listed->lane.app_id, HASH_ENTER, &found);
	dlist_iter	iter;

	if (!found)
	{
		*app = (DeliveryApp) {.row.app_id = listed->lane.app_id, .place.owner = app};
		app->resumed_at = listed->resumed_at;
		pace_init(&app->pace, CREDENTIALS_RATE_ADAPTS);
		if (listed->pace > 0)
			app->pace.rate = listed->pace;
		app->allowance.limit = ALLOWANCE_FIRST;
		app->trust = (Trust) {.limit = APP_TRUST_FIRST, .max = APP_TRUST_MAX};
		dlist_init(&app->lanes);
		dlist_init(&app->hungry);
		app->queue.ph_compare = place_compare;
		if (listed->circuit_until != 0 && NameStr(listed->circuit_role)[0] == '\0')
		{
			(void) circuit_open(&app->circuit, now, listed->circuit_until, now);
			app->circuit.probes = PROBES_BEFORE;
			set_text(&app->reason, "delivery was paused when it was last stopped");
		}
		else if (listed->circuit_until != 0)
		{
			app->lane_was_paused = listed->circuit_until > now;
			place_in_list(&app->unsaved, &unsaved); /* what stands there may not be true any more */
		}
	}
	app->paused_until = listed->paused_until;
	if (listed->resumed_at <= app->resumed_at)
		return app;

	/* onesignal_cancel_resume() was called. */
	app->resumed_at = listed->resumed_at;
	app->lane_was_paused = false;
	if (circuit_close(&app->circuit, now))
		note_circuit(app, NULL, NULL);
	dlist_foreach(iter, &app->lanes)
	{
		DeliveryLane *lane = dlist_container(DeliveryLane, node, iter.cur);

		lane->check_key = true;
		if (!lane->key_missing && circuit_close(&lane->circuit, now))
			note_circuit(app, lane, NULL);
	}
	return app;
}

/* ---- keys ---- */

void
apps_release_key(Credentials *credentials)
{
	if (--credentials->refs == 0)
		MemoryContextDelete(GetMemoryChunkContext(credentials));
}

/* Nothing that was learned of another key or server holds for this one. */
static void
adopt_key(DeliveryLane *lane, Credentials *credentials, TimestampTz now)
{
	DeliveryApp *app = lane->app;
	const char *url = credentials->base_url;
	const char *key = credentials->api_key;
	Oid			server = credentials->server;
	uint64		fingerprint = hash_bytes_extended((const unsigned char *) url, strlen(url), server);
	bool		changed;

	fingerprint = hash_bytes_extended((const unsigned char *) key, strlen(key), fingerprint) | 1;
	changed = lane->fingerprint != fingerprint;
	credentials->refs = 1;
	lane->credentials = credentials;
	lane->adopted_at = changed ? now : lane->adopted_at;
	if ((lane->key_missing || (changed && lane->fingerprint != 0)) && circuit_close(&lane->circuit, now))
		note_circuit(app, lane, NULL);
	lane->fingerprint = fingerprint;
	lane->key_missing = lane->told = false;

	/* Where roles use different servers, the first that is seen states the app's pace, as long as it is there. */
	if (app->rate_server != server && list_member_oid(credentials_servers(&lane->key.app_id), app->rate_server))
		return;
	app->rate_server = server;
	strlcpy(app->server, credentials->server_name, NAMEDATALEN);
	if (app->pace.limit != credentials->rate_limit)
		pace_init(&app->pace, credentials->rate_limit);
}

void
apps_check_key(DeliveryLane *lane, const char *problem, TimestampTz now)
{
	MemoryContext context = AllocSetContextCreate(delivery_context, "onesignal key", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Credentials *credentials = palloc0(sizeof(Credentials));
	const pg_uuid_t *app_id = &lane->key.app_id;
	Oid			role = get_role_oid(NameStr(lane->key.requested_by), true);
	ErrorData  *error;
	bool		is_news;

	lane->check_key = false;
	lane->generation = credentials_generation();
	if (problem == NULL && !OidIsValid(role))
		problem = psprintf("role \"%s\" does not exist", NameStr(lane->key.requested_by));
	if (problem == NULL && (error = credentials_find(app_id, role, credentials)) != NULL)
		problem = error->message;
	MemoryContextSwitchTo(old);
	if (problem == NULL)
	{
		credentials->http.group = &lane->app->group;
		credentials->http.timeout_ms = settings_delivery_timeout;
		credentials->http.connect_timeout_ms = settings_delivery_connect_timeout;
		adopt_key(lane, credentials, now);
		return;
	}
	is_news = !lane->key_missing || strcmp(lane->reason, problem) != 0;
	lane->key_missing = true;
	(void) open_lane(lane, now, now + CIRCUIT_KEY_PAUSE, problem, now);
	if (is_news)
		note_error(lane->app, problem);
	if (is_news && !lane->told)
		note_circuit(lane->app, lane, problem);
	lane->told = true;
	MemoryContextDelete(context);
}

/* ---- learning from the status of an answer ---- */

bool
apps_was_rejected(int http_status)
{
	return http_status == 401 || http_status == 403;
}

static char *
describe_rejection(int http_status)
{
	return psprintf("OneSignal rejected the API key (HTTP %d)", http_status);
}

/* onesignal_app says whether a lane of the app was paused then; the pauses of others of its lanes may have ended. */
void
apps_remember_rejection(DeliveryLane *lane, int http_status, TimestampTz at, TimestampTz now)
{
	TimestampTz until = lane->app->lane_was_paused ? Min(at, now) + CIRCUIT_KEY_PAUSE : now;

	(void) open_lane(lane, now, Max(until, now), describe_rejection(http_status), now);
}

static char *
describe_status(const HttpAnswer *answer, const char *api_key)
{
	char	   *text;

	if (answer->status == 0)
		text = psprintf("no answer: %s", answer_line(answer->error, api_key));
	else if (apps_was_rejected(answer->status))
		text = describe_rejection(answer->status);
	else if (answer->status == 429)
		text = psprintf("OneSignal's rate limit is exceeded (HTTP 429, Retry-After %d s)", answer->retry_after);
	else
		text = psprintf("HTTP %d", answer->status);

	/* It is for the log and a table, in any encoding. */
	for (char *c = text; *c != '\0'; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	return text;
}

/* OneSignal has judged the key. */
static void
learn_key(DeliveryItem *item, bool accepted, const char *reason, TimestampTz now)
{
	DeliveryLane *lane = item->lane;
	TimestampTz last_at = item->row.last_attempt_at;

	/* It rejects the message if it did so before, and has accepted the same key for another one since. */
	item->denied = !accepted && apps_was_rejected(item->row.http_status) &&
		last_at >= lane->adopted_at && lane->accepted_at > last_at;
	if (item->denied)
		circuit_abandon(&lane->circuit, item->begun);
	else if (accepted)
	{
		lane->failing_since = 0;
		if (item->begun > lane->circuit.changed_at)
			lane->accepted_at = Max(lane->accepted_at, item->begun);
		if (!lane->key_missing && circuit_success(&lane->circuit, item->begun, now))
			note_circuit(lane->app, lane, NULL);
	}
	else
	{
		lane->accepted_at = 0;
		if (open_lane(lane, item->begun, now + CIRCUIT_KEY_PAUSE, reason, now))
			note_circuit(lane->app, lane, reason);
	}
}

void
apps_learn(DeliveryItem *item, const HttpAnswer *answer)
{
	DeliveryApp *app = item->lane->app;
	TimestampTz now = GetCurrentTimestamp();
	CancelVerdict verdict = onesignal_glance(answer);
	char	   *reason = describe_status(answer, item->credentials->api_key);
	bool		has_opened;

	if (answer->status != 200)
		note_error(app, reason);
	if (answer->status != 0 && verdict != CANCEL_THROTTLED)
		pace_answered(&app->pace, now);
	if (verdict != CANCEL_THROTTLED && verdict != CANCEL_UNAVAILABLE && verdict != CANCEL_UNANSWERED)
	{
		/* OneSignal is there, whatever it thinks of the key. */
		if (circuit_success(&app->circuit, item->begun, now))
			note_circuit(app, NULL, NULL);
		learn_key(item, verdict != CANCEL_UNAUTHORIZED, reason, now);
		return;
	}
	circuit_abandon(&item->lane->circuit, item->begun);
	set_text(&app->reason, reason);
	if (verdict == CANCEL_THROTTLED)
	{
		int64		wait = backoff_delay(app->circuit.probes + 1, pg_prng_double(&pg_global_prng_state), 0,
										 answer->retry_after * USECS_PER_SEC);

		pace_throttled(&app->pace, item->begun, now);
		has_opened = circuit_open(&app->circuit, item->begun, now + wait, now);
	}
	else
		has_opened = circuit_failure(&app->circuit, item->begun, now);
	if (has_opened)
		note_circuit(app, NULL, reason);
}

/* It comes and goes, where the disk is nearly full: the log says it once, and again after a minute without it. */
void
apps_note_unrecordable(DeliveryApp *app, const char *error)
{
	TimestampTz before = app->unrecordable_at;
	char	   *reason = psprintf("could not record outcomes: %s", error);

	note_error(app, reason);
	app->unrecordable_at = GetCurrentTimestamp();
	if (app->unrecordable_at - before < USECS_PER_MINUTE)
		return;
	ereport(LOG,
			(errmsg("onesignal_cancel: %s of %s", reason, apps_label(app)),
			 errdetail("Few requests are sent until outcomes can be recorded."),
			 errhidecontext(true)));
}

/* ---- onesignal_app ---- */

void
apps_count(DeliveryApp *app, QueueState state, int count)
{
	app->row.totals[state] += count;
	place_in_list(&app->unsaved, &unsaved);
}

TimestampTz
apps_save_at(void)
{
	return dlist_is_empty(&unsaved) ? DT_NOEND : save_after;
}

/* One by one: somebody may have an app's row locked.  What is not saved then is saved later. */
void
apps_save(void)
{
	int			failures = 0;
	int			count;

	for (count = 0; count < SAVE_MAX && failures < SAVE_FAILURES && !dlist_is_empty(&unsaved); count++)
	{
		DeliveryApp *app = dlist_head_element(DeliveryApp, unsaved.node, &unsaved);
		const DeliveryLane *lane = app->paused_lane;
		QueueApp   *row = &app->row;

		row->pace = app->pace.rate;
		row->circuit_until = DT_NOBEGIN;
		row->circuit_role = row->circuit_reason = "";
		if (app->circuit.open)	/* it comes before that of a lane */
		{
			row->circuit_until = app->circuit.open_until;
			row->circuit_reason = app->reason;
		}
		else if (lane != NULL && lane->circuit.open)
		{
			row->circuit_until = lane->circuit.open_until;
			row->circuit_role = NameStr(lane->key.requested_by);
			row->circuit_reason = lane->reason;
		}
		place_leave(&app->unsaved);
		if (queue_save_app(row))
		{
			memset(row->totals, 0, sizeof(row->totals));
			set_text(&row->last_error, NULL);
		}
		else
		{
			place_in_list(&app->unsaved, &unsaved); /* behind the others */
			failures++;
		}
	}
	if (count < SAVE_MAX)
		save_after = GetCurrentTimestamp() + SAVE_US;
}
