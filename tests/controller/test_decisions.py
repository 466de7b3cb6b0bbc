"""What the operator decides, rule by rule, each on its own: whose object it is, what counts against a job, what is done to it."""

import asyncio
import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rljob.controller.backoff import marker, remember, worst
from rljob.controller.client import ApiError
from rljob.controller.conditions import conditions, notices
from rljob.controller.converge import EDITED, QUEUE_FINALIZER, Action, Apply, Create, Delete, DeleteJob, held_by_queue, steps
from rljob.controller.decide import UNKNOWN_SECONDS, Decision, decide, difference, merge_patch
from rljob.controller.kinds import Key
from rljob.controller.reconcile import Reconciler
from rljob.controller.trim import child_of, iso
from rljob.controller.verdict import NEWER, Verdict, judge, settling, trouble_of
from rljob.controller.world import Child, DeploymentState, Desired, Exit, Job, Observed, PodState, Terms, Trouble, Want
from rljob.manifests.types import ANNOTATION_HASH

NOW = 1_000_000.0
WANTS = (
    Want("ConfigMap", "x", "h"),
    Want("PersistentVolumeClaim", "x-state", "h"),
    Want("Pod", "x-master", "h", "master", "master"),
    Want("Pod", "x-worker-0", "h", "worker", "worker-0"),
)
RUNS = Verdict("runs")


def child(kind: str, name: str, owner: str = "job", hash: str = "h", deleting: float | None = None) -> Child:
    return Child(kind, name, f"uid-of-{name}", 1, hash, owner, deleting)


def pod(name: str = "x-worker-0", owner: str = "job", hash: str = "h", deleting: float | None = None, **state: Any) -> Child:
    role = name.split("-")[1]
    known: dict[str, Any] = {
        "plan_name": name.removeprefix("x-"),
        "role": role,
        "phase": "Running",
        "ready": True,
        "ip": "",
        "created": NOW - 1000,
    }
    return Child("Pod", name, f"{name[-3:]}-uid-and-more", 1, hash, owner, deleting, state=PodState(**known | state))


ALL = (child("ConfigMap", "x"), child("PersistentVolumeClaim", "x-state"), pod("x-master"), pod())


def world(*changed: Child, status: Mapping[str, Any] | None = None, without: str = "", **more: Any) -> Observed:
    """All of a job's objects as they should be, but for these."""
    children = {(c.kind, c.name): c for c in (*ALL, *changed) if c.name != without}
    return Observed("job", 3, status or {}, children=children, **more)


def done(seen: Observed, verdict: Verdict = RUNS) -> list[Action]:
    return [action for step in steps(Desired(wants=WANTS), seen, verdict, NOW) for action in step.actions]


def removed(seen: Observed, verdict: Verdict = RUNS) -> list[str]:
    return [action.name for action in done(seen, verdict) if isinstance(action, Delete)]


def troubles(seen: Observed) -> list[str]:
    return [step.trouble.reason for step in steps(Desired(wants=WANTS), seen, RUNS, NOW) if step.trouble]


