#!/bin/sh
# Make .venv ready: what `make` calls before anything that needs Python.
#
#   tools/venv.sh run      what users need (requirements.lock)
#   tools/venv.sh dev      and what developers need (requirements-dev.lock)
#   tools/venv.sh python   only print the interpreter that would be used
#
# PYTHON=... chooses the interpreter. Exit status: 0 ready, 1 the installation failed, 2 no usable Python.
set -eu
cd "$(dirname "$0")/.."
here=$(pwd -P)
lock=.venv-lock

say() { echo "bankrun: $*" >&2; }

# The base interpreter, not that of an activated .venv: we may be about to delete that one.
# Free-threaded builds are refused because psycopg-binary has no wheels for them.
usable='
import sys, sysconfig, venv, ensurepip
if sys.version_info < (3, 11) or sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit(1)
print(getattr(sys, "_base_executable", sys.executable))'

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.14 python3.13 python3.12 python3.11 python3
    fi
    for candidate in "$@"; do
        "$candidate" -I -c "$usable" 2>/dev/null && return
    done
    if [ -n "${PYTHON:-}" ]; then
        say "PYTHON=$PYTHON cannot be used: it must be CPython 3.11 or newer with a GIL, venv and ensurepip."
    else
        say "no usable Python found: install CPython 3.11 or newer with venv and ensurepip" \
            "(Debian, Ubuntu: apt-get install python3-venv), or name one with PYTHON=..."
    fi
    exit 2
}

stamp() { # what a finished installation of the lock files "$@" in this place looks like
    echo "$here"
    cat "$@" pyproject.toml | cksum
}

is_stamped() {
    case $1 in
        run) [ "$(cat .venv/.bankrun-run 2>/dev/null)" = "$(stamp requirements.lock)" ] ;;
        dev) [ "$(cat .venv/.bankrun-dev 2>/dev/null)" = "$(stamp requirements.lock requirements-dev.lock)" ] ;;
    esac
}

is_sound() { # made here, by the Python that was asked for, and it starts
    [ "$(head -n 1 .venv/.bankrun-run 2>/dev/null)" = "$here" ] && version=$(.venv/bin/python -I -VV 2>/dev/null) &&
        { [ -z "${PYTHON:-}" ] || [ "$version" = "$("$python" -I -VV)" ]; }
}

# Two terminals at once would break each other's installation. The directory is the lock (mkdir is atomic everywhere),
# its file "owner" says who holds it. A dead owner's lock is taken over in place by whoever makes "takeover" first:
# removing it instead could remove the lock that a third one has just taken.
acquire() {
    waited=0 unnamed=0 missing=0
    until error=$(mkdir "$lock" 2>&1); do
        if [ ! -d "$lock" ]; then # just released, or it cannot be made at all
            [ $((missing += 1)) -gt 5 ] || continue
            say "$here cannot be written to: $error"
            exit 1
        fi
        owner=$(cat "$lock/owner" 2>/dev/null || true)
        [ -n "$owner" ] && unnamed=0 || unnamed=$((unnamed + 1))
        if is_stale "$owner" && mkdir "$lock/takeover" 2>/dev/null; then
            [ "$(cat "$lock/owner" 2>/dev/null || true)" != "$owner" ] || break
            rmdir "$lock/takeover"
        fi
        [ "$waited" -ne 1 ] || say "waiting for the set-up that another process (${owner%% *}) is doing here;" \
            "if there is none, remove $lock."
        waited=$((waited + 1))
        sleep 1
    done
    trap 'mv "$lock" "$lock.$$" && rm -rf "$lock.$$"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    echo "$$ $(uname -n)" >"$lock/owner"
    echo '*' >"$lock/.gitignore"
    [ ! -d "$lock/takeover" ] || rmdir "$lock/takeover"
}

is_stale() { # $1: "pid host"; a lock without a name is stale only if it stays so, its owner may be about to write it
    [ -n "$1" ] || { [ "$unnamed" -gt 5 ]; return; }
    [ "${1#* }" = "$(uname -n)" ] || return 1
    # kill -0 also fails for another user's live process, and slim images have no ps.
    ! kill -0 "${1%% *}" 2>/dev/null && ! ps -p "${1%% *}" >/dev/null 2>&1
}

build() {
    # Without a usable home pip warns, or makes a directory called "~" here.
    [ -w "${HOME:-/nonexistent}" ] || export PIP_NO_CACHE_DIR=1
    export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

    if [ -e .venv/.installing ] || ! is_sound; then
        [ ! -e .venv ] || say "making .venv anew: it is unfinished, was made elsewhere, or by another Python."
        rm -rf .venv
        mkdir .venv
        : >.venv/.installing # stays if we are killed: what a killed pip leaves behind is not to be trusted
        say "making .venv with $python, and installing $2 and the time to download. This happens once."
        "$python" -I -m venv .venv
    else
        say "bringing .venv up to date with $2, less what is there already."
        : >.venv/.installing
    fi
    if install "$1"; then
        rm .venv/.installing
    else
        rm .venv/.installing
        say "the installation failed, pip says why above (it needs a network, and macOS or a Linux with glibc)."
        exit 1
    fi
}

install() {
    case $1 in
        run) pip --require-hashes -r requirements.lock ;;
        dev) pip --require-hashes -r requirements.lock -r requirements-dev.lock ;;
    esac || return
    # Not again for "dev" alone: for a moment the package would be gone under a demo that runs next door.
    if ! is_stamped run; then
        pip --no-deps --no-build-isolation -e . || return
        stamp requirements.lock >.venv/.bankrun-run
    fi
    [ "$1" = run ] || stamp requirements.lock requirements-dev.lock >.venv/.bankrun-dev
}

pip() { .venv/bin/python -I -m pip install --quiet "$@"; }

case ${1:-} in
    run) what="what bankrun needs: about 95 packages, 60 MB to download, 340 MB on disk, some 30 s" ;;
    dev) what="what bankrun and its tests need: about 125 packages, 215 MB to download, 740 MB on disk, some 50 s" ;;
    python)
        find_python
        exit ;;
    *)
        say "usage: tools/venv.sh run|dev|python"
        exit 2 ;;
esac
[ -z "${PYTHON:-}" ] || python=$(find_python)
! { is_stamped "$1" && is_sound; } || exit 0
python=${python:-$(find_python)}
acquire
{ is_stamped "$1" && is_sound; } || build "$1" "$what"
