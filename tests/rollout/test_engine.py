"""Real vLLM engines, forked from one zygote and fed from an arena, against transformers (fp32, tiny models made on the spot)."""

import asyncio
import http.client
import json
import os
import re
import select
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from tests.rollout.engines import Zygote, ask, start_zygote
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from rljob.api import InfrastructureError
from rljob.checkpoint_engine.act import attest
from rljob.checkpoint_engine.arena import TensorFile, TensorSpec, manifest_checksum, tensor_entries
from rljob.checkpoint_engine.clients import HttpEngine
from rljob.checkpoint_engine.outcome import AttestationFailed
from rljob.checkpoint_engine.state import EngineState
from rljob.rollout.client import NO_WEIGHTS, Completion, EngineClient, EngineMetrics, SamplingParams, weight_label
from rljob.rollout.zygote import session_members
from rljob.wire.weights import Canary, Manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(720)]
SHAPE = {
    "vocab_size": 192, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 2048, "eos_token_id": None, "pad_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
LLAMA = LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=False)
QWEN_TIED = Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=True)
MOE = (
    Qwen3MoeForCausalLM,
    Qwen3MoeConfig(**SHAPE, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, tie_word_embeddings=False),
)
VLLM_KEEPS = 5
"""Seconds after which vLLM closes idle connections if it is not told otherwise."""
PROMPT = [1, 17, 33, 65, 3, 99, 120, 5, 44, 44, 8, 150] * 4


