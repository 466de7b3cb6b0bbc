"""What an export takes beside the arena, measured in this process with a real model."""

import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.processes import trainer
from torch import Tensor

from rljob.api import RLJobSpec
from rljob.checkpoint_engine.arena import human_size
from rljob.trainer import peak
from rljob.trainer.build import Replica
from rljob.trainer.device import Cpu

MiB = 1 << 20
SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12}
"""Layers of 11 MiB, with tensors of 2.75 MiB."""
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}


class Noting(Cpu):
    """Keeps what was measured."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def watch(self) -> Callable[[], peak.Extra]:
        self.release()  # what malloc holds free would be used first, and not be seen
        end = super().watch()

        def noted() -> peak.Extra:
            found = end()
            assert found.main is not None
            self.seen.append(found.main)
            return found

        return noted


class Gathering(Replica):
    """What an export must not do."""

    def masters(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in super().masters().items()}


def test_an_export_takes_a_bucket_at_most_and_gathering_the_model_would_be_seen(
    make_model: Callable[..., Path],
    replica: Any,
    spec: Callable[..., RLJobSpec],
    megatron: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from rljob.trainer import weights

    folder = make_model(**SIZES)
    device = Noting()
    made = dataclasses.replace(replica(folder, spec()), device=device)
    size, most = sum(t.nbytes for t in made.masters().values()), weights.bucket(made, made.masters())
    assert size > 4 * most
    weights.canary(made, torch.float32)  # oneDNN's code, once
    caplog.set_level(logging.INFO, "rljob.trainer.weights")
    for dtype in (torch.float32, torch.bfloat16):
        arena = weights.Arena()
        for version in range(2):  # into fresh pages, into warm ones
            weights.export(made, megatron, arena, tmp_path / str(dtype), version, dtype, "worker-0")
    assert max(device.seen) <= most
    told = [f"took {human_size(found)} of main memory beside the arena, bucket {human_size(most)}" for found in device.seen]
    said = [record.getMessage() for record in caplog.records if record.name == "rljob.trainer.weights"]
    assert said == [f"exported version {i % 2}: {what}" for i, what in enumerate(told)]
    assert len(said) == 4

    gathering = Gathering(**vars(made))
    for dtype in (torch.float32, torch.bfloat16):
        weights.export(gathering, megatron, weights.Arena(), tmp_path / f"gathered {dtype}", 0, dtype, "worker-0")
    assert min(device.seen[4:]) > size - MiB > most


@pytest.mark.slow
def test_ranks_that_have_parts_of_tensors_take_no_more(
    make_model: Callable[..., Path], spec: Callable[..., RLJobSpec], tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Two processes with half of every matrix each, as they are when training has ended; what they print is read."""
    folder = make_model(**SIZES)
    both = spec(trainer={"precision": "fp32", "tensorParallel": 2}, accelerator={"perNode": 2})
    with trainer(tmp_path, folder, both, free_port()) as (client, _):
        client.do("load", version=0, path=str(folder))
        client.do("offload")  # gives back what malloc holds free
        client.do("onload")
        client.export(0)
    for rank in range(2):
        line = r"exported version 0: took ([\d.]+) (\w+) of main memory beside the arena, bucket ([\d.]+) (\w+)\n"
        ((taken, unit, bucket, of),) = re.findall(line, (tmp_path / f"rank-{rank}.log").read_text())
        assert float(taken) * UNITS[unit] <= float(bucket) * UNITS[of] < 16 * MiB


def test_memory_that_was_given_back_counts_and_pages_of_a_file_do_not(tmp_path: Path) -> None:
    nbytes = 64 * MiB
    file = tmp_path / "file"
    file.write_bytes(bytes(nbytes))
    Cpu().release()
    taken = peak.watch()
    mapped = torch.from_file(str(file), shared=True, size=nbytes, dtype=torch.uint8)
    mapped.fill_(1)
    assert 0 <= (taken() or 0) < 8 * MiB
    taken = peak.watch()
    gone = torch.ones(nbytes, dtype=torch.uint8)
    del gone
    found = taken()
    assert found is not None
    assert nbytes - MiB < found < nbytes + 8 * MiB
    assert (peak.watch()() or 0) < 8 * MiB, "the mark is set back"


@pytest.mark.parametrize("status", [None, "VmPeak: 1 kB\n"], ids=["closed", "another kernel"])
def test_where_the_kernel_does_not_tell_nothing_is_said_and_nothing_fails(status: str | None, tmp_path: Path) -> None:
    if status is not None:
        (tmp_path / "status").write_text(status)
    assert peak.watch(tmp_path)() is None
    assert str(peak.Extra(None)) == "an unknown part of main memory"
    assert str(peak.Extra(3 * MiB, 5 * MiB)) == "3.0 MiB of main memory and 5.0 MiB of the accelerator's"
