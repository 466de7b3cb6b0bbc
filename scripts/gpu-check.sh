#!/bin/sh
# `make gpu-check`: makes .venv-gpu, the CUDA build of everything, beside .venv, and tries the GPU path in it. Some 10 GB; needs the network
# only the first time.
set -eu
cd "$(dirname "$0")/.."
. scripts/uv.sh

ls "${RLJOB_DEVICES:-/dev}"/nvidia[0-9]* > /dev/null 2>&1 || die "there is no NVIDIA GPU here (no /dev/nvidia0); run this on a machine with one and its driver"
wanted=$(cat requirements/images/cuda.txt pyproject.toml | sha256sum | cut -c1-64)
if [ "$(cat .venv-gpu/.rljob-setup 2> /dev/null)" != "$wanted" ]; then
    find_uv
    say "gpu-check: installing the CUDA packages into .venv-gpu; the first time several GB are downloaded"
    "$UV" venv --quiet --clear --python 3.13 .venv-gpu
    "$UV" pip install --python .venv-gpu/bin/python --quiet --require-hashes --no-deps -r requirements/images/cuda.txt
    "$UV" pip install --python .venv-gpu/bin/python --quiet --no-deps --editable .
    echo "$wanted" > .venv-gpu/.rljob-setup
fi
exec .venv-gpu/bin/python -m scripts.gpu_check
