"""From a request to what a slot is told, and from what a slot says to an answer. Pure."""

import math
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rljob.sandbox.inside.archive import MOST_FILES, unpack
from rljob.sandbox.inside.root import SCRATCH, WORK
from rljob.sandbox.languages import BUILD, LIBRARY, Found, Language
from rljob.sandbox.slot import Job, Ran
from rljob.wire.sandbox import COMPILE_LIMITS, Limits, Output, RunRequest, Status, check_path

MIB: Final = 1 << 20
_INODES = 16384
_STACK = 64 * MIB
"""Of programs where no cgroup counts memory: every thread of theirs reserves as much."""
_DEEP_STACK = 256 * MIB
_OWN_DATA = 64 * MIB
"""What an interpreter has of its own, on top of a limit of private memory."""
_STDIN = 64 * MIB
_LIBRARY = Limits(cpu_seconds=600, wall_seconds=1800, processes=64, disk_mb=512)
"""Nobody waits for it alone, and a busy machine is no failure."""
_ARGUMENTS = 100_000
"""Bytes; Linux takes 128 KiB for one."""
ENVIRONMENT: Final = {
    "HOME": WORK, "TMPDIR": SCRATCH, "LANG": "C.UTF-8", "TZ": "UTC", "USER": "sandbox", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1", "NODE_OPTIONS": "", "PATH": "/usr/local/bin:/usr/bin:/bin",
}  # fmt: skip
_KILLED: Final[Mapping[str, Status]] = {
    "wall": "wall_limit",
    "cpu": "time_limit",
    "memory": "memory_limit",
    "output": "output_limit",
    "processes": "process_limit",
}
_FIELDS: Final[Mapping[Status, str]] = {
    "wall_limit": "wall_seconds",
    "time_limit": "cpu_seconds",
    "memory_limit": "memory_mb",
    "output_limit": "output_kb",
    "process_limit": "processes",
    "disk_limit": "disk_mb",
}
"""Of Limits: which of them a run has met."""


def check(request: RunRequest, known: Mapping[str, Found], ceiling: Limits) -> None:
    """ValueError with one line if the request cannot be run as it is."""
    if request.language not in known:
        raise ValueError(f"language {request.language!r} is not here; there are {', '.join(known)}")
    language = known[request.language].language
    for name in (*request.files, *request.fetch):
        check_path(name)
        _check_text(name)
    _check_names(language, request.files)
    if len(request.files) > MOST_FILES or len(request.fetch) > MOST_FILES:
        raise ValueError(f"more than {MOST_FILES} files")
    if len(request.stdin) > _STDIN:
        raise ValueError(f"stdin has {len(request.stdin)} characters, at most {_STDIN} are taken")
    for text in (request.code, request.stdin, *request.files.values(), *request.arguments):
        _check_text(text)
    if any("\0" in argument for argument in request.arguments):
        raise ValueError("an argument has a NUL character")
    if sum(len(argument.encode()) for argument in request.arguments) > _ARGUMENTS:
        raise ValueError(f"arguments have more than {_ARGUMENTS} bytes: use stdin or files")
    for what, limits in (("limits", request.limits), *((("compile_limits", request.compile_limits),) if language.build else ())):
        for name, most in ceiling:
            if getattr(limits, name) > most or math.isnan(getattr(limits, name)):
                raise ValueError(f"{what}.{name} is {getattr(limits, name)}, at most {most} is given here")


def fitted(request: RunRequest, ceiling: Limits) -> RunRequest:
    """The request; memory for which nobody asked, of a program (a checker, say) or its compiler, is not more than there is."""
    asked = {"limits": "memory_mb" in request.limits.model_fields_set, "compile_limits": request.compile_limits != COMPILE_LIMITS}
    update = {}
    for name in (name for name, own in asked.items() if not own):
        limits: Limits = getattr(request, name)
        update[name] = limits.model_copy(update={"memory_mb": min(limits.memory_mb, ceiling.memory_mb)})
    return request.model_copy(update=update)


