#!/bin/sh
# Builds the images (images/README.md); installs buildah and debootstrap first where that is possible.
set -eu
cd "$(dirname "$0")/.."
. scripts/uv.sh
missing=
for program in buildah debootstrap; do command -v "$program" > /dev/null || missing="$missing $program"; done
# shellcheck disable=SC2086 - a list of words
[ -z "$missing" ] || install_packages "images are built with them" $missing
find_uv
python=$(some_python) || die "no Python >= 3.10 found; install with: sudo apt-get install python3"
UV=$UV exec "$python" images/build.py "$@"
