"""The time that decisions are made by."""

import time

import pytest

from rljob.wire.clock import steady_time


def test_it_is_unix_time_and_goes_on_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert abs(steady_time() - time.time()) < 60
    before = steady_time()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0 <= steady_time() - before < 60
