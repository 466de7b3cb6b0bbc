"""What the benchmarks of generation and of the weight path share: a model of the main example's shape, its arena, and an engine."""

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from rljob.api import RLJob
from rljob.checkpoint_engine.arena import TensorFile, TensorSpec, manifest_checksum, tensor_entries
from rljob.rollout.client import EngineClient
from rljob.rollout.engine import engine_argv, engine_environment, zygote_environment
from rljob.wire.data import Prepared
from rljob.wire.weights import Canary, Manifest


@dataclass(frozen=True)
class Shape:
    """A Llama with heads of 64 and tied embeddings; its weights are random, since speed does not depend on what they are."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 49152

    def config(self) -> dict[str, object]:
        """`config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": 64,
            "vocab_size": self.vocabulary, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}, "tie_word_embeddings": True,
            "bos_token_id": None, "eos_token_id": None, "torch_dtype": "float32",  # every answer runs to its full length
        }  # fmt: skip

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in the order in which vLLM fuses them."""
        width, inner = self.hidden, self.inner
        rows: dict[str, tuple[int, ...]] = {"self_attn.q_proj": (64 * self.heads, width)}
        rows |= {f"self_attn.{name}": (64 * self.kv_heads, width) for name in ("k_proj", "v_proj")}
        rows |= {"self_attn.o_proj": (width, 64 * self.heads), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
        rows |= {"mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,)}
        layers = {f"model.layers.{i}.{name}.weight": shape for i in range(self.layers) for name, shape in rows.items()}
        return {"model.embed_tokens.weight": (self.vocabulary, width), **layers, "model.norm.weight": (width,)}


SMOLLM2 = Shape(576, 1536, 30, 9, 3)
"""SmolLM2-135M, the main example's model: 513 MiB in fp32."""
HALF_BILLION = Shape(1536, 4096, 18, 24, 8)
"""529 million parameters: 2 GiB in fp32."""


def job(dtype: str, sequences: int = 128) -> RLJob:
    """A job of which only the engine matters."""
    return RLJob.model_validate(
        {
            "apiVersion": "rljob.dev/v1alpha1",
            "kind": "RLJob",
            "metadata": {"name": "bench"},
            "spec": {
                "model": {"source": {"path": "model"}},
                "data": {"train": {"path": "train.jsonl"}},
                "rollout": {"maxTokens": 32, "engine": {"maxSequences": sequences, "dtype": dtype}},
            },
        }
    )


def prepared(max_length: int) -> Prepared:
    """What `prepare` would have found out."""
    return Prepared(
        model_type="llama", eos_token_ids=(2,), vocab_size=49152, context_length=8192, max_length=max_length,
        parameters=134_515_008, train=1, heldout=0, warmstart=0, digest="",
    )  # fmt: skip


def write_config(shape: Shape, folder: Path) -> None:
    """The model folder of an engine that starts with dummy weights."""
    (folder / "config.json").write_text(json.dumps(shape.config()))


def random_weights(shape: Shape, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """All tensors, and the one piece of memory that they lie in."""
    torch.manual_seed(0)
    flat = torch.empty(sum(math.prod(size) for size in shape.tensors().values()), dtype=dtype).uniform_(-0.05, 0.05)
    tensors, at = {}, 0
    for name, size in shape.tensors().items():
        tensors[name] = flat[at : at + math.prod(size)].view(size)
        at += math.prod(size)
        if len(size) == 1:
            tensors[name].fill_(1.0)
    return flat, tensors


def specs(tensors: dict[str, torch.Tensor]) -> list[TensorSpec]:
    """Their layout in the arena."""
    return [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


def export(file: TensorFile, tensors: dict[str, torch.Tensor], version: int, canary: Canary) -> Manifest:
    """What the trainer does: write, checksum, describe, and only then name the version."""
    file.set_metadata({})
    entries = tensor_entries(file, file.write_all(tensors), "bench")
    file.set_metadata({"version": str(version)})
    return Manifest(version=version, dtype="F32", tensors=entries, checksum=manifest_checksum(entries), canary=canary)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Zygote:
    """A zygote process and its engines, in blocking calls."""

    def __init__(self, spec: RLJob, folder: Path) -> None:
        self._spec, self._folder = spec, folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rljob.rollout.zygote"], env=zygote_environment(spec), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "zygote.log").open("w"),
        )  # fmt: skip
        self.imports = float(self._hear()["ready"])

    def start(self, length: int) -> str:
        """Fork an engine; its address."""
        port = free_port()
        argv = engine_argv(self._spec, prepared(length), self._folder, "127.0.0.1", port)
        start = {"argv": argv, "env": engine_environment(self._spec), "log": str(self._folder / "engine.log")}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"start": start}) + "\n")
        self.process.stdin.flush()
        self._hear()
        return f"http://127.0.0.1:{port}"

    def close(self) -> None:
        """End everything."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()

    def _hear(self) -> dict[str, float]:
        assert self.process.stdout is not None
        answer: dict[str, float] = json.loads(self.process.stdout.readline())
        return answer


@contextlib.contextmanager
def shared_memory(name: str) -> Iterator[Path]:
    """A path below /dev/shm that is gone afterwards, also after SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    path = Path(f"/dev/shm/rljob-bench-{name}-{os.getpid()}")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


async def until_healthy(engine: EngineClient) -> None:
    """Wait for an engine that has just been started."""
    async with asyncio.timeout(120):
        while not await engine.healthy():  # noqa: ASYNC110 - another process, it cannot set an event
            await asyncio.sleep(0.02)


def processor() -> str:
    """What this machine calculates with."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{len(os.sched_getaffinity(0))} cores {found.group(1) if found else '?'}"
