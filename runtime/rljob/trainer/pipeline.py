"""Rows through a model whose layers may be spread over several ranks, stage after stage.

Training uses Megatron's own schedule: one forward, one backward (1F1B), interleaved if stages have several chunks of layers, or all on one
rank if there is one stage. Micro-batches differ in length, so stages tell each other the shape first (`variable_seq_lengths`). A single row
that only wants its log-probabilities, the canary above all, is handed from stage to stage by `relay`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rljob.trainer.build import Replica
from rljob.trainer.packing import Row
from rljob.trainer.place import chunk_prefix

Contribute = Callable[[Row, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""From a row and its targets' log-probabilities to its loss. Called on the last stage only, for every row in turn."""
Begun = Callable[[Row], None]
"""Called on every stage, for every row that it begins with."""


def forward_backward(replica: Replica, rows: list[Row], contribute: Contribute, begun: Begun) -> None:
    """Forward and backward of each micro-batch; gradients are added up, then reduced over ranks.

    `rows`: a multiple of `Replica.together`.
    """
    _schedule(replica, rows, begun, lambda row: partial(contribute, row), forward_only=False)


@torch.no_grad()
def forward_only(replica: Replica, rows: list[Row], begun: Begun) -> list[Tensor]:
    """Log-probabilities of each row's targets in the training precision, fp32 [N]; empty on all stages but the last."""
    with replica.device.megatron():
        return _schedule(replica, rows, begun, lambda row: None, forward_only=True) if rows else []


def _schedule(replica: Replica, rows: list[Row], begun: Begun, loss: Callable[[Row], Any], forward_only: bool) -> list[Any]:
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def forward(data: Iterator[Row], model: Any) -> tuple[Tensor, Any]:
        row = next(data)
        if model is replica.chunks[0].ddp:
            begun(row)
        return model(row), loss(row)

    iterators = [iter(rows) for _ in replica.chunks]  # each chunk meets every row
    done: list[Any] = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iterators if len(iterators) > 1 else iterators[0],
        model=[chunk.ddp for chunk in replica.chunks],
        num_microbatches=len(rows),
        seq_length=1,  # unused: without a pipeline nothing is sent, with one the shape is
        micro_batch_size=1,
        forward_only=forward_only,
    )
    for chunk in replica.chunks:
        chunk.policy.set_input_tensor(None)  # else the last row's hidden states live as long as the model
    return done


@torch.no_grad()
def relay(replica: Replica, row: Row, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Log-probabilities of the row's targets, fp32 [N], on every stage: the last one shares them.

    `weights`: in place of the parameters, by Megatron name; hidden states then travel in their precision.
    """
    group, device = replica.pipeline_group, replica.device.device
    dtype = next(iter((weights or dict(replica.parameters())).values())).dtype
    tokens = -(-len(row.tokens) // replica.place.context_size)
    found = torch.empty(0)
    for number, chunk in enumerate(replica.chunks):
        if not (replica.place.first and number == 0):
            hidden = torch.empty((tokens, 1, replica.architecture.hidden), dtype=dtype, device=device)
            dist.recv(hidden, group=group, group_src=(group.rank() - 1) % group.size())
            chunk.policy.set_input_tensor(hidden)
        if weights:
            prefix = chunk_prefix(number, len(replica.chunks))
            own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
            found = torch.func.functional_call(chunk.policy, own, (row,))
        else:
            found = chunk.ddp(row)
        chunk.policy.set_input_tensor(None)
        if not (replica.place.last and chunk is replica.chunks[-1]):
            dist.send(found, group=group, group_dst=(group.rank() + 1) % group.size())
    if not replica.place.last:
        found = torch.empty(len(row.targets), dtype=torch.float32, device=device)
    if group.size() > 1:
        dist.broadcast(found, group=group, group_src=group.size() - 1)
    return found
