#!/bin/sh
# Makes .venv from the lock files; says nothing and takes no time if it is there already. Needs the network only the first time.
set -eu
cd "$(dirname "$0")/.."
. scripts/uv.sh

lock_hash() { cat requirements/lock.txt requirements/examples.txt pyproject.toml scripts/setup.sh scripts/uv.sh | sha256sum | cut -c1-64; }

# vLLM's CPU build links libnuma and libgomp and calls lscpu; one small dependency is compiled from source.
system_packages() {
    libraries=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p) || libraries=
    for pair in libnuma.so.1=libnuma1 libgomp.so.1=libgomp1; do
        case $libraries in *"${pair%%=*}"*) ;; *) echo "${pair##*=}" ;; esac
    done
    command -v lscpu > /dev/null || echo util-linux
    { command -v cc > /dev/null && echo '#include <stdio.h>' | cc -fsyntax-only -x c - 2> /dev/null; } || echo "gcc libc6-dev"
}

# Complete enough: the standard library's optional parts that are used here, and headers for what is compiled.
suits() {
    supported "$1" && "$1" -c '
import bz2, ctypes, lzma, os, sqlite3, ssl, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' 2> /dev/null
}

supported() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 12), (3, 13)))' 2> /dev/null; }

# The first of uv's, the PATH's and pyenv's interpreters that passes a test: first_python TEST.
first_python() {
    managed=$("$UV" python find --quiet --managed-python 3.13 2> /dev/null || true)
    for candidate in "$managed" python3.13 "$HOME"/.pyenv/versions/3.13.*/bin/python3 python3.12 "$HOME"/.pyenv/versions/3.12.*/bin/python3 python3; do
        if [ -n "$candidate" ] && "$1" "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

find_python() {
    "$UV" python install --quiet 3.13 > /dev/null 2>&1 || true
    first_python suits && return
    incomplete=$(first_python supported) \
        || die "no Python 3.13 or 3.12 could be downloaded or found; install one with: sudo apt-get install python3.13 python3.13-dev (or with pyenv)"
    install_packages "$incomplete has no headers" "python$(version_of "$incomplete")-dev"
    suits "$incomplete" || die "$incomplete lacks parts of the standard library (bz2, ctypes, lzma, sqlite3 or ssl); install another, with pyenv for example"
    command -v "$incomplete"
}

wanted=$(lock_hash)
if [ -x .venv/bin/python ] && [ "$(cat .venv/.rljob-setup 2> /dev/null)" = "$wanted" ]; then
    exit 0
fi

[ "$(uname -sm)" = "Linux x86_64" ] || die "this needs Linux on x86-64, not $(uname -sm)"
packages=$(system_packages)
# shellcheck disable=SC2086 - a list of words
[ -z "$packages" ] || install_packages "system libraries are missing" $packages
find_uv
if ! { [ -x .venv/bin/python ] && suits .venv/bin/python; }; then
    say "setup: looking for Python 3.13 or 3.12"
    python=$(find_python)
    "$UV" venv --quiet --clear --python "$python" .venv
fi
say "setup: installing the locked packages into .venv ($(.venv/bin/python --version)); the first time some 3 GB are downloaded"
install() {
    # Without compiled bytecode every start of vLLM would take ten seconds more.
    env -u PYTHONDONTWRITEBYTECODE "$UV" pip install --python .venv/bin/python --compile-bytecode --quiet "$@"
}
rm -f .venv/.rljob-setup
install --require-hashes --no-deps -r requirements/lock.txt
install --require-hashes --no-deps -r requirements/examples.txt
install --no-deps --editable .
echo "$wanted" > .venv/.rljob-setup
say "setup: done"
