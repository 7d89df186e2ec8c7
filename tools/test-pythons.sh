#!/bin/sh
# Run the unit tests, the lessons, a short proof and a small comparison on each of several Pythons.
#
#   tools/test-pythons.sh
#   PYTHONS="python3.13 /opt/python/bin/python3" tools/test-pythons.sh
#
# Without PYTHONS: those of python3.12, python3.13 and python3.14 that are on the PATH. Each gets an environment of its
# own in a temporary directory, which is gone at the end; some minutes each.
# Exit status: 0 if all that could be used passed, 1 if one failed, 2 if none could be used.
set -eu
cd "$(dirname "$0")/.."

usable='
import sys, sysconfig, venv, ensurepip
sys.exit(sys.version_info < (3, 11) or bool(sysconfig.get_config_var("Py_GIL_DISABLED")))'

say() { echo "bankrun: $*" >&2; }

place=$(mktemp -d)
chmod 755 "$place" # Postgres, as a user of its own, is read from there
trap 'rm -rf "$place"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_USER=0
unset PYTHONPATH PYTHONHOME

try() { # $1: an interpreter
    "$1" -I -m venv "$place/venv" &&
        py -I -m pip install --quiet --require-hashes -r requirements.lock -r requirements-dev.lock &&
        py -I -m pip install --quiet --no-deps --no-build-isolation -e . &&
        py -P -m pytest -q -p no:cacheprovider tests/unit tests/acceptance/test_lesson.py &&
        BANKRUN_STATE_DIR="$place/state" py -P -m bankrun prove --strategy row-lock --case same-pair &&
        BANKRUN_STATE_DIR="$place/state" py -P -m bankrun compare --strategy row-lock --topology 2x4 --transfers 1000
}

py() { "$place/venv/bin/python" "$@"; }

passed='' failed=''
for python in ${PYTHONS:-python3.12 python3.13 python3.14}; do
    if ! "$python" -I -c "$usable" 2>/dev/null; then
        say "skipped: $python is not here, or is no CPython 3.11 or newer with a GIL, venv and ensurepip"
        continue
    fi
    version=$("$python" -I -c 'import platform; print(platform.python_version())')
    say "Python $version ($python)"
    if try "$python"; then passed="$passed $version"; else failed="$failed $version"; fi
    rm -rf "$place/venv" "$place/state"
done
say "passed:${passed:- none}; failed:${failed:- none}"
[ -z "$failed" ] || exit 1
[ -n "$passed" ] || exit 2
