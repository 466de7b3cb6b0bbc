"""The table of languages: what to call the program's file, how to build it, how to run it. An entry adds a language,
and its name in `Language` of `rljob.api.verifiers`.

An entry whose toolchain this machine does not have is left out. `{memory}` in a command is the run's memory in MiB.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rljob.api.errors import InfrastructureError
from rljob.sandbox.inside.root import WORK

_log = logging.getLogger(__name__)

BUILD: Final = "build"
"""The folder of the working folder into which compilers write; all of it is the artefact."""
LIBRARY: Final = "library"
"""The folder of the working folder in which compilers find what they would else make anew for every program."""


@dataclass(frozen=True)
class Toolchain:
    """What a language needs on this machine."""

    programs: Mapping[str, str]
    """Absolute paths by the name that commands use."""
    folders: tuple[str, ...] = ()
    """What has to be visible besides /usr."""
    version: tuple[str, ...] = ()
    """Command that prints it in the first line."""


@dataclass(frozen=True)
class Language:
    """One row."""

    name: str
    source: str
    """Name of the main file."""
    find: Callable[[], Toolchain | None]
    run: tuple[str, ...] = ()
    """Command; empty: a file that the forked interpreter executes itself."""
    build: tuple[str, ...] = ()
    """Command that fills BUILD; empty: nothing to build, the source is what runs."""
    library: tuple[str, ...] = ()
    """Command that fills LIBRARY, once for all programs, in a folder without any; every build has a copy of its own."""
    environment: Mapping[str, str] = field(default_factory=dict)
    counts_memory: bool = True
    """Whether private writable memory tells what a process uses; runtimes that reserve more than they touch are watched instead."""


@dataclass(frozen=True)
class Found:
    """A language of this machine."""

    language: Language
    toolchain: Toolchain
    version: str

    def command(self, template: tuple[str, ...], memory_mb: int) -> list[str]:
        """A command of the table with paths and numbers filled in."""
        programs = self.toolchain.programs
        return [programs.get(word, word).replace("{memory}", str(memory_mb)) for word in template]


def found() -> dict[str, Found]:
    """All languages of the table that this machine can run, by name. A toolchain that is broken is left out, and that is said.

    Raises:
        InfrastructureError: one does not answer. Without it every program in its language would be refused, because the machine was busy.
    """
    result = {}
    for language in TABLE:
        toolchain = language.find()
        version = _first_line(toolchain.version, {"PATH": _PATH, "HOME": "/nowhere"}) if toolchain is not None else None
        if toolchain is not None and version is not None:
            result[language.name] = Found(language, toolchain, version)
    return result


def _first_line(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str | None:
    """Of what a toolchain says, in this environment or ours; None if it is broken."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True, env=environment)
    except subprocess.TimeoutExpired as error:
        raise InfrastructureError(
            f"`{' '.join(command)}` did not answer within {_PATIENCE:g} s: try again when the machine is less busy, or remove it"
        ) from error
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or "").strip().partition("\n")[0]
        _log.warning("`%s` does not work, and its language is left out: %s", " ".join(command), said or error)
        return None
    return (done.stdout or done.stderr).partition("\n")[0].strip()


_PATIENCE = 120.0
"""Seconds for a toolchain to say what it is; less than one on an idle machine."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{_PATH}:/usr/local/go/bin:/usr/lib/go/bin")


def _plain(name: str, *version: str) -> Callable[[], Toolchain | None]:
    def find() -> Toolchain | None:
        path = _which(name)
        return Toolchain({name: path}, version=(path, *(version or ("--version",)))) if path else None

    return find


def _python() -> Toolchain:
    """The interpreter that runs the service, without its virtual environment."""
    path = os.path.realpath(sys.executable)
    return Toolchain({"python": path}, (os.path.realpath(sys.base_prefix),), (path, "--version"))


def _java() -> Toolchain | None:
    javac = _which("javac")
    if javac is None:
        return None
    home = os.path.dirname(os.path.dirname(os.path.realpath(javac)))
    programs = {"java": f"{home}/bin/java", "javac": f"{home}/bin/javac"}
    return Toolchain(programs, (home,), (programs["javac"], "--version"))


def _go() -> Toolchain | None:
    go = _which("go") or shutil.which("go")
    if go is None:
        return None
    home = os.path.dirname(os.path.dirname(os.path.realpath(go)))
    return Toolchain({"go": f"{home}/bin/go"}, (home,), (f"{home}/bin/go", "version"))


def _rust() -> Toolchain | None:
    """rustc by its own folder, as the one on the PATH may be the launcher of rustup."""
    rustc = _which("rustc") or shutil.which("rustc", path=os.path.expanduser("~/.cargo/bin"))
    if rustc is None or _which("cc") is None:
        return None
    home = _first_line((rustc, "--print", "sysroot"))
    if home is None:
        return None
    return Toolchain({"rustc": f"{home}/bin/rustc"}, (home,), (f"{home}/bin/rustc", "--version"))


_GO_PACKAGES: Final = (
    "bufio", "bytes", "cmp", "container/heap", "container/list", "container/ring", "context", "encoding/json", "errors", "fmt", "hash/fnv",
    "io", "iter", "maps", "math", "math/big", "math/bits", "math/cmplx", "math/rand", "math/rand/v2", "os", "regexp", "runtime",
    "runtime/debug", "slices", "sort", "strconv", "strings", "sync", "sync/atomic", "text/tabwriter", "time", "unicode", "unicode/utf8",
)  # fmt: skip
"""What programs import. Go comes without its standard library compiled: 20 s on a slow core for `fmt` alone."""

TABLE: Final = (
    Language("python", "main.py", _python),
    Language("c", "main.c", _plain("gcc"), ("build/main",), ("gcc", "-O2", "-std=gnu17", "-o", "build/main", "main.c", "-lm")),
    Language("cpp", "main.cpp", _plain("g++"), ("build/main",), ("g++", "-O2", "-std=gnu++20", "-o", "build/main", "main.cpp")),
    Language("bash", "main.sh", _plain("bash"), ("bash", "main.sh")),
    Language("javascript", "main.js", _plain("node"), ("node", "--max-old-space-size={memory}", "main.js"), counts_memory=False),
    Language(
        "java", "Main.java", _java,
        ("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xmx{memory}m", "-cp", "build", "Main"),
        ("javac", "-J-XX:+UseSerialGC", "-J-XX:TieredStopAtLevel=1", "-d", "build", "Main.java"),
        counts_memory=False,
    ),
    Language(
        "go", "main.go", _go, ("build/main",), ("go", "build", "-o", "build/main", "main.go"), ("go", "build", *_GO_PACKAGES),
        {"GOCACHE": f"{WORK}/{LIBRARY}", "GOPATH": "/tmp/go", "GO111MODULE": "off", "GOFLAGS": "-p=1",
         "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"},
        counts_memory=False,
    ),
    Language("rust", "main.rs", _rust, ("build/main",), ("rustc", "-O", "--edition", "2021", "-o", "build/main", "main.rs")),
)  # fmt: skip
