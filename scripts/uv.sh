# Sourced: finds uv, or installs the pinned one into a cache folder. Sets UV.
# Needs: some Python >= 3.10 with venv, unless uv is on the PATH.

UV_VERSION=0.13.9

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Debian's packages, as root only; anybody else is told what to install.
install_packages() { # WHY PACKAGE...
    why=$1
    shift
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        say "setup: installing $* ($why)"
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@"; } > /dev/null \
            || die "apt-get could not install $* ($why)"
    else
        die "$why; install with: sudo apt-get install $*"
    fi
}

# Any Python >= 3.10, first one that can make the environment uv lives in (Debian's cannot before its -venv package is there).
some_python() {
    first=
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 "$HOME"/.pyenv/versions/3.1[0-9]*/bin/python3; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null || continue
        [ -n "$first" ] || first=$candidate
        if "$candidate" -c 'import venv, ensurepip' 2> /dev/null; then
            command -v "$candidate"
            return
        fi
    done
    [ -n "$first" ] && command -v "$first"
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

find_uv() {
    if [ -n "${UV:-}" ]; then
        return
    elif command -v uv > /dev/null; then
        UV=$(command -v uv)
        return
    fi
    home="${XDG_CACHE_HOME:-$HOME/.cache}/rljob/uv-$UV_VERSION"
    UV="$home/bin/uv"
    "$UV" --version > /dev/null 2>&1 && return
    python=$(some_python) || die "no Python >= 3.10 found; install with: sudo apt-get install python3 python3-venv"
    if ! "$python" -c 'import venv, ensurepip' 2> /dev/null; then
        install_packages "$python cannot make virtual environments" "python$(version_of "$python")-venv"
    fi
    say "setup: installing uv $UV_VERSION"
    rm -rf "$home"
    "$python" -m venv "$home"
    "$home/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/uv.txt \
        || { rm -rf "$home"; die "uv $UV_VERSION could not be installed; is the package registry reachable?"; }
}
