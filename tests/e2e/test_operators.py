"""What the end-to-end tests read off a Lease."""

import pytest
from tests.e2e.operators import given_back

HELD = {"holderIdentity": "a-1", "renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 6}


@pytest.mark.parametrize(
    ("after", "given"),
    [
        (HELD | {"renewTime": "2026-01-01T00:00:01.200000Z"}, False),
        (HELD | {"holderIdentity": "", "leaseDurationSeconds": 1}, True),
        (HELD | {"holderIdentity": "b-2", "acquireTime": "2026-01-01T00:00:02.000000Z"}, True),
        (HELD | {"holderIdentity": "b-2", "acquireTime": "2026-01-01T00:00:06.100000Z"}, False),
    ],
)
def test_a_lease_that_another_has_was_given_back_unless_it_had_run_out(after: dict[str, object], given: bool) -> None:
    assert given_back(HELD, after) is given
