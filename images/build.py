"""Builds the images: `make images`, or `python images/build.py`. See images/README.md.

An image is built again only when something that it is made of has changed; its tag says of what it was made. Needs buildah, of Python
only the standard library, and for the default base debootstrap and root.
"""

import argparse
import base64
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
EPOCH = 1767225600
"""Time of everything in the images, so that the same input makes the same layers: 1 January 2026."""
PUBLIC = "docker.io/library/python:3.13-slim-trixie"
STACK = ("core", "torch", "shared", "sdists")
LISTS: Mapping[str, tuple[str, ...]] = {
    "operator": ("core", "operator"),
    "master": ("core", "master"),
    "reward": ("core", "reward", "sdists"),
    "sandbox": ("core", "sandbox"),
    "trainer": (*STACK, "trainer"),
    "rollout": (*STACK, "rollout"),
    "combined": (*STACK, "rollout", "trainer"),
}
"""Image -> the requirement files that it is made of. The order is that of building."""
BUILD_ENVIRONMENT = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_HTTP_TIMEOUT",
)
"""What of the machine's configuration of uv a build step sees (it never gets into a layer)."""


class BuildError(Exception):
    """A build cannot go on. The message says what to do."""


@dataclass(frozen=True)
class Built:
    """An image as it now is. Sizes in bytes, uncompressed."""

    name: str
    tag: str
    layers: Mapping[str, int]
    seconds: float
    changed: bool


# ---- decisions


def tree(folder: Path) -> list[Path]:
    """Every file in the folder that somebody wrote."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def folder_hash(root: Path, name: str) -> str:
    """Content hash of a folder of images/."""
    return content_hash(root, tree(root / "images" / name))


def source_files(root: Path, name: str, variant: str) -> list[Path]:
    """Every file that the image `name` depends on, in a fixed order."""
    images = root / "images"
    lists = [root / "requirements/images" / variant / f"{part}.txt" for part in LISTS[name]]
    folders = [root / "operator", root / "runtime", images / "tools", images / "compile"]
    trees = [p for folder in folders for p in tree(folder)]
    single = [images / "Containerfile", images / "Containerfile.dockerignore", root / "requirements/images/build.txt"]
    return sorted({*lists, *trees, *single, root / "pyproject.toml"})


def content_hash(root: Path, files: Iterable[Path], also: Sequence[str] = ()) -> str:
    """Twelve hexadecimal digits of the files' names and contents, and of the strings."""
    digest = hashlib.sha256(json.dumps(list(also)).encode())
    for path in files:
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(root)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def shared_size(image: Built, others: Iterable[Built]) -> int:
    """Bytes of the image's layers that another image has too."""
    elsewhere = {digest for other in others if other.name != image.name for digest in other.layers}
    return sum(size for digest, size in image.layers.items() if digest in elsewhere)


def table(images: Sequence[Built]) -> str:
    """What was built, one line per image, and what all of them take together."""
    rows = [("image", "MB", "of it shared", "seconds", "")]
    for image in images:
        total, shared = sum(image.layers.values()), shared_size(image, images)
        state = "built" if image.changed else "unchanged"
        rows.append((f"rljob/{image.name}:{image.tag}", f"{total / 1e6:.0f}", f"{shared / 1e6:.0f}", f"{image.seconds:.1f}", state))
    every = {digest: size for image in images for digest, size in image.layers.items()}
    rows.append(("together", f"{sum(every.values()) / 1e6:.0f}", "", f"{sum(i.seconds for i in images):.1f}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:4], widths[1:4], strict=True)), r[4]]).rstrip() for r in rows
    )


def as_json(images: Sequence[Built]) -> str:
    """What was built, for programs."""
    return json.dumps(
        [
            {
                "name": i.name,
                "tag": i.tag,
                "bytes": sum(i.layers.values()),
                "layers": list(i.layers),
                "sizes": list(i.layers.values()),
                "changed": i.changed,
            }
            for i in images
        ]
    )


def registry_exports(environment: Mapping[str, str]) -> str:
    """Shell lines that give a build step the machine's configuration of uv."""
    values = {name: environment[name] for name in BUILD_ENVIRONMENT if environment.get(name)}
    return "".join(f"export {name}='{value}'\n" for name, value in values.items() if "'" not in value)


def newest(tag: str) -> str:
    """The tag that moves on to every new build; the two variants lie beside each other in one registry."""
    return "latest-cuda" if tag.endswith("-cuda") else "latest"


def index_manifest(descriptor: Mapping[str, object], name: str, tag: str) -> list[dict[str, object]]:
    """Entries of an OCI index for one image, by the names a container runtime looks for: `NAME:TAG` and `NAME:latest` or `latest-cuda`."""
    full = f"docker.io/rljob/{name}"
    return [
        {**descriptor, "annotations": {"io.containerd.image.name": f"{full}:{t}", "org.opencontainers.image.ref.name": t}}
        for t in (tag, newest(tag))
    ]


# ---- effects


def run(*command: str, log: Path | None = None) -> str:
    """Runs a command and answers what it prints. Raises BuildError with the end of what it said."""
    environment = {**os.environ, "BUILDAH_ISOLATION": os.environ.get("BUILDAH_ISOLATION", "chroot")}
    if log is None:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        said = done.stderr
    else:
        with log.open("w") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, text=True, env=environment, check=False)
        said = log.read_text()
    if done.returncode != 0:
        tail = "\n".join(said.splitlines()[-25:])
        raise BuildError(f"{' '.join(command[:3])} ... ended with status {done.returncode}:\n{tail}")
    return done.stdout or ""


