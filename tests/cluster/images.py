"""Makes an image without a builder: one layer with a few files."""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _tar(files: dict[str, bytes], mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            _add(archive, name, content, mode)
    return buffer.getvalue()


def _described(kind: str, content: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def write_image(archive: Path, name: str, files: dict[str, Path], entrypoint: Sequence[str], arguments: Sequence[str]) -> None:
    """Writes an OCI archive (image-spec v1.1, a layout in a tar file) of an image with one layer.

    `files` maps paths in the image to executable files here. `arguments` are those of `entrypoint` where a container has none of its
    own. Containers run as user 65532.
    """
    layer = _tar({path.lstrip("/"): file.read_bytes() for path, file in files.items()}, 0o755)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [*entrypoint], "Cmd": [*arguments], "User": "65532", "Env": ["PATH=/"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": _MANIFEST, "config": _described(_CONFIG, config), "layers": [_described(_LAYER, layer)]}
    ).encode()
    named = {**_described(_MANIFEST, manifest), "annotations": {"io.containerd.image.name": name}}
    blobs = {f"blobs/sha256/{hashlib.sha256(each).hexdigest()}": each for each in (layer, config, manifest)}
    index = json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [named]}).encode()
    archive.write_bytes(_tar({"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index, **blobs}, 0o644))
