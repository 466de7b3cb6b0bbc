# Builds the project's wheel and lays it out as it will lie in /opt/venv.
set -eu
: > /src/README.md # pages for readers are no reason to build again
export UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never SOURCE_DATE_EPOCH=1767225600
/uv/uv --no-config build --quiet --wheel --no-build-isolation --python /opt/builder/bin/python --out-dir /tmp/dist /src
/uv/uv --no-config pip install --quiet --python /opt/venv/bin/python --prefix /built/project --no-deps /tmp/dist/*.whl
site=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
python3 /tools/finish.py "/built/project/${site#/opt/venv/}" "$site"
rm -rf /tmp/dist
