# shellcheck shell=bash
# What test/check, test/demo and others share: install what is missing, build in a
# temporary copy of the tree, run servers as somebody other than root, and
# leave nothing behind.
#
# Everything happens in a copy because PostgreSQL refuses to run as root, and
# because the clone may be readable for root only; it also keeps objects of
# another build, or other flags, out of this one.
#
# PG_CONFIG names the PostgreSQL to use; unless set, it is the newest that
# Debian's packages have installed.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=            # the temporary folder: everything that this run makes
SRC=             # the copy of the tree in it
RUN_AS=          # the user to be, when the caller is root
KEEP_LOGS=       # not empty: a failure leaves $WORK to be looked at
STANDIN=         # where the stand-in for OneSignal runs, if it does

# What building and the stand-in need, beside a PostgreSQL.
PACKAGES=(make gcc libc6-dev pkg-config libcurl4-openssl-dev libssl-dev perl procps
    openssl curl ca-certificates nginx libnginx-mod-http-lua lua-cjson)

# The caller's locale may not exist here, a tight umask would install files
# that the server cannot read, and PG* would send tests to another server.
# A plain su leaves root without sbin.
export LC_ALL=C.UTF-8 PATH=$PATH:/usr/sbin:/sbin
umask 022
unset LANGUAGE PGHOST PGHOSTADDR PGPORT PGUSER PGPASSWORD PGPASSFILE \
    PGDATABASE PGDATA PGOPTIONS PGSERVICE PGSERVICEFILE PGSSLMODE PSQLRC

say() { printf '\n== %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "root is needed, and there is no sudo, to run: $*"
    fi
}

# As somebody who is not root, and without the settings in the caller's home.
as_user() {
    local become=()

    [ -z "$RUN_AS" ] || become=(runuser -u "$RUN_AS" --)
    "${become[@]}" env HOME="$WORK" "$@"
}

# Stops what was started and removes what was made, however the run ended. A script that has more to do than this defines
# clean_up.
finish() {
    local status=$?

    trap - EXIT
    trap '' INT TERM HUP
    [ "$(type -t clean_up)" != function ] || clean_up || true
    [ -z "$STANDIN" ] || as_user "$SRC/test/onesignal/stop" "$STANDIN" || true
    [ ! -f "$WORK/pg/postmaster.pid" ] || pg_ctl -m fast stop >/dev/null || true
    cd /
    # 128 and more is a signal: nobody wants to read why.
    if [ -n "$KEEP_LOGS" ] && [ "$status" -ne 0 ] && [ "$status" -lt 128 ]; then
        say "Failed. Everything that was made is kept in $WORK"
    else
        rm -rf "$WORK"
    fi
    exit "$status"
}

# Prints those of the named packages that are not installed.
missing_packages() {
    local package

    for package; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
    done
}

# Installs the named packages, unless all of them are there: then it does not
# even need root. Installing a server package starts the server, now and at
# each boot; nobody asked for that, so policy-rc.d and createcluster.d forbid
# it while apt runs, and nginx is taken out of the boot sequence again.
install_packages() {
    local missing

    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null \
        || die "no sudo here; as root, please: apt-get install ${missing[*]}"

    say "Installing ${missing[*]}"
    # shellcheck disable=SC2016  # expands in the shell that root runs
    as_root bash -euo pipefail -c '
        policy=/usr/sbin/policy-rc.d
        clusters=/etc/postgresql-common/createcluster.d
        apt() {
            DEBIAN_FRONTEND=noninteractive apt-get -q -y \
                -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null
        }
        restore() {
            rm -f "$clusters/onesignal_cancel.conf"
            rmdir --ignore-fail-on-non-empty "$clusters" /etc/postgresql-common
            [ -z "${made_policy:-}" ] || rm -f "$policy"
        }
        trap "restore 2>/dev/null || true" EXIT
        trap "exit 130" INT
        trap "exit 143" TERM HUP

        mkdir -p "$clusters"
        echo "create_main_cluster = false" >"$clusters/onesignal_cancel.conf"
        if [ ! -e "$policy" ]; then
            made_policy=1
            printf "#!/bin/sh\nexit 101\n" >"$policy"
            chmod 755 "$policy"
        fi
        apt update && apt install --no-install-recommends "$@" \
            || { sleep 10; apt update && apt install --no-install-recommends "$@"; }
        case " $* " in *" nginx "*) update-rc.d nginx disable ;; esac
    ' bash "${missing[@]}" >"$WORK/apt.log" 2>&1 || {
        tail -n 30 "$WORK/apt.log" >&2
        die "could not install ${missing[*]}"
    }
}

