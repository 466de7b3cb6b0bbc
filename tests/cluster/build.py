"""Builds the cluster's programs from Go modules, each kept under a hash of all that it is made of."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event

SOURCES = Path(__file__).parent / "go"
KUBERNETES = "v1.36.3"
# Without these the API server reports v0.0.0, and clients that compare versions refuse it.
_VARIABLES = {
    "k8s.io/component-base/version.gitVersion": KUBERNETES,
    "k8s.io/component-base/version.gitMajor": "1",
    "k8s.io/component-base/version.gitMinor": "36",
    "k8s.io/client-go/pkg/version.gitVersion": KUBERNETES,
}


class BuildError(Exception):
    """A program could not be built; the message says what to do."""


@dataclass(frozen=True)
class Module:
    """One Go module below `go/`, the packages built from it, and the names their binaries also go by."""

    name: str
    packages: tuple[str, ...]
    binaries: tuple[str, ...]
    links: tuple[str, ...] = ()
    linker: str = ""
    c: str = ""
    """Debian packages of what is written in C in it; empty: nothing is, and no compiler is asked for."""


MODULES = (
    Module("probe", (".",), ("probe",)),
    Module(
        "kube",
        (".",),
        ("kube",),
        ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
        " ".join(f"-X {name}={value}" for name, value in _VARIABLES.items()),
    ),
    Module(
        "containerd",
        tuple(f"github.com/containerd/containerd/v2/cmd/{name}" for name in ("containerd", "ctr", "containerd-shim-runc-v2")),
        ("containerd", "ctr", "containerd-shim-runc-v2"),
        linker="-X github.com/containerd/containerd/v2/version.Version=v2.4.2",
    ),
    Module("coredns", (".",), ("coredns",)),
    Module("dra", (".",), ("dra",)),
    Module("registry", ("github.com/distribution/distribution/v3/cmd/registry",), ("registry",)),
    Module("kubeconform", ("github.com/yannh/kubeconform/cmd/kubeconform",), ("kubeconform",)),
    Module("kwok", ("sigs.k8s.io/kwok/cmd/kwok",), ("kwok",)),
    Module("helm", ("helm.sh/helm/v4/cmd/helm",), ("helm",)),
    # kube-network-policies would need a kernel with the queue of nftables. 2.1.0 has known flaws: in parts that are never switched on here,
    # and only boxes of tests are in its reach.
    Module("kube-router", ("github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",), ("kube-router",)),
)
RUNC = Module(
    "runc", ("github.com/opencontainers/runc",), ("runc",), linker="-X main.version=1.5.2", c="gcc pkg-config libseccomp-dev libc6-dev"
)
"""Not among the others, since it alone needs a C compiler: Debian's is older than pods with users of their own."""
_MODULE_OF = {name: module for module in (*MODULES, RUNC) for name in (*module.binaries, *module.links)}


def flags(module: Module) -> tuple[str, ...]:
    """The arguments of `go build`; the same source gives the same bytes wherever it is built."""
    # runc without this tag refuses every pod that has a seccomp profile.
    tags = ("-tags", "seccomp") if module.c else ()
    # The linker would drop what debuggers need, which takes a fifth of the compiler's time: it makes none.
    return (
        "-mod=readonly",
        "-trimpath",
        "-buildvcs=false",
        *tags,
        "-gcflags=all=-dwarf=false",
        "-ldflags",
        f"-s -w {module.linker}".strip(),
    )


