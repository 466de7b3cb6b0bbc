#!/bin/sh
# Makes ROOTFS, a small Debian with Python: stands in for the public base image where no image registry is reachable. Needs root and debootstrap.
# RLJOB_DEBIAN_MIRROR: where from. It stays in the base's list of sources, so packages that images add come from there too.
set -eu
rootfs=$1
suite=trixie
log=$rootfs.log
debootstrap --variant=minbase --include=ca-certificates,python3,libnuma1,libgomp1 "$suite" "$rootfs" ${RLJOB_DEBIAN_MIRROR:-} > "$log" 2>&1 \
    || { echo "error: debootstrap failed:" >&2; tail -n 20 "$log" >&2; exit 1; }
rm "$log"
cd "$rootfs"
rm -rf usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/lintian usr/share/bash-completion usr/share/zsh usr/share/fish \
    usr/share/pixmaps usr/share/menu var/cache/apt/* var/cache/debconf/*-old var/cache/ldconfig/aux-cache var/lib/apt/lists/* var/lib/dpkg/*-old \
    var/log/* etc/machine-id etc/hostname etc/resolv.conf tmp/* var/tmp/*
find . -xdev -depth -name __pycache__ -type d -exec rm -rf {} +
: > etc/machine-id