@dataclass
class Policy:
    """A transformers model whose weights change from version to version, and its arena."""

    model: PreTrainedModel
    folder: Path
    arena: Path
    version: int = 0

    @staticmethod
    def new(kind: Any, config: Any, folder: Path, arena: Path) -> "Policy":
        torch.manual_seed(7)
        config.save_pretrained(folder)
        settings = json.loads((folder / "config.json").read_text()) | {"architectures": [kind.__name__]}
        (folder / "config.json").write_text(json.dumps(settings))
        policy = Policy(kind(config).eval(), folder, arena)
        policy.step(0.12)
        return policy

    def step(self, size: float) -> None:
        """What an optimizer would do, only bigger."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=size if parameter.dim() > 1 else size / 4)

    def export(self, leave_out: str = "", adjacent: bool = True) -> Manifest:
        """Write the next version into the arena; `adjacent` puts what vLLM fuses side by side, as the trainer does."""
        tensors = {n: t for n, t in hf_tensors(self.model).items() if n != leave_out}
        names = sorted(tensors, key=_fused_order) if adjacent else sorted(tensors)
        file = TensorFile.create(self.arena, [TensorSpec(n, tensors[n].dtype, tuple(tensors[n].shape)) for n in names], {})
        self.version += 1
        sums = {name: file.write(name, tensors[name]) for name in names}
        file.set_metadata({"version": str(self.version)})
        entries = tensor_entries(file, sums, "worker-0")
        file.close()
        canary = Canary(tokens=tuple(PROMPT), logprobs=tuple(self.logprobs(PROMPT)), tolerance=1e-5)
        return Manifest(version=self.version, dtype="F32", tensors=entries, checksum=manifest_checksum(entries), canary=canary)

    @torch.no_grad()
    def logprobs(self, tokens: list[int]) -> list[float]:
        logits = self.model(torch.tensor([tokens])).logits[0, :-1]
        return torch.log_softmax(logits.float(), -1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])].tolist()

    @torch.no_grad()
    def greedy(self, count: int) -> list[int]:
        tokens = list(PROMPT)
        for _ in range(count):
            tokens.append(int(self.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens[len(PROMPT) :]


def hf_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Tensors by their names on the hub: transformers 5 keeps experts fused in memory, the files do not."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith("experts.gate_up_proj"):
            for i, both in enumerate(tensor):
                gate, up = both.chunk(2)
                found[name.replace("gate_up_proj", f"{i}.gate_proj.weight")] = gate
                found[name.replace("gate_up_proj", f"{i}.up_proj.weight")] = up
        elif name.endswith("experts.down_proj"):
            found |= {name.replace("down_proj", f"{i}.down_proj.weight"): down for i, down in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def _fused_order(name: str) -> tuple[str, bool, int, str]:
    layer, _, rest = name.rpartition("self_attn.") if "self_attn" in name else name.rpartition("mlp.")
    fused = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
    part = rest.split(".")[0]
    return layer, rest.endswith("bias"), fused.index(part) if part in fused else 9, rest


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = start_zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.pipes[0].close()
    assert zygote.process.wait(30) == 0
    assert [session_members(pid) for pid in zygote.engines if session_members(pid)] == []


@pytest.fixture(scope="module")
def arenas() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="rljob-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, arenas: Path) -> Policy:
    return Policy.new(*LLAMA, tmp_path_factory.mktemp("llama"), arenas / "llama")


@pytest.fixture(scope="module")
def engine(zygote: Zygote, policy: Policy) -> str:
    return zygote.start(policy.folder)[1]


def assert_same_policy(url: str, policy: Policy, manifest: Manifest) -> None:
    """Log-probs, greedy answer and label of the engine are those of the policy."""
    found = ask(url, lambda e: e.logprobs(PROMPT))
    assert max(abs(a - b) for a, b in zip(found, manifest.canary.logprobs, strict=True)) < 1e-5
    answer = ask(url, lambda e: e.generate("greedy", PROMPT, SamplingParams(max_tokens=24, temperature=0.0)))
    assert list(answer.tokens) == policy.greedy(24)
    expected = policy.logprobs(PROMPT + list(answer.tokens))[len(PROMPT) - 1 :]
    assert max(abs(a - b) for a, b in zip(answer.logprobs, expected, strict=True)) < 1e-5
    assert answer.weight_version == weight_label(manifest.version, manifest.checksum) == ask(url, EngineClient.weight_version)


@pytest.mark.parametrize("share", [True, False], ids=["sharing the arena", "copying it"])
def test_an_engine_is_the_trained_policy_also_after_three_updates(engine: str, policy: Policy, share: bool) -> None:
    for _ in range(4):
        policy.step(0.03)
        manifest = policy.export()
        ask(engine, lambda e, m=manifest: e.load_weights(m, policy.arena, share))  # type: ignore[misc]
        assert_same_policy(engine, policy, manifest)
        if share:
            with pytest.raises(InfrastructureError, match="an engine serves from it"):
                policy.export()
            ask(engine, let_go)


def test_an_engine_that_proves_itself_on_one_thread_is_the_trained_policy_too(engine: str, policy: Policy) -> None:
    for _ in range(2):  # the second time it has gone back to all of them
        policy.step(0.03)
        manifest = policy.export()
        ask(engine, lambda e, m=manifest: e.load_weights(m, policy.arena, share=True, beside=True))  # type: ignore[misc]
        found = ask(engine, lambda e, m=manifest: e.logprobs(m.canary.tokens))  # type: ignore[misc]
        assert max(abs(a - b) for a, b in zip(found, manifest.canary.logprobs, strict=True)) < 1e-5
        assert_same_policy(engine, policy, manifest)
        ask(engine, let_go)


async def let_go(engine: EngineClient) -> None:
    """Give the arena back; the engine is to load again before anything is asked."""
    await engine.release_weights()
    await engine.resume()


def test_a_copied_arena_may_be_rewritten_while_the_engine_runs(engine: str, policy: Policy) -> None:
    manifest = policy.export()
    ask(engine, lambda e: e.load_weights(manifest, policy.arena, share=False))
    file = TensorFile.open(policy.arena, writable=True)
    for name in file.names():
        file.view(name).zero_()
    assert_same_policy(engine, policy, manifest)


def test_the_order_of_the_tensors_does_not_matter(engine: str, policy: Policy) -> None:
    manifest = policy.export(adjacent=False)
    ask(engine, lambda e: e.load_weights(manifest, policy.arena, share=True))
    assert_same_policy(engine, policy, manifest)
    ask(engine, let_go)


def stale(policy: Policy) -> Manifest:
    manifest = policy.export()
    policy.export()
    return manifest


def corrupted(policy: Policy) -> Manifest:
    manifest = policy.export()
    file = TensorFile.open(policy.arena, writable=True)
    file.view("model.norm.weight").view(torch.int32)[3] ^= 1
    return manifest


def half_written(policy: Policy) -> Manifest:
    manifest = policy.export()
    TensorFile.open(policy.arena, writable=True).set_metadata({})
    return manifest


def incomplete(policy: Policy) -> Manifest:
    return policy.export(leave_out="model.layers.1.self_attn.k_proj.weight")


LIES: dict[str, tuple[Callable[[Policy], Manifest], str]] = {
    "stale": (stale, r"holds version \d+, the manifest is of version \d+"),
    "corrupted": (corrupted, "model.norm.weight: checksum"),
    "half written": (half_written, "is half written"),
    "incomplete": (incomplete, r"not the whole model: model.layers.1.self_attn.qkv_proj.weight gets \d+ of \d+ numbers"),
}


@pytest.mark.parametrize("lie", LIES)
def test_weights_that_are_not_what_they_should_be_are_refused_and_the_engine_goes_on(engine: str, policy: Policy, lie: str) -> None:
    good = policy.export()
    before = policy.logprobs(PROMPT)
    ask(engine, lambda e: e.load_weights(good, policy.arena, share=False))
    make, reason = LIES[lie]
    policy.step(0.02)
    manifest = make(policy)
    with pytest.raises(InfrastructureError, match=reason):
        ask(engine, lambda e: e.load_weights(manifest, policy.arena))
    assert ask(engine, EngineClient.weight_version) == NO_WEIGHTS
    assert ask(engine, EngineClient.is_paused)
    ask(engine, EngineClient.resume)
    assert ask(engine, lambda e: e.logprobs(PROMPT)) == pytest.approx(before, abs=1e-5)
    again = policy.export()
    ask(engine, lambda e: e.load_weights(again, policy.arena))
    assert_same_policy(engine, policy, again)


def relabelled(policy: Policy, engine: str, old: Manifest) -> Manifest:
    """The engine keeps what it has and calls it the new version."""
    ask(engine, lambda e: e.load_weights(old, policy.arena, share=True))
    policy.step(0.01)
    # Nothing is written into an arena that is served from: the new version is described, not made.
    version, checksum = old.version + 1, "0" * 32
    canary = old.canary.model_copy(update={"logprobs": tuple(policy.logprobs(list(old.canary.tokens)))})
    ask(engine, lambda e: e._post("/update_weight_version", {"new_version": weight_label(version, checksum)}))
    return old.model_copy(update={"version": version, "checksum": checksum, "canary": canary})


def altered_under_the_engine(policy: Policy, engine: str, old: Manifest) -> Manifest:
    """The arena is written after the engine has verified it, past the lock that forbids it."""
    ask(engine, lambda e: e.load_weights(old, policy.arena, share=True))
    TensorFile.open(policy.arena, writable=True).view("model.layers.1.mlp.down_proj.weight").mul_(1.02)
    return old


def swapped_before_the_checksum(policy: Policy, engine: str, old: Manifest) -> Manifest:
    """What a trainer would make whose ranks took each other's place: the manifest is true to the arena, the arena not to the policy."""
    with TensorFile.open(policy.arena, writable=True) as file:
        one, other = (file.view(f"model.layers.{i}.self_attn.o_proj.weight") for i in (0, 1))
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
        entries = tensor_entries(file, file.sums(), "worker-0")
    manifest = old.model_copy(update={"tensors": entries, "checksum": manifest_checksum(entries)})
    ask(engine, lambda e: e.load_weights(manifest, policy.arena, share=True))
    return manifest


