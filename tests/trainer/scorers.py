"""Tiny reward models and preference pairs."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rljob.wire.batch import Batch, Group, Sample

PAD = 102


def as_scorer(model: Path, folder: Path) -> Path:
    """A reward model in `folder` made of a language model, as `prepare` leaves it: the row of weights in a file of its own."""
    config = json.loads((model / "config.json").read_text())
    config |= {
        "architectures": [name.replace("CausalLM", "SequenceClassification") for name in config["architectures"]],
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "pad_token_id": PAD,
    }
    weights = load_file(model / "model.safetensors")
    hidden = config["hidden_size"]
    score = torch.randn(1, hidden, generator=torch.Generator().manual_seed(0)) / hidden**0.5  # as `prepare` draws it
    save_file({"score.weight": score}, folder / "score.safetensors")
    save_file(weights, folder / "transformer.safetensors", metadata={"format": "pt"})
    files = dict.fromkeys(weights, "transformer.safetensors") | {"score.weight": "score.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pair_batch(pairs: int = 6, held_out: int = 0, version: int = 1, seed: int = 0) -> Batch:
    """Random tokens; the held-out pairs come last."""
    rng = np.random.default_rng(seed)

    def sample(sign: float) -> Sample:
        tokens = rng.integers(0, PAD, int(rng.integers(1, 12))).astype(np.int32)
        return Sample(tokens, np.ones(len(tokens), np.uint8), np.zeros(len(tokens), np.float32), sign)

    prompts = [rng.integers(0, PAD, int(rng.integers(3, 9))).astype(np.int32) for _ in range(pairs + held_out)]
    return Batch(version, tuple(Group(prompt, (sample(1.0), sample(-1.0))) for prompt in prompts), held_out)
