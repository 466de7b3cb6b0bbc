"""In-memory twins of everything around the master: engines with a made-up policy, the reward service, node agents with checkpoints."""

import asyncio
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tests.master.virtual import clock

from rljob.api import InfrastructureError, RLJob
from rljob.master.app import Outside, assemble, run_job
from rljob.master.inputs import Inputs
from rljob.master.parts import Folders, Parts
from rljob.master.service import Service
from rljob.master.state import Database
from rljob.rollout.client import Completion, EngineMetrics, FinishReason, SamplingParams
from rljob.wire.base import Failure
from rljob.wire.batch import Batch
from rljob.wire.checkpoints import checkpoint_folder
from rljob.wire.data import Prepared, PromptRecord
from rljob.wire.node import EngineReport, NodeDesired, NodeReport, PairMetrics, Step, TrainerReport, TrainMetrics
from rljob.wire.reward import ScoreRequest, ScoreResponse, ScoreResult
from rljob.wire.weights import Canary, Manifest, Shard, TensorEntry

EOS = 0
TOKEN_SECONDS = 0.01


def job(**spec: Any) -> RLJob:
    """A small job; arguments are merged into its spec."""
    merged: dict[str, Any] = {
        "model": {"source": {"path": "model"}},
        "data": {"train": {"path": "train.jsonl"}},
        "iterations": 3,
        "algorithm": {"promptsPerIteration": 3, "samplesPerPrompt": 2},
        "rollout": {"maxTokens": 8, "engine": {"maxSequences": 4}},
        "checkpoint": {"keep": 1},
    }
    for key, value in spec.items():
        merged[key] = {**merged[key], **value} if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return RLJob.model_validate({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "test"}, "spec": merged})


def prompt(number: int, **more: Any) -> PromptRecord:
    """Prompt `number`: its first token is its number."""
    return PromptRecord(id=f"p{number}", question=f"question {number}", tokens=(number, 99), verifier="exact", **more)


def inputs(train: int = 12, heldout: int = 0, warmstart: int = 0, digest: str = "d1") -> Inputs:
    """Prepared data; held-out prompts are numbered from 1000, demonstrations from 2000."""
    prepared = Prepared(
        model_type="llama", eos_token_ids=(EOS,), vocab_size=128, context_length=4096, max_length=4096, parameters=1,
        train=train, heldout=heldout, warmstart=warmstart, digest=digest,
    )  # fmt: skip
    return Inputs(
        prepared,
        tuple(prompt(i, difficulty=float(i)) for i in range(train)),
        tuple(prompt(1000 + i, family="even" if i % 2 == 0 else "odd") for i in range(heldout)),
        tuple(prompt(2000 + i, demonstration=(5, 6, EOS)) for i in range(warmstart)),
    )


def decode(tokens: Sequence[int]) -> str:
    """Text of tokens, the end token left out."""
    return " ".join(str(t) for t in tokens if t != EOS)


Policy = Callable[[int, int], int]
"""Next token of prompt `number` at a position of its answer."""


def short_answers(number: int, position: int) -> int:
    """Answers of two to four tokens: 7 7 ... end."""
    return EOS if position >= 1 + number % 3 else 7


