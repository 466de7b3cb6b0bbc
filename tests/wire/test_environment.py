"""Addresses that a process of a job is told."""

import pytest

from rljob.wire.environment import Environment


@pytest.mark.parametrize(
    ("host", "url"),
    [("10.0.0.7", "http://10.0.0.7:8000"), ("fd00::7", "http://[fd00::7]:8000"), ("x-worker-0.x-nodes", "http://x-worker-0.x-nodes:8000")],
)
def test_the_address_of_a_pod_is_told_as_a_url_writes_it(host: str, url: str) -> None:
    assert Environment({"RLJOB_ADVERTISE_HOST": host}).advertised_url(8000) == url
