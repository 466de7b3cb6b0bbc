"""The policy: Megatron's GPTModel that turns a packed row into log-probabilities of its answers."""

from typing import Any, cast

import numpy as np
import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from rljob.trainer.architecture import Architecture
from rljob.trainer.attention import plan
from rljob.trainer.context import gathered, share
from rljob.trainer.logprobs import token_logprobs
from rljob.trainer.packing import Row, padded


class Policy(GPTModel):
    """GPTModel with a forward pass over rows: explicit positions, a Plan in place of an attention mask, no logits for prompts.

    The rest of GPTModel stays as it is. Every pipeline stage gets the row, which says how attention is done; the first one takes its
    tokens, a later one hidden states from `set_input_tensor`; all but the last give hidden states.
    """

    architecture: Architecture
    frequencies: Tensor
    """Radians per position, fp32 [head size / 2]; not a buffer, which mixed precision would round."""

    def forward(self, row: Row) -> Tensor:
        """Log-probabilities of the row's targets, fp32 [N]; hidden states [T/c, 1, H] if another stage follows, of the tokens that this one
        of c context parallel ranks has."""
        device, context = next(self.parameters()).device, self.pg_collection.cp

        def on_device(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device)

        row = padded(row, context.size())
        own = share(len(row.tokens), context)
        angles = torch.outer(on_device(row.positions[own]).float(), self.frequencies.to(device))
        hidden = self.decoder(
            hidden_states=self.embedding(input_ids=on_device(row.tokens[own])[None], position_ids=None) if self.pre_process else None,
            attention_mask=None,
            rotary_pos_emb=torch.cat((angles, angles), -1)[:, None, None, :],
            packed_seq_params=plan(row, self._heads(self.config.num_attention_heads), self._heads(self.config.num_query_groups), device),
        )
        if not self.post_process:
            return cast(Tensor, hidden)
        if context.size() == 1:
            return self.outputs(hidden[:, 0].index_select(0, on_device(row.predictors)), on_device(row.targets))
        where = np.flatnonzero((row.predictors >= own.start) & (row.predictors < own.stop))
        found = self.outputs(hidden[:, 0].index_select(0, on_device(row.predictors[where] - own.start)), on_device(row.targets[where]))
        return gathered(found, on_device(where), len(row.predictors), context)

    def outputs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """What the model says of its predictors' hidden states [N, H]: fp32 [N]."""
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else self.output_layer.weight
        group = self.pg_collection.tp
        return token_logprobs(
            hidden,
            cast(Tensor, weight),
            targets,
            first=weight.shape[0] * group.rank(),
            vocabulary=self.architecture.vocabulary,
            group=group,
        )

    def _heads(self, count: int) -> int:
        """Of which attention on this rank computes so many."""
        return max(1, count // (self.pg_collection.tp.size() * self.pg_collection.cp.size()))
