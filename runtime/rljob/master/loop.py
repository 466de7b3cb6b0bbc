"""The loop. Each pass looks at what is durable and does the one thing that is next; a restart changes nothing about what that is."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

from rljob.api.status import ProgressStatus
from rljob.master.checkpoints import delete_checkpoints, export_model
from rljob.master.collect import collect_answers, evaluate_held_out
from rljob.master.decisions import evaluation, sampler
from rljob.master.decisions.ahead import runs_ahead
from rljob.master.decisions.assemble import rl_batch, warm_start_batch
from rljob.master.decisions.pairs import judged_pairs, pair_batch, pair_part
from rljob.master.decisions.prune import obsolete
from rljob.master.decisions.record import added_seconds, iteration_record, rollout_part
from rljob.master.decisions.stage import Durable, Evaluate, Finish, Pairs, Rollout, Train, WarmStart, first_policy, next_stage
from rljob.master.parts import Parts
from rljob.master.state import StoredBatch
from rljob.master.state.history import Evaluation
from rljob.master.timing import uncounted
from rljob.master.trajectory import Weights
from rljob.wire.checkpoints import checkpoint_folder, checkpoint_versions
from rljob.wire.node import TrainMetrics, TrainTask

log = logging.getLogger(__name__)

TAKE_BACK = 0.25
"""Seconds that answers which were begun ahead get to become durable before the new version is committed."""
FAREWELL = 10.0
"""Seconds that nodes get to hear that the job is over."""


class Loop:
    """Runs the job to its end."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.spec = parts.job.spec
        self.activity = parts.activity
        self._served: Weights | None = None
        self._counted: Mapping[str, float] = {}
        """Seconds by step of the training that was just committed, as far as they are in its record."""
        self._pruning: asyncio.Task[None] | None = None
        """Old checkpoints are deleted while the next engine is already asked."""

    async def run(self) -> None:
        """Until all iterations are done and the final model is written."""
        while not isinstance(stage := next_stage(self.durable(), self.spec), Finish):
            match stage:
                case WarmStart():
                    self.demonstrate()
                case Pairs(iteration):
                    self.pair(iteration)
                case Train(version):
                    await self.train(version)
                case Evaluate(iteration):
                    await self.evaluate(iteration)
                case Rollout(iteration):
                    await self.rollout(iteration)
        await self.finish()

    def durable(self) -> Durable:
        """What the job has reached."""
        state = self.parts.state
        evaluated = frozenset(e.version for e in state.history.evaluations())
        return Durable(state.versions.committed().version, state.versions.pending() is not None, evaluated)

    def demonstrate(self) -> None:
        """Store the batch of the warm start."""
        warm_start = self.spec.warm_start
        if warm_start is None:
            raise ValueError("a warm start is next, but the job has none")
        batch = warm_start_batch(self.parts.inputs.warmstart, warm_start, self.spec.seed)
        task = TrainTask(version=1, kind="sft", steps=warm_start.steps, iteration=0)
        self.parts.state.versions.store_batch(StoredBatch(task, (), {}), batch.encode())

    def pair(self, iteration: int) -> None:
        """Store an iteration's batch of preference pairs."""
        p, settings, inputs = self.parts, self.spec.reward_model, self.parts.inputs
        if settings is None:
            raise ValueError("pairs are next, but the job trains no reward model")
        measured = inputs.heldout if iteration == 1 or evaluation.due(self.spec.evaluation, iteration, self.spec.iterations) else ()
        batch = pair_batch(inputs.train, measured, settings, iteration, self.spec.seed, self.spec.data.order == "shuffled")
        task = TrainTask(version=batch.version, kind="preference", steps=settings.steps_per_iteration, iteration=iteration)
        p.state.versions.store_batch(StoredBatch(task, (), {**pair_part(batch), "seconds": p.stopwatch.lap()}), batch.encode())

    def measured(self, iteration: int, metrics: TrainMetrics) -> None:
        """Record what a reward model's task says of held-out pairs; repeated: nothing. Ahead of the commit, so that none is lost."""
        pairs, history = metrics.pairs, self.parts.state.history
        if pairs is None:
            return
        known, records = self.durable().evaluated, self.parts.inputs.heldout
        for version, margins in ((metrics.version - 1, pairs.held_out_before), (metrics.version, pairs.held_out)):
            if not margins or version in known:
                continue
            answers = judged_pairs(records, margins, [self.parts.decode(list(r.chosen or ())) for r in records])
            if not history.answers(version):  # else a master died between the two
                history.save_answers(version, list(enumerate(answers)))
            lengths = [a.length for a in answers]
            record = {"version": version, "response_length": sum(lengths) / len(lengths), "tokens": 0, "seconds": 0.0}
            history.save_evaluation(Evaluation(version, evaluation.accuracy(iteration - metrics.version + version, answers), record))

    async def train(self, version: int) -> None:
        """Have the nodes make the version, then commit it."""
        p = self.parts
        batch = p.state.versions.pending()
        if batch is None:
            raise ValueError(f"version {version} is to be trained, but there is no batch")
        self._served = None
        self.activity.begin("WarmStart" if batch.task.kind == "sft" else "Training")
        policy, ahead = p.state.versions.checksum(version - 1), runs_ahead(batch.task, self.spec)
        p.nodes.want("train", version - 1, policy, batch.task, ahead)
        generating = asyncio.create_task(self._ahead(batch, Weights(version - 1, policy))) if ahead and policy is not None else None
        try:
            metrics = await p.nodes.until(lambda: self._made(version))
        finally:
            await self._ended(generating)
        self._counted = p.nodes.step_seconds()
        p.stopwatch.add(self._counted)
        self.measured(batch.task.iteration, metrics)
        self._commit(batch, metrics)
        await self._pruned()
        self._pruning = asyncio.create_task(self._prune())

    async def _ahead(self, batch: StoredBatch, policy: Weights) -> None:
        """Begin the next iteration's answers with the policy that is being replaced, on nodes that have nothing else to do."""
        p, iteration = self.parts, batch.task.iteration + 1
        p.pool.want(policy, p.nodes.reports, ahead=True)
        while not p.pool.routable:
            await p.pool.news.wait()
        self.draw(iteration, batch.groups)
        groups = [group for group in p.state.buffer.open_groups() if group.id not in batch.groups]
        await collect_answers(p, policy, iteration, groups, beside=True)

    async def _ended(self, ahead: asyncio.Task[None] | None) -> None:
        """What was begun ahead is taken back: its tokens are durable, its verdicts are asked for again. Raises what it raised."""
        if ahead is None:
            return
        try:
            await self.parts.pool.take_back()
            await asyncio.wait([ahead], timeout=TAKE_BACK)
        finally:
            ahead.cancel()
        await asyncio.wait([ahead])  # not awaited itself: whether it or we were cancelled could not be told
        if not ahead.cancelled():
            ahead.result()

    def _made(self, version: int) -> TrainMetrics | None:
        """What training reported, once the version is registered and durable.

        Registered is known here before its node knows, so that node is let finish: its last report has the times of all steps. Of several
        workers one is enough: a checkpoint is there when all have written their part, and whoever was lost since then gets the weights
        from another.
        """
        p = self.parts
        if p.state.versions.checksum(version) is None or not checkpoint_folder(p.folders.checkpoints, version).is_dir():
            return None
        done = [w for w in p.nodes.workers() if w.step == "idle" and w.checkpointed is not None and w.checkpointed >= version]
        return next((w.trained for w in done if w.trained is not None and w.trained.version == version), None)

    def _commit(self, batch: StoredBatch, metrics: TrainMetrics) -> None:
        p, now = self.parts, self.parts.clock()
        seconds = added_seconds(batch.record.get("seconds", {}), p.stopwatch.lap())
        switch = next(
            ({"switch_policy": w.switch_policy, "switch_reason": w.switch_reason} for w in p.nodes.workers() if w.switch_policy), {}
        )
        record = iteration_record(batch.task.iteration, batch.record, metrics, seconds, switch, now)
        p.state.versions.commit(batch, metrics, record, now)
        p.watch.progressed()
        self.activity.changed()
        log.info("version %d committed: loss %.4g, %.1f s", metrics.version, metrics.loss, seconds["total"])

    async def _prune(self) -> None:
        p = self.parts
        found = checkpoint_versions(p.folders.checkpoints)
        gone = obsolete(found, p.state.versions.committed().version, first_policy(self.spec), self.spec.checkpoint)
        refused = await asyncio.to_thread(delete_checkpoints, p.folders.checkpoints, gone)
        if refused is not None:
            message = f"an old checkpoint cannot be deleted ({refused}); change its owner or delete it by hand, else it only takes up space"
            p.watch.failed("master", "checkpoint", "CheckpointNotDeleted", message, vital=False)

    async def _pruned(self) -> None:
        """The deletion that was begun last is done; raises what it raised."""
        if self._pruning is not None:
            await self._pruning

    async def serve(self, what_for: Literal["Rollout", "Evaluating"]) -> Weights:
        """Have the committed version served by at least one engine; its identity."""
        p = self.parts
        if self.activity.phase != "Preparing":
            self.activity.begin(what_for, tokens=p.pool.tokens())
        version = p.state.versions.committed().version
        p.nodes.want("rollout", version, p.state.versions.checksum(version))
        checksum = await p.nodes.until(lambda: p.state.versions.checksum(version))
        weights = Weights(version, checksum)
        p.nodes.want("rollout", version, checksum)
        p.pool.want(weights, p.nodes.reports)
        while not p.pool.routable:
            await p.pool.news.wait()
        if self._served != weights:
            # Workers may still report the steps of training, of which those that were done by the commit have been counted.
            p.stopwatch.add(uncounted(p.nodes.step_seconds(), self._counted))
            self._served, self._counted = weights, {}
        return weights

    async def evaluate(self, iteration: int) -> None:
        """Evaluate the committed version on the held-out set."""
        p = self.parts
        weights = await self.serve("Evaluating")
        self.activity.begin("Evaluating", ProgressStatus(done=0, total=len(p.inputs.heldout), unit="answers"), p.pool.tokens())
        with p.stopwatch.phase("evaluation"):
            evaluation = await evaluate_held_out(p, weights, iteration)
        p.state.history.save_evaluation(evaluation)
        p.watch.progressed()
        self.activity.changed()
        log.info("held-out accuracy after iteration %d: %.3f", iteration, evaluation.status.accuracy)

    async def rollout(self, iteration: int) -> None:
        """Collect answers; store the batch if at least one prompt's answers are complete, else grant the token budget once more."""
        p, buffer = self.parts, self.parts.state.buffer
        self.draw(iteration)
        weights = await self.serve("Rollout")
        groups = buffer.open_groups()
        answers = sum(len(g.trajectories) for g in groups)
        done = sum(t.verdict is not None for g in groups for t in g.trajectories)
        self.activity.begin("Rollout", ProgressStatus(done=done, total=answers, unit="answers"), p.pool.tokens())
        speed = await collect_answers(p, weights, iteration, groups)
        groups = buffer.open_groups()
        complete = [g for g in groups if g.complete]
        if not complete:
            buffer.grant_round(iteration)
            return
        batch, summary = rl_batch(complete, weights.version + 1, iteration, self.spec)
        # Of the answers that were begun ahead, what the policy before wrote is in no other line.
        tokens = sum(t.length if g.iteration == iteration else t.length_by(weights.version) for g in groups for t in g.trajectories)
        carried = sum(t.finish is None for g in groups for t in g.trajectories)
        record = rollout_part(summary, tokens, carried, buffer.rounds(iteration), speed, p.pool.tally.take_discarded())
        steps = min(self.spec.algorithm.steps_per_iteration, len(complete))
        task = TrainTask(version=batch.version, kind="rl", steps=steps, iteration=iteration)
        stored = StoredBatch(task, tuple(g.id for g in complete), {**record, "seconds": p.stopwatch.lap()})
        p.state.versions.store_batch(stored, batch.encode())

    def draw(self, iteration: int, in_training: Sequence[int] = ()) -> None:
        """Draw the iteration's new prompts, once: as many as replace the ones that the last iterations have consumed.

        Args:
            in_training: groups that are about to be consumed.
        """
        p, buffer = self.parts, self.parts.state.buffer
        if buffer.rounds(iteration):
            return
        prompts, uniform = p.inputs.train, self.spec.algorithm.sampling.strategy == "uniform"
        statistics = {} if uniform else buffer.statistics()
        index = {prompt.id: i for i, prompt in enumerate(prompts)}
        carried = [group for group in buffer.open_groups() if group.id not in in_training]
        wanted = max(0, self.spec.algorithm.prompts_per_iteration - len(carried))
        chosen = sampler.draw(
            sampler.Draw(self.spec.seed, iteration, buffer.drawn(), wanted),
            self.spec.algorithm.sampling,
            self.spec.data.order == "shuffled",
            [prompt.difficulty for prompt in prompts],
            [statistics.get(prompt.id, sampler.Statistics()) for prompt in prompts],
            {index[g.prompt.id] for g in carried},
        )
        buffer.draw(iteration, [prompts[i].id for i in chosen], self.spec.algorithm.samples_per_prompt)

    async def finish(self) -> None:
        """Write the final model and let the nodes go."""
        p = self.parts
        self.activity.begin("Finishing")
        committed = p.state.versions.committed()
        p.pool.want(None, {})
        p.nodes.want("stop", committed.version, committed.checksum)
        await self._pruned()
        await self._prune()
        await asyncio.to_thread(export_model, checkpoint_folder(p.folders.checkpoints, committed.version), p.folders.output / "model")
        await self.part()

    async def part(self) -> None:
        """Give the nodes a moment to hear that the job is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await self.parts.nodes.until(lambda: self.parts.nodes.all_told() or None)
