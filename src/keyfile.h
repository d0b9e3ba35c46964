/*
 * keyfile.h
 *		API keys that user mappings keep in files of the server.
 */
#ifndef ONESIGNAL_CANCEL_KEYFILE_H
#define ONESIGNAL_CANCEL_KEYFILE_H

/*
 * The key in the user mapping's file, read again at most once a second; valid
 * until the next call.  Or NULL, and *reason (palloc'd) completes "could not
 * read it: " without the path or the contents.
 */
extern const char *keyfile_get(Oid mapping, const char *path, char **reason);

/* Wipes all keys that are remembered. */
extern void keyfile_forget(void);

/* Grows when a file was found to hold another key than before. */
extern uint64 keyfile_changes(void);

#endif
