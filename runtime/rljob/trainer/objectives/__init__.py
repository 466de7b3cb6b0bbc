"""Objectives: tensors in, loss and metrics out. No model, no batch layout, no process group."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """What a micro-batch contributes."""

    total: Tensor
    """Sum over samples; the step divides by the number of its samples."""
    kl: Tensor
    """Sum over samples of (log-ratio to the iteration's start)^2 / 2, without gradient."""


class Objective(Protocol):
    """What a training task minimises."""

    def __call__(self, logprobs: Tensor, advantages: Tensor, start: Tensor) -> Loss:
        """All [S]: log-probabilities of whole samples (summed over their tokens in the loss), r - mean r, and the log-probabilities under
        the iteration's first policy."""
