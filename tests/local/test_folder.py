"""Whose folder it is, and what may change between two runs."""

import fcntl
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.local.fakes import JOB

from rljob.api import ConfigurationError, RLJob
from rljob.api.status import HeldOutStatus
from rljob.local.folder import _MAY_CHANGE, CONTENTS, Current, JobFolder, changes_that_break, check_inputs, check_same_job, program
from rljob.master.decisions.identity import FREE


def changed(**spec: object) -> RLJob:
    data = JOB.model_dump(by_alias=True, exclude_none=True)
    return RLJob.model_validate(data | {"spec": data["spec"] | spec})


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path / "job")
    with folder.claim():
        folder.write_job(JOB)
    (folder.root / "state").mkdir()
    (folder.root / "state" / "master.sqlite").touch()
    return folder


def test_the_job_comes_back_as_it_was_written(folder: JobFolder) -> None:
    assert folder.job() == JOB


@pytest.mark.parametrize("name", ["holiday.jpg", "job.yaml"])
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with (
        pytest.raises(ConfigurationError, match=rf"is not a job folder \(it holds {name}\); give an empty or new folder"),
        JobFolder(tmp_path).claim(),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_copy_of_a_jobs_state_is_a_job_folder_without_its_lock(folder: JobFolder) -> None:
    shutil.rmtree(folder.root / "run")
    with folder.claim():
        assert folder.job() == JOB


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"model": {"source": {"path": "job/model"}}}, "spec.model.source.path is 'job/model', but the job itself writes and removes it;"),
        (
            {"data": {"train": {"path": "link/t.jsonl"}}},
            "spec.data.train.path is 'link/t.jsonl', but the job itself writes and removes {}/data;",
        ),
        (
            {"reward": {"verifier": "reward-model", "options": {"folder": "job/checkpoints/version-000001"}}},
            "spec.reward.options: folder is 'job/checkpoints/version-000001', but the job itself writes and removes {}/checkpoints;",
        ),
    ],
)
def test_what_a_job_starts_from_is_not_where_it_writes(folder: JobFolder, spec: dict[str, object], said: str) -> None:
    (folder.root / "data").mkdir()
    (folder.root.parent / "link").symlink_to(folder.root / "data")
    with pytest.raises(ConfigurationError) as caught:
        check_inputs(folder, changed(**spec), folder.root.parent / "rljob.yaml")
    assert str(caught.value).startswith(said.format(folder.root))
    check_inputs(JobFolder(folder.root.parent / "other"), changed(**spec), folder.root.parent / "rljob.yaml")


def test_the_jobs_file_is_not_where_its_record_is_written_unless_it_is_that_record(folder: JobFolder) -> None:
    job = changed(model={"source": {"path": "/models/m"}})
    folder.write_job(job)
    check_inputs(folder, job, folder.job_file)
    earlier = re.sub(r"  seed: \d+\n", "", record := folder.job_file.read_text())
    assert earlier != record
    folder.job_file.write_text(earlier)
    check_inputs(folder, job, folder.job_file)  # of a release that did not have the field
    mine = "# to be kept\n" + record
    folder.job_file.write_text(mine)
    with pytest.raises(
        ConfigurationError, match=r"the job's file is '.*/job\.yaml', but the job itself writes and removes .*; copy it elsewhere"
    ):
        check_inputs(folder, job, folder.job_file)


def test_a_file_that_is_no_jobs_is_neither_cleared_nor_said_to_be(folder: JobFolder) -> None:
    (folder.root / "state" / "master.sqlite").unlink()
    folder.job_file.write_text("apiVersion: batch/v1\nkind: Job\nmetadata: {name: fake}\nspec: {}\n")
    assert folder.kept_from("fake") == f"{folder.job_file} is no job's, so --fresh removes nothing there"
    with pytest.raises(ConfigurationError, match=r"job\.yaml was changed or is from another version") as caught:
        check_same_job(folder, JOB)
    assert "(apiVersion: is 'batch/v1', and " in str(caught.value)
    assert str(caught.value).endswith("; change it back or give another folder with --workdir")


def test_a_claimed_folder_cannot_be_claimed_again(folder: JobFolder) -> None:
    assert not folder.running()
    with folder.claim():
        assert folder.running()
        with pytest.raises(ConfigurationError, match="is in use by another `rljob run`"), JobFolder(folder.root).claim():
            pass
    assert not folder.running()


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot write to .*: Not a directory; give another folder with --workdir"):
        with JobFolder(tmp_path / "file" / "job").claim():
            pass