newest_postgresql() {
    local bin

    for bin in /usr/lib/postgresql/*/bin; do
        [ ! -d "$bin" ] || basename "$(dirname "$bin")"
    done | sort -V | tail -n 1
}

# Installs what building and running needs, and finds pg_config. Arguments are
# further packages; there, %v stands for PostgreSQL's major version.
install_missing() {
    local version server=()

    if ! command -v dpkg-query >/dev/null; then
        say "Not Debian: nothing is installed, see the README for what is needed"
        PG_CONFIG=${PG_CONFIG:-$(command -v pg_config)} || die "no pg_config found"
        return
    fi
    # Only the distribution's own package knows which version it prefers.
    [ -n "${PG_CONFIG:-}" ] || [ -n "$(newest_postgresql)" ] || server=(postgresql)
    install_packages "${PACKAGES[@]}" "${server[@]}"

    if [ -z "${PG_CONFIG:-}" ]; then
        version=$(newest_postgresql)
        PG_CONFIG=/usr/lib/postgresql/$version/bin/pg_config
        set -- "postgresql-$version" "postgresql-server-dev-$version" "${@//%v/$version}"
    else
        set -- "${@//*%v*/}"
    fi
    # shellcheck disable=SC2046  # drops the empty ones; packages have no blanks
    install_packages $(printf '%s\n' "$@")
}

# Sets MIRROR to the first of apt's repositories that is Debian's and has the suite; fails if none has.
find_mirror() {
    local suite=$1 uri release status unanswered=

    # shellcheck disable=SC2016  # apt-get's own variable
    for uri in $(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sort -u); do
        status=0
        release=$(curl -fsSL --retry 2 -m 60 "${uri%/}/dists/$suite/InRelease" 2>&1) || status=$?
        if [ "$status" -ne 0 ]; then
            # 22 is an answer: this repository does not have it.
            [ "$status" -eq 22 ] || unanswered=$release
        elif grep -qx 'Origin: Debian' <<<"$release"; then
            # shellcheck disable=SC2034  # for the caller
            MIRROR=${uri%/}
            return 0
        fi
    done
    [ -z "$unanswered" ] || die "cannot tell whether there is a $suite: $unanswered"
    return 1
}

# make_folder SUITE FOLDER MIRROR: makes a bare Debian, and mounts what its packages need: call it in a mount namespace
# of its own.
make_folder() {
    local suite=$1 folder=$2 mirror=$3

    # Older debootstraps do not know a newer suite's name, but all are made like sid.
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$folder" "$mirror" \
        /usr/share/debootstrap/scripts/sid >"$folder.log" 2>&1 \
        || { tail -n 30 "$folder.log" >&2; die "could not make a $suite"; }
    cp -L /etc/resolv.conf /etc/hosts "$folder/etc/"
    mount -t proc proc "$folder/proc"
    mount --rbind /dev "$folder/dev"

    # Nothing here has to survive a loss of power; and a mirror may be a copy of some earlier day.
    echo force-unsafe-io >"$folder/etc/dpkg/dpkg.cfg.d/onesignal_cancel"
    printf '%s;\n' 'Acquire::Check-Valid-Until "false"' 'Acquire::Languages "none"' \
        >"$folder/etc/apt/apt.conf.d/99onesignal_cancel"
    echo "deb $mirror $suite main" >"$folder/etc/apt/sources.list"
}

# debootstrap and the apt in a folder know only these variables, not what this machine's apt is told.
export_proxies() {
    eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
    export http_proxy https_proxy
}

