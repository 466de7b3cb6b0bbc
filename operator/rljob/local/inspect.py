"""Looks at a job folder from outside: `rljob status`, `rljob logs`, `rljob stop`."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from rljob.api import ConfigurationError, InfrastructureError
from rljob.api.status import JobStatus
from rljob.local import view
from rljob.local.folder import Current, JobFolder

_POLL = 0.1


def open_folder(root: Path) -> JobFolder:
    """The job folder at a path.

    Raises:
        ConfigurationError: there is none.
    """
    folder = JobFolder(root.absolute())
    if not folder.job_file.exists():
        raise ConfigurationError(
            f"{root} is not a job folder (it has no job.yaml); give the folder of an `rljob run`, such as runs/tiny, "
            "or -n NAMESPACE with the name of a job in a cluster"
        )
    return folder


def describe(folder: JobFolder, now: float) -> list[tuple[str, str]]:
    """Label and text of every line of `rljob status`."""
    status, running = folder.status(), folder.running()
    rows = [("job", folder.job_name() or "unknown"), ("folder", str(folder.root))]
    try:
        folder.job()
    except ConfigurationError as error:
        rows.append(("job.yaml", str(error)))
    current = folder.current()
    if running:
        rows.append(("running", f"process {current.pid}, for {view.clock(now - current.started)}" if current else "starting"))
    else:
        rows.append(("running", "no"))
    if status is None:
        unread = f"unknown: {folder.status_file} is damaged or of another version; a run writes it anew"
        return [*rows, ("phase", unread if folder.status_file.exists() else "nothing done yet")]
    return rows + _of_status(status, running, datetime.fromtimestamp(now, UTC))


def _of_status(status: JobStatus, running: bool, now: datetime) -> list[tuple[str, str]]:
    ended = status.phase in ("Succeeded", "Failed")
    phase = status.phase if running or ended else f"{status.phase}, when it was stopped"
    rows = [
        ("phase", phase),
        ("iterations", f"{status.finished} of {status.iterations} done"),
        ("policy version", str(status.policy_version)),
    ]
    if running and status.progress is not None:
        rows.append(("progress", f"{status.progress.done:,} of {status.progress.total:,} {status.progress.unit}"))
    if running:
        rows += [(node.name, f"{node.step} {view.span(node.step_seconds)}  {node.failure}".rstrip()) for node in status.nodes]
    rows += [("switch", said) for said in status.switches]
    if status.rewards:
        rows.append(("reward", f"{view.sparkline(status.rewards)}  {status.rewards[0]:.3f} → {status.rewards[-1]:.3f}"))
    for held_out in view.ends(status.held_out):
        rows.append((f"held-out, it. {held_out.iteration}", view.percent(held_out.accuracy)))
    if status.timings:
        rows.append(("last iteration", ", ".join(f"{name} {view.span(seconds)}" for name, seconds in status.timings.items())))
    if (failure := status.last_failure) is not None:
        rows.append(("last failure", view.last_failure(failure, now)))
    return rows


def logs(folder: JobFolder, which: str | None) -> list[Path]:
    """Log files: all, a pod's, or a container's.

    Raises:
        ConfigurationError: there is none of that name; lists those there are.
    """
    found = sorted(folder.logs.glob("*.log")) if folder.logs.is_dir() else []
    if which is None:
        return found
    pod, _, container = which.partition("/")
    chosen = [f for f in found if f.name == f"{pod}.{container}.log" or (not container and f.name.startswith(f"{pod}."))]
    if not chosen:
        names = ", ".join(sorted(f.name.removesuffix(".log").replace(".", "/", 1) for f in found)) or "none yet"
        raise ConfigurationError(f"{folder.root} has no log of {which!r}; there are: {names}")
    return chosen


def read_logs(
    find: Callable[[], Sequence[Path]], follow: bool, named: bool, going_on: Callable[[], bool], wait: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """Lines of the log files that `find` finds, each with the name of its file in front if they are `named`. With `follow` new lines and
    files too, until nothing is `going_on`."""
    places: dict[Path, int] = {}
    while True:
        alive = follow and going_on()
        for file in find():
            with file.open("rb") as stream:
                stream.seek(places.get(file, 0))
                text = stream.read()
            whole = text if not alive else text[: text.rfind(b"\n") + 1]
            places[file] = places.get(file, 0) + len(whole)
            name = f"{file.name.removesuffix('.log')}: " if named else ""
            for line in whole.decode(errors="replace").splitlines():
                yield name + line
        if not alive:
            return
        wait(_POLL)


def stop(folder: JobFolder, timeout: float, wait: Callable[[float], None] = time.sleep) -> bool:
    """Ask the run on this folder to stop cleanly, and wait for it. False: none was running.

    Raises:
        InfrastructureError: it has not ended within `timeout` seconds.
    """
    if not folder.running():
        return False
    asked: Current | None = None
    for _ in range(max(1, int(timeout / _POLL))):
        current = folder.current()
        # A run that only begins has not noted itself yet: what is noted then is one that was killed, and its number may be somebody else's.
        if current is not None and current != asked and current.lives:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(current.pid, signal.SIGTERM)
            asked = current
        wait(_POLL)
        if not folder.running():
            return True
    if asked is None:
        raise InfrastructureError(
            f"the run on {folder.root} is only just starting, or is on another machine or in another container; try again in a second, "
            "or stop it there"
        )
    raise InfrastructureError(f"process {asked.pid} has not ended within {timeout:.0f} s; see {folder.logs}")