def test_what_a_killed_run_left_is_removed_by_the_next(folder: JobFolder, tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    (left / "arena").touch()
    folder.write_current(Current("nobody", 1, 0.0, (str(left),), "http://127.0.0.1:1", "x"))
    with folder.claim():
        assert not left.exists()
        assert folder.current() is None


def test_only_the_folder_itself_cleans_up_after_a_run_wherever_it_was_moved_and_no_copy_does(folder: JobFolder, tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    folder.write_current(Current("nobody", 1, 0.0, (str(left),), "http://127.0.0.1:1", "x"))
    copy = JobFolder(shutil.copytree(folder.root, tmp_path / "copy"))
    with copy.claim():
        assert left.exists()
        assert copy.current() is None
    with JobFolder(folder.root.rename(tmp_path / "moved")).claim():
        assert not left.exists()


def test_what_a_run_of_an_older_version_left_is_cleaned_up_too(folder: JobFolder, tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    record = {"run": "nobody", "pid": 1, "started": 0.0, "temporary": [str(left)], "master": "http://127.0.0.1:1", "source": "x"}
    folder.current_file.write_text(json.dumps(record))
    with folder.claim():
        assert not left.exists()


def test_what_a_newer_version_wrote_is_read_as_far_as_this_one_knows_it(folder: JobFolder, tmp_path: Path) -> None:
    said = {"phase": "Rollout", "iteration": 3, "iterations": 9, "policyVersion": 2, "heldOut": [{"iteration": 0, "accuracy": 0.5, "a": 1}]}
    folder.status_file.write_text(json.dumps(said | {"queue": 3}))
    status = folder.status()
    assert status is not None
    assert (status.iteration, status.held_out) == (3, [HeldOutStatus(iteration=0, accuracy=0.5)])
    left = tmp_path / "left"
    left.mkdir()
    folder.write_current(Current("nobody", 1, 0.0, (str(left),), "http://127.0.0.1:1", "x"))
    folder.current_file.write_text(json.dumps(json.loads(folder.current_file.read_text()) | {"ports": [1]}))
    with folder.claim():
        assert not left.exists()


def test_a_record_of_a_run_that_is_damaged_names_none(folder: JobFolder) -> None:
    folder.write_current(Current("nobody", os.getpid(), 0.0, (), "http://127.0.0.1:1", "x"))
    good = json.loads(folder.current_file.read_text())
    for damage in ({"pid": "x"}, {"started": "y"}, {"lock": 3}):
        folder.current_file.write_text(json.dumps(good | damage))
        assert folder.current() is None


def test_a_process_that_got_the_number_of_a_dead_run_is_not_that_run(folder: JobFolder) -> None:
    folder.write_current(Current("mine", os.getpid(), 0.0, (), "http://127.0.0.1:1", "x"))
    current = folder.current()
    assert current is not None
    assert current.began is not None
    assert current.lives
    assert replace(current, began=None).lives, "an older version did not note it"
    assert not replace(current, began=current.began - 1).lives
    assert not replace(current, pid=2**22 + 1).lives


def test_who_may_only_read_sees_whether_a_run_holds_the_folder(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.root)
    here, me = JobFolder(Path()), os.geteuid()
    (here.root / "run" / "lock").chmod(0o444)
    try:
        if me == 0:  # whom no mode stops
            os.seteuid(65534)
        assert not here.running()
    finally:
        os.seteuid(me)


def test_two_who_look_at_a_folder_do_not_take_each_other_for_a_run(folder: JobFolder) -> None:
    with (folder.root / "run" / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not folder.running()


def test_a_job_may_get_more_iterations_but_not_another_seed(folder: JobFolder) -> None:
    check_same_job(folder, changed(iterations=200, backoffLimit=3, checkpoint={"keep": 5}))
    with pytest.raises(ConfigurationError) as caught:
        check_same_job(folder, changed(seed=1))
    assert f"spec.seed was 0 when the job in {folder.root} began and is 1 now; change it back, start over with --fresh" in str(caught.value)


def test_a_job_that_was_refused_before_it_began_may_be_corrected(folder: JobFolder) -> None:
    (folder.root / "state" / "master.sqlite").unlink()
    check_same_job(folder, changed(rollout={"maxTokens": 7}))


def test_a_folder_of_another_job_is_refused(folder: JobFolder) -> None:
    other = JOB.model_copy(update={"metadata": JOB.metadata.model_copy(update={"name": "other"})})
    with pytest.raises(ConfigurationError, match="holds the job 'fake', not 'other'; give another folder with --workdir"):
        check_same_job(folder, other)


def test_changes_are_found_at_any_depth() -> None:
    found = changes_that_break(JOB, changed(trainer={"optimizer": {"learningRate": 1e-3}}, rollout={"replicas": 2, "maxTokens": 7}))
    assert [path for path, _, _ in found] == ["spec.rollout.maxTokens", "spec.trainer.optimizer.learningRate"]


def test_fresh_removes_what_a_job_put_there_and_nothing_else(folder: JobFolder) -> None:
    (folder.root / "checkpoints" / "version-000001").mkdir(parents=True)
    (folder.root / "metrics.jsonl").touch()
    (folder.root / "notes.txt").touch()
    with folder.claim():
        folder.clear()
    assert sorted(p.name for p in folder.root.iterdir()) == ["job.yaml", "notes.txt", "run"]


def test_no_checkpoint_is_left_when_the_state_is_removed(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("checkpoints", "data"):
        (folder.root / name).mkdir()
    removed: list[str] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path: removed.append(path.name))
    folder.clear()
    assert removed == ["checkpoints", "state", "data"]
    assert set(removed) < set(CONTENTS)


def test_the_program_is_called_by_its_path_where_the_shell_does_not_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Path(sys.executable).with_name("rljob")
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == str(ours)
    monkeypatch.setenv("PATH", str(ours.parent))
    assert program() == "rljob"


def test_what_may_change_is_what_the_master_lets_change() -> None:
    assert {path.removeprefix("spec.") for path in _MAY_CHANGE if path.startswith("spec.")} == set(FREE)
