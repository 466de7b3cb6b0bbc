# Installs one locked list of packages: wheels only, each checked against its hash.
set -eu
. /tools/registry.sh
/uv/uv pip install --quiet --python /opt/venv/bin/python --require-hashes --no-deps --no-build -r "/opt/rljob/$1.txt"
python3 /tools/finish.py "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