@dataclass
class FakeEngine:
    """Generates by the world's policy, as the weights that it was started with."""

    world: "World"
    label: str
    alive: bool = True
    generated: int = 0
    running: int = 0
    most_running: int = 0
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared: no token comes."""
    silent: bool = False
    """Nothing is answered, as if the machine was gone: neither requests nor metrics."""
    pace: float = 1.0
    """Of a token, as a multiple of TOKEN_SECONDS."""
    given_up: set[str] = field(default_factory=set)
    """Requests to be answered with what there is."""
    sending: float = 0.0
    """Seconds until such an answer has arrived."""
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stalled.set()

    async def generate(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> Completion:
        assert request_id not in self.world.request_ids, "request ids must never repeat"
        self.world.request_ids.add(request_id)
        self.world.requests.append((self.label, tuple(prompt), params))
        self._answer_or_raise()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.asked.append(request_id)
        try:
            return await self._write(request_id, prompt, params)
        finally:
            self.running -= 1

    async def _write(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> Completion:
        tokens: list[int] = []
        while len(tokens) < params.max_tokens:
            await asyncio.sleep(TOKEN_SECONDS * self.pace)
            await self.stalled.wait()
            if self.silent:
                await asyncio.Event().wait()
            if request_id in self.given_up:
                await asyncio.sleep(self.sending)
                return Completion(tuple(tokens), tuple(-0.5 for _ in tokens), "abort", self.label if tokens else "")
            self._answer_or_raise()
            tokens.append(self.world.policy(prompt[0], len(prompt) - 2 + len(tokens)))
            self.generated += 1
            if tokens[-1] in params.stop_token_ids:
                break
        reason: FinishReason = "stop" if tokens[-1] in params.stop_token_ids else "length"
        return Completion(tuple(tokens), tuple(-0.5 for _ in tokens), reason, self.label)

    async def metrics(self) -> EngineMetrics:
        self._answer_or_raise()
        if self.silent:
            await asyncio.Event().wait()
        return EngineMetrics(self.running, 0, self.generated, 0.1)

    async def abort(self, request_ids: Sequence[str]) -> None:
        self._answer_or_raise()
        self.given_up |= set(request_ids)

    async def hand_back(self) -> None:
        """Answer all that runs, and end."""
        while self.running:
            self.given_up |= set(self.asked)
            await asyncio.sleep(TOKEN_SECONDS)
        self.alive = False

    def _answer_or_raise(self) -> None:
        if not self.alive:
            raise InfrastructureError("engine: connection refused")


@dataclass
class FakeReward:
    """1 for answers of prompts with an even number; the verdict is `failed` as often as asked."""

    failures: int = 0
    """Verdicts that will be `failed`."""
    away: int = 0
    """Calls that will not be answered."""
    judged: Counter[str] = field(default_factory=Counter)
    calls: int = 0

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        self.calls += 1
        await asyncio.sleep(0.005)
        if self.away:
            self.away -= 1
            raise InfrastructureError("reward: connection refused")
        return ScoreResponse(results=tuple(self._result(item.id, item.prompt, item.finished) for item in request.items))

    def _result(self, key: str, question: str, finished: bool) -> ScoreResult:
        if self.failures:
            self.failures -= 1
            return ScoreResult(id=key, verdict="failed", reward=None, reason="out of memory")
        self.judged[key] += 1
        right = finished and int(question.split()[1]) % 2 == 0
        return ScoreResult(id=key, verdict="right" if right else "wrong", reward=float(right))


class FakeNode:
    """A worker's checkpoint-engine: converges to what is wanted. Its checkpoints are folders that hold a checksum."""

    def __init__(self, world: "World", name: str = "worker-0") -> None:
        self.world, self.name = world, name
        self.starts = itertools.count()
        self.failing: Failure | None = None
        self.trained_versions: list[int] = []
        self.batches: dict[int, Batch] = {}
        self.restart()

    def restart(self) -> None:
        """All that lived in processes is lost."""
        self.incarnation = f"{self.name}.{next(self.starts)}"
        self.seen, self.failures = 0, 0
        self.version: int | None = None
        self.checksum = ""
        self.engine: FakeEngine | None = None
        self.engine_incarnation = ""
        self.trained: TrainMetrics | None = None
        self.checkpointed: int | None = None
        self.timings: dict[str, float] = {}
        self.step: Step = "idle"
        self.registered: int | None = None

    def report(self) -> NodeReport:
        engine = None
        if self.engine is not None and self.engine.alive and self.version is not None:
            engine = EngineReport(
                url=self.engine_incarnation,
                incarnation=self.engine_incarnation,
                version=self.version,
                checksum=self.checksum,
                routable=True,
            )
        return NodeReport(
            node=self.name, kind="worker", incarnation=self.incarnation, seen_revision=self.seen, step=self.step, step_started=clock(),
            trainer=TrainerReport(incarnation=self.incarnation, version=self.version, resident=True), engine=engine, trained=self.trained,
            checkpointed=self.checkpointed, timings=self.timings, failure=self.failing, failures=self.failures,
        )  # fmt: skip

    async def run(self) -> None:
        while True:
            try:
                desired = await self._sync()
                self.seen = desired.revision
                if desired.phase == "stop":
                    self.engine = None
                    await self._sync()
                    return
                await self._step(desired)
            except httpx.HTTPError:
                await asyncio.sleep(0.5)

    async def _sync(self, wait: int = 5) -> NodeDesired:
        answer = await self.world.call("POST", f"/v1/nodes/{self.name}/sync?wait={wait}", self.report().model_dump_json())
        return NodeDesired.model_validate_json(answer.content)

    async def _step(self, desired: NodeDesired) -> None:
        if self.failing is not None:
            self.failures += 1
            await asyncio.sleep(1)
        elif desired.phase == "train" and desired.task is not None:
            if self.engine is not None:
                self.engine, self.timings = None, {}
            await self._train(desired.task.version)
        elif desired.phase == "rollout":
            await self._serve(desired.version)

    async def _serve(self, version: int) -> None:
        if self.version != version:
            await self._load(version)
        if self.world.checksums.get(version) is None:
            await self._register()
        if self.engine is None or not self.engine.alive:
            await asyncio.sleep(1)
            self.timings = {"start-engine": 1.0}
            self.engine_incarnation = f"{self.incarnation}.engine{len(self.world.engines)}"
            self.engine = FakeEngine(self.world, f"{version}:{self.checksum}")
            self.world.engines[self.engine_incarnation] = self.engine

    async def _train(self, version: int) -> None:
        if self.trained is None or self.trained.version != version:
            if self.version != version - 1:
                await self._load(version - 1)
            answer = await self.world.call("GET", f"/v1/batches/{version}")
            if answer.status_code != 200:
                return
            await self._make(version, answer.content)
        if self.registered != version:
            # All is done but the last step, whose time is known only when the master has answered.
            self.step = "register"
            await self._sync(wait=0)
            await self._register()
            await asyncio.sleep(0.25)
            self.step, self.timings = "idle", self.timings | {"register": 0.25}

    async def _make(self, version: int, batch: bytes) -> None:
        await asyncio.sleep(2)
        self.batches[version] = Batch.decode(batch)
        self.checksum = hashlib.sha256(self.checksum.encode() + batch).hexdigest()[:8]
        self.version = version
        self.trained_versions.append(version)
        self.timings = {"train": 2.0}
        folder = checkpoint_folder(self.world.folders.checkpoints, version)
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_text(self.checksum)
            (folder / "optimizer").mkdir()
        self.checkpointed = version
        samples = sum(len(g.samples) for g in self.batches[version].groups)
        pairs = self.measured(self.batches[version]) if self.world.job.spec.reward_model else None
        self.trained = TrainMetrics(
            version=version, loss=0.5, grad_norm=1.0, learning_rate=1e-4, steps=1, samples=samples, tokens=10 * samples, seconds=2.0,
            kl=0.0, logprob_gap=1e-6, pairs=pairs,
        )  # fmt: skip

    def measured(self, batch: Batch) -> PairMetrics:
        """Of a reward model: three of four held-out pairs in the right order, half of them before the first iteration."""
        return PairMetrics(
            right=0.75, margin=0.5,
            held_out=tuple(-1.0 if i % 4 == 1 else 1.0 for i in range(batch.held_out)),
            held_out_before=tuple((-1.0) ** i for i in range(batch.held_out if batch.version == 1 else 0)),
        )  # fmt: skip

    async def _load(self, version: int) -> None:
        await asyncio.sleep(1)
        self.checksum = (
            (checkpoint_folder(self.world.folders.checkpoints, version) / "model.safetensors").read_text() if version else "start"
        )
        self.version = version

    async def _register(self) -> None:
        assert self.version is not None
        body = manifest(self.version, self.checksum, self.name)
        answer = await self.world.call("PUT", f"/v1/weights/{self.version}", body.model_dump_json())
        assert answer.status_code == 204, answer.text
        self.registered = self.version
        self.world.checksums[self.version] = self.checksum