def as_it_should_be(policy: Policy, engine: str, old: Manifest) -> Manifest:
    """The control: the same way without a lie."""
    ask(engine, lambda e: e.load_weights(old, policy.arena, share=True))
    return old


@pytest.mark.parametrize("lie", [relabelled, altered_under_the_engine, swapped_before_the_checksum, as_it_should_be])
def test_the_canary_refuses_an_engine_that_computes_with_other_weights_than_it_says(
    engine: str, policy: Policy, lie: Callable[[Policy, str, Manifest], Manifest]
) -> None:
    """Version and checksum are right in every case: only what the engine computes gives it away."""
    ask(engine, let_go)
    old = policy.export()
    canary = old.canary
    short = Canary(tokens=canary.tokens[:8], logprobs=canary.logprobs[:7], tolerance=1e-4)  # as long and as strict as the trainer's
    manifest = lie(policy, engine, old.model_copy(update={"canary": short}))
    assert ask(engine, EngineClient.weight_version) == weight_label(manifest.version, manifest.checksum)
    try:
        if lie is as_it_should_be:
            ask(engine, lambda e: attest(HttpEngine(e), manifest))
        else:
            with pytest.raises(AttestationFailed, match="it does not compute with the weights of version"):
                ask(engine, lambda e: attest(HttpEngine(e), manifest))
    finally:
        ask(engine, let_go)