class TestObjects:
    def test_what_is_as_it_should_be_is_left_alone_and_what_is_missing_is_made(self) -> None:
        assert done(world()) == []
        assert done(world(without="x-worker-0")) == [Create("Pod", "x-worker-0")]

    @pytest.mark.parametrize("kind", ["ConfigMap", "Pod"])
    def test_an_object_of_somebody_else_is_never_touched(self, kind: str) -> None:
        name = "x" if kind == "ConfigMap" else "x-worker-0"
        assert done(world(child(kind, name, owner="other"))) == []
        assert troubles(world(child(kind, name, owner="other"))) == ["NameTaken"]
        assert troubles(world(child(kind, name, owner="", hash=""))) == ["NameTaken"], "nobody's, and not made by the operator"
        assert done(world(child(kind, "x-more", owner="other"))) == [], "nor one that no plan names"

    def test_one_that_has_lost_its_owner_or_was_edited_is_written_again(self) -> None:
        lost = world(child("ConfigMap", "x", owner=""))
        assert done(lost) == done(world(drifted=frozenset({("ConfigMap", "x")}))) == [Apply("ConfigMap", "x", "uid-of-x", EDITED)]

    def test_another_spec_makes_pods_anew_applies_the_rest_and_keeps_volumes(self) -> None:
        old = (child("ConfigMap", "x", hash="old"), child("PersistentVolumeClaim", "x-state", hash="old"), pod(hash="old"))
        assert [(type(action), action.kind) for action in done(world(*old)) if isinstance(action, Apply | Delete)] == [
            (Apply, "ConfigMap"), (Delete, "Pod")
        ]  # fmt: skip

    def test_what_no_plan_names_any_more_goes_but_for_volumes(self) -> None:
        more = (pod("x-rollout-0"), child("PersistentVolumeClaim", "x-data"), child("Service", "x-more", deleting=NOW))
        assert removed(world(*more)) == ["x-rollout-0"]

    def test_a_pod_that_died_is_made_anew_once_it_is_old_enough_and_says_why(self) -> None:
        ended: dict[str, Any] = {"phase": "Failed", "reason": "Evicted", "message": "no memory"}
        young = list(steps(Desired(wants=WANTS), world(pod(created=NOW - 4, **ended)), RUNS, NOW))
        assert [step.actions for step in young if step.actions] == []
        assert [step.again for step in young if step.again] == [6.0]
        (action,) = done(world(pod(created=NOW - 10, **ended)))
        assert isinstance(action, Delete)
        assert (action.alarming, action.why) == (True, "it was lost (Evicted: no memory) and is made anew")

    def test_a_worker_that_succeeded_is_made_anew_and_a_master_is_not(self) -> None:
        assert [type(action) for action in done(world(pod(phase="Succeeded")))] == [Delete]
        assert done(world(pod("x-master", phase="Succeeded"))) == []

    def test_a_pod_that_does_not_go_is_on_a_lost_node_and_other_objects_are_on_none(self) -> None:
        assert troubles(world(pod(deleting=NOW - 91))) == ["NodeLost"]
        assert troubles(world(pod(deleting=NOW - 89))) == []
        assert troubles(world(child("ConfigMap", "x", deleting=NOW - 91))) == []
        assert done(world(pod(deleting=NOW - 91))) == []

    def test_what_an_earlier_job_of_the_name_has_left_goes_by_itself(self) -> None:
        left = dataclasses.replace(pod(owner="before"), bequeathed=True)
        (step,) = (step for step in steps(Desired(wants=WANTS), world(left), RUNS, NOW) if step.trouble)
        assert (step.actions, step.again, step.trouble and step.trouble.reason) == ((), 5.0, "PodsStarting")
        assert troubles(world(dataclasses.replace(left, deleting=NOW))) == []
        assert troubles(world(dataclasses.replace(left, deleting=NOW - 91))) == ["NodeLost"]

    @pytest.mark.parametrize(
        ("state", "owner", "held", "released"),
        [
            ({"status": {"phase": "Failed"}}, {}, True, True),
            ({"status": {"phase": "Succeeded"}}, {}, True, True),
            ({"status": {"phase": "Pending"}}, {}, True, True),
            ({"status": {"phase": "Failed"}}, {"uid": "of one before"}, True, True),
            ({"status": {"phase": "Pending"}, "spec": {"nodeName": "n"}}, {}, False, False),
            ({"status": {"phase": "Running"}, "spec": {"nodeName": "n"}}, {}, False, False),
            ({"status": {"phase": "Failed"}}, {"kind": "ReplicaSet"}, True, False),
            ({"status": {"phase": "Failed"}}, {"name": "y"}, True, False),
        ],
    )
    def test_a_pod_that_is_over_is_no_nodes_fault_and_only_our_own_are_let_go(
        self, state: dict[str, Any], owner: dict[str, Any], held: bool, released: bool
    ) -> None:
        meta = {
            "name": "x-worker-0", "uid": "u", "resourceVersion": "1",
            "labels": {"rljob.dev/job": "x"}, "annotations": {ANNOTATION_HASH: "h"},
            "ownerReferences": [{"kind": "RLJob", "name": "x", "uid": "job", "controller": True} | owner],
            "finalizers": [QUEUE_FINALIZER, "example.com/mine"],
        }  # fmt: skip
        assert child_of("Pod", {"metadata": meta, **state}).held == ()
        gone = child_of("Pod", {"metadata": meta | {"deletionTimestamp": iso(NOW - 91)}, **state})
        assert troubles(world(gone)) == ["HeldByFinalizer" if held else "NodeLost"]
        assert held_by_queue([gone]) == ([gone] if released else [])
        theirs = child_of("Pod", {"metadata": meta | {"deletionTimestamp": iso(NOW - 91), "finalizers": ["example.com/mine"]}, **state})
        assert held_by_queue([theirs]) == []

    @pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
    def test_after_the_end_pods_that_ended_keep_their_log_and_a_pause_keeps_none(self, phase: str) -> None:
        seen = world(pod("x-master", phase=phase))
        assert removed(seen, Verdict("failed")) == ["x-worker-0"]
        assert removed(seen, Verdict("suspended")) == ["x-master", "x-worker-0"]


