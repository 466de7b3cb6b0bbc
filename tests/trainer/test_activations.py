"""What a micro-batch leaves for its backward pass, against what the plan says of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rljob.api import RLJob, RLJobSpec
from rljob.plan.estimate import rank_memory
from rljob.plan.shape import of_config
from rljob.trainer.packing import sequence_row

TOKENS, LAYERS = 128, 4
SIZES = {"hidden_size": 256, "intermediate_size": 1344, "num_hidden_layers": LAYERS}


def kept(model: Any) -> int:
    """Bytes that autograd keeps of one row beside the parameters, without attention's squares, which a GPU's kernels do not make."""
    parameters = {parameter.untyped_storage().data_ptr() for _, parameter in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and tensor.shape[-1:] not in ((TOKENS,), (TOKENS - 1,)):
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = model.chunks[0].ddp(sequence_row([token % 7 for token in range(TOKENS)]))
    assert held.requires_grad
    return sum(seen.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plan_knows_what_a_layer_keeps_of_a_token(
    precision: str, make_model: Callable[..., Path], replica: Any, spec: Callable[..., RLJobSpec]
) -> None:
    folder = make_model(**SIZES)
    found, said = [], []
    for recompute in (False, True):
        topics: dict[str, Any] = {"trainer": {"precision": precision, "microBatchTokens": TOKENS, "recompute": recompute}}
        found.append(kept(replica(folder, spec(**topics))))
        planned = spec(
            **topics, model={"source": {"path": "m"}, "maxLength": TOKENS}, rollout={"maxTokens": 64}, accelerator={"type": "nvidia"}
        )
        job = RLJob.model_validate({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "a"}, "spec": planned})
        said.append(rank_memory(job, of_config(json.loads((folder / "config.json").read_text())), 0)[1])
    assert said[0] == pytest.approx(found[0], rel=0.25)
    assert found[1] < said[1] < said[0] / 2, "recomputed, one layer at a time has everything"
