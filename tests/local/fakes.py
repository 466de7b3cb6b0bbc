"""Small plans of real processes: `python -c` containers in the shape of a job."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from rljob.api import RLJob
from rljob.local.places import Places
from rljob.plan.types import Container, Listen, Mount, Plan, Pod, Port, Resources, Service, Value, Volume, VolumePath

SLEEP = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); signal.pause()"

JOB = RLJob.model_validate(
    {
        "apiVersion": "rljob.dev/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "fake"},
        "spec": {
            "model": {"source": {"path": "model"}},
            "data": {"train": {"path": "train.jsonl"}},
            "backoffLimit": 1,
        },
    }
)


def container(
    name: str,
    code: str,
    restart: Literal["always", "on-failure"] = "on-failure",
    ports: tuple[Port, ...] = (),
    env: Mapping[str, Value] = MappingProxyType({}),
) -> Container:
    """A container that runs Python code, with the folders `work` and `shm`."""
    return Container(
        name=name,
        command=("python", "-c", code),
        env={"WORK": VolumePath("work"), "RLJOB_DIR_SHM": VolumePath("shm"), **env},
        mounts=(Mount("work", "/work"), Mount("shm", "/dev/shm")),
        resources=Resources(0, 1),
        restart=restart,
        grace_seconds=5.0,
        ports=ports,
    )


def plan_of(*pods: Pod) -> Plan:
    """A plan of these pods, with a master service if one has such a port."""
    volumes = (Volume("work", "state"), Volume("shm", "memory"), Volume("job", "config", files={"job.json": json.dumps({})}))
    return Plan("fake", pods, volumes, (Service("master", "master", "master"),))


def master(code: str) -> Pod:
    """The pod that decides when the job is over."""
    return Pod("master", "master", (container("master", code, ports=(Port("master", 1),), env={"LISTEN": Listen("master")}),))


def places(folder: Path, run: str, ports: dict[tuple[str, str], int]) -> Places:
    """Everything below the test's own folder."""
    return Places(
        run=run,
        folder=folder / "job",
        source=folder,
        cache=folder / "cache",
        memory=folder / "shm",
        sockets=folder / "sockets",
        ports=ports,
        python=sys.executable,
        cores=2,
    )
