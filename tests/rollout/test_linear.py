"""Linear layers that prove weights where they lie before they pack them."""

from collections.abc import Iterator

import pytest
import torch

from rljob.rollout import linear, loading


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch computes with two threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def layer(width: int, rows: int, output: bool) -> torch.nn.Module:
    """What vLLM calls a linear layer, or its output layer."""
    module = torch.nn.Linear(width, rows, bias=False)
    module.cpu_linear = None  # type: ignore[assignment]
    if output:
        module.org_vocab_size = rows  # type: ignore[assignment]
    return module


@pytest.mark.usefixtures("two_threads")
def test_the_proof_is_computed_on_one_thread_and_what_follows_on_all() -> None:
    model = torch.nn.ModuleDict({"inner": layer(8, 8, False), "output": layer(8, 16, True)})
    pieces = {n: [loading.Piece(p.detach().clone(), (), {}, lambda: None)] for n, p in model.named_parameters()}
    x = torch.randn(2, 8)
    loading.adopt(model, loading.Layout.of(model), pieces, share=True, threads=2)
    counted = []
    with torch.no_grad():
        for name in ("inner", "output", "output"):  # as the canary's forward pass does
            counted.append(torch.get_num_threads())
            weight = pieces[f"{name}.weight"][0].tensor
            found = model[name].cpu_linear(x, model[name].weight, None)  # type: ignore[operator]
            assert torch.allclose(found, x @ weight.t(), atol=1e-5)
    assert counted == [1, 1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_without_a_neighbour_the_proof_has_all_threads() -> None:
    model = torch.nn.ModuleDict({"output": layer(8, 16, True)})
    pieces = {n: [loading.Piece(p.detach(), (), {}, lambda: None)] for n, p in model.named_parameters()}
    loading.adopt(model, loading.Layout.of(model), pieces, share=True)
    assert torch.get_num_threads() == 2
    assert linear.is_linear(model["output"])
