/*
 * keyfile.c
 *		API keys that user mappings keep in files of the server.
 *
 * Keys are rotated by replacing the file, without any SQL, so the file is
 * read again once a second while it is in use.  Comparing its times instead
 * would save five microseconds and miss the second of two writes within one
 * tick of the clock, for ever.  A failure is not remembered: who has just
 * repaired the file shall not be told that it is broken.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "http.h"
#include "keyfile.h"
#include "options.h"

/* A key and its newline are some 120 bytes; what is larger is another file. */
#define KEYFILE_SIZE_MAX OPTIONS_KEY_MAX

/* How long a rotated key may go unnoticed. */
#define KEYFILE_RECHECK_US INT64CONST(1000000)

typedef struct KeyFile
{
	Oid			mapping;		/* hash key */
	char	   *path;			/* NULL: nothing is known yet */
	char	   *key;			/* NULL: it could not be read */
	int64		read_us;
} KeyFile;

static MemoryContext keyfile_context = NULL;
static HTAB *keyfiles = NULL;
static uint64 changes = 0;

static KeyFile *
keyfile_entry(Oid mapping, const char *path)
{
	HASHCTL		control;
	KeyFile    *file;
	bool		found;

	if (keyfiles == NULL)
	{
		if (keyfile_context == NULL)
			keyfile_context = AllocSetContextCreate(CacheMemoryContext, "onesignal_cancel key files",
													ALLOCSET_SMALL_SIZES);
		control.keysize = sizeof(Oid);
		control.entrysize = sizeof(KeyFile);
		control.hcxt = keyfile_context;
		keyfiles = hash_create("onesignal_cancel key files", 8, &control,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	file = hash_search(keyfiles, &mapping, HASH_ENTER, &found);
	if (!found)
	{
		file->path = NULL;
		file->key = NULL;
	}
	/* The mapping may have changed since the caller last let us forget. */
	if (file->path != NULL && strcmp(file->path, path) != 0)
		file->path = NULL;
	return file;
}

/*
 * Reads up to KEYFILE_SIZE_MAX + 1 bytes.  Returns NULL, or why it could not.
 * Without O_NONBLOCK a FIFO would hang the backend, and without O_NOCTTY a
 * terminal would become its own, before fstat() can tell.
 */
static char *
read_file(const char *path, char *buffer, size_t *length)
{
	char	   *reason = NULL;
	struct stat status;
	ssize_t		got = 0;
	int			fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

	*length = 0;
	if (fd < 0)
		return psprintf("%m");

	if (fstat(fd, &status) < 0)
		reason = psprintf("%m");
	else if (!S_ISREG(status.st_mode))
		reason = pstrdup("not a regular file");
	else
	{
		do
		{
			got = read(fd, buffer + *length, KEYFILE_SIZE_MAX + 1 - *length);
			if (got > 0)
				*length += got;
		} while ((got > 0 && *length <= KEYFILE_SIZE_MAX) || (got < 0 && errno == EINTR));
		if (got < 0)
			reason = psprintf("%m");
	}
	CloseTransientFile(fd);
	return reason;
}

/* Leaves the key in the buffer, terminated.  Returns NULL, or why it is none. */
static char *
read_key(const char *path, char *buffer)
{
	size_t		length;
	char	   *reason;

	if (!is_absolute_path(path))
		return pstrdup("its path is not absolute");
	reason = read_file(path, buffer, &length);
	if (reason != NULL)
		return reason;
	if (length > KEYFILE_SIZE_MAX)
		return pstrdup("larger than 4 kB");
	while (length > 0 && (buffer[length - 1] == '\n' || buffer[length - 1] == '\r'))
		length--;
	buffer[length] = '\0';
	if (!options_key_is_valid(buffer, length))
		return pstrdup("it does not hold one line of visible ASCII");
	return NULL;
}

static void
wipe_key(KeyFile *file)
{
	if (file->key == NULL)
		return;
	explicit_bzero(file->key, strlen(file->key));
	pfree(file->key);
	file->key = NULL;
}

/* Takes over what the file says now; key is NULL when it could not be read. */
static void
remember(KeyFile *file, const char *path, const char *key)
{
	bool		known = file->path != NULL;

	file->read_us = http_clock_us();
	if (!known)
		file->path = MemoryContextStrdup(keyfile_context, path);
	if (key != NULL && file->key != NULL && strcmp(file->key, key) == 0)
		return;
	wipe_key(file);
	if (key == NULL)
		return;
	file->key = MemoryContextStrdup(keyfile_context, key);
	if (known)
		changes++;
}

const char *
keyfile_get(Oid mapping, const char *path, char **reason)
{
	KeyFile    *file = keyfile_entry(mapping, path);
	char		buffer[KEYFILE_SIZE_MAX + 2];

	*reason = NULL;
	if (file->path != NULL && file->key != NULL &&
		http_clock_us() - file->read_us < KEYFILE_RECHECK_US)
		return file->key;

	*reason = read_key(path, buffer);
	remember(file, path, *reason == NULL ? buffer : NULL);
	explicit_bzero(buffer, sizeof(buffer));
	return file->key;
}

void
keyfile_forget(void)
{
	HASH_SEQ_STATUS sequence;
	KeyFile    *file;

	if (keyfiles == NULL)
		return;
	hash_seq_init(&sequence, keyfiles);
	while ((file = hash_seq_search(&sequence)) != NULL)
		wipe_key(file);
	keyfiles = NULL;
	MemoryContextReset(keyfile_context);
}

uint64
keyfile_changes(void)
{
	return changes;
}
