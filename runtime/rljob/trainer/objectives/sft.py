"""Supervised fine-tuning: the negative log-likelihood of whole demonstrations."""

import torch
from torch import Tensor

from rljob.trainer.objectives import Loss


def negative_log_likelihood(logprobs: Tensor, advantages: Tensor, start: Tensor) -> Loss:
    """logprobs [S]: log-probability of each demonstration, summed over its tokens; the rest is not used."""
    return Loss(-logprobs.sum(), torch.zeros((), dtype=logprobs.dtype, device=logprobs.device))


def warmed_up(peak: float, step: int, warmup_steps: int) -> float:
    """Learning rate of step `step` (from 0): a straight rise over the first `warmup_steps`, then `peak`."""
    return peak * min(1.0, (step + 1) / (warmup_steps + 1)) if warmup_steps else peak
