"""What is valid but probably not what was meant is said."""

import pytest
from tests.api.jobs import full, minimal

from rljob.api import RLJobSpec
from rljob.api.notes import inert


@pytest.mark.parametrize(("tau", "steps", "said"), [(0.1, 1, True), (0.1, 2, False), (0.0, 1, False)])
def test_a_regulariser_that_has_nothing_to_do_is_said(tau: float, steps: int, said: bool) -> None:
    found = inert(RLJobSpec.model_validate(minimal() | {"algorithm": {"tau": tau, "stepsPerIteration": steps}}))
    assert [note.split(":")[0] for note in found] == ["spec.algorithm.tau is 0.1, but has no effect with stepsPerIteration 1"] * said
    assert all("raise spec.algorithm.stepsPerIteration or leave tau out" in note for note in found)


def test_most_jobs_need_no_note() -> None:
    assert inert(RLJobSpec.model_validate(minimal())) == inert(RLJobSpec.model_validate(full())) == []
