"""The simulator of the fan-out drives the planning code, with the tensors of real models."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from _models import MODELS, piece_sizes
from fanout_simulator import GB, Setting, simulate

from rljob.master.exchange import SILENCE

FEW_TENSORS = [name for name, config in MODELS.items() if "num_experts" not in config]


@pytest.mark.parametrize("model", FEW_TENSORS)
def test_no_piece_of_a_model_is_much_larger_than_the_others(model: str) -> None:
    """Its embedding alone is a fifth of the smallest one."""
    sizes = piece_sizes(model)
    assert max(sizes) <= max(1 << 20, sum(sizes) / 256) + 4096
    assert 256 <= len(sizes) <= 512


def test_eight_nodes_have_a_real_model_within_one_and_a_half_times_what_one_takes() -> None:
    pieces = piece_sizes("SmolLM2-135M")
    one, eight = (simulate(Setting(count, pieces)) for count in (1, 8))
    assert eight["all"] < 1.5 * one["all"]
    assert eight["source"] < 1.2


def test_everybody_who_lives_has_it_though_some_die_and_some_are_slow() -> None:
    setting = Setting(20, piece_sizes("Qwen2.5-7B"), nic=GB, deaths=0.1, slow=0.05)
    found = simulate(setting)
    assert 0 < found["all"] < found["slow"] < 15 * found["ideal"]
    assert found == replaced(found, simulate(setting)), "what is drawn is seeded"


def test_a_master_that_is_slow_at_deciding_is_waited_for() -> None:
    setting = Setting(8, piece_sizes("SmolLM2-135M"))
    quick, slow = simulate(setting), simulate(replace(setting, decision=0.05))
    assert quick["answer"] < 0.1 < slow["answer"] < SILENCE
    assert quick["master"] < 0.2 < slow["master"]
    assert quick["all"] < slow["all"]


def replaced(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """The other, but for what is measured."""
    return {**other, "grant_ms": one["grant_ms"]}
