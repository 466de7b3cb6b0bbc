"""A weighted mean of other verifiers' rewards of the same answer."""

import math
from collections.abc import Sequence
from typing import Any

from rljob.api.verifiers import Term, WeightedOptions
from rljob.reward.verifier import CombinedVerifier, Judgement


def _check_reference(reference: Any, options: WeightedOptions) -> None:
    if not options.terms:
        raise ValueError("option `terms`: no term is set; name at least one verifier and its weight")


def _terms(options: WeightedOptions) -> Sequence[Term]:
    return options.terms


def _combine(options: WeightedOptions, found: Sequence[Judgement]) -> Judgement:
    terms = list(zip(options.terms, found, strict=True))
    right = all(judgement.right for term, judgement in terms if term.is_deciding)
    earned = [judgement.earned if right or not term.only_if_right else 0.0 for term, judgement in terms]
    whole = math.fsum(term.weight for term in options.terms)
    reward = math.fsum(term.weight * one for term, one in zip(options.terms, earned, strict=True)) / whole
    parts = [f"{term.verifier} {one:.3g} × {term.weight / whole:.3g}" for term, one in zip(options.terms, earned, strict=True)]
    why = next((judgement.reason for term, judgement in terms if term.is_deciding and not judgement.right), "")
    return Judgement(right, " + ".join(parts) + (f"; {why}" if why else ""), min(1.0, reward))


VERIFIER = CombinedVerifier("weighted", WeightedOptions, _terms, _combine, _check_reference)
