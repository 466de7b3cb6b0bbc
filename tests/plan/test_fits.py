"""Sizes and lengths that a model does not allow are named with the nearest that it does."""

import math
import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.plan.test_estimate import MOE, SMOL, job

from rljob.api import RLJob
from rljob.plan import ModelShape, misfits
from rljob.plan.fits import BLOCK
from rljob.plan.shape import of_config


@pytest.mark.parametrize(("length", "field"), [(8192, None), (8193, "spec.model.maxLength is 8193, but the model's context is 8192")])
def test_sequences_are_as_long_as_the_context_at_most(length: int, field: str | None) -> None:
    found = misfits(job({"path": "m"}, model={"source": {"path": "m"}, "maxLength": length}), SMOL)
    assert [line.partition(";")[0] for line in found] == ([field] if field else [])


@pytest.mark.parametrize(("more", "fits"), [({"maxTokens": 8191}, True), ({"maxTokens": 8192}, False)])
def test_an_answer_leaves_room_for_a_prompt(more: dict[str, Any], fits: bool) -> None:
    assert (misfits(job({"path": "m"}, rollout=more), SMOL) == []) is fits
    assert misfits(job({"path": "m"}, rollout=more, rewardModel={}, warmStart=None), SMOL) == [], "nobody generates"


@pytest.mark.parametrize(
    ("size", "more", "needed"),
    [
        ("25Mi", {}, "one sequence of 513 tokens takes 26Mi"),  # 18 blocks of 32 tokens of 45 KiB
        ("26Mi", {}, ""),
        ("26Mi", {"model": {"source": {"path": "m"}, "maxLength": 1024}}, "one sequence of 1024 tokens takes 47Mi"),
        ("11Mi", {"accelerator": {"type": "nvidia"}}, "one sequence of 513 tokens takes 12Mi"),
        ("12Mi", {"accelerator": {"type": "nvidia"}}, ""),
        ("9Mi", {"accelerator": {"perNode": 3}, "trainer": {"tensorParallel": 3}}, ""),
        ("1Mi", {"rewardModel": {}, "warmStart": None}, ""),
    ],
)
def test_a_kv_cache_holds_the_longest_sequence(size: str, more: dict[str, Any], needed: str) -> None:
    spec = {"rollout": {"engine": {"kvCacheMemory": size}, "tensorParallel": more.get("accelerator", {}).get("perNode", 1)}} | more
    found = misfits(job({"path": "m"}, **spec), SMOL)
    assert len(found) == (needed != "")
    for line in found:
        assert line.startswith(f"spec.rollout.engine.kvCacheMemory is {size}, but {needed} of an engine's process; raise it")


def test_blocks_of_the_kv_cache_are_as_large_as_the_engine_makes_them() -> None:
    from rljob.rollout.engine import BLOCK as made

    assert BLOCK["cpu"] == made


def test_the_expert_that_every_token_goes_through_is_divided_too() -> None:
    sizes: dict[str, Any] = {"rollout": {"tensorParallel": 4}, "accelerator": {"perNode": 4}}
    shape = of_config(MOE)
    assert misfits(job({"path": "m"}, **sizes), shape) == []
    (line,) = misfits(job({"path": "m"}, **sizes), replace(shape, shared_ffn=shape.shared_ffn + 2))
    assert line.startswith("spec.rollout.tensorParallel is 4, but the model has")


def test_experts_that_cannot_be_spread_like_this_are_named_with_the_nearest_sizes() -> None:
    def of(shape: ModelShape, **sizes: int) -> list[str]:
        return misfits(job({"path": "m"}, trainer=sizes, accelerator={"perNode": 8}), shape)

    shape = of_config(MOE)
    assert of(shape, expertParallel=4) == of(shape, expertParallel=2, tensorParallel=4, pipelineParallel=2) == []
    (line,) = of(shape, expertParallel=8)
    assert line.startswith(
        "spec.trainer.expertParallel is 8, but the model has 60 experts in a layer, for 8 ranks (tensor × context × data"
    )
    assert line.endswith("; set it to 4")
    (line,) = of(shape, expertParallel=8, nodes=2, pipelineParallel=2)
    assert "60 experts in a layer, for 8 ranks" in line
    assert of(SMOL, expertParallel=2) == ["spec.trainer.expertParallel is 2, but the model has no experts; set it to 1"]
    (line,) = of(replace(shape, hidden=2080 - 16), expertParallel=4)
    assert "on CPU need multiples of 32; take another model, or set spec.accelerator.type to nvidia" in line
    (line,) = misfits(job({"path": "m"}, rollout={"tensorParallel": 8}, accelerator={"perNode": 8}), shape)
    assert "experts of size 176 on each of 8 rollout ranks" in line
    assert "set spec.rollout.tensorParallel to 4, take another model, or" in line


