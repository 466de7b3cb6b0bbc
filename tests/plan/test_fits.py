"""Lengths and sizes that just fit a model, and those that just do not."""

from dataclasses import replace
from typing import Any

import pytest
from tests.plan.test_estimate import MOE, SMOL, TWO_CORES, job

from rljob.plan import Machine, estimate, misfits
from rljob.plan.estimate import prompt_tokens, rank_memory, trainer_memory
from rljob.plan.shape import of_config


@pytest.mark.parametrize(("length", "field"), [(8192, None), (8193, "spec.model.maxLength is 8193, but the model's context is 8192")])
def test_sequences_are_as_long_as_the_context_at_most(length: int, field: str | None) -> None:
    found = misfits(job({"path": "m"}, model={"source": {"path": "m"}, "maxLength": length}), SMOL)
    assert [line.partition(";")[0] for line in found] == ([field] if field else [])


@pytest.mark.parametrize(("more", "fits"), [({"maxTokens": 8191}, True), ({"maxTokens": 8192}, False)])
def test_an_answer_leaves_room_for_a_prompt(more: dict[str, Any], fits: bool) -> None:
    assert (misfits(job({"path": "m"}, rollout=more), SMOL) == []) is fits
    assert misfits(job({"path": "m"}, rollout=more, rewardModel={}, warmStart=None), SMOL) == [], "nobody generates"


def test_the_expert_that_every_token_goes_through_is_divided_too() -> None:
    sizes: dict[str, Any] = {"rollout": {"tensorParallel": 4}, "accelerator": {"perNode": 4}}
    shape = of_config(MOE)
    assert misfits(job({"path": "m"}, **sizes), shape) == []
    (line,) = misfits(job({"path": "m"}, **sizes), replace(shape, shared_ffn=shape.shared_ffn + 2))
    assert line.startswith("spec.rollout.tensorParallel is 4, but the model has")


def test_a_prompt_is_taken_to_be_as_long_as_the_answer_leaves_room_for() -> None:
    asked = job({"path": "m"}, rollout={"maxTokens": 8000})
    assert [prompt_tokens(asked, SMOL, length) for length in (None, 192, 500)] == [96, 192, 192]
    assert estimate(asked, SMOL, TWO_CORES, length=500).trained_tokens == estimate(asked, SMOL, TWO_CORES, length=192).trained_tokens


def test_of_nodes_with_stages_of_their_own_the_one_that_holds_most_counts() -> None:
    asked = job({"path": "m"}, trainer={"nodes": 2, "pipelineParallel": 2, "precision": "fp32"}, rollout={"maxTokens": 64})
    stages = [rank_memory(asked, SMOL, stage) for stage in range(2)]
    assert sum(stages[0]) != sum(stages[1])
    assert tuple(size for _, size in trainer_memory(asked, SMOL).parts[1:]) == max(stages, key=sum)


def test_every_process_of_an_engine_has_the_cache_that_was_asked_for() -> None:
    sizes: dict[str, Any] = {"accelerator": {"perNode": 3}, "rollout": {"tensorParallel": 3, "engine": {"kvCacheMemory": "1Gi"}}}
    assert dict(estimate(job({"path": "m"}, **sizes), SMOL, TWO_CORES).memory["vllm"].parts)["KV cache"] == 3 << 30


def test_checkpoints_of_a_reward_model_hold_its_optimizer() -> None:
    """Its iterations are one training: nothing is reset between them."""
    pairs = [job({"path": "m"}, rewardModel={}, warmStart=None, checkpoint={"keep": keep}) for keep in (1, 2)]
    one, two = (estimate(asked, SMOL, TWO_CORES).disk for asked in pairs)
    assert two - one == 16 * SMOL.parameters


def test_training_takes_six_operations_a_parameter_and_token_on_what_computes() -> None:
    def seconds(kind: str, per_node: int, machine: Machine) -> tuple[float, int]:
        shape = replace(SMOL, parameters=8 * 10**9)
        asked = job({"path": "m"}, accelerator={"type": kind, "perNode": per_node}, algorithm={"promptsPerIteration": 512})
        found = estimate(asked, shape, machine)
        return found.seconds["training"], 6 * shape.parameters * found.trained_tokens

    for cores in (2, 64):
        took, operations = seconds("cpu", 1, Machine(cores, bf16=True))
        assert took == pytest.approx(operations / (180e9 * cores))
        for devices in (1, 2):
            took, operations = seconds("nvidia", devices, Machine(cores, bf16=False))
            assert took == pytest.approx(operations / (300e12 * devices)), "GPUs have bf16, whatever the machine has"
