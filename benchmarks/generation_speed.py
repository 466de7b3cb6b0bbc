"""Tokens per second through the project's own way, against vLLM driven directly.

    python benchmarks/generation_speed.py [--rounds 3] [--dtype float32] [--json]

The main example's model (random weights) and load: 16 prompts of 45 tokens, 8 answers each of 32 tokens, log-probs of every token.
*Direct* is `vllm.LLM.generate` in one process, loaded from a safetensors folder, with the same settings. *Ours* is what the master does:
one request per answer over HTTP to a server that was forked from the zygote and took its weights from the arena. Both stand ready at the
same time and take turns on the same prompts, so that they meet the same machine; the one that does not generate uses no processor.
`vs_vllm_direct` is the median over the rounds of ours / direct.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import torch
from _engine import SMOLLM2, Zygote, export, job, prepared, processor, random_weights, shared_memory, specs, until_healthy, write_config
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from rljob.checkpoint_engine.arena import TensorFile
from rljob.rollout.client import EngineClient, SamplingParams
from rljob.rollout.engine import BLOCK, kv_cache_bytes, zygote_environment
from rljob.wire.weights import Canary

PROMPTS, SAMPLES, PROMPT_LENGTH, TOKENS, LENGTH = 16, 8, 45, 32, 128


def prompts(seed: int) -> list[list[int]]:
    """Fresh ones for every round, so that no prefix cache has them."""
    chance = random.Random(seed)
    return [[chance.randrange(100, 40_000) for _ in range(PROMPT_LENGTH)] for _ in range(PROMPTS)]


def direct(folder: str, dtype: str, cache: int) -> None:
    """Child process: vLLM alone. A line with a seed on stdin is a round; the answer is its seconds."""
    from vllm import LLM
    from vllm import SamplingParams as Params

    llm = LLM(
        model=folder, dtype=dtype, enforce_eager=True, skip_tokenizer_init=True, max_model_len=LENGTH, max_num_seqs=PROMPTS * SAMPLES,
        kv_cache_memory_bytes=cache, block_size=BLOCK, seed=0,
    )  # fmt: skip
    params = Params(max_tokens=TOKENS, temperature=1.0, logprobs=0, detokenize=False, ignore_eos=True)
    print("ready", file=sys.stderr, flush=True)
    for line in sys.stdin:
        requests = [{"prompt_token_ids": p} for p in prompts(int(line)) for _ in range(SAMPLES)]
        began = time.perf_counter()
        answers = llm.generate(requests, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        assert sum(len(a.outputs[0].token_ids) for a in answers) == PROMPTS * SAMPLES * TOKENS
        os.write(3, f"{seconds}\n".encode())


class Direct:
    """The other end of `direct`."""

    def __init__(self, folder: Path, dtype: str, cache: int) -> None:
        read, write = os.pipe()
        script = f"import os; os.dup2({write}, 3); import generation_speed; generation_speed.direct({str(folder)!r}, {dtype!r}, {cache})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=Path(__file__).parent, env=zygote_environment(job(dtype)), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=(folder / "direct.log").open("w"), pass_fds=[write],
        )  # fmt: skip
        os.close(write)
        self._answers = os.fdopen(read)

    def round(self, seed: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()
        return float(self._answers.readline())

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


async def ours(engine: EngineClient, seed: int) -> float:
    """Seconds of one round, as the master does it."""
    params = SamplingParams(max_tokens=TOKENS)
    requests = [(f"{seed}-{i}-{k}", prompt) for i, prompt in enumerate(prompts(seed)) for k in range(SAMPLES)]
    began = time.perf_counter()
    answers = await asyncio.gather(*(engine.generate(name, prompt, params) for name, prompt in requests))
    seconds = time.perf_counter() - began
    assert sum(len(a.tokens) for a in answers) == PROMPTS * SAMPLES * TOKENS
    return seconds


async def measure(rounds: int, dtype: str, folder: Path, arena: Path) -> list[tuple[float, float]]:
    """Tokens per second, direct and ours, of every round."""
    write_config(SMOLLM2, folder)
    _, tensors = random_weights(SMOLLM2, getattr(torch, dtype))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    rival = Direct(folder, dtype, kv_cache_bytes(job(dtype), prepared(LENGTH), folder))
    zygote = Zygote(job(dtype), folder)
    tokens = PROMPTS * SAMPLES * TOKENS
    try:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as http:
            engine = EngineClient(zygote.start(LENGTH), http)
            await until_healthy(engine)
            with TensorFile.create(arena, specs(tensors), {}) as file:
                manifest = export(file, tensors, 1, Canary(tokens=(1,), logprobs=(), tolerance=0.0))
            await engine.load_weights(manifest, arena, share=True)
            found = []
            for seed in range(rounds + 1):
                pair = rival.round(seed), await ours(engine, seed)
                if seed:  # the first one warms up
                    found.append((tokens / pair[0], tokens / pair[1]))
            return found
    finally:
        rival.close()
        zygote.close()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rljob-bench-") as folder, shared_memory("generation") as arena:
        found = asyncio.run(measure(arguments.rounds, arguments.dtype, Path(folder), arena))
    table = Table(title=f"{PROMPTS} x {SAMPLES} answers of {TOKENS} tokens, {arguments.dtype}, {processor()}")
    for heading in ("round", "vLLM directly, tokens/s", "ours, tokens/s", "ratio"):
        table.add_column(heading, justify="right")
    for i, (theirs, our) in enumerate(found, 1):
        table.add_row(str(i), f"{theirs:.0f}", f"{our:.0f}", f"{our / theirs:.3f}")
    ratio = statistics.median(our / theirs for theirs, our in found)
    console = Console()
    console.print(table)
    console.print(f"ours / direct: {ratio:.3f} (at least 0.95 is wanted)")
    if arguments.json:
        medians = [round(statistics.median(values), 1) for values in zip(*found, strict=True)]
        print(json.dumps({"vs_vllm_direct": round(ratio, 3), "direct_tokens_per_s": medians[0], "tokens_per_s": medians[1]}))


if __name__ == "__main__":
    main()
