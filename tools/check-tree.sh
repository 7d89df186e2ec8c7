#!/bin/sh
# Fail if a tracked file names a package registry or a path of this machine: such a file works, or is true, only here.
# The hosts are put together below so that this file does not contain what it looks for.
set -u
cd "$(dirname "$0")/.." || exit 1
root=$(pwd -P)
failed=0

tracked=$(git ls-files) || { echo "check-tree: cannot list the tracked files (see git's message above)" >&2; exit 1; }
[ -n "$tracked" ] || { echo "check-tree: no file is tracked here" >&2; exit 1; }

refuse() { # $1: a fixed string no tracked file may contain, $2: what it is
    found=$(git grep -nFi -e "$1") # 1: nothing found, more: git failed
    case $? in
        0) printf '%s\n' "$found" | cut -c 1-200 ;;
        1) return ;;
    esac
    echo "check-tree: the above names $2" >&2
    failed=1
}

configured_hosts() { # the hosts of the package indexes this machine is set up to use, never printed
    {
        .venv/bin/python -I -m pip config list 2>/dev/null
        env | grep -E '^(PIP|UV)_'
    } | grep -Eo 'https?://[^/ ,"'\'']+' | sed -E 's#^https?://##; s#^.*@##; s#:[0-9]+$##' |
        grep -Evx 'localhost|127\..*|\[.*\]' | sort -u
}

for host in pypi:org pythonhosted:org pypi:python:org npmjs:org yarnpkg:com anaconda:org jfrog:io \
    pkgs:dev:azure:com d:codeartifact python:pkg:dev; do
    refuse "$(echo "$host" | tr : .)" "a package registry"
done

for host in $(configured_hosts); do
    case $host in
        *.*) refuse "$host" "the package index of this machine" ;;
        *) refuse "//$host" "the package index of this machine" ;;
    esac
done

case $root in
    /*/*) refuse "$root" "the path of this checkout" ;; # "/app" alone is also a path in other people's containers
esac
case ${HOME:-/} in
    / | /tmp | /var/tmp) ;;
    *) refuse "${HOME%/}/" "this machine's home directory" ;;
esac

for file in $(printf '%s\n' "$tracked" | grep -E '(^|/)(uv\.lock|pylock(\..*)?\.toml)$'); do
    echo "check-tree: $file is tracked, but carries addresses of an index: the lock files are requirements*.lock" >&2
    failed=1
done
exit $failed
