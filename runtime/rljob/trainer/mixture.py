"""The mixture-of-experts layer of Megatron-core, for ranks that share a layer by tensor parallelism without sequence parallelism.

Attention and a shared expert are split over tensor parallel ranks, which all hold every token of the row. Megatron's MoELayer refuses that
for training: each rank would send its copy of every token to the experts. Here every rank sends its share of the tokens, and gets the
others' results back. So an expert is whole on the ranks that have it, and experts spread over tensor × data parallel ranks.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, scatter_to_sequence_parallel_region
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor


class Mixture(MoELayer):
    """MoELayer whose tokens are the same on all tensor parallel ranks, before and after."""

    def forward(
        self, hidden_states: Tensor, intermediate_tensors: Any = None, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [T, 1, H] -> ([T, 1, H], no bias)."""
        if self.attn_tp_group.size() == 1:
            return super().forward(hidden_states, intermediate_tensors, padding_mask)
        shared = self.shared_experts_compute(hidden_states)
        probabilities, chosen = self.route(hidden_states, padding_mask)
        output = self._through_experts(self._mine(hidden_states), self._mine(probabilities), self._mine(chosen))
        whole = gather_from_sequence_parallel_region(output, tensor_parallel_output_grad=False, group=self.attn_tp_group)
        whole = whole[: len(hidden_states)]
        return (whole if shared is None else whole + shared), None

    def _through_experts(self, hidden: Tensor, probabilities: Tensor, chosen: Tensor) -> Tensor:
        """MoELayer's way of these tokens to the experts and back. hidden [t, 1, H], probabilities and chosen [t, experts] -> [t, 1, H]."""
        sent, weights = self.dispatch(*self.preprocess(hidden, probabilities, chosen))
        output, _ = self.routed_experts_compute(sent, weights)
        return self.postprocess(self.combine(output), None)

    def _mine(self, everybody: Tensor) -> Tensor:
        """This rank's share of the rows. The last ones are filled up with a row that there is already: every token must have its number of
        experts, and what comes of these is dropped."""
        size = self.attn_tp_group.size()
        missing = -len(everybody) % size
        if missing:
            everybody = torch.cat([everybody, everybody[:1].expand(missing, *everybody.shape[1:])])
        if everybody.dtype == torch.bool:
            return everybody.chunk(size)[self.attn_tp_group.rank()].contiguous()
        return scatter_to_sequence_parallel_region(everybody, group=self.attn_tp_group)
