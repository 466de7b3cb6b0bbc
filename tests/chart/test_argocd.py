"""`docs/argocd/health.lua`, run by a real Lua 5.1 (the version that Argo CD's interpreter implements)."""

import itertools
from typing import Any

import pytest
from lupa.lua51 import LuaRuntime
from tests.chart.rendering import ROOT

from rljob.controller.conditions import TYPES

SCRIPT = (ROOT / "docs" / "argocd" / "health.lua").read_text()
HEALTHS = {"Healthy", "Progressing", "Degraded", "Suspended"}


def health(status: dict[str, Any] | None, generation: int = 1) -> tuple[str, str]:
    """(status, message) of an RLJob as Argo CD would show it."""
    lua = LuaRuntime(register_eval=False, register_builtins=False)
    job = {"metadata": {"name": "x", "generation": generation}} | ({} if status is None else {"status": status})
    lua.globals()["obj"] = lua.table_from(job, recursive=True)
    found = lua.execute(SCRIPT)
    return found["status"], found["message"]


def status(*true: str, generation: int = 1) -> dict[str, Any]:
    """A status as the operator writes it: all conditions, the named ones True."""
    conditions = [{"type": t, "status": str(t in true), "reason": "R", "message": f"{t} it is"} for t in TYPES]
    return {"observedGeneration": generation, "conditions": conditions}


def test_a_job_that_no_operator_has_seen_is_not_healthy() -> None:
    assert health(None)[0] == "Progressing"
    assert health({"observedGeneration": -1})[0] == "Progressing"
    assert health({"observedGeneration": 1})[0] == "Progressing"


def test_a_changed_spec_is_progressing_whatever_the_old_one_was() -> None:
    for true in TYPES:
        assert health(status(true, generation=1), generation=2)[0] == "Progressing"


@pytest.mark.parametrize(
    ("true", "expected"),
    [
        (("Ready",), ("Healthy", "Ready it is")),
        (("Reconciling",), ("Progressing", "Reconciling it is")),
        (("Ready", "Succeeded"), ("Healthy", "Succeeded it is")),
        (("Ready", "Suspended"), ("Suspended", "Suspended it is")),
        (("Stalled",), ("Degraded", "Stalled it is")),
        (("Stalled", "Failed"), ("Degraded", "Failed it is")),
    ],
)
def test_what_the_operator_says_is_what_argo_cd_shows(true: tuple[str, ...], expected: tuple[str, str]) -> None:
    assert health(status(*true)) == expected


def test_every_set_of_conditions_has_a_health_and_a_message() -> None:
    for count in range(len(TYPES) + 1):
        for true in itertools.combinations(TYPES, count):
            found, message = health(status(*true))
            assert found in HEALTHS
            assert message


def test_conditions_without_a_message_are_shown_by_their_reason() -> None:
    conditions = [{"type": "Stalled", "status": "True", "reason": "InvalidSpec"}]
    assert health({"observedGeneration": 1, "conditions": conditions}) == ("Degraded", "InvalidSpec")
