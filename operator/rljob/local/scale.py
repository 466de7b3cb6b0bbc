"""`rljob scale`: another number of rollout replicas for a job that runs on this machine."""

import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from rljob.api import ConfigurationError, InfrastructureError, RLJob
from rljob.api.load import load
from rljob.local.folder import JobFolder, replace_text
from rljob.local.hub import known_shape
from rljob.local.preflight import devices_here, no_room_for, shared_memory_free, too_few_devices
from rljob.plan import Machine, estimate

_POLL, _PATIENCE = 0.1, 10.0


def scaled(job: RLJob, replicas: int) -> RLJob:
    """The job with so many rollout replicas.

    Raises:
        ConfigurationError: it may not have so many.
    """
    data = job.model_dump(mode="json", by_alias=True)
    data["spec"]["rollout"]["replicas"] = replicas
    try:
        return RLJob.model_validate(data)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"]
        raise ConfigurationError(f"spec.rollout.replicas: {replicas} is not possible ({said}); give a number from 0 on") from error


def folder_of(path: Path) -> JobFolder:
    """The job folder that is meant: itself, or the one that `rljob run FILE` uses.

    Raises:
        ConfigurationError: there is none, or the file holds no job.
    """
    root = Path("runs") / load(path).metadata.name if path.is_file() else path
    folder = JobFolder(root.absolute())
    if not folder.job_file.exists():
        raise ConfigurationError(f"{root} is not a job folder (it has no job.yaml); give the folder of an `rljob run`, such as runs/tiny")
    return folder


def _environment(process: int) -> dict[str, str]:
    """What a process was started with.

    Raises:
        InfrastructureError: it has just ended, or is somebody else's.
    """
    try:
        words = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError as error:
        raise InfrastructureError(f"the `rljob run` here (process {process}) cannot be looked at: {error.strerror}") from error
    return dict(word.split("=", 1) for word in words if "=" in word)


def scale(folder: JobFolder, replicas: int, wait: Callable[[float], None] = time.sleep) -> tuple[int, int]:
    """Have the run on this folder go on with so many rollout replicas; (before, after).

    Raises:
        ConfigurationError: the number is not possible, or nothing runs there.
        InfrastructureError: the run does not take it up.
    """
    job, current = folder.job(), folder.current()
    assert job is not None
    if not folder.running() or current is None:
        raise ConfigurationError(
            f"no `rljob run` uses {folder.root}; set spec.rollout.replicas in the job's file, or --set spec.rollout.replicas={replicas}"
        )
    before = job.spec.rollout.replicas
    wanted = scaled(job, replicas)
    sizes = estimate(wanted, known_shape(wanted, Path(current.source).parent), Machine(cores=1, bf16=False))
    if refusal := no_room_for(replicas, sizes.arena * max(0, replicas - before), shared_memory_free()):
        raise ConfigurationError(refusal)
    on_cpu = job.spec.accelerator.type == "cpu"
    if not on_cpu and (refusal := too_few_devices(wanted, len(devices_here(_environment(current.pid))))):
        raise ConfigurationError(refusal)
    replace_text(folder.scale_file, f"{replicas}\n")
    for _ in range(int(_PATIENCE / _POLL)):
        if (found := folder.job()) is not None and found.spec.rollout.replicas == replicas:
            return before, replicas
        wait(_POLL)
    raise InfrastructureError(
        f"the run on {folder.root} (process {current.pid}) has not taken it up within {_PATIENCE:.0f} s; see its output"
    )