def test_heads_that_context_parallel_ranks_cannot_share_are_named_with_the_nearest_sizes() -> None:
    (line,) = misfits(job({"path": "m"}, trainer={"contextParallel": 2}, accelerator={"perNode": 2}), SMOL)
    more = "spec.accelerator.perNode at a multiple of"
    why = "9 attention heads, 3 key/value heads, of which a tensor parallel rank has 9 and 3, to be shared out evenly"
    assert line == f"spec.trainer.contextParallel is 2, but the model has {why}; set it to 1, or to 3 with {more} 3"
    (line,) = misfits(job({"path": "m"}, trainer={"tensorParallel": 3, "contextParallel": 2}, accelerator={"perNode": 6}), SMOL)
    assert line.endswith(f"has 3 and 1, to be shared out evenly; set it to 1, or to 3 with {more} 9")
    assert misfits(job({"path": "m"}, trainer={"contextParallel": 9}, accelerator={"perNode": 9}), SMOL) == []


def test_chunks_that_do_not_divide_the_layers_are_named_with_the_nearest_sizes() -> None:
    sizes = {"pipelineParallel": 3, "virtualPipelineParallel": 4}
    (line,) = misfits(job({"path": "m"}, trainer=sizes, accelerator={"perNode": 3}), SMOL)
    why = "the model has 30 layers, as many in every chunk of every stage; set it to 2 or 5"
    assert line == f"spec.trainer.virtualPipelineParallel is 4, but {why}"


def test_only_sizes_that_work_beside_the_others_are_named() -> None:
    def of(shape: ModelShape, per_node: int, rollout: int = 1, **trainer: int) -> str:
        sizes = {"accelerator": {"perNode": per_node}, "rollout": {"tensorParallel": rollout}}
        (line,) = misfits(job({"path": "m"}, trainer=trainer, **sizes), shape)
        return line.rpartition("; ")[2]

    six, nine = replace(SMOL, layers=6), replace(SMOL, layers=9)
    assert of(six, 4, pipelineParallel=4) == "set it to 2"
    assert of(six, 4, tensorParallel=2) == "set it to 1, or to 3 with spec.accelerator.perNode at a multiple of 3"
    assert of(nine, 6, tensorParallel=3, pipelineParallel=2) == "set it to 1, or to 3 with spec.accelerator.perNode at a multiple of 9"
    assert of(six, 4, nodes=2, tensorParallel=2) == "set it to 1, or to 3 with spec.accelerator.perNode at a multiple of 3"
    assert of(six, 4, pipelineParallel=4, virtualPipelineParallel=3) == "set it to 2", "and the layers are in six chunks then"
    assert of(six, 4, pipelineParallel=4, virtualPipelineParallel=2) == "set it to 3 with spec.accelerator.perNode at a multiple of 3"
    assert of(nine, 4, pipelineParallel=4, virtualPipelineParallel=2) == "set it and spec.trainer.virtualPipelineParallel to 1"
    assert of(six, 4, tensorParallel=2, contextParallel=2) == "set it and spec.trainer.contextParallel to 1"
    assert of(six, 2, rollout=2) == "set it to 1, or to 3 with spec.accelerator.perNode at 4"


FACTORS = st.sampled_from([1, 1, 2, 3, 4, 6])


@given(data=st.data())
def test_every_size_that_is_named_is_accepted(data: st.DataObject) -> None:
    drawn, factor = data.draw, partial(data.draw, FACTORS)
    kv_heads, experts = factor(), drawn(st.sampled_from([0, 0, 4, 6, 60]))
    trainer = {f"{name}Parallel": factor() for name in ("tensor", "pipeline", "context", "expert")} | {"nodes": factor()}
    trainer["virtualPipelineParallel"] = factor() if trainer["pipelineParallel"] > 1 else 1
    ffn = drawn(st.sampled_from([96, 128, 192]))
    shape = replace(SMOL, layers=drawn(st.integers(1, 36)), heads=kv_heads * factor(), kv_heads=kv_heads, ffn=ffn, experts=experts)

    def asked(per_node: int, sizes: dict[str, int], rollout: int) -> RLJob:
        return job({"path": "m"}, trainer=sizes, accelerator={"perNode": per_node}, rollout={"tensorParallel": rollout, "maxTokens": 64})

    def lines(job: RLJob) -> dict[str, str]:
        return {line.split()[0]: line for line in misfits(job, shape) if line.startswith("spec.")}

    stages = trainer["pipelineParallel"]
    ranks = math.lcm(trainer["tensorParallel"] * stages * trainer["contextParallel"], stages * trainer["expertParallel"])
    least = math.lcm(ranks // math.gcd(ranks, trainer["nodes"]), trainer["tensorParallel"])
    assume(least <= 64)
    per_node = least * drawn(st.integers(1, 64 // least))
    rollout = drawn(st.integers(1, min(per_node, 6)))
    before = lines(asked(per_node, trainer, rollout))
    for field, line in before.items():
        part, name = field.removeprefix("spec.").split(".")
        remedy = line.rpartition("; set it ")[2]
        also = {found[1]: 1 for found in re.finditer(r"and spec.trainer.(\w+)", remedy)}
        for said in re.finditer(r"(\d+)(?: with spec.accelerator.perNode at (a multiple of )?(\d+))?", remedy):
            size, more = int(said[1]), int(said[3] or per_node)
            new = {name: size, **also}
            most = 64 // more * more if said[2] else more
            there = asked(most, trainer | new, min(rollout, most)) if part == "trainer" else asked(most, trainer, size)
            assert lines(there).keys() <= before.keys() - {field}, f"{line} -> {misfits(there, shape)}"
