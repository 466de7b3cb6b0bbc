"""Which tensors go where in a model, and what happens when the pages they lie in cannot be pinned; no engine runs."""

import ctypes
from typing import Any

import pytest
import torch

from rljob.checkpoint_engine.arena import WeightsRefused
from rljob.rollout import loading

EXPERTS = 8


class HalfOfTheExperts(torch.nn.Module):
    """What a rank of two has with expert parallelism, loaded as vLLM's RoutedExperts does it."""

    def __init__(self) -> None:
        super().__init__()
        self.w13_weight = torch.nn.Parameter(torch.empty(EXPERTS // 2, 6, 4))
        self.w2_weight = torch.nn.Parameter(torch.empty(EXPERTS // 2, 4, 3))

    def _map_global_expert_id_to_local_expert_id(self, expert_id: int) -> int:
        return expert_id if expert_id < EXPERTS // 2 else -1


class Mixture(torch.nn.Module):
    """A model of one layer of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = HalfOfTheExperts()

    def load_weights(self, weights: loading.Named) -> None:
        for name, tensor in weights:
            _, expert, kind = name.split(".")
            parameter: Any = self.experts.w2_weight if kind == "w2" else self.experts.w13_weight
            parameter.weight_loader(param=parameter, loaded_weight=tensor, weight_name=name, shard_id=kind, expert_id=int(expert))


@pytest.mark.parametrize("missing", [None, "experts.1.w3", "experts.6.w2"])
def test_with_expert_parallelism_a_rank_asks_for_its_own_experts_and_all_of_them(missing: str | None) -> None:
    model = Mixture()
    names = [f"experts.{expert}.{kind}" for expert in range(EXPERTS) for kind in ("w1", "w2", "w3")]
    pieces = loading.record(model, [(name, torch.empty(3, 4)) for name in names if name != missing])
    if missing == "experts.1.w3":
        with pytest.raises(WeightsRefused, match=r"experts\.w13_weight gets 7 of 8 tensors"):
            loading.refuse_incomplete(model, loading.Layout.of(model), pieces, world=2)
    else:
        loading.refuse_incomplete(model, loading.Layout.of(model), pieces, world=2)


def test_vllm_still_says_where_a_rank_has_an_expert() -> None:
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    assert callable(getattr(RoutedExperts, loading.EXPERT_PLACE))


class Runtime:
    """libcudart of a device that registers no read-only memory."""

    last = 0

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.last = 801  # cudaErrorNotSupported
        return self.last

    def cudaGetLastError(self) -> int:
        error, self.last = self.last, 0
        return error


def test_pages_that_cannot_be_pinned_leave_no_error_behind_for_the_next_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from rljob.rollout.weight_transfer import ArenaEngine

    runtime = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: runtime)
    engine = object.__new__(ArenaEngine)
    engine._registered = None
    engine._register(torch.zeros(4096, dtype=torch.uint8))
    assert (engine._registered, runtime.last) == (None, 0)
