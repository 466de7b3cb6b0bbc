"""Training speed against a plain transformers + torch loop: `python benchmarks/training_speed.py [--json]`.

Both sides train the same model (SmolLM2-135M's shape, random weights) on the same batch with the same objective, one optimizer step, on
this machine, in turns. The plain loop is what one would write: right-padded micro-batches, bf16 autocast over fp32 weights when the
trainer uses bf16, the output layer on answer positions only, fused AdamW.

`vs_transformers`: a batch like the main example's, 16 prompts × 8 answers of about 30 tokens. `vs_padded_long_tail`: 4 prompts × 8 answers
whose lengths have a long tail, as answers to reasoning problems have. Ratios of the medians of answer tokens per second.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rljob.api import RLJobSpec
from rljob.trainer import device as devices
from rljob.wire.batch import Batch, Group, Sample
from rljob.wire.node import TrainTask

VOCABULARY = 49152
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default",
    "rope_theta": 100000.0}, "tie_word_embeddings": True,
}  # fmt: skip
PROMPT = 31
LEARNING_RATE = 1e-5
PADDED_TOKENS = 2048
"""Tokens of a micro-batch of the plain loop, padding included: as many as a micro-batch of the trainer has at most."""


def random_batch(prompts: int, answers: int, lengths: Callable[[np.random.Generator], int]) -> Batch:
    """Random tokens; every answer has an advantage, so that both sides compute all of them."""
    rng = np.random.default_rng(0)
    groups = []
    for _ in range(prompts):
        samples = []
        for advantage in rng.normal(size=answers):
            n = lengths(rng)
            tokens = rng.integers(0, VOCABULARY, n).astype(np.int32)
            samples.append(Sample(tokens, np.ones(n, np.uint8), np.full(n, -10.0, np.float32), float(advantage)))
        groups.append(Group(rng.integers(0, VOCABULARY, PROMPT).astype(np.int32), tuple(samples)))
    return Batch(1, tuple(groups))


def answer_tokens(batch: Batch) -> int:
    return sum(len(s.tokens) for g in batch.groups for s in g.samples)


class Plain:
    """transformers + torch."""

    def __init__(self, folder: Path, bf16: bool) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
        self.bf16 = bf16

    def step(self, batch: Batch) -> float:
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        rows = [(np.concatenate([g.prompt, s.tokens]), len(g.prompt), s.advantage) for g in batch.groups for s in g.samples]
        longest = max(len(ids) for ids, _, _ in rows)
        size = max(1, PADDED_TOKENS // longest)
        total = 0.0
        for at in range(0, len(rows), size):
            loss = self._loss(rows[at : at + size]) / len(rows)
            torch.autograd.backward(loss)
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    def _loss(self, rows: list[tuple[Any, int, float]]) -> torch.Tensor:
        longest = max(len(ids) for ids, _, _ in rows)
        tokens, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
        for i, (ids, _, _) in enumerate(rows):
            tokens[i, : len(ids)], mask[i, : len(ids)] = torch.from_numpy(ids.astype(np.int64)), 1
        where = torch.cat([torch.tensor([(i, t) for t in range(prompt - 1, len(ids) - 1)]) for i, (ids, prompt, _) in enumerate(rows)])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            hidden = self.model.model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[where[:, 0], where[:, 1]])
        chosen = logits.float().log_softmax(-1).gather(1, tokens[where[:, 0], where[:, 1] + 1, None])[:, 0]
        weights = torch.tensor([advantage for _, _, advantage in rows])[where[:, 0]]
        return torch.neg((weights * chosen).sum())


class Ours:
    """The trainer, without its process."""

    def __init__(self, folder: Path) -> None:
        from rljob.trainer import weights
        from rljob.trainer.architecture import read_architecture
        from rljob.trainer.build import build

        self.spec = RLJobSpec.model_validate(
            {"model": {"source": {"path": str(folder)}}, "data": {"train": {"path": "-"}}}
            | {"trainer": {"microBatchTokens": PADDED_TOKENS, "optimizer": {"learningRate": LEARNING_RATE}}}
        )
        device = devices.Cpu()
        self.precision = devices.precision("auto", device)
        self.replica = build(read_architecture(folder), self.spec.trainer, self.precision, device)
        weights.load(self.replica, folder)

    def step(self, batch: Batch) -> float:
        from rljob.trainer.training import train

        task = TrainTask(version=1, kind="rl", steps=1, iteration=1)
        return train(self.replica, self.spec, task, batch, lambda done, total: None).loss


def compare(ours: Ours, plain: Plain, batch: Batch, rounds: int) -> tuple[float, float, list[tuple[float, float]]]:
    """Median answer tokens per second of both, and their losses round by round."""
    speeds: dict[str, list[float]] = {"ours": [], "plain": []}
    losses = []
    for _ in range(rounds):
        pair = []
        for name, side in (("ours", ours), ("plain", plain)):
            start = time.perf_counter()
            pair.append(side.step(batch))
            speeds[name].append(answer_tokens(batch) / (time.perf_counter() - start))
        losses.append((pair[0], pair[1]))
    return statistics.median(speeds["ours"]), statistics.median(speeds["plain"]), losses


def make_model(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)


def prepare() -> None:
    """A trainer of one rank needs a process group."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    device = devices.Cpu()
    device.prepare()
    devices.join(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side on the main batch (the long tail gets two)")
    options = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        ours = Ours(Path(folder))
        plain = Plain(Path(folder), bf16=ours.precision == "bf16")
    main_batch = random_batch(16, 8, lambda rng: int(np.clip(rng.normal(30, 6), 10, 40)))
    long_tail = random_batch(4, 8, lambda rng: int(np.clip(rng.lognormal(3.5, 1.0), 5, 400)))
    results = {}
    print(f"{ours.precision}, {torch.get_num_threads()} threads; answer tokens per second, one optimizer step")
    print(f"{'batch':<12}{'tokens':>8}{'longest':>9}{'trainer':>10}{'transformers':>14}{'ratio':>8}   first losses")
    for key, name, batch, rounds in (
        ("vs_transformers", "main", main_batch, options.rounds),
        ("vs_padded_long_tail", "long tail", long_tail, 2),
    ):
        fast, slow, losses = compare(ours, plain, batch, rounds)
        results[key] = round(fast / slow, 3)
        longest = max(len(s.tokens) for g in batch.groups for s in g.samples)
        first = " ".join(f"{loss:.3f}" for loss in losses[0])
        print(f"{name:<12}{answer_tokens(batch):>8}{longest:>9}{fast:>10.0f}{slow:>14.0f}{fast / slow:>8.2f}   {first}")
        sys.stdout.flush()
    if options.json:
        print(json.dumps(results | {"precision": ours.precision, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
