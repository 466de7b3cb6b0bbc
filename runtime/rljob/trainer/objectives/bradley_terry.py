"""The loss of reward models: the better answer of a pair shall have the higher score.

The probability that `chosen` is better than `rejected` is sigma(r_chosen - r_rejected) (Bradley and Terry 1952), and the loss is its
negative logarithm, as in Ouyang et al. 2022 (arXiv 2203.02155, equation 1) with one pair of each prompt.
"""

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Sum over pairs of -log sigma(r_chosen - r_rejected), a scalar; both [P]. Finite, with finite gradients, for every finite score."""
    return -F.logsigmoid(chosen - rejected).sum()
