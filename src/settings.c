/*
 * settings.c
 *		Loading the library, and its settings (GUCs).
 *
 * Loading opens nothing: the first request opens libcurl, since the postmaster's
 * children would share what the postmaster had opened.  No setting needs a
 * restart, so that CREATE EXTENSION can define them without preload.
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "compat.h"
#include "http.h"
#include "queue.h"
#include "settings.h"
#include "wakeup.h"

LIBRARY_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

bool		settings_preloaded = false;
bool		settings_enabled = true;
bool		settings_background_delivery = true;
int			settings_max_in_flight;
int			settings_worker_delivers;
int			settings_call_max_in_flight;
int			settings_retry_window;
int			settings_worker_idle_timeout;
int			settings_timeout;
int			settings_connect_timeout;
int			settings_max_retries;
int			settings_delivery_timeout;
int			settings_delivery_connect_timeout;

/* As the session has it, which nobody uses: see settings_retry_window. */
static int	retry_window;
static bool are_defined = false;

/*
 * A check hook sees every value that is offered to this process: the built-in
 * one first, and again when postgresql.conf has lost its own; what a setting of
 * the role or the session overrides; what ALTER SYSTEM writes for a later reload,
 * which only the memory context tells apart.  Without preload a setting of the
 * role or the client hides all others: then the built-in value counts.
 */
static bool
keep_for_delivery(int value, GucSource source, int *kept, GucSource *kept_source)
{
	bool		reloads = !are_defined || strcmp(CurrentMemoryContext->name, "config file processing") == 0;

	if (source == PGC_S_DEFAULT ||
		(source <= PGC_S_DATABASE && source >= *kept_source && (source != PGC_S_FILE || reloads)))
	{
		*kept = value;
		*kept_source = source;
	}
	return true;
}

/* A hook has no argument that tells the setting. */
#define CHECK_HOOK(type, name, kept) \
	static bool \
	name(type *value, void **extra pg_attribute_unused(), GucSource source) \
	{ \
		static GucSource kept_source = PGC_S_DEFAULT; \
		return keep_for_delivery(*value, source, &kept, &kept_source); \
	}

CHECK_HOOK(bool, check_background_delivery, settings_worker_delivers)
CHECK_HOOK(int, check_timeout, settings_delivery_timeout)
CHECK_HOOK(int, check_connect_timeout, settings_delivery_connect_timeout)
CHECK_HOOK(int, check_max_in_flight, settings_max_in_flight)
CHECK_HOOK(int, check_retry_window, settings_retry_window)

void
_PG_init(void)
{
	DefineCustomBoolVariable("onesignal_cancel.enabled",
							 "Allows requests to OneSignal to leave this server.",
							 "Turn it off on copies of production: direct calls raise an error, "
							 "requested cancels wait in the table.",
							 &settings_enabled, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("onesignal_cancel.background_delivery",
							 "Delivers requested cancels by a background worker.",
							 "When off, CALL onesignal_cancel_deliver() delivers them, for example from pg_cron.",
							 &settings_background_delivery, true, PGC_SUSET, 0, check_background_delivery, NULL, NULL);
	DefineCustomIntVariable("onesignal_cancel.max_in_flight",
							"Maximum number of requests that wait for an answer at one time.",
							NULL, &settings_call_max_in_flight,
							HTTP_IN_FLIGHT_MAX, 1, HTTP_IN_FLIGHT_MAX, PGC_SUSET, 0, check_max_in_flight, NULL, NULL);
	DefineCustomIntVariable("onesignal_cancel.retry_window",
							"How long a requested cancel is tried while there is no usable answer.",
							"Counted from its first attempt or the message's send_after, whichever is later.",
							&retry_window,
							24 * 60 * 60, 1, INT_MAX, PGC_SUSET, GUC_UNIT_S, check_retry_window, NULL, NULL);
	DefineCustomIntVariable("onesignal_cancel.worker_idle_timeout",
							"How long a worker that has nothing to do waits for more before it leaves.",
							NULL, &settings_worker_idle_timeout,
							3000, 0, 60 * 60 * 1000, PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("onesignal_cancel.timeout",
							"How long the cancel of one message may take, including retries and waits.",
							"OneSignal recommends 60 s; its servers answer within 100 s.",
							&settings_timeout,
							60000, 1, 60 * 60 * 1000, PGC_USERSET, GUC_UNIT_MS, check_timeout, NULL, NULL);
	DefineCustomIntVariable("onesignal_cancel.connect_timeout",
							"How long name resolution, connecting and the TLS handshake may take together.",
							NULL, &settings_connect_timeout,
							10000, 1, 60 * 60 * 1000, PGC_USERSET, GUC_UNIT_MS, check_connect_timeout, NULL, NULL);
	DefineCustomIntVariable("onesignal_cancel.max_retries",
							"How often a direct call tries again after 408, 429, 5xx or no answer.",
							NULL, &settings_max_retries,
							2, 0, 100, PGC_USERSET, 0, NULL, NULL, NULL);

	are_defined = true;
	MarkGUCPrefixReserved("onesignal_cancel");
	message_init();
	owner_init();
	if (process_shared_preload_libraries_in_progress && !IsBinaryUpgrade)
	{
		settings_preloaded = true;
		wakeup_register(InvalidOid);
	}
}

void
settings_require_enabled(void)
{
	if (!settings_enabled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("requests to OneSignal are switched off on this server"),
				 errdetail("\"onesignal_cancel.enabled\" is off."),
				 errhint("To switch them on, set onesignal_cancel.enabled = on in postgresql.conf and reload.")));
}

void
settings_require_argument(FunctionCallInfo fcinfo, int number, const char *name, const char *hint)
{
	if (PG_ARGISNULL(number))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name),
				 hint != NULL ? errhint(hint, name) : 0));
}
