"""The memory gate."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from tests.checkpoint_engine.twins import Nvml
from tests.master.virtual import run

from rljob.api import ConfigurationError, InfrastructureError
from rljob.checkpoint_engine import gate
from rljob.checkpoint_engine.gate import IDLE_CARD, Claim, CpuMemory, NvmlMemory, Reading, is_plenty, problem, wait_open
from rljob.checkpoint_engine.outcome import GateFailed
from rljob.checkpoint_engine.state import Owner

GiB = 1 << 30


@dataclass
class Memory:
    """Readings one after another; the last stays."""

    readings: list[Reading] = field(default_factory=list)

    async def read(self, leaving: Owner) -> Reading:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def total(self) -> int:
        return 80 * GiB


def test_it_opens_when_what_is_free_covers_the_claim() -> None:
    claim = Claim("engine", 10 * GiB, baseline=GiB, tolerance=GiB // 2)
    assert problem(Reading(free=10 * GiB, rest=GiB), claim) is None
    assert problem(Reading(free=10 * GiB, rest=GiB + GiB // 2), claim) is None


def test_it_says_what_is_missing_and_what_to_do() -> None:
    text = problem(Reading(free=6 * GiB, rest=3 * GiB), Claim("engine", 10 * GiB, None, GiB))
    assert text is not None
    assert text.startswith("the engine will claim 10.0 GiB, 6.0 GiB are free (3.0 GiB are held by the trainer that left)")
    assert "rollout.engine.kvCacheMemory" in text


def test_a_rest_that_has_grown_is_a_leak_and_the_first_one_is_not() -> None:
    reading = Reading(free=70 * GiB, rest=3 * GiB)
    assert problem(reading, Claim("trainer", GiB, None, GiB)) is None
    text = problem(reading, Claim("trainer", GiB, GiB, GiB))
    assert text is not None
    assert "the engine that left holds 3.0 GiB, 2.0 GiB more than at its first hand-over" in text


def test_what_a_trainer_has_freed_and_keeps_is_no_leak() -> None:
    reading = Reading(free=70 * GiB, rest=4 * GiB)
    assert problem(reading, Claim("engine", GiB, GiB, GiB // 2, freed=3 * GiB)) is None
    assert problem(reading, Claim("engine", GiB, GiB, GiB // 2, freed=5 * GiB)) is None, "more is free than was ever there"
    text = problem(reading, Claim("engine", GiB, GiB, GiB // 2, freed=GiB))
    assert text is not None
    assert "the trainer that left holds 3.0 GiB, 2.0 GiB more than at its first hand-over" in text


def test_memory_is_plenty_if_what_is_free_covers_the_claim_twice() -> None:
    assert is_plenty(4 * GiB, 2 * GiB)
    assert not is_plenty(4 * GiB - 1, 2 * GiB)


def test_it_waits_for_memory_that_is_on_its_way_back() -> None:
    memory = Memory([Reading(GiB, 9 * GiB), Reading(GiB, 9 * GiB), Reading(9 * GiB, GiB)])
    assert run(wait_open(memory, Claim("engine", 8 * GiB, None, GiB), 10)) == Reading(9 * GiB, GiB)


def test_it_gives_up_at_its_deadline() -> None:
    async def wait() -> float:
        with pytest.raises(GateFailed, match=r"after 10 s the engine will claim 8\.0 GiB, 1\.0 GiB are free"):
            await wait_open(Memory([Reading(GiB, 0)]), Claim("engine", 8 * GiB, None, GiB), 10)
        return asyncio.get_running_loop().time()

    assert run(wait()) == pytest.approx(10, abs=0.1)


def test_main_memory_is_what_the_kernel_has_available() -> None:
    async def held(owner: Owner) -> int:
        return {"trainer": 5, "engine": 7}[owner]

    memory = CpuMemory(held)
    reading = asyncio.run(memory.read("engine"))
    assert reading.rest == 7
    assert 0 < reading.free <= memory.total() == psutil.virtual_memory().total


def in_container(folder: Path, limit: str, used: int, stat: str = "inactive_file 0") -> int:
    """What is free in a container with these files of its cgroup."""

    async def held(owner: Owner) -> int:
        return 0

    for name, text in {"max": f"{limit}\n", "current": f"{used}\n", "stat": f"anon 1\n{stat}\n"}.items():
        (folder / f"memory.{name}").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "_CGROUP", folder)
        return asyncio.run(CpuMemory(held).read("engine")).free


@pytest.mark.parametrize(
    ("used", "stat", "free"),
    [
        (GiB - 4096, "inactive_file 0", 4096),
        (GiB, "inactive_file 0", 0),
        (GiB, "inactive_file 4096", 4096),  # pages of files that the kernel takes back
        (GiB - 4096, "file 4096", 4096),
    ],
)
def test_main_memory_ends_at_the_containers_limit(tmp_path: Path, used: int, stat: str, free: int) -> None:
    assert in_container(tmp_path, str(GiB), used, stat) == free


@pytest.mark.parametrize("limit", ["max", str(1 << 60)])
def test_without_a_limit_or_with_one_beyond_it_main_memory_is_the_machines(tmp_path: Path, limit: str) -> None:
    assert 0 < in_container(tmp_path, limit, GiB) <= psutil.virtual_memory().total


def test_device_memory_counts_from_the_idle_card_and_the_fullest_device() -> None:
    nvml = Nvml([IDLE_CARD, IDLE_CARD + 2 * GiB])
    memory = NvmlMemory(nvml)
    reading = asyncio.run(memory.read("trainer"))
    assert reading == Reading(80 * GiB - IDLE_CARD - 2 * GiB, 2 * GiB)
    assert memory.total() == 80 * GiB, "of each, as what is read"
    nvml.used = [0, 2 * GiB]
    assert asyncio.run(memory.read("trainer")).rest == 2 * GiB - IDLE_CARD
    nvml.used = [0, 0]
    assert asyncio.run(memory.read("trainer")).rest == 0


@pytest.mark.parametrize(("names", "count", "read"), [
    (None, None, 5), (None, 2, 1), ("3", 1, 3), ("4, 2", 1, 4), ("GPU-2,GPU-3", 2, 3), ("0,1,2", 2, 1),
])  # fmt: skip
def test_of_a_machines_devices_the_jobs_own_are_read(names: str | None, count: int | None, read: int) -> None:
    used = [IDLE_CARD + number * GiB for number in range(6)]
    assert asyncio.run(NvmlMemory(Nvml(used), names, count).read("trainer")).rest == read * GiB


@pytest.mark.parametrize("name", ["7", "GPU", "-1"])
def test_a_device_that_is_not_there_is_a_configuration_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"CUDA_VISIBLE_DEVICES names '{name}', which NVML does not know"):
        NvmlMemory(Nvml([0]), name)


@pytest.mark.parametrize("names", [None, "0", "GPU-0", "MIG-0"])
def test_a_part_of_a_device_is_refused_with_what_to_use_instead(names: str | None) -> None:
    with pytest.raises(ConfigurationError, match=r"cut into parts \(MIG\).*settings\.devices\.nvidia\.deviceClass"):
        NvmlMemory(Nvml([0, 0], cut={0} if names != "MIG-0" else ()), names)
    assert NvmlMemory(Nvml([0, 0], cut={1}), count=1).total() == 80 * GiB, "the other is not the job's"


def test_what_nvml_says_is_told_and_tried_again() -> None:
    nvml = Nvml([0])
    memory = NvmlMemory(nvml)
    nvml.cut = {0}
    with pytest.raises(InfrastructureError, match="NVML, which tells how full the devices are, says: Insufficient Permissions"):
        asyncio.run(memory.read("trainer"))


def test_on_a_device_it_says_what_would_help_there() -> None:
    texts = [problem(Reading(GiB, 3 * GiB), Claim(owner, 2 * GiB, None, GiB, on_device=True)) for owner in ("engine", "trainer")]
    assert all(text is not None and "held by the" in text and "that left with all else on the device" in text for text in texts)
    assert "lower rollout.engine.extraArgs.gpu-memory-utilization" in str(texts[0])
    assert "trainer.tensorParallel" in str(texts[1])


def test_no_device_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="NVML shows no device"):
        NvmlMemory(Nvml([]))


def test_missing_bindings_are_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="install nvidia-ml-py"):
        NvmlMemory.open("rljob_has_no_such_module")
