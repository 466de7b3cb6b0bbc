"""Cores and devices of a container."""

from pathlib import Path

import pytest

from rljob.api import ConfigurationError, InfrastructureError
from rljob.checkpoint_engine.container import adopt, complete, held_devices, thread_count


@pytest.mark.parametrize(("cores", "shared_by", "threads"), [("8", "1", 8), ("8", "3", 2), ("2", "4", 1)])
def test_cores_are_divided_among_the_processes(cores: str, shared_by: str, threads: int) -> None:
    assert thread_count({"RLJOB_CORES": cores, "RLJOB_CORES_SHARED_BY": shared_by}) == threads


def test_an_environment_that_says_nothing_is_left_alone() -> None:
    environ = {"PATH": "/bin"}
    complete(environ)
    assert environ == {"PATH": "/bin"}


def test_threads_that_are_set_already_stay() -> None:
    environ = {"RLJOB_CORES": "8", "OMP_NUM_THREADS": "3"}
    complete(environ)
    assert environ["OMP_NUM_THREADS"] == "3"


def test_the_other_container_uses_the_owners_devices(tmp_path: Path) -> None:
    owner = {"RLJOB_DEVICES": "publish", "RLJOB_DIR_SOCKETS": str(tmp_path), "NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2"}
    other = {"RLJOB_DEVICES": "adopt", "RLJOB_DIR_SOCKETS": str(tmp_path), "NVIDIA_VISIBLE_DEVICES": "all"}
    complete(owner)
    complete(other)
    assert "CUDA_VISIBLE_DEVICES" not in owner
    assert other["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"


def test_a_list_that_does_not_come_is_a_failure_of_ours(tmp_path: Path) -> None:
    slept: list[float] = []
    with pytest.raises(InfrastructureError, match="the container that holds the devices has not started"):
        adopt(tmp_path / "devices", 1.0, slept.append)
    assert 0.9 <= sum(slept) <= 1.1


def test_an_owner_without_devices_and_without_nvml_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="install nvidia-ml-py"):
        held_devices({"NVIDIA_VISIBLE_DEVICES": "void"}, bindings="no_such_module")
