/*
 * servers.c
 *		The servers of our wrapper, found by app.
 *
 * Nothing in the catalogs finds a server by one of its options, so each
 * backend keeps a copy of all servers of our wrapper, sorted by app_id.
 * Invalidations arrive in the middle of any catalog access, so the callback
 * only counts; a copy that is out of date is replaced by the next look-up.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/reloptions.h"
#include "access/table.h"
#include "catalog/pg_foreign_server.h"
#include "foreign/foreign.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "credentials.h"
#include "options.h"
#include "servers.h"

static uint64 changes = 1;

/* All servers of the wrapper by app_id and name, as of that many changes. */
static MemoryContext servers_context = NULL;
static Server *servers = NULL;
static int	server_count = 0;
static uint64 servers_as_of = 0;

static void
catalog_changed(Datum arg pg_attribute_unused(), int cacheid pg_attribute_unused(),
				uint32 hashvalue pg_attribute_unused())
{
	changes++;
}

static int
compare_servers(const void *a, const void *b)
{
	const Server *left = a;
	const Server *right = b;
	int			order = memcmp(&left->app_id, &right->app_id, sizeof(pg_uuid_t));

	return order != 0 ? order : strcmp(left->name, right->name);
}

/* False: without a usable app_id nobody can ask for it. */
static bool
server_read(Server *server, HeapTuple tuple, TupleDesc descriptor)
{
	Form_pg_foreign_server form = (Form_pg_foreign_server) GETSTRUCT(tuple);
	bool		isnull;
	Datum		stored = heap_getattr(tuple, Anum_pg_foreign_server_srvoptions, descriptor, &isnull);
	List	   *options = isnull ? NIL : untransformRelOptions(stored);
	const char *app_id = options_get(options, "app_id");
	const char *rate_limit = options_get(options, "rate_limit");

	if (app_id == NULL || !options_parse_uuid(app_id, &server->app_id))
		return false;
	server->oid = form->oid;
	server->name = pstrdup(NameStr(form->srvname));
	server->base_url = options_get(options, "base_url");
	server->ca_file = options_get(options, "ca_file");
	server->proxy = options_get(options, "proxy");
	server->rate_limit = CREDENTIALS_RATE_ADAPTS;
	server->invalid = NULL;

	if (rate_limit != NULL && !options_parse_rate(rate_limit, &server->rate_limit))
		server->invalid = "rate_limit";
	if (server->base_url == NULL)
		server->base_url = pstrdup(CREDENTIALS_DEFAULT_URL);
	else if (options_url_problem(server->base_url) != NULL)
		server->invalid = "base_url";
	for (size_t length = strlen(server->base_url); length > 0 && server->base_url[length - 1] == '/'; length--)
		server->base_url[length - 1] = '\0';
	return true;
}

/* The wrapper's servers, in the current memory context. */
static void
servers_scan(Oid wrapper, Server **found, int *count)
{
	Relation	relation = table_open(ForeignServerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	int			capacity = 8;

	*found = palloc(capacity * sizeof(Server));
	*count = 0;
	ScanKeyInit(&key, Anum_pg_foreign_server_srvfdw, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(wrapper));
	scan = systable_beginscan(relation, InvalidOid, false, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (*count == capacity)
		{
			capacity *= 2;
			*found = repalloc(*found, capacity * sizeof(Server));
		}
		if (server_read(&(*found)[*count], tuple, RelationGetDescr(relation)))
			(*count)++;
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	qsort(*found, *count, sizeof(Server), compare_servers);
}

/*
 * The new copy is built below the caller's memory context and adopted when it
 * is complete, so an error on the way leaves the old one, still out of date.
 * What changes during the scan makes the new one out of date as well.
 */
static void
servers_refresh(void)
{
	uint64		as_of = changes;
	MemoryContext context;
	MemoryContext caller;
	Server	   *found;
	int			count = 0;
	Oid			wrapper;

	if (servers_as_of == as_of)
		return;

	context = AllocSetContextCreate(CurrentMemoryContext, "onesignal_cancel servers",
									ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(context);
	wrapper = get_foreign_data_wrapper_oid(CREDENTIALS_WRAPPER, true);
	if (OidIsValid(wrapper))
		servers_scan(wrapper, &found, &count);
	else
		found = NULL;
	MemoryContextSwitchTo(caller);

	MemoryContextSetParent(context, CacheMemoryContext);
	if (servers_context != NULL)
		MemoryContextDelete(servers_context);
	servers_context = context;
	servers = found;
	server_count = count;
	servers_as_of = as_of;
}

const Server *
servers_of_app(const pg_uuid_t *app_id, int *count)
{
	int			low = 0;
	int			high;

	(void) servers_changes();
	servers_refresh();

	high = server_count;
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (memcmp(&servers[middle].app_id, app_id, sizeof(pg_uuid_t)) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	while (high < server_count && memcmp(&servers[high].app_id, app_id, sizeof(pg_uuid_t)) == 0)
		high++;
	*count = high - low;
	return servers + low;
}

uint64
servers_changes(void)
{
	static bool watching = false;

	if (!watching)
	{
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID, catalog_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(USERMAPPINGOID, catalog_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID, catalog_changed, (Datum) 0);
		watching = true;
	}
	return changes;
}