def cache_folder() -> Path:
    """Where build logs, the lock and uv's program for the images lie."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rljob/images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def alone() -> Iterator[None]:
    """One build at a time on a machine: the second finds everything built."""
    with (cache_folder() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def snapshot() -> Iterator[Path]:
    """A copy of all sources: whoever edits them while images are built changes neither these images nor what their tags say."""
    with tempfile.TemporaryDirectory(prefix="rljob-source-") as folder:
        root = Path(folder)
        for name in ("operator", "runtime", "images", "requirements/images"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", root)
        yield root


def exists(reference: str) -> bool:
    """Whether buildah's store has an image of this name."""
    return subprocess.run(["buildah", "inspect", "--type", "image", reference], capture_output=True, check=False).returncode == 0


def inspect(reference: str) -> dict[str, dict[str, dict[str, object]]]:
    """What buildah knows of an image."""
    found: dict[str, dict[str, dict[str, object]]] = json.loads(run("buildah", "inspect", "--type", "image", reference))
    return found


def store_folder() -> Path:
    """Where buildah keeps images."""
    return Path(json.loads(run("buildah", "info"))["store"]["GraphRoot"])


def layer_sizes(reference: str) -> dict[str, int]:
    """Digest -> bytes of each of the image's layers."""
    store = store_folder()
    known = {
        layer.get("diff-digest"): layer.get("diff-size", 0) for layer in json.loads((store / "overlay-layers/layers.json").read_text())
    }
    digests = inspect(reference)["OCIv1"]["rootfs"]["diff_ids"]
    assert isinstance(digests, list)
    return {digest: known.get(digest, 0) for digest in digests}


def base_name(mirror: str) -> str:
    """Name of the base that debian.sh makes of a mirror's packages; empty: debootstrap's own mirror."""
    return f"localhost/rljob/base:{content_hash(ROOT, [ROOT / 'images/debian.sh'], [str(EPOCH), mirror])}"


def base_layers(base: str) -> list[str]:
    """Digests of a base's layers, which its name alone says little of; fetches it if it is not there."""
    if not exists(base):
        run("buildah", "pull", "--quiet", base)
    return list(layer_sizes(base))