copy_tree() {
    SRC=$WORK/src
    as_user mkdir "$SRC"
    # What git ignores belongs to another build. A file that was deleted but
    # not yet committed is listed and not there.
    cd "$ROOT"
    { git -c safe.directory="$ROOT" ls-files -z -co --exclude-standard 2>/dev/null \
        || find . -type f ! -name '*.o' ! -name '*.bc' ! -name '*.so' -print0; } \
        | tar --null --ignore-failed-read --warning=no-failed-read -cf - -T - \
        | as_user tar -xf - -C "$SRC"
    cd "$SRC"
}

# Everything up to an installed extension. Arguments: as of install_missing.
prepare() {
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    # Not in TMPDIR: a socket's path may have 107 bytes only.
    WORK=$(mktemp -d /tmp/onesignal_cancel.XXXXXX)
    trap finish EXIT

    install_missing "$@"
    # apt may need these; our requests go to this machine.
    unset http_proxy https_proxy all_proxy HTTPS_PROXY ALL_PROXY
    if [ "$(id -u)" -eq 0 ]; then
        RUN_AS=postgres
        id "$RUN_AS" >/dev/null 2>&1 || die "PostgreSQL does not run as root: be another user"
        chown "$RUN_AS" "$WORK"
    fi
    copy_tree
}

# build [VARIABLE=VALUE...]: builds and installs with these for make.
build() {
    say "Building for $("$PG_CONFIG" --version) with libcurl $(pkg-config --modversion libcurl || curl-config --version)"
    as_user make -s with_llvm=no PG_CONFIG="$PG_CONFIG" "$@"
    if [ -w "$("$PG_CONFIG" --pkglibdir)" ]; then
        make -s install with_llvm=no PG_CONFIG="$PG_CONFIG" "$@"
    else
        as_root make -s install with_llvm=no PG_CONFIG="$PG_CONFIG" "$@"
    fi
}

# Copies PostgreSQL into $WORK/prefix, where it finds its files by their place
# relative to each other, and points PG_CONFIG there.
copy_postgresql() {
    local what dir dirs=()

    for what in bindir pkglibdir sharedir includedir includedir-server; do
        dir=$("$PG_CONFIG" "--$what")
        [ ! -d "$dir" ] || dirs+=("${dir#/}")
    done
    as_user mkdir "$WORK/prefix"
    tar -cf - -C / "${dirs[@]}" | as_user tar -xf - -C "$WORK/prefix"
    PG_CONFIG=$WORK/prefix$("$PG_CONFIG" --bindir)/pg_config
    # A test that has ended lets its server die at once, before its processes have told what they saw.
    as_user sed -i "/^sub teardown_node/,/^}/s/'immediate'/'fast'/" \
        "$(dirname "$("$PG_CONFIG" --pgxs)")/../test/perl/PostgreSQL/Test/Cluster.pm"
}

# make_waker FILE: makes a library that asks for memory before any other does. It is to be the last in LD_PRELOAD:
# where AddressSanitizer is woken by a library that holds gettext's lock, it waits for that lock forever.
make_waker() {
    echo '#include <stdlib.h>
        static void __attribute__((constructor)) wake(void) { free(malloc(1)); }' \
        | as_user gcc -x c -shared -fPIC -O0 -Wl,-z,initfirst -o "$1" -
}

pg_ctl() { as_user "$("$PG_CONFIG" --bindir)/pg_ctl" -D "$WORK/pg" -s -w "$@"; }

# A cluster that listens only on a socket in $WORK, which is ours alone.
# Arguments: lines for postgresql.conf.
start_postgresql() {
    as_user "$("$PG_CONFIG" --bindir)/initdb" -D "$WORK/pg" -U postgres -A trust \
        --no-sync --locale=C.UTF-8 --encoding=UTF8 >"$WORK/initdb.log" 2>&1 \
        || { cat "$WORK/initdb.log" >&2; die "could not create a cluster"; }
    printf '%s\n' "$@" "listen_addresses = ''" "unix_socket_directories = '$WORK'" \
        "fsync = off" \
        | as_user tee -a "$WORK/pg/postgresql.conf" >/dev/null
    pg_ctl -l "$WORK/postgresql.log" start \
        || { tail -n 20 "$WORK/postgresql.log" >&2; die "could not start PostgreSQL"; }
    export PGHOST=$WORK PGUSER=postgres
}
