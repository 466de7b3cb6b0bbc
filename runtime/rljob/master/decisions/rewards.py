"""From verdicts to advantages: length reward, repetition penalty, baseline."""

from collections.abc import Sequence

from rljob.api.algorithm import LengthPenalty
from rljob.master.trajectory import Trajectory, Verdict


def length_rewards(lengths: Sequence[int], right: Sequence[bool]) -> tuple[float, ...]:
    """The length reward of the k answers of one prompt (Kimi k1.5 §2.3.3), each in [-0.5, 0.5].

    lambda = 0.5 - (len - min_len) / (max_len - min_len); a right answer gets lambda, a wrong one min(0, lambda); all get 0 if all are
    equally long. `lengths` in tokens.
    """
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return (0.0,) * len(lengths)
    scale = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return tuple(s if good else min(0.0, s) for s, good in zip(scale, right, strict=True))


def total_rewards(
    trajectories: Sequence[Trajectory], iteration: int, penalty: LengthPenalty, repetition_penalty: float
) -> tuple[float, ...]:
    """What is learned from, for the finished and judged answers of one prompt.

    The verifier's reward, plus the weighted length reward once `iteration` (from 1) is past the warm-up, minus the penalty of answers that
    were ended for repeating themselves.
    """
    verdicts = [verdict_of(t) for t in trajectories]
    weight = penalty.weight if iteration > penalty.warmup_iterations else 0.0
    shaped = length_rewards([t.length for t in trajectories], [v.right for v in verdicts]) if weight else (0.0,) * len(verdicts)
    return tuple(
        v.reward + weight * extra - (repetition_penalty if t.finish == "repeat" else 0.0)
        for t, v, extra in zip(trajectories, verdicts, shaped, strict=True)
    )


def advantages(rewards: Sequence[float]) -> tuple[float, ...]:
    """r - mean(r) of the group: the mean reward stands for tau log Z (Kimi k1.5 §2.3.2). Exactly 0 where all rewards are equal."""
    if all(r == rewards[0] for r in rewards):
        return (0.0,) * len(rewards)
    mean = sum(rewards) / len(rewards)
    return tuple(r - mean for r in rewards)


def verdict_of(trajectory: Trajectory) -> Verdict:
    """The verdict of a judged answer.

    Raises:
        ValueError: it has not been judged.
    """
    if trajectory.verdict is None:
        raise ValueError(f"answer {trajectory.sample} has no verdict yet")
    return trajectory.verdict
