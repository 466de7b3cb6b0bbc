"""How Argo CD and Flux read a job: `docs/argocd/health.lua`, run by a real Lua 5.1 (as in Argo CD), and kstatus."""

import itertools
from typing import Any

import pytest
from lupa.lua51 import LuaRuntime
from tests.chart.rendering import ROOT

from rljob.api.crd import status_schema
from rljob.controller.conditions import TYPES, conditions
from rljob.controller.verdict import Verdict
from rljob.controller.world import Trouble

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
        (("Stalled", "Failed"), ("Degraded", "Stalled it is")),
        (("Stalled", "Succeeded"), ("Degraded", "Stalled it is")),
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


def kstatus(job_status: dict[str, Any], generation: int = 1) -> str:
    """What Flux makes of a status: the rules of cli-utils' pkg/kstatus for kinds that it does not know, in their order."""
    if job_status.get("observedGeneration", generation) != generation:
        return "InProgress"
    found = {c["type"]: c["status"] for c in job_status.get("conditions", ())}
    if found.get("Reconciling") == "True":
        return "InProgress"
    if found.get("Stalled") == "True":
        return "Failed"
    if "Ready" in found:
        return "Current" if found["Ready"] == "True" else "InProgress"
    return "Current"


TROUBLE = Trouble("Unschedulable", "pod x-master fits on no node")
WRITTEN: list[tuple[str, Verdict, Trouble | None, str, str, str]] = [
    ("starting", Verdict("runs"), None, "1 of 3 ready", "InProgress", "Progressing"),
    ("cannot start", Verdict("runs"), TROUBLE, "1 of 3 ready", "InProgress", "Progressing"),
    ("running", Verdict("runs"), None, "", "Current", "Healthy"),
    ("suspended", Verdict("suspended", "Suspended", "as asked"), None, "", "Current", "Suspended"),
    ("succeeded", Verdict("succeeded", "Finished", "done"), None, "", "Current", "Healthy"),
    ("failed", Verdict("failed", "JobFailed", "it did"), None, "", "Failed", "Degraded"),
    ("refused", Verdict("refused", "InvalidSpec", "spec.model: is x"), None, "", "Failed", "Degraded"),
    ("of a newer operator", Verdict("foreign", "NewerOperator", "run that one"), None, "", "Failed", "Degraded"),
]


@pytest.mark.parametrize(("verdict", "trouble", "waiting", "flux", "argo"), [row[1:] for row in WRITTEN], ids=[row[0] for row in WRITTEN])
def test_flux_and_argo_cd_read_what_the_operator_writes(
    verdict: Verdict, trouble: Trouble | None, waiting: str, flux: str, argo: str
) -> None:
    written = {"observedGeneration": 1, "conditions": conditions(verdict, trouble, waiting, {}, 1, 0.0)}
    assert (kstatus(written), health(written)[0]) == (flux, argo)
    # The spec has changed since.
    assert (kstatus(written, generation=2), health(written, generation=2)[0]) == ("InProgress", "Progressing")


def test_a_new_job_is_in_progress_for_both_before_any_operator_has_seen_it() -> None:
    default = status_schema()["default"]
    assert (kstatus(default), health(default)[0]) == ("InProgress", "Progressing")