class FakeReplica(FakeNode):
    """The checkpoint-engine of a rollout pod: serves whatever version is registered, once it is wanted; `leave` ends it as SIGTERM does."""

    leaving = False
    wanted: NodeDesired | None = None

    def report(self) -> NodeReport:
        report, wanted = super().report(), self.wanted
        asked = wanted is not None and (wanted.phase == "rollout" or wanted.ahead)
        serves = wanted is not None and asked and wanted.version == self.version
        engine = report.engine.model_copy(update={"routable": serves, "leaving": serves and self.leaving}) if report.engine else None
        return report.model_copy(update={"kind": "rollout", "engine": engine})

    async def _step(self, desired: NodeDesired) -> None:
        self.wanted = desired
        checksum = self.world.checksums.get(desired.version)
        if (
            not (desired.phase == "rollout" or desired.ahead)
            or checksum is None
            or (self.version == desired.version and self.engine is not None)
        ):
            await asyncio.sleep(0.01)
            return
        await asyncio.sleep(0.05)
        self.version, self.checksum = desired.version, checksum
        if self.engine is None:
            self.engine_incarnation = f"{self.incarnation}.engine{len(self.world.engines)}"
            self.engine = FakeEngine(self.world, "")
            self.world.engines[self.engine_incarnation] = self.engine
        self.engine.label = f"{self.version}:{checksum}"

    async def leave(self) -> None:
        """First nothing new is sent to it, then what it writes comes back, then it is gone."""
        self.leaving = True
        await self._sync(wait=0)
        if self.engine is not None:
            await self.engine.hand_back()


