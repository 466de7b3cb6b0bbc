"""What a plan's references become on one machine."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.local.fakes import places

from rljob.api import RLJob
from rljob.local.marked import MARK
from rljob.local.places import command, environment, folders, visible_devices
from rljob.plan import plan

JOB = RLJob.model_validate(
    {
        "apiVersion": "rljob.dev/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "x"},
        "spec": {
            "model": {"source": {"path": "m"}},
            "data": {"train": {"path": "t"}},
            "trainer": {"nodes": 2},
            "accelerator": {"perNode": 2},
        },
    }
)
PLAN = plan(JOB)
PORTS = {(pod.name, port.name): 20000 + i for i, pod in enumerate(PLAN.pods) for c in pod.all_containers for port in c.ports}


@pytest.fixture
def shim_env(tmp_path: Path) -> dict[str, str]:
    pod = PLAN.pod("worker-1")
    inherited = {"PATH": "/bin", "RLJOB_DIR_STATE": "stale", "RANK": "3"}
    return environment(PLAN, places(tmp_path, "run1", PORTS), pod, pod.sidecars[0], inherited)


def test_every_reference_becomes_a_path_an_address_or_a_number(shim_env: dict[str, str], tmp_path: Path) -> None:
    assert shim_env["RLJOB_JOB"] == f"{tmp_path}/job/run/job.json"
    assert shim_env["RLJOB_NODE"] == "worker-1"
    assert shim_env["RLJOB_DIR_MODEL"] == f"{tmp_path}/job/source"
    assert shim_env["RLJOB_DIR_SHM"] == f"{tmp_path}/shm/worker-1"
    assert shim_env["RLJOB_DIR_SOCKETS"] == f"{tmp_path}/sockets/worker-1"
    assert shim_env["RLJOB_URL_MASTER"] == f"http://127.0.0.1:{PORTS['master', 'master']}"
    assert (shim_env["MASTER_ADDR"], shim_env["MASTER_PORT"]) == ("127.0.0.1", str(PORTS["worker-0", "rendezvous"]))
    assert shim_env["OMP_NUM_THREADS"] == "1"


def test_the_callers_environment_is_passed_on_without_this_projects_variables(shim_env: dict[str, str]) -> None:
    assert shim_env["PATH"] == "/bin"
    assert "RLJOB_DIR_STATE" not in shim_env
    assert "RANK" not in shim_env, "of the torchrun around it"


def test_processes_are_marked_and_stay_recognisable(shim_env: dict[str, str]) -> None:
    assert shim_env[MARK] == "run1/worker-1/megatron"
    assert shim_env["SPT_NOENV"] == "1"


def test_processes_read_and_write_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    pod = PLAN.pod("reward")
    inherited = {"LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"}
    assert environment(PLAN, places(tmp_path, "run1", PORTS), pod, pod.containers[0], inherited)["PYTHONUTF8"] == "1"


def test_pods_of_one_machine_do_not_share_sockets_or_memory(tmp_path: Path) -> None:
    made = {str(f.relative_to(tmp_path)) for f in folders(PLAN, places(tmp_path, "run1", PORTS))}
    assert {"shm/worker-0", "shm/worker-1", "sockets/worker-0", "sockets/worker-1", "job/state", "job/checkpoints"} <= made


def test_python_is_the_interpreter_that_runs_this(tmp_path: Path) -> None:
    at = places(tmp_path, "run1", PORTS)
    assert command(at, PLAN.pod("reward").containers[0]) == [at.python, "-m", "rljob.reward"]


def test_each_pod_gets_accelerators_of_its_own_for_all_its_containers(tmp_path: Path) -> None:
    data = JOB.model_dump(by_alias=True, exclude_none=True)
    sizes = {"accelerator": {"type": "nvidia", "perNode": 2}, "rollout": {"replicas": 1}}
    planned = plan(RLJob.model_validate(data | {"spec": data["spec"] | sizes}))
    ports = {(pod.name, port.name): 20000 for pod in planned.pods for c in pod.all_containers for port in c.ports}
    at = replace(places(tmp_path, "run1", ports), devices=("1", "2", "3", "5", "6", "7"))
    inherited = {"CUDA_VISIBLE_DEVICES": "1,2,3,5,6,7"}

    def seen(pod: str) -> set[tuple[str, str | None]]:
        found = [environment(planned, at, planned.pod(pod), c, inherited) for c in planned.pod(pod).all_containers]
        return {(env["CUDA_VISIBLE_DEVICES"], env.get("CUDA_DEVICE_ORDER")) for env in found}

    assert [seen(name) for name in ("worker-0", "worker-1", "rollout-0")] == [{(own, "PCI_BUS_ID")} for own in ("1,2", "3,5", "6")]
    assert seen("reward") == {("1,2,3,5,6,7", None)}


def test_the_accelerators_of_a_run_are_those_that_its_caller_sees() -> None:
    assert visible_devices(2, {}) == ("0", "1")
    assert visible_devices(8, {"CUDA_VISIBLE_DEVICES": "3, 1"}) == ("3", "1")
    assert visible_devices(8, {"CUDA_VISIBLE_DEVICES": "GPU-8f2c,MIG-77aa"}) == ("GPU-8f2c", "MIG-77aa")
    assert visible_devices(2, {"CUDA_VISIBLE_DEVICES": "1,2,0"}) == ("1",), "the machine has no third"
    assert visible_devices(2, {"CUDA_VISIBLE_DEVICES": "-1"}) == visible_devices(2, {"CUDA_VISIBLE_DEVICES": ""}) == ()