def restarted(count: int, exits: tuple[Exit, ...] = (), **more: Any) -> Observed:
    return world(pod(restarts=(("megatron", count),), exits=exits), **more)


class TestBackoff:
    KEY = "x-worker-0/megatron@r-0-uid-"

    def status(self, base: Mapping[str, int], ended: Mapping[str, list[str]] | None = None) -> dict[str, Any]:
        return {"iteration": 2, "backoff": {"at": marker({"iteration": 2}), "base": base, "ended": ended or {}}}

    def test_restarts_count_from_the_last_progress_on(self) -> None:
        assert worst(restarted(5)) == ("x-worker-0/megatron", 5)
        assert worst(restarted(5, status=self.status({self.KEY: 3}))) == ("x-worker-0/megatron", 2)
        assert worst(world()) == ("", 0)

    def test_progress_or_a_new_try_sets_them_back_and_nothing_else_does(self) -> None:
        before = self.status({self.KEY: 3, "x-worker-0/gone@another": 7})
        seen = restarted(5, status=before)
        assert remember(seen, {"iteration": 2}, False) == {"at": marker(before), "base": {self.KEY: 3}, "ended": {}}
        for status, retried in (({"iteration": 3}, False), ({"iteration": 2, "policyVersion": 1}, False), ({"iteration": 2}, True)):
            assert remember(seen, status, retried) == {"at": marker(status), "base": {self.KEY: 5}, "ended": {}}

    def test_pods_that_died_of_themselves_count_each_once_also_when_they_are_gone(self) -> None:
        dead = pod(phase="Failed")
        status = self.status({}, {"x-worker-0": ["earlier"]})
        assert worst(world(dead, status=status)) == ("x-worker-0", 2)
        kept = remember(world(dead, status=status), status, False)
        assert kept["ended"] == {"x-worker-0": ["earlier", "r-0-uid-"]}
        assert worst(world(dead, status=status | {"backoff": kept})) == ("x-worker-0", 2), "twice seen, once counted"
        assert worst(world(status=status | {"backoff": kept})) == ("x-worker-0", 2)

    def test_one_that_the_cluster_ended_or_that_is_of_another_job_does_not_count(self) -> None:
        assert worst(world(pod(phase="Failed", disrupted=True))) == ("", 0)
        others = pod(phase="Failed", owner="other"), pod("x-master", owner="other", restarts=(("master", 9),))
        assert worst(world(*others)) == ("", 0)

    def test_what_the_job_goes_on_without_does_not_count(self) -> None:
        rollout = [pod("x-rollout-0", **state) for state in ({"phase": "Failed"}, {"restarts": (("vllm", 9),)})]
        for other in (*rollout, pod(restarts=(("vault-agent", 9),))):
            assert worst(world(other, status=self.status({}))) == ("", 0)
            assert remember(world(other), {}, False)["base"] == {}

    def test_a_pod_that_died_before_the_job_got_on_belongs_to_the_time_before(self) -> None:
        dead = world(pod(phase="Failed"), status=self.status({}))
        later = remember(dead, {"iteration": 3}, False)
        assert worst(world(pod(phase="Failed"), status={"iteration": 3, "backoff": later})) == ("", 0)


