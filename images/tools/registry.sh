# Sourced: how uv reaches the package registry, from the build's secrets; nothing of it is left in the image. Without a mounted cache there is none.
if [ -s /run/secrets/registry ]; then . /run/secrets/registry; fi
if [ -s /run/secrets/certificates ]; then export SSL_CERT_FILE=/run/secrets/certificates; fi
if [ -d /var/cache/uv ]; then export UV_CACHE_DIR=/var/cache/uv; else export UV_NO_CACHE=1; fi
export UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never
