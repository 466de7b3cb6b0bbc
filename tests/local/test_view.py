"""What a person sees."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.local.fakes import JOB

from rljob.api.status import HeldOutStatus, JobStatus, LastFailure, NodeStatus, ProgressStatus
from rljob.cli.output import console
from rljob.local.display import LiveDisplay, PlainDisplay
from rljob.local.folder import JobFolder
from rljob.local.run import _summarize
from rljob.local.view import Result, changes, clock, last_failure, live, span, sparkline, summary
from rljob.local.watch import PhaseTimes, Watcher

STATUS = JobStatus(phase="Rollout", iteration=3, iterations=8, policy_version=2, rewards=[0.1, 0.3], timings={"rollout": 8.0, "train": 4.0})

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def shown(status: JobStatus | None, note: str = "") -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(live("tiny", status, 83.0, note))
    return out.getvalue()


def test_the_screen_before_the_master_speaks_shows_what_the_preparation_does() -> None:
    text = shown(None, "converting the model")
    assert "preparing" in text
    assert "1:23" in text
    assert "converting the model" in text


def test_the_screen_shows_progress_speed_reward_and_nodes() -> None:
    status = STATUS.model_copy(
        update={
            "progress": ProgressStatus(done=312, total=512, unit="answers"),
            "tokens_per_second": 2140.0,
            "nodes": [NodeStatus(name="worker-0", step="rollout", step_seconds=3.2, failure="lost it")],
            "held_out": [HeldOutStatus(iteration=0, accuracy=0.25), HeldOutStatus(iteration=2, accuracy=0.5)],
        }
    )
    text = shown(status)
    for words in (
        "rollout",
        "iteration 3/8",
        "312/512 answers",
        "2,140 tokens/s",
        "worker-0",
        "lost it",
        "0.100 → 0.300",
        "25.0 % → 50.0 %",
    ):
        assert words in text


def test_of_a_job_in_a_cluster_the_newest_iterations_are_known_and_keep_their_numbers() -> None:
    before = STATUS.model_copy(update={"iterations": 900, "rewards": [0.1, 0.2], "rewards_before": 500, "timings": {}})
    after = before.model_copy(update={"rewards": [0.3, 0.4], "rewards_before": 501})
    assert changes(before, after) == ["iteration 503/900: mean reward 0.400"]
    late = before.model_copy(update={"rewards": [0.5, 0.6], "rewards_before": 510})
    assert [line.partition(":")[0] for line in changes(before, late)] == ["iteration 511/900", "iteration 512/900"]


def test_lines_that_stay_are_iterations_evaluations_and_failures() -> None:
    after = STATUS.model_copy(
        update={
            "rewards": [0.1, 0.3, 0.5],
            "held_out": [HeldOutStatus(iteration=0, accuracy=0.25, count=256)],
            "last_failure": LastFailure(stage="train", pod="worker-0", reason="Died", message="the trainer died; it is started again"),
        }
    )
    assert changes(STATUS, after) == [
        "iteration 3/8: mean reward 0.500 (rollout 8.0 s, train 4.0 s)",
        "held-out accuracy before the first iteration: 25.0 % (256 prompts)",
        "worker-0 failed at train: the trainer died; it is started again",
    ]
    assert changes(after, after) == []
    failure = after.last_failure
    assert failure is not None
    again = after.model_copy(update={"last_failure": failure.model_copy(update={"at": NOW})})
    assert changes(after, again) == [], "a failure that comes back by the minute is one line"


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (timedelta(seconds=-2), ", 0 seconds ago"),
        (timedelta(seconds=1.9), ", 1 second ago"),
        (timedelta(minutes=3, seconds=59), ", 3 minutes ago"),
        (timedelta(hours=1), ", 1 hour ago"),
        (timedelta(days=2, hours=23), ", 2 days ago"),
        (None, ""),
    ],
)
def test_the_last_failure_says_when_it_was_unless_an_older_release_wrote_it_down(before: timedelta | None, words: str) -> None:
    written = {"stage": "train", "pod": "worker-0", "reason": "Died", "message": "out of memory"}
    if before is not None:
        written["at"] = (NOW - before).isoformat()
    assert last_failure(LastFailure.model_validate(written), NOW) == f"worker-0, train, Died{words}: out of memory"


def test_a_failure_of_the_whole_job_was_in_no_pod() -> None:
    failure = LastFailure(stage="job", pod="", reason="DeadlineExceeded", message="it has run for 60 s", at=NOW)
    assert last_failure(failure, NOW) == "job, DeadlineExceeded, 0 seconds ago: it has run for 60 s"


def test_an_iterations_line_always_says_what_judging_added() -> None:
    phases = {"rollout": 20.1, "train": 9.8, "start-engine": 2.1, "load-engine": 0.9, "checkpoint": 0.5, "gate": 0.1}
    for added, words in ((0.0, "judging +0.0 s"), (0.6, "judging +0.6 s"), (42.0, "judging +42 s")):
        after = STATUS.model_copy(update={"rewards": [0.1, 0.3, 0.5], "timings": phases | {"reward-wait": added}})
        assert changes(STATUS, after) == [
            f"iteration 3/8: mean reward 0.500 (rollout 20 s, train 9.8 s, start-engine 2.1 s, load-engine 0.9 s, {words})"
        ]


def test_what_was_done_before_a_run_went_on_is_no_news() -> None:
    told: list[str] = []
    evaluated = [HeldOutStatus(iteration=0, accuracy=0.25)]
    known = STATUS.model_copy(update={"held_out": evaluated})
    watcher = Watcher("http://nowhere", lambda before, after: told.extend(changes(before, after)), known)
    assert watcher.latest is None
    watcher.take(known.model_copy(update={"phase": "Preparing"}))
    assert told == []
    watcher.take(known.model_copy(update={"rewards": [0.1, 0.3, 0.5], "timings": {}}))
    assert told == ["iteration 3/8: mean reward 0.500"]


def test_a_run_prints_every_word_as_it_is() -> None:
    out = io.StringIO()
    said = "master/prepare failed: [/old]/train.jsonl:100: prompt: is missing in [fe80::1] C:memo: 12"
    PlainDisplay(console(out, 60)).say(said)
    LiveDisplay(console(out, 100), "tiny").say(said)
    assert out.getvalue().count(f" {said}\n") == 2


def test_a_run_that_went_on_says_how_much_of_it_was_its_own(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(STATUS.model_dump_json(by_alias=True))
    out = io.StringIO()
    for before in (0, 1):
        _summarize(console(out, 100), JOB, JobFolder(tmp_path), 12.3, {}, before)
    assert [line.partition(": ")[2] for line in out.getvalue().splitlines() if "has finished" in line] == [
        "3 iterations in 12 s",
        "3 iterations, 1 of them in 12 s",
    ]


def test_phases_get_a_line_only_until_iterations_do() -> None:
    first = JobStatus(phase="WarmStart", iteration=0, iterations=8, policy_version=0)
    assert changes(None, first) == ["warm start began"]
    assert changes(first, first.model_copy(update={"phase": "Evaluating"})) == ["evaluation began"]
    assert changes(STATUS, STATUS.model_copy(update={"phase": "Evaluating"})) == []


def test_the_summary_tells_before_and_after_for_reward_and_every_family(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    status = STATUS.model_copy(
        update={
            "rewards": [0.1, 0.2, 0.3, 0.7, 0.8, 0.9],
            "held_out": [
                HeldOutStatus(iteration=0, accuracy=0.25, families={"short": 0.1, "no commas": 0.4}, count=256),
                HeldOutStatus(iteration=6, accuracy=0.5, families={"short": 0.6, "no commas": 0.4}, count=256),
            ],
        }
    )
    rows = summary(Result("tiny", status, 100.0, {"Preparing": 12.0, "Rollout": 140.0, "Finishing": 0.1}, tmp_path))
    assert rows == [
        ("mean reward", "0.200 → 0.800 (means of the first and last 3 iterations)"),
        ("held-out accuracy", "25.0 % → 50.0 % (+25.0 points, 256 prompts)"),
        ("  no commas", "40.0 % → 40.0 %"),
        ("  short", "10.0 % → 60.0 %"),
        ("time", "preparing 12 s · rollout 2 min 20 s"),
        ("model", str(tmp_path / "model")),
    ]


def test_few_iterations_are_compared_without_overlap(tmp_path: Path) -> None:
    status = STATUS.model_copy(update={"rewards": [0.1, 0.3, 0.5]})
    assert summary(Result("tiny", status, 100.0, {}, tmp_path)) == [("mean reward", "0.100 → 0.500")]


def test_times_are_written_as_people_say_them() -> None:
    assert [clock(s) for s in (7, 83, 3723)] == ["0:07", "1:23", "1:02:03"]
    assert [span(s) for s in (0.25, 41.2, 200)] == ["0.2 s", "41 s", "3 min 20 s"]


def test_time_is_added_up_per_phase() -> None:
    times = PhaseTimes(since=10.0)
    for phase, now in (("Preparing", 12.0), ("Rollout", 20.0), ("Training", 23.0), ("Rollout", 24.0), ("Rollout", 30.0)):
        times = times.at(phase, now)
    assert times.seconds == {"Preparing": 10.0, "Rollout": 9.0, "Training": 1.0}


@given(st.lists(st.floats(-1e6, 1e6), max_size=100))
def test_a_sparkline_has_a_bar_for_each_of_the_last_values(values: list[float]) -> None:
    assert len(sparkline(values)) == min(40, len(values))