def verdict(seen: Observed, version: str = "1.2.0", **terms: Any) -> Verdict:
    return judge(Desired(Terms(**terms), WANTS), seen, NOW, version)


def stands(kind: str, generation: int = 3, **more: Any) -> dict[str, Any]:
    said = {"type": kind, "status": "True", "reason": "r", "message": "m", "lastTransitionTime": iso(NOW - 60)}
    return {"conditions": [said | {"observedGeneration": generation}]} | more


class TestVerdict:
    def test_a_job_of_a_newer_operator_is_left_alone_but_for_patch_releases(self) -> None:
        assert [verdict(world(operator=other)).fate for other in ("1.3.0", "2.0.0", "1.2.9", "1.1.0", "")] == [
            "foreign", "foreign", "runs", "runs", "runs"
        ]  # fmt: skip
        assert verdict(world(status={"operatorVersion": "1.3.0"})).fate == "foreign"
        assert verdict(world(status={"operatorVersion": "1.3.0"}, operator="1.2.0")).fate == "runs", "it was handed over"

    def test_a_failure_stands_until_the_spec_changes(self) -> None:
        assert verdict(world(status=stands("Failed"))).fate == "failed"
        again = verdict(world(status=stands("Failed", generation=2)))
        assert (again.fate, again.retried) == ("runs", True)

    def test_a_success_stands_until_the_spec_asks_for_more(self) -> None:
        finished = world(status=stands("Succeeded", iterations=4))
        assert [verdict(finished, iterations=n).fate for n in (3, 4, 5)] == ["succeeded", "succeeded", "runs"]

    def test_a_job_is_done_when_its_own_master_is_which_knew_of_all_iterations(self) -> None:
        ended: dict[str, Any] = {"name": "x-master", "phase": "Succeeded"}
        assert verdict(world(pod(**ended))).fate == "succeeded"
        assert verdict(world(pod("x-master", done=True))).fate == "succeeded", "whatever else runs on in its pod"
        assert verdict(world(pod(owner="other", **ended))).fate == "runs"
        assert [verdict(world(pod(hash="old", **ended), status={"iterations": 4}), iterations=n).fate for n in (4, 5)] == [
            "succeeded", "runs"
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("more", "fate"),
        [
            ({}, "failed"),
            ({"exits": (Exit("megatron", 2, "no", NOW - 101),)}, "runs"),  # before this try
            ({"exits": (Exit("megatron", 1, "no", NOW - 50),)}, "runs"),  # which the container's restart may cure
            ({"exits": (Exit("megatron", 3, "no", NOW - 100),)}, "failed"),
            ({"exits": (Exit("vault-agent", 2, "panic: nil", NOW - 50),)}, "runs"),  # which a webhook has put there
            ({"deleting": NOW}, "runs"),
            ({"hash": "old"}, "runs"),
            ({"owner": "other"}, "runs"),
        ],
    )
    def test_exit_codes_of_the_jobs_pods_end_it(self, more: dict[str, Any], fate: str) -> None:
        ended = pod(**{"exits": (Exit("megatron", 2, "no", NOW - 50),), **more})
        assert verdict(world(ended, status={"startTime": iso(NOW - 100)})).fate == fate

    def test_the_last_restart_that_is_allowed_is(self) -> None:
        assert verdict(restarted(6), backoff_limit=6).fate == "runs"
        assert verdict(restarted(7), backoff_limit=6).reason == "BackoffLimitExceeded"

    @pytest.mark.parametrize(("finished", "at"), [(NOW - 50, NOW - 50), (0.0, NOW)])
    def test_a_job_failed_when_its_last_container_ended_if_that_is_known(self, finished: float, at: float) -> None:
        failure = verdict(restarted(7, exits=(Exit("megatron", 137, "lost", finished),)), backoff_limit=6).failure
        assert failure is not None
        assert failure.at == at

    def test_time_runs_out_to_the_second_and_not_in_a_queue(self) -> None:
        started = {"startTime": iso(NOW - 600)}
        waits: dict[str, Any] = {"phase": "Pending", "trouble": Trouble("Queued", "")}
        queue = [world(pod("x-master", **waits), pod(**waits), *more, status=started) for more in ((), (pod("x-rollout-0"),))]
        assert verdict(world(status=started), deadline=601).fate == "runs"
        assert verdict(world(status=started), deadline=600).reason == "DeadlineExceeded"
        assert [verdict(seen, deadline=600).fate for seen in queue] == ["runs", "runs"]
        assert verdict(world(pod(**waits), status=started), deadline=600).fate == "failed", "its master runs"

    def test_a_refused_spec_can_ask_for_a_pause_of_what_has_not_ended(self) -> None:
        refused = Desired(Terms(suspend=True), refusal=Trouble("Invalid", "no such field"))
        ended = [judge(refused, world(status=status), NOW, "1.2.0") for status in ({}, stands("Succeeded"), stands("Failed"))]
        assert [(one.fate, one.paused) for one in ended] == [("refused", True), ("refused", False), ("refused", False)]


