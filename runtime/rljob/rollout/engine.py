"""How one vLLM engine is started: its arguments, and the environment of the zygote it is forked from. Pure; no vLLM."""

import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from rljob.api import RLJob
from rljob.trainer.architecture import read_architecture
from rljob.wire.connections import IDLE_SECONDS
from rljob.wire.data import Prepared

SHORTEST = 16
"""Tokens that an engine takes at least, so that the canary fits however short the job's own sequences are."""
BLOCK = 32
"""Tokens of a KV cache block. vLLM's CPU attention takes multiples of 32; the smallest shares most of a prompt among its samples."""
BACKEND = "rljob-arena"
"""Name of the weight-transfer engine (rljob.rollout.plugin)."""
GPU_UTILIZATION = 0.85
"""Share of an accelerator that an engine claims: 0.9 was measured to work beside a sleeping trainer on 80 GB, less leaves room for NCCL."""


def engine_argv(job: RLJob, prepared: Prepared, model_dir: Path, host: str, port: int, alone: bool = False) -> list[str]:
    """Arguments of vLLM's OpenAI server: dummy weights, tokens in, tokens out.

    `spec.rollout.engine.extraArgs` is applied last: `true` and `false` are flags (`--name`, `--no-name`), all else values.

    Args:
        alone: no trainer takes turns with it, as in rollout pods: it lives on whatever `spec.switch.policy` says.

    Raises:
        ConfigurationError: the model's config.json is missing, or that of no model that can be trained.
    """
    engine = job.spec.rollout.engine
    on_cpu = job.spec.accelerator.type == "cpu"
    options: dict[str, str] = {
        "model": str(model_dir),
        "served-model-name": "policy",
        "host": host,
        "port": str(port),
        "dtype": job.spec.engine_dtype,
        "load-format": "dummy",
        "skip-tokenizer-init": "true",
        "generation-config": "vllm",
        "max-model-len": str(max(prepared.max_length, SHORTEST)),
        "max-num-seqs": str(engine.max_sequences),
        "tensor-parallel-size": str(job.spec.rollout.tensor_parallel),
        "logprobs-mode": "raw_logprobs",
        "weight-transfer-config": json.dumps({"backend": BACKEND}),
        "enable-scale-out": "true",
        "enable-prompt-tokens-details": "true",
        "enable-server-load-tracking": "true",  # EngineClient.unanswered
        "disable-uvicorn-access-log": "true",
        "enforce-eager": "true" if _eager(job, alone) else "false",
    }
    if on_cpu:
        options["block-size"] = str(BLOCK)
    else:
        options["gpu-memory-utilization"] = str(GPU_UTILIZATION)
        options["enable-sleep-mode"] = "true" if job.spec.switch.policy != "restart" else "false"
    if engine.kv_cache_memory is not None or on_cpu:
        options["kv-cache-memory-bytes"] = str(kv_cache_bytes(job, prepared, model_dir))
    return _arguments({**options, **engine.extra_args})


def kv_cache_bytes(job: RLJob, prepared: Prepared, model_dir: Path) -> int:
    """Bytes of KV cache of one engine process: as asked for, or room for every sequence at its full length, in blocks."""
    engine = job.spec.rollout.engine
    if engine.kv_cache_memory is not None:
        size, unit = engine.kv_cache_memory[:-2], engine.kv_cache_memory[-2:]
        return int(size) * (1 << 30 if unit == "Gi" else 1 << 20)
    model = read_architecture(model_dir)
    width = 4 if job.spec.engine_dtype == "float32" else 2
    kv_heads = max(1, model.kv_heads // job.spec.rollout.tensor_parallel)
    block = BLOCK * 2 * model.layers * kv_heads * model.head_size * width
    # One block is vLLM's own (the null block), and a running sequence may hold one more than its length asks for.
    blocks = engine.max_sequences * (math.ceil(prepared.max_length / BLOCK) + 1) + 1
    return block * blocks


def engine_environment(job: RLJob) -> dict[str, str]:
    """What an engine needs in its environment beyond the zygote's (a forked process reads these when it starts)."""
    return {
        "VLLM_SERVER_DEV_MODE": "1",  # weight transfer, pause, sleep
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(IDLE_SECONDS),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def zygote_environment(job: RLJob, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of `python -m rljob.rollout.zygote`; libraries read much of it when they are loaded, before any fork.

    Args:
        environment: what the shim runs with; default `os.environ`.
    """
    inherited = dict(os.environ if environment is None else environment)
    extra = engine_environment(job) | {
        "SPT_NOENV": "1",  # setproctitle would overwrite /proc/PID/environ, by which survivors are found
        "VLLM_WORKER_MULTIPROC_METHOD": "fork",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if job.spec.accelerator.type == "cpu":
        threads = inherited.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // job.spec.rollout.tensor_parallel))
        extra |= {
            "OMP_NUM_THREADS": threads,
            "TORCHDYNAMO_DISABLE": "1",  # no C++ compiler at run time
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker lives in the engine core: one process less to start
        }
        preload = preloads(Path(sys.prefix), inherited.get("LD_PRELOAD", ""))
        if preload:
            extra |= {"LD_PRELOAD": preload, "KMP_BLOCKTIME": "1"}
    else:
        extra |= {
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking whether there is a GPU must not initialise CUDA before the fork
            # FlashInfer's sampler, which is vLLM's default, is compiled when it is first used; the images have no CUDA compiler.
            "VLLM_USE_FLASHINFER_SAMPLER": inherited.get("VLLM_USE_FLASHINFER_SAMPLER", "0"),
        }
        if job.spec.engine_dtype == "float32":
            extra["TRITON_F32_DEFAULT"] = "ieee"  # its attention is Triton's, which rounds fp32 to TF32 else: no canary would pass
    return inherited | extra


def preloads(prefix: Path, already: str) -> str:
    """`LD_PRELOAD` with tcmalloc in front, if it is found."""
    folders = [Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"), Path("/usr/lib64"), prefix / "lib"]
    spec = importlib.util.find_spec("vllm")
    if spec is not None and spec.origin is not None:
        folders.insert(0, Path(spec.origin).parent / "libs")
    found = [str(path) for folder in folders for path in sorted(folder.glob("libtcmalloc_minimal*.so*"))]
    return ":".join(filter(None, [*found[:1], already])) if "libtcmalloc" not in already else already


def _eager(job: RLJob, alone: bool) -> bool:
    """CUDA graphs cost 6 s a start and triple the speed: worth it for an engine that is kept."""
    if job.spec.rollout.engine.enforce_eager is not None:
        return job.spec.rollout.engine.enforce_eager
    return job.spec.accelerator.type == "cpu" or (job.spec.switch.policy == "restart" and not alone)


def _arguments(options: Mapping[str, str]) -> list[str]:
    argv: list[str] = []
    for name, value in options.items():
        if value == "true":
            argv.append(f"--{name}")
        elif value == "false":
            argv.append(f"--no-{name}")
        else:
            argv += [f"--{name}", value]
    return argv
