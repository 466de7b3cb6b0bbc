"""Collects answers of one policy: those of an iteration, and those of a held-out evaluation."""

import asyncio
from collections.abc import Sequence

from rljob.master.decisions.evaluation import HeldOutAnswer, accuracy
from rljob.master.decisions.partial import Limits
from rljob.master.decisions.rewards import verdict_of
from rljob.master.generation import Generation
from rljob.master.journal import Journal
from rljob.master.parts import Parts
from rljob.master.state import Piece
from rljob.master.state.history import Evaluation
from rljob.master.trajectory import PromptGroup, Trajectory, Weights, added
from rljob.rollout.client import SamplingParams
from rljob.wire.data import PromptRecord


def _answer_limit(parts: Parts, prompt: PromptRecord) -> int:
    """Most tokens of an answer: maxTokens, or what the prompt leaves of the longest sequence."""
    return min(parts.job.spec.rollout.max_tokens, parts.inputs.prepared.max_length - len(prompt.tokens))


def _generation(parts: Parts, weights: Weights, temperature: float, top_p: float) -> Generation:
    params = SamplingParams(max_tokens=1, temperature=temperature, top_p=top_p, stop_token_ids=tuple(parts.inputs.prepared.eos_token_ids))
    return Generation(parts.pool, parts.scorer, parts.decode, weights, params, parts.clock)


async def collect_answers(parts: Parts, weights: Weights, iteration: int, groups: Sequence[PromptGroup], beside: bool = False) -> float:
    """Bring every answer of the open groups to its end or its budget, all news durable on return; answers the tokens per second.

    Args:
        beside: something else goes on meanwhile, whose time it is.
    """
    rollout, buffer = parts.job.spec.rollout, parts.state.buffer
    generation = _generation(parts, weights, rollout.temperature, rollout.top_p)
    growth = rollout.token_budget * buffer.rounds(iteration) if rollout.token_budget is not None else None
    begun, tokens = parts.clock(), parts.pool.tally.tokens

    def write(pieces: Sequence[Piece]) -> None:
        buffer.save(pieces)
        parts.watch.progressed()

    journal = Journal(write)

    async def answer(group: PromptGroup, trajectory: Trajectory) -> None:
        async def saved(before: Trajectory, after: Trajectory) -> None:
            await journal.save(_piece(group.id, before, after))

        limits = Limits(_answer_limit(parts, group.prompt), growth, rollout.repetition)
        after = await generation.complete(f"{group.id}/{trajectory.sample}", group.prompt, trajectory, limits, saved)
        if after.verdict is not None:
            parts.activity.advanced()

    async with asyncio.TaskGroup() as tasks:
        for group in groups:
            for trajectory in (t for t in group.trajectories if t.verdict is None):
                tasks.create_task(answer(group, trajectory))
    generating = generation.last_token - begun
    if not beside:
        parts.stopwatch.add({"rollout": generating, "reward-wait": parts.clock() - generation.last_token})
    return (parts.pool.tally.tokens - tokens) / generating if generating > 0 else 0.0


def _piece(group: int, before: Trajectory, after: Trajectory) -> Piece:
    finished = after.finish if before.finish is None else None
    judged = after.verdict if before.verdict is None else None
    return Piece(
        group=group,
        sample=after.sample,
        start=before.length,
        segment=added(before, after),
        finish=finished,
        length=after.length if finished else None,
        answer=after.answer if judged else None,
        verdict=judged,
    )


async def evaluate_held_out(parts: Parts, weights: Weights, iteration: int) -> Evaluation:
    """Answer the held-out prompts that this version has not answered yet; every judged answer is durable."""
    spec, history, prompts = parts.job.spec, parts.state.history, parts.inputs.heldout
    if spec.evaluation is None:
        raise ValueError("an evaluation is due, but the job has none")
    generation = _generation(parts, weights, spec.evaluation.temperature, 1.0)
    known, begun = history.answers(weights.version), parts.clock()

    def write(answers: Sequence[tuple[int, HeldOutAnswer]]) -> None:
        history.save_answers(weights.version, answers)
        parts.watch.progressed()

    journal = Journal(write)

    async def nothing(before: Trajectory, after: Trajectory) -> None:
        """Unfinished held-out answers are made again after a crash."""

    async def answer(position: int, prompt: PromptRecord) -> None:
        limits = Limits(_answer_limit(parts, prompt), None, spec.rollout.repetition)
        done = await generation.complete(f"held-out/{position}", prompt, Trajectory(0), limits, nothing)
        verdict = verdict_of(done)
        judged = HeldOutAnswer(prompt.id, prompt.family, prompt.question, done.answer or "", done.length, verdict.right, verdict.reason)
        await journal.save((position, judged))
        parts.activity.advanced()

    for _ in known:
        parts.activity.advanced()
    async with asyncio.TaskGroup() as tasks:
        for position, prompt in enumerate(prompts):
            if position not in known:
                tasks.create_task(answer(position, prompt))
    answers = list(history.answers(weights.version).values())
    record = {
        "version": weights.version,
        "response_length": sum(a.length for a in answers) / len(answers),
        "tokens": sum(a.length for a in answers),
        "seconds": parts.clock() - begun,
    }
    return Evaluation(weights.version, accuracy(iteration, answers), record)
