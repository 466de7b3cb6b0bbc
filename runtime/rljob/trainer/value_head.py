"""The reward model: the policy's transformer with one row of weights in place of the output layer.

It is what transformers calls `AutoModelForSequenceClassification` with one label: `score.weight` [1, H] without bias, applied to the
hidden state of the last token. A folder says by its `architectures` that it is one (rljob.wire.reward_model), so loading, checkpoints,
optimizer state and tensor parallelism are those of a policy.
"""

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from rljob.trainer.policy import Policy


class ValueModel(Policy):
    """A Policy whose forward pass gives a score for each of the row's predictors instead of a log-probability, fp32 [N].

    Every tensor parallel rank holds the whole row and computes the same, as it does of norms.
    """

    score: torch.nn.Linear

    def add_score(self, config: TransformerConfig) -> None:
        """Make the row, on the last pipeline stage; its values are loaded."""
        self.score = torch.nn.Linear(config.hidden_size, 1, bias=False, dtype=config.params_dtype)

    def outputs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """In fp32 also where training is not: scores are compared with each other, and bf16 tells few apart."""
        return F.linear(hidden.float(), self.score.weight.float())[:, 0]