class TestTroubles:
    def told(self, *pods: Child, **more: Any) -> str | None:
        wants = (Want("Pod", "x-rollout-0", "h", "rollout", "rollout-0"), *WANTS)
        trouble = trouble_of(Desired(wants=wants), world(*pods, **more), NOW)
        return trouble.reason if trouble else None

    def test_what_keeps_a_rollout_pod_away_comes_after_what_stops_the_job(self) -> None:
        rollout, worker = (pod(name, trouble=Trouble(reason, "")) for name, reason in (("x-rollout-0", "A"), ("x-worker-0", "B")))
        assert (self.told(rollout), self.told(rollout, worker)) == ("A", "B")

    @pytest.mark.parametrize("phase", ["Failed", "Running"])
    @pytest.mark.parametrize("available", [True, False])
    def test_a_pod_that_failed_is_no_trouble_once_its_deployment_has_another(self, phase: str, available: bool) -> None:
        wants = (*WANTS, Want("Deployment", "x-reward", "h", "reward"))
        one = pod("x-reward-1", plan_name="", phase=phase, trouble=Trouble("RefusedByNode", ""))
        deployment = replace(child("Deployment", "x-reward"), state=DeploymentState(available))
        trouble = trouble_of(Desired(wants=wants), world(one, deployment), NOW)
        assert (trouble is None) == (available and phase == "Failed")

    @pytest.mark.parametrize(("reason", "at_once"), [("Unschedulable", False), ("VolumePending", False), ("ImageNotPulled", True)])
    def test_a_young_pod_may_only_be_waiting_for_its_place(self, reason: str, at_once: bool) -> None:
        young, old = (pod(created=NOW - age, trouble=Trouble(reason, "")) for age in (9, 10))
        assert (self.told(young), self.told(old)) == (reason if at_once else None, reason)
        assert settling(world(young), NOW) == (None if at_once else 1.0)