def test_a_kept_engine_sleeps_while_the_next_version_is_written_and_wakes_to_serve_it(engine: str, policy: Policy) -> None:
    """`switch.policy: sleep` on CPU: vLLM only pauses there, and keeps its memory."""

    async def scenario(client: EngineClient) -> Manifest:
        kept = HttpEngine(client)
        old = policy.export()
        await kept.load(old, policy.arena, share=False, beside=False)
        await attest(kept, old)
        await client.generate("fills the prefix cache", PROMPT, SamplingParams(max_tokens=2))
        await kept.sleep()
        assert await kept.state() == EngineState(old.version, old.checksum, paused=True)
        policy.step(0.03)
        new = policy.export()  # the arena, which it only copied, is free
        await kept.wake()
        await attest(kept, old)
        await kept.load(new, policy.arena, share=False, beside=False)
        assert await kept.state() == EngineState(new.version, new.checksum, paused=False)
        await attest(kept, new)
        return new

    ask(engine, let_go)
    assert_same_policy(engine, policy, ask(engine, scenario))


def test_an_aborted_answer_comes_back_with_what_there_is(engine: str, policy: Policy) -> None:
    manifest = policy.export()
    ask(engine, lambda e: e.load_weights(manifest, policy.arena))

    async def scenario(client: EngineClient) -> tuple[Completion, tuple[int, bool], Completion]:
        params = SamplingParams(max_tokens=900)
        first, second = (asyncio.create_task(client.generate(name, PROMPT, params)) for name in ("first", "second"))

        async def until(done: Callable[[EngineMetrics], bool]) -> None:
            while not (done(await client.metrics()) or first.done() or second.done()):
                pass

        await until(lambda seen: seen.running == 2)
        start = (await client.metrics()).generation_tokens
        await until(lambda seen: seen.generation_tokens >= start + 8)
        await client.abort([])
        await client.abort(["first"])
        aborted = await first
        await client.pause("keep")
        frozen = (await client.metrics()).running, second.done()
        await client.resume()
        await client.abort(["second"])
        return aborted, frozen, await second

    # On a busy machine an answer may be whole before we come to have it aborted.
    for _ in range(5):
        aborted, frozen, second = ask(engine, scenario)
        if "length" not in (aborted.finish_reason, second.finish_reason):
            break
    assert (aborted.finish_reason, second.finish_reason) == ("abort", "abort")
    assert 0 < len(aborted.tokens) == len(aborted.logprobs) < 900
    assert frozen == (1, False)
    expected = policy.logprobs(PROMPT + list(second.tokens))[len(PROMPT) - 1 :]
    assert second.logprobs == pytest.approx(expected, abs=1e-5)


def test_an_engine_does_not_close_a_connection_that_a_master_which_is_late_may_use(engine: str) -> None:
    address = urlsplit(engine)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.request("GET", "/health")
    connection.getresponse().read()
    sock = connection.sock
    assert select.select([sock], [], [], 2 * VLLM_KEEPS)[0] == [], "closed"
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    assert connection.sock is sock
    connection.close()


def test_log_probs_are_the_policys_own_at_any_temperature_and_stop_tokens_stop(engine: str, policy: Policy) -> None:
    manifest = policy.export()
    ask(engine, lambda e: e.load_weights(manifest, policy.arena))
    answer = ask(engine, lambda e: e.generate("warm", PROMPT, SamplingParams(max_tokens=20, temperature=1.7, top_p=0.9)))
    expected = policy.logprobs(PROMPT + list(answer.tokens))[len(PROMPT) - 1 :]
    assert answer.logprobs == pytest.approx(expected, abs=1e-5)
    # What is sampled may be the model's own end-of-text token.
    assert answer.finish_reason == ("length" if len(answer.tokens) == 20 else "stop")
    stop = policy.greedy(3)[-1]
    stopped = ask(engine, lambda e: e.generate("s", PROMPT, SamplingParams(max_tokens=20, temperature=0.0, stop_token_ids=(stop,))))
    assert (stopped.finish_reason, stopped.tokens[-1]) == ("stop", stop)


