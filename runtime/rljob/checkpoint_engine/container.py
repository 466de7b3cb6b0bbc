"""What a manifest cannot say in an environment variable: a share of the node's cores, and the devices of another container.

| variable | meaning |
|---|---|
| `RLJOB_CORES`, `RLJOB_CORES_SHARED_BY` | cores of this container and the processes that share them: `OMP_NUM_THREADS`, unless it is set |
| `RLJOB_DEVICES=publish` | write the list of the devices that this container holds into the sockets folder |
| `RLJOB_DEVICES=adopt` | all devices of the node are visible: use those of that list (`CUDA_VISIBLE_DEVICES`) |

An environment without them is left as it is.
"""

import importlib
import os
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from rljob.api import ConfigurationError, InfrastructureError

LIST = "devices"
"""Name of the list below the sockets folder."""
DEADLINE = 60.0
"""Seconds that the list may take: the container that writes it was started before."""


def complete(environ: MutableMapping[str, str]) -> None:
    """Set what the processes of this container read, in place.

    Raises:
        ConfigurationError: this container holds no device to publish.
        InfrastructureError: the list of devices does not come.
    """
    threads = thread_count(environ)
    if threads is not None:
        environ.setdefault("OMP_NUM_THREADS", str(threads))
    role = environ.get("RLJOB_DEVICES")
    if role is None:
        return
    path = Path(environ["RLJOB_DIR_SOCKETS"]) / LIST
    if role == "publish":
        publish(path, held_devices(environ))
    else:
        environ["CUDA_VISIBLE_DEVICES"] = adopt(path, DEADLINE)


def thread_count(environ: Mapping[str, str]) -> int | None:
    """Threads of one process, at least 1; None if the environment does not say."""
    if "RLJOB_CORES" not in environ:
        return None
    return max(1, int(environ["RLJOB_CORES"]) // int(environ.get("RLJOB_CORES_SHARED_BY", "1")))


def held_devices(environ: Mapping[str, str], bindings: str = "pynvml") -> str:
    """Identifiers of the devices in this container, separated by commas: what the device plugin has set, else what NVML shows.

    Raises:
        ConfigurationError: there is none.
    """
    said = environ.get("NVIDIA_VISIBLE_DEVICES", "")
    if said.startswith(("GPU-", "MIG-")):
        return said
    try:
        nvml: Any = importlib.import_module(bindings)
    except ImportError as error:
        raise ConfigurationError(
            f"accelerator.sharing is visible, NVIDIA_VISIBLE_DEVICES ({said!r}) names no devices and the Python module {bindings} is "
            "missing: install nvidia-ml-py in this image"
        ) from error
    nvml.nvmlInit()
    found = [str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(i))) for i in range(nvml.nvmlDeviceGetCount())]
    if not found:
        raise ConfigurationError("accelerator.sharing is visible, but NVML shows no device: use a node with one, or set sharing to single")
    return ",".join(found)


def publish(path: Path, devices: str) -> None:
    """Write the list, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(devices)
    draft.rename(path)


def adopt(path: Path, deadline: float, sleep: Callable[[float], None] = time.sleep) -> str:
    """Read the list, once it is there.

    Raises:
        InfrastructureError: it is not there in time.
    """
    waited = 0.0
    while not path.exists():
        if waited >= deadline:
            raise InfrastructureError(f"{path} does not come: the container that holds the devices has not started; see its log")
        sleep(0.1)
        waited += 0.1
    return path.read_text()
