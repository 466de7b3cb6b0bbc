"""Ends what a time limit cannot end.

The limit of a test (pytest-timeout) raises in Python, so a thread that waits in native code, for a lock or for a collective, never hears of
it, and the run with all its workers waits for ever. `GRACE` seconds later the process says where each of its threads is, and ends; where
workers share the suite, the others go on, and the test that hung is named.
"""

import faulthandler
import os
from collections.abc import Generator
from typing import Any

import pytest

GRACE = 60.0
_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """What tests write is not captured yet: this is where the run itself speaks."""
    config.stash[_STDERR] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_STDERR])


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, object, object]:
    """Beside the limit that it sets."""
    faulthandler.dump_traceback_later(settings.timeout + GRACE, exit=True, file=item.config.stash[_STDERR])
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> Generator[None, object, object]:
    faulthandler.cancel_dump_traceback_later()
    return (yield)
