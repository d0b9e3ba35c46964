# onesignal_cancel: cancel messages scheduled with OneSignal, from SQL
#
#   make && sudo make install    build and install, for the PostgreSQL that pg_config names
#   make installcheck            the SQL tests, on a running server, without any network
#   make tap                     the tests against servers of their own and the stand-in
#   make dist                    PGXN's archive, of what is committed
#   make WERROR=1                warnings are errors
#   test/check, test/demo        install what is missing, then test or show everything

EXTENSION = onesignal_cancel
MODULE_big = onesignal_cancel
OBJS = \
	src/admin.o \
	src/answer.o \
	src/apps.o \
	src/cancel.o \
	src/credentials.o \
	src/delivery.o \
	src/http.o \
	src/lanes.o \
	src/message.o \
	src/onesignal.o \
	src/options.o \
	src/pace.o \
	src/queue.o \
	src/request.o \
	src/settings.o \
	src/statements.o \
	src/transfer.o \
	src/wakeup.o \
	src/wire.o \
	src/worker.o

DATA = $(wildcard sql/onesignal_cancel--*.sql)
REGRESS = $(patsubst test/sql/%.sql,%,$(sort $(wildcard test/sql/*.sql)))
REGRESS_OPTS = --inputdir=test

# The version stands in the control file alone.
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" onesignal_cancel.control)

CURL_CFLAGS = $(shell pkg-config --cflags libcurl 2>/dev/null || curl-config --cflags 2>/dev/null)
CURL_LIBS = $(shell pkg-config --libs libcurl 2>/dev/null || curl-config --libs 2>/dev/null)

PG_CPPFLAGS = $(CURL_CFLAGS) -DONESIGNAL_CANCEL_VERSION='"$(EXTVERSION)"'
SHLIB_LINK = $(CURL_LIBS)
ifdef WERROR
# PostgreSQL's own headers do not hold still under -Wextra: they count as system headers.
PG_CPPFLAGS += -isystem $(shell $(PG_CONFIG) --includedir-server)
PG_CFLAGS = -Wall -Wextra -Werror
endif

EXTRA_CLEAN = tmp_check

PG_CONFIG = pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Before PostgreSQL 16 all libraries of a process share one space of names: ours call their own functions.
ifeq ($(PORTNAME)$(filter 15,$(MAJORVERSION)), linux15)
SHLIB_LINK += -Wl,-Bsymbolic
endif

# libcurl 7.81 is the oldest that this is built and tested with.
.PHONY: libcurl
libcurl:
	@test -n '$(CURL_LIBS)' && printf '#include <curl/curl.h>\n#if LIBCURL_VERSION_NUM < 0x075100\n#error older\n#endif\n' \
	| $(CC) $(CURL_CFLAGS) -E - >/dev/null 2>&1 \
	|| { echo 'error: the headers of libcurl 7.81 or newer are needed.' \
	'Debian, Ubuntu: apt install libcurl4-openssl-dev; Fedora, RHEL: dnf install libcurl-devel' >&2; exit 1; }

$(OBJS): $(wildcard src/*.h) onesignal_cancel.control | libcurl

# The tests try the library that is installed: it should be this one.
.PHONY: installed
installed:
	@test ! -e onesignal_cancel$(DLSUFFIX) \
	|| cmp -s onesignal_cancel$(DLSUFFIX) '$(DESTDIR)$(pkglibdir)/onesignal_cancel$(DLSUFFIX)' \
	|| { echo 'error: the installed onesignal_cancel is another build than this one: run make install' >&2; exit 1; }

installcheck: installed

.PHONY: tap
tap: installed
	rm -rf '$(CURDIR)'/tmp_check
	cd $(srcdir) && TESTDIR='$(CURDIR)' TESTDATADIR='$(CURDIR)/tmp_check' TESTLOGDIR='$(CURDIR)/tmp_check/log' \
	PATH="$(bindir):$$PATH" PGPORT='6$(DEF_PGPORT)' \
	PG_TEST_TIMEOUT_DEFAULT=$${PG_TEST_TIMEOUT_DEFAULT:-360} \
	PG_REGRESS='$(top_builddir)/src/test/regress/pg_regress' \
	$(PROVE) $(PG_PROVE_FLAGS) -I test/t $(PROVE_FLAGS) $(or $(PROVE_TESTS),test/t/*.pl)

# PGXN wants the version in the archive's name, and its files in a folder of that name.
DISTNAME = onesignal_cancel-$(shell sed -n 's/^    "version": "\(.*\)",/\1/p' META.json)
.PHONY: dist
dist:
	git archive --format=zip --prefix='$(DISTNAME)/' -o '$(DISTNAME).zip' HEAD