def debian_base() -> str:
    """A base made from Debian's packages, kept until debian.sh or the mirror changes."""
    reference = base_name(os.environ.get("RLJOB_DEBIAN_MIRROR", ""))
    if exists(reference):
        return reference
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise BuildError(
            "the default base is made by debootstrap, which needs root and the package: apt-get install debootstrap\n"
            f"where image registries can be reached, --base public takes {PUBLIC} instead"
        )
    say("making a Debian base (debootstrap)")
    with tempfile.TemporaryDirectory(prefix="rljob-base-", dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        rootfs = Path(folder) / "rootfs"
        run("sh", str(ROOT / "images/debian.sh"), str(rootfs))
        container = run("buildah", "from", "scratch").strip()
        run("buildah", "add", "--quiet", container, str(rootfs), "/")
        run("buildah", "config", "--cmd", '["python3"]', container)
        run("buildah", "commit", "--quiet", "--rm", "--timestamp", str(EPOCH), container, reference)
    return reference


def certificates() -> Path | None:
    """The machine's own certificate bundle, which a proxy may need."""
    candidates = (os.environ.get("SSL_CERT_FILE", ""), "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
    return next((Path(c) for c in candidates if c and Path(c).is_file()), None)


def uv_program() -> str:
    """The machine's uv, or the one that `make setup` installed."""
    installed = sorted(cache_folder().parent.glob("uv-*/bin/uv"))
    found = os.environ.get("UV") or shutil.which("uv") or (str(installed[-1]) if installed else None)
    if found is None:
        raise BuildError("uv was not found; `make images` installs it, or set UV to its path")
    return found


def uv_context() -> tuple[Path, str]:
    """A folder with uv's program in it, for the build to mount, and uv's version."""
    uv = uv_program()
    version = run(uv, "--version").split()[1]
    folder = cache_folder() / f"uv-{version}"
    if not (folder / "uv").exists():
        folder.mkdir(exist_ok=True)
        shutil.copy(uv, folder / "uv.new")
        (folder / "uv.new").rename(folder / "uv")
    return folder, version


def uv_cache() -> Path:
    """The machine's cache of packages."""
    return Path(run(uv_program(), "cache", "dir").strip())


def build_image(root: Path, name: str, tag: str, arguments: Mapping[str, str], uv: Path, without_cache: bool) -> None:
    """Builds one target of the Containerfile and tags it."""
    with tempfile.TemporaryDirectory(prefix="rljob-build-") as folder:
        registry, bundle = Path(folder) / "registry", certificates() or Path(folder) / "certificates"
        registry.write_text(registry_exports(os.environ))
        if bundle.parent == Path(folder):
            bundle.touch()
        cache = uv_cache()
        cache.mkdir(parents=True, exist_ok=True)
        # Not pulled: a base is the one whose layers the tag is made of.
        command = ["buildah", "bud", "--layers", "--pull=false", *(["--no-cache"] if without_cache else [])]
        command += ["--timestamp", str(EPOCH), "--target", name]
        command += ["--file", str(root / "images/Containerfile"), "--ignorefile", str(root / "images/Containerfile.dockerignore")]
        command += [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        command += ["--build-context", f"uv={uv}", "--volume", f"{cache}:/var/cache/uv"]
        command += ["--secret", f"id=registry,src={registry}", "--secret", f"id=certificates,src={bundle}"]
        run(*command, "--tag", f"localhost/rljob/{name}:{tag}", str(root), log=cache_folder() / f"{name}.log")


def build_arguments(root: Path, options: argparse.Namespace) -> dict[str, str]:
    """The Containerfile's arguments; makes the base if it is not there yet."""
    base: str = debian_base() if options.base == "debian" else PUBLIC if options.base == "public" else options.base
    return {
        "BASE": base,
        "GPU_BASE": options.gpu_base or base,
        "VARIANT": options.variant,
        "TOOLS": folder_hash(root, "tools"),
        "COMPILE": folder_hash(root, "compile"),
    }


def build(root: Path, names: Sequence[str], options: argparse.Namespace) -> list[Built]:
    """Builds what has changed of `names`, from the sources in `root`."""
    uv, version = uv_context()
    arguments = build_arguments(root, options)
    bases = [digest for base in (arguments["BASE"], arguments["GPU_BASE"]) for digest in base_layers(base)]
    built = []
    for name in names:
        started = time.monotonic()
        digits = content_hash(root, source_files(root, name, options.variant), [*arguments.values(), *bases, version, str(EPOCH)])
        tag = digits if options.variant == "cpu" else f"{digits}-{options.variant}"
        reference = f"localhost/rljob/{name}:{tag}"
        changed = options.no_cache or not exists(reference)
        if changed:
            say(f"building {name}")
            build_image(root, name, tag, arguments, uv, options.no_cache)
        run("buildah", "tag", reference, f"localhost/rljob/{name}:{newest(tag)}")
        built.append(Built(name, tag, layer_sizes(reference), time.monotonic() - started, changed))
    return built


def outdated(references: Iterable[str], images: Iterable[Built]) -> list[str]:
    """Names in the store that are older builds of these images, in the same variant."""
    current = {(image.name, newest(image.tag)): image.tag for image in images}
    split = [(reference, *reference.removeprefix("localhost/rljob/").partition(":")[::2]) for reference in references]
    return sorted({r for r, name, tag in split if (kept := current.get((name, newest(tag)))) and tag not in (kept, newest(tag))})


def prune(images: Sequence[Built]) -> None:
    """Removes older builds of these images, with the layers that nothing else needs."""
    listed = run("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").split()
    for reference in outdated((name for name in listed if name.startswith("localhost/rljob/")), images):
        say(f"removing {reference}")
        run("buildah", "rmi", reference)


class Store:
    """Buildah's own folder, where layers lie unpacked beside all that their tar files had apart from the files' contents.

    A layer put together from the two takes a fraction of the time of `buildah push`, which writes every layer of every image: most bytes
    of an image are those of another. Both are formats of containers/storage and vbatts/tar-split; what comes out has to have the digest
    of the layer.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        layers = json.loads((self.root / "overlay-layers/layers.json").read_text())
        self._layers = {layer.get("diff-digest"): layer["id"] for layer in layers}

    def write(self, digest: str, target: Path) -> None:
        """Writes a layer's tar file. Raises `BuildError` if the store does not have it as it was."""
        hasher, part = hashlib.sha256(), target.with_suffix(".part")
        try:
            with part.open("wb") as out:
                for piece in self._pieces(self._layers[digest]):
                    hasher.update(piece)
                    out.write(piece)
        except (KeyError, FileNotFoundError) as error:
            raise BuildError(f"layer {digest} is not in {self.root} ({error}); build it again with --no-cache") from error
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise BuildError(f"layer {digest} has changed in {self.root}; build it again with --no-cache")
        part.rename(target)

    def _pieces(self, layer: str) -> Iterator[bytes]:
        with gzip.open(self.root / f"overlay-layers/{layer}.tar-split.gz") as entries:
            for line in entries:
                entry = json.loads(line)
                if entry["type"] == TAR_SPLIT_BYTES:
                    yield base64.b64decode(entry["payload"])
                elif entry.get("size"):
                    name = base64.b64decode(entry["name_raw"]) if "name_raw" in entry else entry["name"].encode()
                    with open(os.path.join(os.fsencode(self.root / "overlay" / layer / "diff"), name), "rb") as file:
                        yield from chunks(file)


TAR_SPLIT_BYTES = 2
"""Type of an entry with bytes as they were, in contrast to one that stands for the contents of a file."""


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """A file's contents, a mebibyte at a time."""
    while piece := file.read(1 << 20):
        yield piece


def export(images: Sequence[Built], folder: Path) -> None:
    """Writes the images as one OCI image layout with uncompressed layers; blobs that are there already are not written again."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    store = Store(store_folder())
    manifests: list[dict[str, object]] = []
    for image in images:
        say(f"exporting {image.name}")
        found = json.loads(run("buildah", "inspect", "--type", "image", f"localhost/rljob/{image.name}:{image.tag}"))
        manifest = found["Manifest"].encode()
        for text in (manifest, found["Config"].encode()):
            (blobs / hashlib.sha256(text).hexdigest()).write_bytes(text)
        for layer in json.loads(manifest)["layers"]:
            target = blobs / layer["digest"].removeprefix("sha256:")
            if not target.exists():
                store.write(layer["digest"], target)
        digest = hashlib.sha256(manifest).hexdigest()
        descriptor = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": f"sha256:{digest}", "size": len(manifest)}
        manifests += index_manifest(descriptor, image.name, image.tag)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests})
    )


def archive(images: Sequence[Built], target: str) -> None:
    """Writes the images as one tar file with uncompressed layers, to a file or (`-`) to the standard output."""
    with tempfile.TemporaryDirectory(prefix="rljob-export-", dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        export(images, Path(folder))
        command = ["tar", "--create", "--file", target, "--directory", folder, "oci-layout", "index.json", "blobs"]
        if subprocess.run(command, check=False).returncode != 0:
            raise BuildError(f"could not write {target}")


def say(text: str) -> None:
    print(f"images: {text}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="images/build.py", description="Builds RLJob's images with buildah.")
    parser.add_argument("--only", help="names separated by commas; default: all of " + ", ".join(LISTS))
    parser.add_argument("--base", default="debian", help=f"'debian' (made by debootstrap, the default), 'public' ({PUBLIC}), or any image")
    parser.add_argument("--gpu-base", help="base of the images with torch, with the same Python as --base; default: --base")
    parser.add_argument("--variant", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-cache", action="store_true", help="build every layer again")
    parser.add_argument("--prune", action="store_true", help="then remove older builds of the same images")
    parser.add_argument("--export", type=Path, metavar="DIR", help="also write an OCI image layout, uncompressed")
    parser.add_argument(
        "--archive", metavar="FILE", help="also write that as one tar file; '-': to standard output, for `ctr images import -`"
    )
    parser.add_argument("--json", action="store_true", help="print names, tags, sizes and digests as JSON instead of a table")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    names = options.only.split(",") if options.only else list(LISTS)
    unknown = [name for name in names if name not in LISTS]
    try:
        if unknown:
            raise BuildError(f"--only: no image is called {', '.join(unknown)}; there are {', '.join(LISTS)}")
        if shutil.which("buildah") is None:
            raise BuildError("buildah was not found; install it with: apt-get install buildah")
        with alone():
            with snapshot() as root:
                images = build(root, names, options)
            if options.prune:
                prune(images)
            if options.export:
                export(images, options.export)
            if options.archive:
                archive(images, options.archive)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    out = sys.stderr if options.archive == "-" else sys.stdout
    print(as_json(images) if options.json else table(images), file=out)


if __name__ == "__main__":
    main()
