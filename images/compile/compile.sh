# Makes what needs a compiler, in a stage that no image keeps: the few packages without wheels, and for CPU the stand-ins for NVIDIA's libraries.
set -eu
. /tools/registry.sh
packages="gcc libc6-dev"
python3 -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || packages="$packages python3-dev"
# shellcheck disable=SC2086 - a list of words
sh /tools/packages.sh $packages

/uv/uv venv --quiet --python "$(command -v python3)" /opt/builder
/uv/uv pip install --quiet --python /opt/builder/bin/python --require-hashes --no-deps --no-build -r /opt/rljob/build.txt
# What is compiled here must not meet what the machine compiled for itself: the C libraries differ.
# No debug information: it names the folder of the build, which differs every time.
export SOURCE_DATE_EPOCH=1767225600 CFLAGS=-g0
UV_CACHE_DIR=/tmp/cache /uv/uv pip install --quiet --python /opt/builder/bin/python --prefix /built/sdists --require-hashes --no-deps --no-build-isolation \
    -r /opt/rljob/sdists.txt
rm -rf /tmp/cache
site=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -R /compile/no_plots/. "/built/sdists/${site#/opt/venv/}/"
python3 /tools/finish.py "/built/sdists/${site#/opt/venv/}" "$site"

mkdir -p "/built/torch/${site#/opt/venv/}"
if [ "$1" = cpu ]; then
    UV_LINK_MODE=symlink /uv/uv pip install --quiet --python /opt/venv/bin/python --target /tmp/torch --require-hashes --no-deps --no-build -r /opt/rljob/torch.txt
    python3 /compile/cpu_torch.py /tmp/torch/torch/lib "/built/torch/${site#/opt/venv/}/torch/lib"
    rm -rf /tmp/torch
fi