class TestConditions:
    def told(self, verdict: Verdict, old: Mapping[str, Any], now: float = NOW, waiting: str = "") -> dict[str, tuple[str, str]]:
        found = conditions(verdict, None, waiting, old, 3, now)
        return {c["type"]: (c["status"], c["lastTransitionTime"]) for c in found}

    def test_the_time_of_a_condition_is_that_of_its_last_change(self) -> None:
        before = {"conditions": conditions(RUNS, None, "a pod", {}, 3, NOW)}
        later = self.told(RUNS, before, NOW + 60)
        assert later["Ready"] == ("True", iso(NOW + 60))
        assert later["Stalled"] == ("False", iso(NOW)), "what stays so has been so since then"

    @pytest.mark.parametrize(
        ("fate", "true"),
        [
            ("runs", {"Ready"}),
            ("suspended", {"Ready", "Suspended"}),
            ("succeeded", {"Ready", "Succeeded"}),
            ("failed", {"Stalled", "Failed"}),
            ("refused", {"Stalled"}),
            ("foreign", {"Stalled"}),
        ],
    )
    def test_what_holds_of_each_fate(self, fate: Any, true: set[str]) -> None:
        found = self.told(Verdict(fate, "Why"), {"conditions": [{"type": "Mine", "status": "Unknown", "lastTransitionTime": "then"}]})
        assert {kind for kind, (status, _) in found.items() if status == "True"} == true
        assert found["Mine"] == ("Unknown", "then"), "somebody else's stays"

    def test_a_person_hears_of_a_change_once(self) -> None:
        failed = {"conditions": conditions(Verdict("failed", "Configuration", "no model"), None, "", {}, 3, NOW)}
        assert [(n.type, n.reason, n.message) for n in notices({}, failed)] == [("Warning", "Failed", "no model")]
        assert notices(failed, failed) == []
        blocked = {"conditions": conditions(RUNS, Trouble("QuotaExceeded", "no room"), "", {}, 3, NOW)}
        assert [n.reason for n in notices({}, blocked)] == ["QuotaExceeded"]
        assert notices(blocked, blocked) == []

    def test_that_a_pod_is_late_is_told_only_if_its_cause_was_not(self) -> None:
        def waiting(reason: str) -> dict[str, Any]:
            return {"conditions": conditions(RUNS, Trouble(reason, "m"), "", {}, 3, NOW)}

        late = waiting("ProgressDeadlineExceeded")
        assert [[n.reason for n in notices(waiting(before), late)] for before in ("PodsStarting", "ImageNotPulled")] == [
            ["ProgressDeadlineExceeded"], []
        ]  # fmt: skip

    def test_what_holds_up_a_job_is_told_under_a_refused_spec_too(self) -> None:
        verdict = replace(RUNS, refusal=Trouble("InvalidSpec", "no such field"))
        found = {c["type"]: c for c in conditions(verdict, Trouble("Unschedulable", "no room"), "", {}, 3, NOW)}
        assert (found["Ready"]["reason"], found["Ready"]["message"]) == ("InvalidSpec", "no such field; meanwhile, no room")
        assert found["Stalled"]["message"] == "no such field"

    def test_a_refused_spec_leaves_how_the_job_stands(self) -> None:
        refused = Verdict("refused", "Invalid", "no such field")
        found = self.told(refused, stands("Succeeded"))
        assert (found["Succeeded"][0], found["Stalled"][0]) == ("True", "True")


def decided(seen: Observed, **terms: Any) -> Decision:
    return decide(Desired(Terms(**terms), WANTS, sharing=("none", "")), seen, NOW, "1.2.0")


def status_of(seen: Observed, **terms: Any) -> Mapping[str, Any]:
    status = decided(seen, **terms).status
    assert status is not None
    return status


class TestStatus:
    FINISHED = stands("Succeeded", iterations=4, startTime=iso(NOW - 900), completionTime=iso(NOW - 60))

    def test_a_job_ends_once_and_is_deleted_its_time_after_that(self) -> None:
        seen = world(status=self.FINISHED)
        assert status_of(seen, iterations=4)["completionTime"] == iso(NOW - 60)
        assert decided(seen, iterations=4, ttl=60).actions == (DeleteJob("job"),)
        later = decided(seen, iterations=4, ttl=61)
        assert DeleteJob("job") not in later.actions
        assert later.again == 1.0

    def test_one_that_goes_on_has_not_ended_and_its_time_counts_anew(self) -> None:
        status = status_of(world(status=self.FINISHED), iterations=5)
        assert "completionTime" not in status
        assert status["startTime"] == iso(NOW)
        assert status_of(world(status={"startTime": iso(NOW - 900)}))["startTime"] == iso(NOW - 900)

    def test_how_many_iterations_are_done_is_what_the_master_knew_that_did_them(self) -> None:
        current, older = (pod("x-master", phase="Succeeded", hash=hash) for hash in ("h", "old"))
        assert status_of(world(current), iterations=3)["iterations"] == 3
        assert status_of(world(older, status=self.FINISHED), iterations=3)["iterations"] == 4

    def test_the_end_of_a_container_is_news_until_the_master_speaks_again(self) -> None:
        ended = pod(exits=(Exit("megatron", 1, "no memory", NOW - 50),))
        assert status_of(world(ended, status={"updated": NOW - 51}))["lastFailure"]["reason"] == "Exit1"
        assert "lastFailure" not in status_of(world(ended, status={"updated": NOW - 50}))

    @pytest.mark.parametrize(("before", "phase"), [("Training", "Training"), ("Failed", "Preparing"), ("", "Preparing")])
    def test_a_master_that_has_not_spoken_yet_changes_no_phase_of_a_job_at_work(self, before: str, phase: str) -> None:
        assert status_of(world(status={"phase": before}))["phase"] == phase

    def test_rollout_pods_that_go_are_no_replicas(self) -> None:
        some = (pod("x-rollout-0"), pod("x-rollout-1", ready=False), pod("x-rollout-2", deleting=NOW))
        assert status_of(world(*some))["rollout"] == {"replicas": 2, "readyReplicas": 1, "selector": ""}

    def test_a_job_that_is_deleted_is_left_to_the_garbage_collector(self) -> None:
        assert decided(world(without="x-worker-0", deleting=True)) == Decision()

    def test_a_spec_that_may_be_understood_later_is_looked_at_again(self) -> None:
        waits = [decide(Desired(refusal=Trouble(reason, "m")), world(), NOW, "1.2.0").again for reason in (NEWER, "Invalid")]
        assert waits == [UNKNOWN_SECONDS, None]

    def test_a_pod_that_says_nothing_is_asked_for_its_events_after_a_while(self) -> None:
        seen = [decided(world(pod(phase="Pending", pending_since=NOW - age))) for age in (15, 14)]
        assert [decision.silent for decision in seen] == [("x-worker-0",), ()]
        assert seen[1].again == 1.0


