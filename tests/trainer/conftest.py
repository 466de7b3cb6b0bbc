"""Tiny models made on the spot, and a real Megatron in this process."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rljob.api import RLJobSpec
from rljob.trainer import cpu
from rljob.wire.batch import Batch, Group, Sample

VOCABULARY = 103  # odd: two ranks must pad it
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
PECULIAR: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 24},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 72},
    "qwen3_moe": EXPERTS | {"head_dim": 24, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
"""What config.json has beyond the common sizes: head sizes of their own, experts."""


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return int(s.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def megatron(free_port: Callable[[], int]) -> Iterator[Any]:
    """torch.distributed with one rank, and Megatron importable; returns the rank's Ranks."""
    from rljob.trainer import device
    from rljob.trainer.ranks import Ranks

    cpu.install()
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Ranks(device.join(device.Cpu()))
    torch.distributed.destroy_process_group()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A Hugging Face folder with a tiny random model of a family."""

    def make(family: str = "llama", tied: bool = True, seed: int = 0, **changes: Any) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        sizes = {
            "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": tied, "initializer_range": 0.1,
        }  # fmt: skip
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes | PECULIAR.get(family, {}) | changes))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        folder = tmp_path_factory.mktemp(f"{family}-{'tied' if tied else 'untied'}")
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def llama(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture
def spec() -> Callable[..., RLJobSpec]:
    """A job's spec; `algorithm`, `trainer`, ... replace whole topics."""

    def make(**topics: Any) -> RLJobSpec:
        defaults: dict[str, Any] = {
            "model": {"source": {"path": "model"}},
            "data": {"train": {"path": "train.jsonl"}},
            "trainer": {"precision": "fp32", "microBatchTokens": 64, "optimizer": {"learningRate": 1e-3}},
        }
        return RLJobSpec.model_validate({**defaults, **topics})

    return make


@pytest.fixture
def replica(megatron: Any) -> Callable[..., Any]:
    """A one-rank Replica with the weights of a model folder."""

    def make(folder: Path, spec: RLJobSpec) -> Any:
        from rljob.trainer import device, weights
        from rljob.trainer.architecture import read_architecture
        from rljob.trainer.build import build

        here = device.Cpu()
        made = build(read_architecture(folder), spec.trainer, device.precision(spec.trainer.precision, here), here)
        weights.load(made, folder)
        return made

    return make


@pytest.fixture(scope="session")
def batch() -> Callable[..., Batch]:
    """Random groups of answers of different lengths, some tokens out of the loss, advantages that sum to zero per group."""

    def make(version: int = 1, groups: int = 3, answers: int = 4, seed: int = 0, longest: int = 12) -> Batch:
        rng = np.random.default_rng(seed)
        made = []
        for _ in range(groups):
            rewards = rng.random(answers)
            samples = []
            for reward in rewards - rewards.mean():
                length = int(rng.integers(2, longest))
                mask = (rng.random(length) < 0.8).astype(np.uint8)
                mask[0] = 1
                tokens = rng.integers(0, VOCABULARY, length).astype(np.int32)
                samples.append(Sample(tokens, mask, rng.normal(-4, 1, length).astype(np.float32), float(reward)))
            made.append(Group(rng.integers(0, VOCABULARY, int(rng.integers(3, 9))).astype(np.int32), tuple(samples)))
        return Batch(version, tuple(made))

    return make


@pytest.fixture
def reference_logprobs() -> Callable[..., torch.Tensor]:
    """Summed log-probability of every sample of a batch by transformers, one sequence at a time: [samples]."""

    def compute(model: Any, batch: Batch) -> torch.Tensor:
        sums = []
        for group in batch.groups:
            for sample in group.samples:
                ids = torch.tensor(np.concatenate([group.prompt, sample.tokens]).astype(np.int64))[None]
                logits = model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1]
                chosen = logits.log_softmax(-1).gather(1, torch.tensor(sample.tokens.astype(np.int64))[:, None])[:, 0]
                sums.append((chosen * torch.tensor(sample.loss_mask.astype(np.float32))).sum())
        return torch.stack(sums)

    return compute
