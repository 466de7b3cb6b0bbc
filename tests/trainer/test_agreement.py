"""Three programs, one policy: Megatron's export in a real vLLM says of every token what Megatron and transformers say (fp32)."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rollout.engines import JOB, Zygote, ask, start_zygote
from tests.trainer.processes import trainer

from rljob.api import RLJobSpec
from rljob.checkpoint_engine.act import attest
from rljob.checkpoint_engine.clients import HttpEngine
from rljob.checkpoint_engine.outcome import AttestationFailed
from rljob.rollout.zygote import session_members
from rljob.wire.batch import Batch
from rljob.wire.node import TrainTask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(720)]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    made = start_zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.pipes[0].close()
    assert made.process.wait(30) == 0
    assert [pid for pid in made.engines if session_members(pid)] == []


@pytest.fixture
def arena() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="rljob-test-") as folder:
        yield Path(folder) / "arena"


def sequences(batch: Batch) -> list[list[int]]:
    return [[*map(int, group.prompt), *map(int, sample.tokens)] for group in batch.groups for sample in group.samples]


@torch.no_grad()
def of_transformers(model: Any, tokens: list[int]) -> torch.Tensor:
    ids = torch.tensor([tokens])
    found: torch.Tensor = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return found


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
"""The scaling that slows positions down, from models of 128 positions to such of 1,024."""


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "mixtral"])
def test_all_three_agree_on_every_token_before_and_after_three_updates(
    family: str,
    make_model: Callable[..., Path],
    replica: Any,
    spec: Callable[..., RLJobSpec],
    batch: Callable[..., Batch],
    megatron: Any,
    zygote: Zygote,
    arena: Path,
) -> None:
    """The updates change log-probabilities by far more than is allowed, so a set that is a version old would be seen. One sequence is long
    enough for a window or another scaling of positions to be seen, which the eight tokens of a canary are not."""
    from transformers import AutoModelForCausalLM

    from rljob.trainer import weights
    from rljob.trainer.packing import sequence_row
    from rljob.trainer.training import logprobs, train

    # vLLM's attention on CPU needs heads of 32 at least, and its experts sizes that are multiples of 32.
    scaled = {"rope_parameters": LLAMA3} if family == "llama" else {}
    folder = make_model(family, hidden_size=128, head_dim=32, moe_intermediate_size=64, max_position_embeddings=1024, **scaled)
    long = torch.randint(0, 100, (700,), generator=torch.Generator().manual_seed(0)).tolist()
    job, asked, ours = spec(), [*sequences(batch(seed=9)), long], weights.Arena()
    made, model = replica(folder, job), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    url = zygote.start(folder)[1]
    before = [of_transformers(model, tokens) for tokens in asked]
    for version in range(4):
        if version:
            data = batch(version=version, seed=version)
            train(made, job, TrainTask(version=version, kind="rl", steps=1, iteration=version), data, lambda done, total: None)
        if version in (1, 2):
            continue
        manifest = weights.export(made, megatron, ours, arena, version, torch.float32, "worker-0")
        assert manifest is not None
        ask(url, lambda e, m=manifest: e.load_weights(m, arena))  # type: ignore[misc]
        ask(url, lambda e, m=manifest: attest(HttpEngine(e), m))  # type: ignore[misc]
        shutil.copy(arena, folder / "model.safetensors")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for tokens in asked:
            found = {
                "Megatron": logprobs(made, sequence_row(tokens)),
                "transformers": of_transformers(model, tokens),
                "vLLM": torch.tensor(ask(url, lambda e, t=tokens: e.logprobs(t))),  # type: ignore[misc]
            }
            values = torch.stack(list(found.values()))
            assert (values.amax(0) - values.amin(0)).max() < 1e-5, found
    assert max(float((of_transformers(model, t) - b).abs().max()) for t, b in zip(asked, before, strict=True)) > 1e-2


def test_experts_trained_by_two_processes_are_served_as_what_they_are(
    make_model: Callable[..., Path],
    spec: Callable[..., RLJobSpec],
    batch: Callable[..., Batch],
    zygote: Zygote,
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    """The way of every version: two ranks with half of the experts, of attention and of the shared expert each train and write the arena,
    an engine of two ranks with half of every expert each loads it and is attested."""
    folder = make_model("qwen2_moe", hidden_size=128, head_dim=32, moe_intermediate_size=64, max_position_embeddings=1024)
    sizes = {"precision": "fp32", "tensorParallel": 2, "expertParallel": 2, "optimizer": {"learningRate": 1e-3}}
    job = spec(trainer=sizes, accelerator={"perNode": 2})
    engine = {"accelerator": {"perNode": 2}, "rollout": {"tensorParallel": 2, "maxTokens": 64, "engine": {"maxSequences": 2}}}
    url = zygote.start(folder, JOB.model_copy(update={"spec": spec(**engine)}))[1]
    with trainer(tmp_path, folder, job, free_port()) as (client, _):
        client.do("load", version=0, path=str(folder))
        for version in (1, 2):
            assert client.train(batch(version=version, seed=version)).status_code == 200
            manifest = client.export(version)
            ask(url, lambda e, m=manifest: e.load_weights(m, client.shm / "arena"))  # type: ignore[misc]
            ask(url, lambda e, m=manifest: attest(HttpEngine(e), m))  # type: ignore[misc]
            served = torch.tensor(ask(url, lambda e, m=manifest: e.logprobs(list(m.canary.tokens))))  # type: ignore[misc]
            assert (served - torch.tensor(manifest.canary.logprobs)).abs().max() < 1e-5
        stale = manifest.model_copy(update={"canary": manifest.canary.model_copy(update={"logprobs": tuple(-5.0 for _ in served)})})
        with pytest.raises(AttestationFailed):
            ask(url, lambda e: attest(HttpEngine(e), stale))
