/*
 * settings.h
 *		The settings (GUCs), and what SQL functions ask for before all else.
 */
#ifndef ONESIGNAL_CANCEL_SETTINGS_H
#define ONESIGNAL_CANCEL_SETTINGS_H

#include "fmgr.h"

extern bool settings_preloaded; /* by shared_preload_libraries, so that there is a launcher; no setting */
extern bool settings_enabled;
extern bool settings_background_delivery;
extern int	settings_call_max_in_flight;	/* of direct calls */
extern int	settings_worker_idle_timeout;	/* ms */
extern int	settings_timeout;	/* ms */
extern int	settings_connect_timeout;	/* ms */
extern int	settings_max_retries;

/* What delivery uses, in CALL too: what postgresql.conf, ALTER ROLE ALL or ALTER DATABASE says, not role or session. */
extern int	settings_max_in_flight;
extern int	settings_worker_delivers;	/* background_delivery, of the worker alone */
extern int	settings_retry_window;	/* seconds */
extern int	settings_delivery_timeout;	/* ms */
extern int	settings_delivery_connect_timeout;	/* ms */

/* Raises 55000 when onesignal_cancel.enabled is off. */
extern void settings_require_enabled(void);

/* Raises 22004 when it is NULL.  hint: "%s" in it stands for the name; NULL: none. */
extern void settings_require_argument(FunctionCallInfo fcinfo, int number, const char *name, const char *hint);
#define SETTINGS_FILTER_HINT "Where a row may lack it, filter: WHERE %s IS NOT NULL."

#endif
