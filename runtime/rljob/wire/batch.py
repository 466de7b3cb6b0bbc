"""What the master hands to the trainer: token sequences and their weights, as one safetensors blob.

Rows are grouped by prompt, because the answers of one prompt share the computation of it.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save


@dataclass(frozen=True)
class Sample:
    """One answer. All arrays have one entry per answer token."""

    tokens: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.uint8]
    """1 where the token takes part in the loss."""
    logprobs: npt.NDArray[np.float32]
    """What the engine said when it sampled the token, NaN if it had older weights then (for the report of the train/generate gap only)."""
    advantage: float
    """r - mean(r) of its group; 0 for supervised samples; of a pair 1 for the chosen answer, -1 for the rejected one."""


@dataclass(frozen=True)
class Group:
    """One prompt and its answers."""

    prompt: npt.NDArray[np.int32]
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Batch:
    """What one training task consumes."""

    version: int
    """The version that training on this batch makes."""
    groups: tuple[Group, ...]
    held_out: int = 0
    """So many groups, the last ones, are held-out pairs: they are measured, not trained on."""

    def encode(self) -> bytes:
        """Flatten into arrays: no pickle, readable by any safetensors implementation."""
        samples = [s for g in self.groups for s in g.samples]
        prompts = [g.prompt for g in self.groups]

        def flat(parts: list[npt.NDArray[np.generic]], dtype: type[np.generic]) -> npt.NDArray[np.generic]:
            return np.concatenate([np.asarray(p, dtype) for p in parts]) if parts else np.zeros(0, dtype)

        blob: bytes = save(
            {
                "prompt_tokens": flat(list(prompts), np.int32),
                "prompt_lengths": np.array([len(p) for p in prompts], np.int64),
                "group_sizes": np.array([len(g.samples) for g in self.groups], np.int64),
                "tokens": flat([s.tokens for s in samples], np.int32),
                "loss_mask": flat([s.loss_mask for s in samples], np.uint8),
                "logprobs": flat([s.logprobs for s in samples], np.float32),
                "lengths": np.array([len(s.tokens) for s in samples], np.int64),
                "advantages": np.array([s.advantage for s in samples], np.float64),
            },
            metadata={"rljob": json.dumps({"version": self.version, "held_out": self.held_out})},
        )
        return blob

    @staticmethod
    def decode(blob: bytes) -> "Batch":
        """Inverse of `encode`."""
        a = load(blob)
        ends = np.cumsum(a["lengths"])[:-1]
        tokens, masks, logprobs = (np.split(a[k], ends) for k in ("tokens", "loss_mask", "logprobs"))
        prompts = np.split(a["prompt_tokens"], np.cumsum(a["prompt_lengths"])[:-1])
        groups, at = [], 0
        for prompt, size in zip(prompts, a["group_sizes"].tolist(), strict=True) if len(a["group_sizes"]) else ():
            members = range(at, at + size)
            at += size
            groups.append(Group(prompt, tuple(Sample(tokens[i], masks[i], logprobs[i], float(a["advantages"][i])) for i in members)))
        about = _about(blob)
        return Batch(about["version"], tuple(groups), about.get("held_out", 0))

    @staticmethod
    def version_of(blob: bytes) -> int:
        """The version of what `encode` made, without reading the rest."""
        return int(_about(blob)["version"])


def _about(blob: bytes) -> dict[str, Any]:
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    about: dict[str, Any] = json.loads(header["__metadata__"]["rljob"])
    return about
