"""How long an answer is, as a graded term."""

from rljob.api.verifiers import LengthOptions
from rljob.reward.verifier import Judgement, Verifier
from rljob.reward.verifiers.words import words
from rljob.wire.reward import ScoreItem


def _judge(item: ScoreItem, options: LengthOptions) -> Judgement:
    length = len(words(item.answer)) if options.unit == "words" else len(item.answer)
    share = (length - options.zero_at) / (options.full_at - options.zero_at)
    reward = min(1.0, max(0.0, share))
    return Judgement(reward == 1.0, f"{length} {options.unit}", reward)


VERIFIER = Verifier("length", LengthOptions, _judge, sees_thoughts=True)
