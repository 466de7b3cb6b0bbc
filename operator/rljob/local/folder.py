"""The job folder: what lies where, who may use it, what a broken run left behind."""

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rljob.api import ConfigurationError, RLJob
from rljob.api.load import describe
from rljob.api.status import JobStatus
from rljob.local.marked import began, sweep
from rljob.plan import prompt_sets

CONTENTS = ("checkpoints", "state", "source", "data", "model", "logs", "metrics.jsonl", "report.html", "status.json", "run", "job.yaml")
"""What a job puts into its folder; nothing else in it is ever removed. In this order: what is left when somebody is interrupted may be
refused, but never is an old checkpoint beside a new state, which would take it for its own."""


@dataclass(frozen=True)
class Current:
    """The run that uses the folder, or that did and was killed."""

    run: str
    pid: int
    started: float
    temporary: tuple[str, ...]
    """Folders outside the job folder."""
    master: str
    """Base address of the master."""
    source: str
    """The job file."""
    lock: tuple[int, int] | None = None
    """Device and inode of the folder's lock, filled in when this is written; None: by an older version."""
    began: int | None = None
    """When the process began, in the kernel's ticks; likewise."""

    @property
    def lives(self) -> bool:
        """Is the process still there? Its number may have gone to another one since."""
        return (found := began(self.pid)) is not None and self.began in (None, found)