def manifest(version: int, checksum: str, node: str = "worker-0", rows: int = 4) -> Manifest:
    """One tensor of 4 × 2 floats in two shards; fewer `rows` leave the set incomplete."""
    shards = (
        Shard(node=node, segment="arena", offset=0, bytes=16, start=0, rows=2),
        Shard(node=node, segment="arena", offset=16, bytes=8 * (rows - 2), start=2, rows=rows - 2),
    )
    tensor = TensorEntry(name="w", dtype="F32", shape=(4, 2), shards=shards, checksum="c")
    canary = Canary(tokens=(1, 2), logprobs=(-0.5,), tolerance=0.1)
    return Manifest(version=version, dtype="F32", tensors=(tensor,), checksum=checksum, canary=canary)


class Crash(BaseException):
    """The master was killed."""


class CrashingDatabase(Database):
    """Dies at the n-th durable step (each transaction has two: before and after), and writes nothing from then on."""

    def __init__(self, folder: Path, crash_at: int | None = None) -> None:
        self.crash_at, self.steps, self.names, self.crashed = crash_at, 0, list[str](), False
        super().__init__(folder)

    @contextmanager
    def transaction(self, name: str) -> Iterator[Any]:
        self._step(f"before {name}")
        with super().transaction(name) as connection:
            yield connection
        self._step(f"after {name}")

    def _step(self, name: str) -> None:
        if self.crash_at is not None and self.steps >= self.crash_at:
            self.crashed = True
            raise Crash(name)
        self.steps += 1
        self.names.append(name)


class World:
    """A job, its volumes and everything around the master."""

    def __init__(self, root: Path, job: RLJob, inputs: Inputs, policy: Policy = short_answers) -> None:
        self.job, self.inputs, self.policy = job, inputs, policy
        self.folders = Folders(*(root / name for name in ("model", "data", "state", "output", "checkpoints")))
        self.reward = FakeReward()
        self.engines: dict[str, FakeEngine] = {}
        self.checksums: dict[int, str] = {}
        self.requests: list[tuple[str, tuple[int, ...], SamplingParams]] = []
        self.request_ids: set[str] = set()
        self.nodes = [FakeNode(self)]
        self.parts: Parts | None = None
        self.steps: list[str] = []
        """Durable steps of the last master."""
        self._http: httpx.AsyncClient | None = None
        self._calls: set[asyncio.Task[httpx.Response]] = set()
        self._alive: list[asyncio.Task[None]] = []
        self._life: asyncio.Task[None] | None = None

    async def call(self, method: str, path: str, body: str | None = None) -> httpx.Response:
        """HTTP to the master; fails like a connection when it dies."""
        if self._http is None:
            raise httpx.ConnectError("no master")
        request = asyncio.create_task(self._http.request(method, path, content=body))
        self._calls.add(request)
        try:
            return await request
        except Crash:
            if self._life is not None:
                self._life.cancel()
            raise httpx.ReadError("the master died") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise httpx.ReadError("the master died") from None
        finally:
            self._calls.discard(request)

    async def master(self, crash_at: int | None = None) -> bool:
        """One life of the master, to the end of the job or to its crash; True if the job came to its end.

        Raises:
            RLJobError: the job failed.
        """
        database = CrashingDatabase(self.folders.state)
        database.crash_at = crash_at
        if not self._alive:
            self._alive = [asyncio.create_task(node.run()) for node in self.nodes]
        try:
            outside = Outside(lambda url: self.engines[url], self.reward, clock)
            self.parts = assemble(self.job, self.folders, self.inputs, decode, database, outside)
            transport = httpx.ASGITransport(Service(self.parts).application())
            async with httpx.AsyncClient(transport=transport, base_url="http://master", timeout=60) as self._http:
                self._life = asyncio.create_task(run_job(self.parts))
                await self._life
            return True
        except Crash:
            return False
        except asyncio.CancelledError:
            if database.crashed:
                return False
            raise
        finally:
            self._http = None
            for request in self._calls:
                request.cancel()
            self.steps = database.names
            database.close()

    def kill_nodes(self) -> None:
        """Every node agent, trainer and engine dies and starts again."""
        for engine in self.engines.values():
            engine.alive = False
        for task in self._alive:
            task.cancel()
        for node in self.nodes:
            node.restart()
        self._alive = []

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.folders.output / "metrics.jsonl").read_text().splitlines()]

    def status(self) -> dict[str, Any]:
        """status.json."""
        found: dict[str, Any] = json.loads((self.folders.output / "status.json").read_text())
        return found

    def trained_prompts(self) -> dict[int, list[int]]:
        """Numbers of the prompts in each version's batch, sorted."""
        batches = {version: batch for node in self.nodes for version, batch in node.batches.items()}
        return {version: sorted(int(np.asarray(g.prompt)[0]) for g in batch.groups) for version, batch in sorted(batches.items())}
