"""Kimi k1.5's online policy mirror descent (arXiv 2501.12599, section 2.3.2, equation 3).

The gradient to ascend, for k answers y_j of a prompt x sampled from the iteration's first policy pi_i, is

    1/k sum_j [ (r_j - mean r) grad log pi(y_j|x) - tau/2 grad (log pi(y_j|x) - log pi_i(y_j|x))^2 ]

with the log-probability of the whole answer. The loss here is its negative's antiderivative, summed over samples.
"""

import torch
from torch import Tensor

from rljob.trainer.objectives import Loss


def mirror_descent(logprobs: Tensor, advantages: Tensor, start: Tensor, tau: float) -> Loss:
    """logprobs, start [S]: log pi and log pi_i of each sample, summed over its tokens in the loss; advantages [S]: r - mean r."""
    ratio = logprobs - start.detach()
    square = ratio.square() / 2
    loss = -(advantages * logprobs).sum()
    if tau > 0:
        loss = loss + tau * square.sum()
    return Loss(loss, torch.sum(square.detach()))