def test_what_was_handed_back_has_arrived_when_the_engine_is_killed(zygote: Zygote, policy: Policy) -> None:
    pid, url = zygote.start(policy.folder)
    manifest = policy.export()

    async def scenario(client: EngineClient) -> list[Any]:
        await client.load_weights(manifest, policy.arena)
        asked = [asyncio.create_task(client.generate(f"a{i}", PROMPT, SamplingParams(max_tokens=900))) for i in range(16)]
        while (await client.metrics()).generation_tokens < 32:
            continue
        assert 0 < await client.unanswered() <= len(asked)
        await HttpEngine(client).hand_back()
        os.kill(pid, signal.SIGKILL)
        return await asyncio.gather(*asked)

    found = ask(url, scenario)
    assert {"abort"} <= {answer.finish_reason for answer in found} <= {"abort", "stop"}, "each has come, none is an error"
    assert sum(len(answer.tokens) for answer in found) >= 32
    assert zygote.hear() == {"exited": {"pid": pid, "status": -signal.SIGKILL}}


def test_a_dead_engine_is_an_infrastructure_error(zygote: Zygote, policy: Policy) -> None:
    pid, url = zygote.start(policy.folder)
    members = session_members(pid)
    assert len(members) > 1
    fds = [os.pidfd_open(member) for member in members]
    os.kill(pid, signal.SIGKILL)  # the API server alone: its engine core must not outlive it
    for fd in fds:
        assert select.select([fd], [], [], 20)[0]
        os.close(fd)
    assert zygote.hear() == {"exited": {"pid": pid, "status": -signal.SIGKILL}}
    assert not ask(url, EngineClient.healthy)
    with pytest.raises(InfrastructureError, match=re.escape(url)):
        ask(url, lambda e: e.generate("x", PROMPT, SamplingParams(max_tokens=1)))


@pytest.mark.parametrize(
    ("kind", "missing"),
    [(QWEN_TIED, "model.layers.1.mlp.up_proj.weight"), (MOE, "model.layers.1.mlp.experts.2.up_proj.weight")],
    ids=["tied output layer", "mixture of experts"],
)
def test_other_families_load_and_update_from_the_same_zygote(
    zygote: Zygote, tmp_path: Path, arenas: Path, kind: tuple[Any, Any], missing: str
) -> None:
    policy = Policy.new(*kind, tmp_path, arenas / kind[0].__name__)
    pid, url = zygote.start(tmp_path)
    for share in (True, False):
        policy.step(0.03)
        ask(url, let_go)
        manifest = policy.export()
        ask(url, lambda e, m=manifest, s=share: e.load_weights(m, policy.arena, s))  # type: ignore[misc]
        assert_same_policy(url, policy, manifest)
    before = ask(url, lambda e: e.logprobs(PROMPT))
    policy.step(0.03)
    partial = policy.export(leave_out=missing)
    with pytest.raises(InfrastructureError, match="not the whole model"):
        ask(url, lambda e: e.load_weights(partial, policy.arena, share=True))
    ask(url, EngineClient.resume)
    assert ask(url, lambda e: e.logprobs(PROMPT)) == before
    os.kill(pid, signal.SIGTERM)
    assert zygote.hear()["exited"]["pid"] == pid
    assert session_members(pid) == []


def test_a_request_that_makes_no_sense_is_answered_and_the_zygote_goes_on(zygote: Zygote) -> None:
    assert "cannot start" in zygote.say("{")["error"]
    assert "cannot start" in zygote.say('{"start": {"argv": [], "env": {}, "log": "/no/such/folder/log"}}')["error"]


def test_an_engine_that_cannot_start_says_why_in_its_log_and_exits(zygote: Zygote, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pid = zygote.say(json.dumps({"start": {"argv": ["--no-such-option"], "env": {}, "log": str(log)}}))["started"]
    assert zygote.hear() == {"exited": {"pid": pid, "status": 2}}
    assert "no-such-option" in log.read_text()


def test_nothing_outlives_a_zygote_killed_with_sigkill(policy: Policy, tmp_path: Path) -> None:
    zygote = start_zygote(tmp_path)
    pid, _ = zygote.start(policy.folder)
    marks = [Path(f"/proc/{member}/environ").read_bytes() for member in session_members(pid)]
    assert all(f"MARK={tmp_path}".encode() in mark for mark in marks)
    fds = [os.pidfd_open(member) for member in session_members(pid)]
    zygote.process.kill()
    for fd in fds:
        assert select.select([fd], [], [], 20)[0]
        os.close(fd)
    zygote.process.wait()