def content_hash(files: dict[str, bytes], words: tuple[str, ...]) -> str:
    """A name for what a build reads: its files by name, and the words that steer it."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
    for word in words:
        digest.update(f"\0{word}".encode())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where everything is kept that takes long to make: below $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rljob"


@cache
def _go() -> tuple[str, str]:
    """The Go command and its version. Raises `BuildError`."""
    # The last is what scripts/system.sh installs where there is none.
    found = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin:/usr/lib/go/bin:{cache_folder()}/golang/go/bin")
    if found is None:
        raise BuildError(
            "the cluster's programs are built with Go, which was not found; run scripts/system.sh, or install Go 1.26 or newer, in PATH"
        )
    return found, subprocess.run(
        [found, "env", "GOVERSION"], capture_output=True, text=True, check=True, timeout=60, cwd=SOURCES / "probe"
    ).stdout.strip()


@cache
def _folder(module: Module) -> Path:
    source = SOURCES / module.name
    files = {path.name: path.read_bytes() for path in source.iterdir() if path.suffix == ".go" or path.name in ("go.mod", "go.sum")}
    return cache_folder() / f"go-{content_hash(files, (module.name, _go()[1], *flags(module), *module.packages, *module.links))}"


def missing(among: Collection[str] | None = None) -> tuple[Module, ...]:
    """The modules that are not built yet, of all (but runc) or of those named, in the order in which they are wanted."""
    wanted = MODULES if among is None else tuple(module for module in (*MODULES, RUNC) if module.name in among)
    return tuple(module for module in wanted if not _folder(module).exists())


def _compile(module: Module, folder: Path) -> None:
    environment = {**os.environ, "CGO_ENABLED": "1" if module.c else "0", "GOBIN": "", "GOOS": "linux"}
    command = [_go()[0], "build", *flags(module), "-o", f"{folder}/", *module.packages]
    done = subprocess.run(command, cwd=SOURCES / module.name, env=environment, capture_output=True, text=True, timeout=3600)
    if done.returncode != 0:
        needs = f"; it needs packages of the system: apt-get install --yes {module.c}" if module.c else ""
        raise BuildError(f"building {module.name} failed (in {SOURCES / module.name}: {' '.join(command)}){needs}:\n{done.stderr[-4000:]}")
    for link in module.links:
        (folder / link).symlink_to(module.binaries[0])


def built(module: Module) -> bool:
    """Is it there already?"""
    return _folder(module).exists()


@contextmanager
def alone(lock: Path, over: Event) -> Iterator[None]:
    """Holds a lock, or raises `BuildError` once it is `over`: who waits in a thread hears of no signal, and would begin after it."""
    with lock.open("w") as file:
        while not over.is_set():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                over.wait(0.2)
            else:
                yield
                return
    raise BuildError(f"given up before its turn came ({lock.stem})")


def build(module: Module, over: Event | None = None) -> Path:
    """The folder with a module's programs;

    builds them if they are not there. Safe when two processes want it at once. Raises `BuildError`; begins nothing once it is `over`.
    """
    folder = _folder(module)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder.parent / f"{folder.name}.lock", over or Event()):
        if not folder.exists():
            for left in folder.parent.glob(f"{folder.name}.*/"):  # by a session that was killed
                shutil.rmtree(left, ignore_errors=True)
            made = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
            try:
                _compile(module, made)
                made.chmod(0o755)
                made.rename(folder)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    return folder


def build_all(say: Callable[[str], None], among: Collection[str] | None = None) -> None:
    """Builds what is missing of all (but runc) or of the modules named, telling `say` before each. Raises `BuildError`."""
    wanted, over = missing(among), Event()

    def work(position: int, module: Module) -> None:
        say(f"building {module.name} from source ({position} of {len(wanted)}; all together take a quarter of an hour, once)")
        build(module, over)

    # Two at a time: while one links, or waits for what others have compiled, the other has the processors.
    with ThreadPoolExecutor(2) as at_once:
        try:
            for _ in at_once.map(work, range(1, len(wanted) + 1), wanted):
                pass
        finally:
            over.set()


def binary(name: str) -> Path:
    """The path of a program by name, for example "kubectl". Builds it if it is not there. Raises `BuildError`."""
    if name not in _MODULE_OF:
        raise BuildError(f"no program {name!r}; there are {', '.join(sorted(_MODULE_OF))}")
    return build(_MODULE_OF[name]) / name
