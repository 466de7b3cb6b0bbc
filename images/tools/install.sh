# Installs one locked list of packages: wheels only, each checked against its hash.
set -eu
. /tools/registry.sh
# What is compiled is made on BASE and copied.
[ "$(ls -d /opt/venv/lib/python3.* | wc -l)" = 1 ] || {
    echo "error: GPU_BASE has $(/opt/venv/bin/python --version) and BASE another; choose two bases with the same Python" >&2
    exit 1
}
/uv/uv pip install --quiet --python /opt/venv/bin/python --require-hashes --no-deps --no-build -r "/opt/rljob/$1.txt"
python3 /tools/finish.py "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