def test_a_patch_says_what_is_new_and_what_is_gone_and_nothing_else() -> None:
    old = {"phase": "Rollout", "progress": {"done": 1, "total": 4}, "gone": 1, "nothing": None, "list": [1]}
    new = {"phase": "Rollout", "progress": {"done": 2}, "list": [1, 2]}
    assert merge_patch(old, new) == {"gone": None, "progress": {"done": 2, "total": None}, "list": [1, 2]}
    assert merge_patch(new, new) == {}


@pytest.mark.parametrize(
    ("new", "kind"),
    [
        ({}, "none"),
        ({"tokensPerSecond": 2.0}, "small talk"),
        ({"iteration": 2}, "news"),
        ({"iteration": 2, "updated": 9.0}, "news"),
        ({"lastFailure": {"message": "lost", "at": "12:05"}}, "small talk"),  # it has come back
        ({"lastFailure": {"message": "no memory", "at": "12:05"}}, "news"),
        ({"lastFailure": None}, "news"),
    ],
)
def test_news_is_written_at_once_and_small_talk_is_not(new: dict[str, Any], kind: str) -> None:
    old = {"iteration": 1, "tokensPerSecond": 1.0, "lastFailure": {"message": "lost", "at": "12:00"}}
    assert difference(old, old | new) == kind


def test_small_talk_of_many_jobs_waits_longer() -> None:
    def seconds(jobs: int) -> float:
        return Reconciler._small_talk_seconds(cast(Any, SimpleNamespace(cache=SimpleNamespace(jobs=range(jobs)))))

    assert [seconds(jobs) for jobs in (1, 75, 1000)] == [15.0, 15.0, 200.0]


@pytest.mark.parametrize(
    ("owner", "more", "message"),
    [
        ("job", {"deletionTimestamp": iso(NOW)}, "it is being deleted; it is made again when it is gone"),
        ("other", {}, "it exists and does not belong to this RLJob; delete it, or give the RLJob another name"),
    ],
)
def test_a_name_that_is_taken_is_waited_for_or_told(owner: str, more: dict[str, Any], message: str) -> None:
    """The stream has not shown the object yet."""

    async def get(ref: object) -> dict[str, Any]:
        return {"metadata": {"uid": "u", "ownerReferences": [{"uid": owner}], **more}}

    unseen = SimpleNamespace(put_child=lambda kind, there: None, children=lambda key: {})
    api, cache, nobody = (cast(Any, twin) for twin in (SimpleNamespace(get=get), unseen, None))
    reconciler = Reconciler(api, cache, nobody, nobody, lambda: NOW, "1.2.0")
    job = Job(Key("default", "x"), "job", "1", 3, NOW, False, "", b"{}", b"{}")
    with pytest.raises(ApiError, match=f"^{message}$") as error:
        asyncio.run(reconciler._take_in(job, Create("Pod", "x-worker-0")))
    assert error.value.reason == "NameTaken"