@dataclass(frozen=True)
class JobFolder:
    """A folder that holds one job."""

    root: Path

    @property
    def job_file(self) -> Path:
        return self.root / "job.yaml"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log(self, pod: str, container: str) -> Path:
        """Log of a container."""
        return self.logs / f"{pod}.{container}.log"

    @property
    def begun(self) -> bool:
        """Is there a state that the job has to go on with as it was? What is only prepared follows every change of it."""
        return (self.root / "state" / "master.sqlite").exists()

    @property
    def current_file(self) -> Path:
        return self.root / "run" / "current.json"

    @property
    def status_file(self) -> Path:
        return self.root / "status.json"

    @property
    def _lock_file(self) -> Path:
        return self.root / "run" / "lock"

    def _lock_identity(self) -> tuple[int, int]:
        """What the lock keeps when the folder is moved on its disk, and a copy of the folder does not have."""
        found = self._lock_file.stat()
        return found.st_dev, found.st_ino

    @property
    def scale_file(self) -> Path:
        return self.root / "run" / "replicas"

    def wanted_replicas(self) -> int | None:
        """The number of rollout replicas that somebody has asked the run for; None if nobody has."""
        try:
            return int(self.scale_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def job(self) -> RLJob | None:
        """The job that the folder holds.

        Raises:
            ConfigurationError: `job.yaml` is there but cannot be read.
        """
        try:
            data = yaml.safe_load(self.job_file.read_text(encoding="utf-8"))
            if isinstance(data, dict) and isinstance(data.get("metadata"), dict):
                # Nothing else of it is read here, and a newer release may be stricter with it than the one that wrote it.
                data["metadata"] = {"name": data["metadata"].get("name")}
            return RLJob.model_validate(data)
        except FileNotFoundError:
            return None
        except (yaml.YAMLError, ValueError) as error:
            problems = describe(error) if isinstance(error, ValidationError) else [str(error).splitlines()[0]]
            said = str(problems[0]).partition(";")[0] + (f", and {len(problems) - 1} more" if len(problems) > 1 else "")
            raise ConfigurationError(f"{self.job_file} was changed or is from another version ({said}); change it back") from error

    def job_name(self) -> str | None:
        """Name of the job that the folder holds, also if this version cannot read the rest; None if it cannot be told."""
        return self._kind_and_name()[1]

    def _kind_and_name(self) -> tuple[str | None, str | None]:
        try:
            data = yaml.safe_load(self.job_file.read_text(encoding="utf-8"))
            return str(data.get("kind")), str(data["metadata"]["name"])
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            return None, None

    def kept_from(self, name: str) -> str:
        """Why what is here is not removed for the job of that name to start over; empty if it is."""
        kind, held = self._kind_and_name()
        if held not in (None, name):
            return f"{self.root} holds the job {held!r}, which --fresh would remove"
        if self.job_file.exists() and kind != RLJob.__name__ and not self.begun:
            return f"{self.job_file} is no job's, so --fresh removes nothing there"
        return ""

    def status(self) -> JobStatus | None:
        """What the master wrote last, as far as this version knows it; None before its first word, and if it is no status: it is made
        from the job's state, and the next run writes it anew."""
        try:
            return JobStatus.model_validate_json(self.status_file.read_bytes(), extra="ignore")
        except (FileNotFoundError, ValidationError):
            return None

    def current(self) -> Current | None:
        """The run that is, or was, here; of a newer version's record, what this one knows."""
        try:
            record = json.loads(self.current_file.read_text(encoding="utf-8"))
            data = {field.name: record[field.name] for field in fields(Current) if field.name in record}
            lock = tuple(data["lock"]) if data.get("lock") else None
            numbers = {"pid": int(data["pid"]), "started": float(data["started"])}
            return Current(**data | numbers | {"temporary": tuple(data["temporary"]), "lock": lock})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def write_current(self, current: Current | None) -> None:
        """Record the run, or that there is none."""
        if current is None:
            self.current_file.unlink(missing_ok=True)
        else:
            current = replace(current, lock=self._lock_identity(), began=began(current.pid))
            replace_text(self.current_file, json.dumps(asdict(current), indent=1))

    def write_job(self, job: RLJob) -> None:
        """Record the job with every default filled in."""
        replace_text(self.job_file, _written(job.model_dump(mode="json", by_alias=True, exclude_none=True)))

    def running(self) -> bool:
        """Does a supervisor hold the folder?"""
        try:
            lock = os.open(self._lock_file, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            # Shared: who only looks needs no right to write, and several who look do not take each other for a run.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    @property
    def empty(self) -> bool:
        """Does the folder hold nothing, or not exist?"""
        return not self.root.is_dir() or next(self.root.iterdir(), None) is None

    def foreign(self) -> list[str]:
        """Names in the folder if it is no job folder; empty if it is one, is empty or does not exist.

        A `job.yaml` makes none: people have files of that name, their jobs' or other ones, with data of theirs beside it.
        """
        if self._lock_file.exists() or self.begun or self.empty:
            return []
        return sorted(entry.name for entry in self.root.iterdir())

    def clear(self) -> None:
        """Remove what a job put here, except the lock of the one who asks, and its record, which is replaced when the job is written."""
        for name in CONTENTS:
            path = self.root / name
            if name == "job.yaml":
                continue
            if name == "run":
                self.write_current(None)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the folder alone, and clean up after a run that was killed.

        Raises:
            ConfigurationError: another run holds it, or it is not a job folder, or it cannot be written.
        """
        if names := self.foreign():
            raise ConfigurationError(
                f"{self.root} is not a job folder (it holds {', '.join(names[:3])}); give an empty or new folder with --workdir"
            )
        try:
            self._lock_file.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigurationError(f"cannot write to {self.root}: {error.strerror}; give another folder with --workdir") from error
        try:
            if not _lock(lock):
                current = self.current()
                who = f" (process {current.pid})" if current else ""
                raise ConfigurationError(
                    f"{self.root} is in use by another `rljob run`{who}; stop it with `{program()} stop {self.root}` "
                    "or give another folder with --workdir"
                )
            # A copy of a job's folder names the run of the original, which may go on; only the lock tells the two apart. Versions before
            # did not note it.
            if (left := self.current()) and left.lock in (None, self._lock_identity()):
                sweep(left.run, left.temporary)
            self.write_current(None)
            yield
        finally:
            os.close(lock)


def _lock(file: int, tries: int = 10) -> bool:
    """Take the lock. Tried for half a second, because `running` holds it for an instant when it looks."""
    for attempt in range(tries):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt + 1 < tries:
                time.sleep(0.05)
    return False


def program() -> str:
    """What to call this program by: its name where the shell finds it, else its path."""
    ours = Path(sys.executable).with_name("rljob")
    return "rljob" if shutil.which("rljob") or not ours.exists() else str(ours)


def _written(data: Any) -> str:
    """A job's record."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def _is_record(file: Path) -> bool:
    """Was the file written by a run, of whichever release? Then nothing in it is lost when it is written anew."""
    text = file.read_text(encoding="utf-8")
    return _written(yaml.safe_load(text)) == text


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new text, never half."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


_MAY_CHANGE = (
    *("spec.iterations", "spec.suspend", "spec.backoffLimit", "spec.activeDeadlineSeconds", "spec.ttlSecondsAfterFinished"),
    *("spec.queueName", "spec.templates", "spec.checkpoint", "spec.files", "spec.credentials", "spec.switch", "spec.accelerator"),
    *(
        "spec.sandbox",
        "spec.rollout.replicas",
        "spec.rollout.tensorParallel",
        "spec.rollout.engine",
        "spec.rollout.weights",
        "spec.evaluation.every",
    ),
    *("spec.trainer.nodes", "spec.trainer.tensorParallel", "spec.trainer.pipelineParallel", "spec.trainer.expertParallel"),
    "spec.trainer.virtualPipelineParallel",
    *("spec.trainer.contextParallel", "spec.trainer.microBatchTokens", "spec.trainer.recompute"),
    *("spec.reward.replicas", "spec.reward.workers", "spec.reward.timeoutSeconds"),
    *("metadata.labels", "metadata.annotations", "metadata.namespace"),
)
"""What a job may change between two runs and still be the same training: what the master allows (rljob.master.decisions.identity)."""


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Fields in which two jobs (as plain data) differ: (path, old value, new value)."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [d for n in names for d in differences(old.get(n), new.get(n), f"{path}.{n}" if path else n)]
    return [] if old == new else [(path, old, new)]


def changes_that_break(old: RLJob, new: RLJob) -> list[tuple[str, Any, Any]]:
    """Changes with which the old state cannot be gone on from."""
    found = differences(old.model_dump(mode="json", by_alias=True), new.model_dump(mode="json", by_alias=True))
    return [d for d in found if not any(d[0] == p or d[0].startswith(f"{p}.") for p in _MAY_CHANGE)]


def check_inputs(folder: JobFolder, job: RLJob, file: Path) -> None:
    """Does the job start from nothing that it writes or removes itself? `file`: the job's; what relative paths start at is its folder.

    Raises:
        ConfigurationError: its file, its model or its data lie among what a job puts into the folder.
    """
    named = [(f"{field}.path", data.path) for field, data in prompt_sets(job)]
    named += [("spec.model.source.path", job.spec.model.source.path)]
    named += [("spec.reward.options: folder", path) for path in job.spec.reward.model_folders]
    start = file.absolute().parent
    inputs = [(f"{field} is {path!r}", start / path) for field, path in named if path is not None]
    if file.resolve() != folder.job_file.resolve() or not _is_record(file):
        inputs.append((f"the job's file is {str(file)!r}", file.absolute()))
    for said, path in inputs:
        for own in (folder.root / name for name in CONTENTS):
            if path.resolve().is_relative_to(own.resolve()):
                raise ConfigurationError(
                    f"{said}, but the job itself writes and removes {'it' if own == path else own}; copy it elsewhere, "
                    "or give another folder with --workdir"
                )


def check_same_job(folder: JobFolder, job: RLJob) -> None:
    """Is the job that the folder holds the one that is to run? One that has not begun may change in everything but its name.

    Raises:
        ConfigurationError: it is another one, or so changed that it cannot go on.
    """
    over = "" if folder.kept_from(job.metadata.name) else ", start over with --fresh,"
    try:
        old = folder.job()
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}{over} or give another folder with --workdir") from error
    if old is None:
        return
    if old.metadata.name != job.metadata.name:
        raise ConfigurationError(
            f"{folder.root} holds the job {old.metadata.name!r}, not {job.metadata.name!r}; give another folder with --workdir"
        )
    if folder.begun and (broken := changes_that_break(old, job)):
        path, before, after = broken[0]
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise ConfigurationError(
            f"{path} was {json.dumps(before)} when the job in {folder.root} began and is {json.dumps(after)} now{more}; "
            f"change it back{over} or give another folder with --workdir"
        )
