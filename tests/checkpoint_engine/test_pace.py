"""How long a task still takes."""

import math

import pytest

from rljob.checkpoint_engine.pace import Pace
from rljob.wire.node import Progress


def test_nobody_knows_before_it_has_got_on() -> None:
    pace = Pace()
    assert pace.remaining(0.0, None) == math.inf
    assert pace.remaining(1.0, Progress(done=0, total=10)) == math.inf
    assert pace.remaining(5.0, Progress(done=0, total=10)) == math.inf
    assert pace.remaining(6.0, Progress(done=2, total=10)) == pytest.approx(8 / 2 * 5)


def test_the_last_moments_count() -> None:
    pace = Pace()
    for tenth in range(20):
        pace.remaining(tenth / 10, Progress(done=tenth, total=100))  # ten a second
    left = [pace.remaining(2 + i, Progress(done=20 + 2 * i, total=100)) for i in range(3)]  # two a second
    assert left[-1] == pytest.approx(76 / 2, rel=0.01)


def test_what_begins_anew_is_judged_anew() -> None:
    pace = Pace()
    pace.remaining(0.0, Progress(done=0, total=10))
    assert pace.remaining(1.0, Progress(done=9, total=10)) < 1
    assert pace.remaining(2.0, Progress(done=1, total=10)) == math.inf
