"""A pool of real slots for the whole test session, and after every test that uses it the proof that it still answers."""

from collections.abc import Iterator

import pytest
from tests.sandbox.sandbox import Sandbox


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[Sandbox]:
    with Sandbox(retire_after=10**9) as sandbox:
        sandbox.measure()
        yield sandbox


@pytest.fixture
def sandbox(shared_sandbox: Sandbox) -> Iterator[Sandbox]:
    yield shared_sandbox
    shared_sandbox.assert_well()
