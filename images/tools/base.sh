# First step of every image: Python and what its packages link to, the user, an empty /opt/venv.
set -eu

suits() { python3 -c 'import sys, sqlite3, ssl; sys.exit(sys.version_info[:2] not in ((3, 12), (3, 13)))' 2> /dev/null; }
missing=
suits || missing="python3 ca-certificates"
libraries=$(ldconfig -p)
case $libraries in *libnuma.so.1*) ;; *) missing="$missing libnuma1" ;; esac
case $libraries in *libgomp.so.1*) ;; *) missing="$missing libgomp1" ;; esac
# shellcheck disable=SC2086 - a list of words
[ -z "$missing" ] || sh /tools/packages.sh $missing
suits || { echo "error: the base has $(python3 --version); RLJob needs Python 3.12 or 3.13: choose another BASE" >&2; exit 1; }

echo "rljob:x:65532:65532:RLJob:/tmp:/usr/sbin/nologin" >> /etc/passwd
echo "rljob:x:65532:" >> /etc/group
/uv/uv --no-config --no-cache venv --quiet --no-python-downloads --python "$(command -v python3)" /opt/venv
mkdir /opt/rljob
python3 /tools/finish.py "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
