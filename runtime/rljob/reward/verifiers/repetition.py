"""How much an answer repeats itself, as a graded term."""

from rljob.api.verifiers import RepetitionOptions
from rljob.reward.verifier import Judgement, Verifier
from rljob.reward.verifiers.words import words
from rljob.wire.reward import ScoreItem

_MOST = 50_000
"""Words that are looked at, from the end, where loops are."""


def _judge(item: ScoreItem, options: RepetitionOptions) -> Judgement:
    share = repeated(item.answer, options.ngram)
    reward = max(0.0, 1.0 - share / options.zero_at)
    return Judgement(reward == 1.0, f"{share:.1%} repeated", reward)


def repeated(text: str, ngram: int) -> float:
    """Share of the runs of so many words that stood there before; 0 for a text that is shorter."""
    last = words(text)[-_MOST:]
    runs = len(last) - ngram + 1
    if runs < 1:
        return 0.0
    return 1.0 - len(set(zip(*(last[i:] for i in range(ngram)), strict=False))) / runs


VERIFIER = Verifier("repetition", RepetitionOptions, _judge, sees_thoughts=True)