def _check_names(language: Language, names: Collection[str]) -> None:
    if language.source in names:
        raise ValueError(f"files has {language.source!r}, which is the name of code")
    if language.build and any(name == BUILD or name.startswith(f"{BUILD}/") for name in names):
        raise ValueError(f"files has a path in {BUILD}/, where the compiler writes")
    if language.library and any(name == LIBRARY or name.startswith(f"{LIBRARY}/") for name in names):
        raise ValueError(f"files has a path in {LIBRARY}/, where the compiler's library is")
    all_names = {*names, language.source}
    for name in names:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in all_names:
                raise ValueError(f"files has {name[:80]!r} and a file where its folder should be")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text is not Unicode: {error.reason} at {error.start}") from error


@dataclass(frozen=True)
class Inputs:
    """What differs between runs of one program."""

    stdin: str = ""
    arguments: tuple[str, ...] = ()
    fetch: tuple[str, ...] = ()


def build_job(request: RunRequest, found: Found, library: int | None, *, counted: bool) -> Job:
    """The compiler, and a descriptor of its library where it has one. `counted`: whether a cgroup counts memory."""
    language = found.language
    files = {language.source: request.code, **request.files}
    return _compiler(found, language.build, files, BUILD, request.compile_limits, library, counted=counted)


def library_job(found: Found, memory_mb: int, *, counted: bool) -> Job:
    """What fills the library of a language's builds."""
    limits = _LIBRARY.model_copy(update={"memory_mb": memory_mb})
    return _compiler(found, found.language.library, {}, LIBRARY, limits, None, counted=counted)


def _compiler(
    found: Found, command: tuple[str, ...], files: Mapping[str, str], folder: str, limits: Limits, library: int | None, *, counted: bool
) -> Job:
    payload = {
        "files": files,
        "folders": [folder],
        "source": found.language.source,
        "arguments": [],
        "command": found.command(command, limits.memory_mb),
        "environment": {**ENVIRONMENT, **found.language.environment},
        "fetch": [f"{folder}/"],
    }
    private = limits.memory_mb if not counted else None
    return _job(payload, limits, Inputs(), python=False, private=private, artefact=library)


def run_job(request: RunRequest, inputs: Inputs, found: Found, *, counted: bool, artefact: bytes | None) -> Job:
    """The program, of which `artefact` is what was built. `counted`: whether a cgroup counts memory."""
    language, limits = found.language, request.limits
    command = [*found.command(language.run, limits.memory_mb), *inputs.arguments]
    if language.run and not command[0].startswith("/"):
        command[0] = f"{WORK}/{command[0]}"
    payload = {
        "files": request.files if language.build else {language.source: request.code, **request.files},
        "folders": [],
        "source": language.source,
        "arguments": list(inputs.arguments),
        "command": command,
        "environment": {**ENVIRONMENT, **language.environment},
        "fetch": list(inputs.fetch),
    }
    private = limits.memory_mb if not counted and language.counts_memory else None
    return _job(payload, limits, inputs, python=not language.run, private=private, artefact=artefact, counted=counted)


def _job(
    payload: Mapping[str, Any],
    limits: Limits,
    inputs: Inputs,
    *,
    python: bool,
    private: int | None,
    artefact: bytes | int | None = None,
    counted: bool = False,
) -> Job:
    """`private`: MiB that each process may have of its own, if that is to be limited."""
    memory = limits.memory_mb * MIB
    bounds = {
        "cpu": limits.cpu_seconds,
        "processes": limits.processes,
        "disk": limits.disk_mb * MIB,
        "inodes": _INODES,
        "stack": min(_DEEP_STACK, memory) if counted else _STACK,
        "data": private * MIB + _OWN_DATA if private is not None else None,
    }
    return Job(
        payload=payload, bounds=bounds, python=python, stdin=inputs.stdin.encode(), wall=limits.wall_seconds, cpu=limits.cpu_seconds,
        memory=memory, output=limits.output_kb * 1024, artefact=artefact,
    )  # fmt: skip


def lacking(language: Language, built: bytes) -> str:
    """Why what a compiler that ended well has built is no program; empty if it is one. A library may have its name and nothing to execute.

    ArchiveError if it is no archive.
    """
    if not built:
        return f"the compiler wrote nothing into {BUILD}/"
    program = language.run[0]
    if not program.startswith(f"{BUILD}/") or (program, True) in ((name, executable) for name, executable, _ in unpack(built)):
        return ""
    return f"the compiler made no program {program}: the code is a library, perhaps"


def compiled(ran: Ran, request: RunRequest, language: Language, library: int) -> Output:
    """The answer about a compiler. `library`: bytes of what every build in this language begins with.

    ArchiveError if what it built is no archive.
    """
    limits = request.compile_limits
    said = output(ran, limits)
    status, reason = said.status, said.reason
    if status == "ok" and (lacks := lacking(language, ran.fetched)):
        status, reason = "compile_error", lacks
    elif status == "runtime_error" and "no space left on device" in said.stderr.casefold():
        status, reason = "disk_limit", _reasons(limits)["disk_limit"]
    elif status == "runtime_error":
        status, reason = "compile_error", f"the compiler ended with status {said.exit_code}"
    if (field := _FIELDS.get(status)) is not None:
        shared = library and field in ("disk_mb", "memory_mb") and not ran.ended.unfetched
        reason = f"compile_limits.{field}, of the compiler: {_reasons(limits)[status] if shared else reason}"
        if shared:
            reason += f"; {math.ceil(library / MIB)} MiB is the library of {language.name}, which every build gets: raise {field}"
    return said.model_copy(update={"status": status, "reason": reason})


def output(ran: Ran, limits: Limits) -> Output:
    """The answer about one program."""
    ended = ran.ended
    status, reason = _status(ran, limits)
    return Output(
        status=status,
        exit_code=ended.status if ended.status >= 0 else None,
        signal=-ended.status if ended.status < 0 else None,
        stdout=ran.stdout.decode(errors="replace"),
        stderr=ran.stderr.decode(errors="replace"),
        truncated=ran.truncated,
        wall_seconds=round(ended.wall, 6),
        cpu_seconds=round(ended.cpu, 6),
        memory_mb=round(ended.peak / MIB, 3),
        reason=reason,
    )


def _status(ran: Ran, limits: Limits) -> tuple[Status, str]:
    ended = ran.ended
    if ended.trouble:
        if ran.too_big:
            status: Status = "memory_limit" if "MemoryError" in ended.trouble else "disk_limit"
            return status, f"its own files are {_reasons(limits)[status]}"
        return "sandbox_error", ended.trouble.strip().rpartition("\n")[2]
    if ended.killed:
        return _KILLED[ended.killed], _reasons(limits)[_KILLED[ended.killed]]
    status = "ok"
    if ended.cpu > limits.cpu_seconds or ended.status == -signal.SIGXCPU:
        status = "time_limit"
    elif ended.status == 0:
        if ended.unfetched:
            return ("memory_limit" if ran.memory_killed else "disk_limit"), f"its files could not be fetched: {ended.unfetched}"
    elif ran.memory_killed or (ended.status < 0 and ended.peak > 0.95 * limits.memory_mb * MIB):
        status = "memory_limit"
    elif ran.machine_full:
        return "sandbox_error", "the kernel had no memory left for it; give the sandbox more, or fewer slots"
    elif ended.full or ended.status == -signal.SIGXFSZ:
        status = "disk_limit"
    elif ran.forks_refused:
        status = "process_limit"
    else:
        how = f"exit status {ended.status}" if ended.status > 0 else f"signal {_name(-ended.status)}"
        return "runtime_error", f"it ended with {how}"
    return status, _reasons(limits).get(status, "")


def _name(number: int) -> str:
    """Of a signal; most of the real-time ones have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _reasons(limits: Limits) -> dict[Status, str]:
    return {
        "time_limit": f"more than {limits.cpu_seconds:g} s of CPU",
        "wall_limit": f"not done after {limits.wall_seconds:g} s",
        "memory_limit": f"more than {limits.memory_mb} MiB of memory",
        "disk_limit": f"more than {limits.disk_mb} MiB of files",
        "output_limit": f"more than 16 times {limits.output_kb} KiB of output",
        "process_limit": f"more than {limits.processes} processes",
    }
