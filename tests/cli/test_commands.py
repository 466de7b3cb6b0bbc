"""The `rljob` command as it is called from a shell."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml

from rljob.api.status import HeldOutStatus, JobStatus, LastFailure, NodeStatus
from rljob.local.folder import JobFolder
from rljob.local.inspect import read_logs

ROOT = Path(__file__).parents[2]
RLJOB = Path(sys.executable).parent / "rljob"
JOB = """\
apiVersion: rljob.dev/v1alpha1
kind: RLJob
metadata: {name: tiny}
spec:
  model: {source: {scratch: {contextLength: 1024}}}
  data: {train: {path: train.jsonl}}
  warmStart: {}
"""


def rljob(
    *arguments: str | Path, cwd: Path = ROOT, stdin: str = "", environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RLJOB, *arguments],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
        timeout=60,
    )


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "rljob.yaml").write_text(JOB)
    return tmp_path / "rljob.yaml"


@pytest.fixture
def folder(tmp_path: Path, job_file: Path) -> Path:
    """A job folder that was stopped in its third iteration."""
    root = tmp_path / "runs" / "tiny"
    for name in ("logs", "run"):
        (root / name).mkdir(parents=True)
    (root / "run" / "lock").touch()
    (root / "job.yaml").write_text(JOB)
    status = JobStatus(phase="Rollout", iteration=3, iterations=8, policy_version=2, rewards=[0.1, 0.3], timings={"rollout": 8.0})
    (root / "status.json").write_text(status.model_dump_json(by_alias=True))
    (root / "logs" / "worker-0.vllm.log").write_text("one\ntwo\n")
    (root / "logs" / "master.master.log").write_text("three\n")
    return root


def test_help_shows_examples() -> None:
    done = rljob("--help")
    assert done.returncode == 0
    assert "rljob run rljob.yaml --set spec.iterations=3" in done.stdout
    for command in ("validate", "crd", "explain", "plan", "run", "status", "logs", "stop"):
        assert command in done.stdout
    assert "..." not in done.stdout.partition("Commands:")[2].partition("Examples:")[0], "what a command does is said whole"


def test_the_version_is_said() -> None:
    assert re.fullmatch(r"rljob \d+\.\d+\.\d+\n", rljob("--version").stdout)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*/rljob.yaml")), ids=lambda p: p.parent.name)
def test_every_example_is_valid_and_can_be_planned(example: Path) -> None:
    assert rljob("validate", example).returncode == 0
    assert rljob("plan", example).returncode == 0


def test_a_wrong_job_gives_one_error_and_status_two(job_file: Path) -> None:
    job_file.write_text(JOB + "  iteratons: 3\n")
    for command in ("validate", "plan", "run"):
        done = rljob(command, job_file)
        assert done.returncode == 2
        assert done.stderr == f"error: {job_file}: line 8: spec.iteratons: is not a field; did you mean iterations?\n"


def test_a_job_file_that_cannot_be_read_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xad")
    (tmp_path / "closed.yaml").touch(0)
    (tmp_path / "rljob.yaml").touch()
    as_anybody = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    for name, said in (
        (".", f"is a folder; give the path of an RLJob in YAML, such as {tmp_path}/rljob.yaml"),
        ("binary.yaml", "is not UTF-8 (byte 0); give an RLJob in YAML, saved as UTF-8"),
        ("closed.yaml", "cannot be read (Permission denied); change its owner or mode"),
    ):
        command = [*as_anybody, str(RLJOB), "validate", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (2, f"error: {tmp_path / name}: {said}\n")


def test_a_job_comes_through_a_pipe_and_its_files_are_then_looked_for_here(tmp_path: Path) -> None:
    assert rljob("validate", "-", stdin=JOB).stdout.startswith("-: tiny is valid\n")
    assert "python -m rljob.master" in rljob("plan", "-", stdin=JOB).stdout
    assert rljob("validate", "-", stdin=JOB + "  iteratons: 3\n").stderr.startswith("error: standard input: line 8: spec.iteratons: ")
    done = rljob("run", "-", stdin=JOB, cwd=tmp_path)
    assert (done.returncode, f"{tmp_path}/train.jsonl does not exist" in done.stderr) == (2, True)


def test_the_locale_decides_neither_how_a_job_is_read_nor_how_it_is_printed(job_file: Path) -> None:
    note = "  templates: {master: {metadata: {annotations: {note: kürzer → 好}}}}\n"
    job_file.write_text(JOB + note, encoding="utf-8")
    # The only locale but UTF-8's that every machine has.
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = rljob("render", job_file, "--set", "spec.files.configMap=files", environment=ascii_only)
    assert done.returncode == 0, done.stderr
    assert "note: kürzer → 好\n" in done.stdout


@pytest.mark.parametrize(
    ("home", "words"),
    [("~", "this user has no home folder"), ("/dev/null", "cannot make /dev/null/.cache/rljob, where downloads are kept: Not a directory")],
)
def test_a_home_that_is_not_there_is_said_so_before_anything_starts(job_file: Path, tmp_path: Path, home: str, words: str) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    done = rljob("run", job_file, "--workdir", tmp_path / "job", environment={"HOME": home, "XDG_CACHE_HOME": ""})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"error: {words}")
    assert "set XDG_CACHE_HOME" in done.stderr
    assert not (tmp_path / "job").exists()


def test_to_interrupt_a_command_that_is_only_beginning_shows_no_traceback(tmp_path: Path) -> None:
    # What the command needs takes its time to be found; the signal comes meanwhile. (In the background of a shell, tests inherit that it
    # is ignored.)
    interrupt = "import os, signal as s\ns.signal(s.SIGINT, s.default_int_handler)\nos.kill(os.getpid(), s.SIGINT)\n"
    (tmp_path / "typer.py").write_text(interrupt)
    done = rljob("plan", "x.yaml", environment={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (130, "")


def test_a_field_without_effect_is_said_before_anything_starts(job_file: Path) -> None:
    job_file.write_text(JOB + "  algorithm: {tau: 0.1}\n")
    for command in ("validate", "plan"):
        assert "note: spec.algorithm.tau is 0.1, but has no effect" in rljob(command, job_file).stdout


def test_what_a_cluster_would_refuse_is_a_note_for_a_job_that_runs_here(job_file: Path) -> None:
    done = rljob("validate", job_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\nnote: on this machine: spec.data.train.path is 'train.jsonl', but {job_file.parent}/train.jsonl does not ex" in done.stdout
    assert "\nnote: in a cluster: spec.data.train.path: train.jsonl is relative" in done.stdout
    job_file.write_text(JOB + "  files: {claim: my-files}\n")
    assert "note:" not in rljob("validate", job_file).stdout


def test_an_override_without_a_value_is_no_default(job_file: Path) -> None:
    done = rljob("plan", job_file, "--set", "spec.iterations=")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --set spec.iterations=: has no value; write spec.iterations=null for the field's default")


def test_what_is_wrong_with_an_override_is_not_said_of_a_line_of_the_file(job_file: Path) -> None:
    job_file.write_text(JOB + "  iterations: 20\n  files: {configMaps: x}\n")
    done = rljob("plan", job_file, "--set", "spec.iterations=abc")
    assert "  spec.iterations: is 'abc'; it must be a whole number\n" in done.stderr
    assert "  line 9: spec.files.configMaps: " in done.stderr


def test_the_plan_as_data_holds_references_and_estimates(job_file: Path) -> None:
    document = yaml.safe_load(rljob("plan", job_file, "--output", "yaml").stdout)
    assert document == json.loads(rljob("plan", job_file, "--output", "json").stdout)
    assert [p["name"] for p in document["plan"]["pods"]] == ["master", "worker-0", "reward"]
    assert document["plan"]["pods"][1]["containers"][0]["env"]["RLJOB_URL_MASTER"] == "<address of master>"
    assert document["estimate"]["memory"]["megatron"]["total"] > 0
    assert "/home" not in json.dumps(document)
    assert str(job_file.parent) not in json.dumps(document)


def test_the_plan_for_people_fits_a_narrow_terminal(job_file: Path) -> None:
    done = rljob("plan", job_file, "--set", "spec.iterations=3", "--env")
    assert "python -m rljob.checkpoint_engine.shim --payload trainer" in done.stdout
    assert "RLJOB_DIR_SHM" in done.stdout
    assert re.search(r"3 iterations in\s+\S+\s+min, after a\s+warm\s+start\s+of", done.stdout)
    said = rljob("plan", job_file, "--set", "spec.rollout.replicas=12").stdout
    assert re.findall(r"^((?:worker|rollout)-.*?)  waits", said, re.MULTILINE) == ["worker-0", "rollout-0 to 11"]


def test_the_plan_says_what_has_no_effect_here(job_file: Path) -> None:
    out = rljob("plan", job_file, "--set", "spec.reward.replicas=2").stdout
    assert "note: spec.reward.replicas is 2, but `rljob run` starts one" in out
    assert "note: on this machine: spec.data.train.path is 'train.jsonl', but " in out
    assert json.loads(rljob("plan", job_file, "--set", "spec.reward.replicas=2", "-o", "json").stdout)["here"] != []


def test_a_model_that_does_not_divide_as_asked_is_refused_by_the_plan_with_the_nearest_sizes(job_file: Path) -> None:
    line = "spec.trainer.pipelineParallel is 3, but the model has 4 layers, as many in every stage; "
    line += "set it to 1, or to 2 with spec.accelerator.perNode at a multiple of 2"
    job_file.write_text(JOB + "  trainer: {pipelineParallel: 3}\n  accelerator: {perNode: 3}\n")
    assert rljob("validate", job_file).stderr == f"warning: {job_file}: {line}\n"
    done = rljob("plan", job_file)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")


def test_answers_that_the_models_context_cannot_hold_are_refused_by_plan_and_run(job_file: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    for change, line in (
        ("spec.rollout.maxTokens=1024", "is 1024, which leaves no room for a prompt in the model's context of 1024; lower it"),
        ("spec.model.maxLength=1025", "is 1025, but the model's context is 1024; lower it or leave it out"),
    ):
        for command in (("plan",), ("run", "--workdir", tmp_path / "job")):
            done = rljob(command[0], job_file, *command[1:], "--set", change)
            assert (done.returncode, done.stderr) == (2, f"error: {change.partition('=')[0]} {line}\n")
    assert not (tmp_path / "job").exists()


def test_a_model_of_a_family_that_nobody_can_train_is_refused_by_plan_and_run(job_file: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "mamba"}')
    (tmp_path / "train.jsonl").write_text("{}\n")
    line = f"{tmp_path}/m/config.json: model family 'mamba' is not supported by the trainer; choose one of "
    job_file.write_text(yaml.safe_dump(yaml.safe_load(JOB) | {"spec": yaml.safe_load(JOB)["spec"] | {"model": {"source": {"path": "m"}}}}))
    assert rljob("validate", job_file).stderr.startswith(f"warning: {job_file}: {line}")
    for command in (("plan",), ("run", "--workdir", tmp_path / "job")):
        done = rljob(command[0], job_file, *command[1:])
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {line}")
    assert not (tmp_path / "job").exists()


def test_crd_and_explain_print() -> None:
    assert yaml.safe_load(rljob("crd").stdout)["kind"] == "CustomResourceDefinition"
    assert "Longest answer in tokens." in rljob("explain", "spec.rollout").stdout
    assert "labels  <map[string]string>\n      Labels.\n" in rljob("explain", "metadata").stdout
    assert rljob("explain", "metadata.name").stdout.startswith("metadata.name  <string>\n    Name of the job: ")
    assert rljob("explain", "spec.rolout").stderr == "error: spec has no field 'rolout'; did you mean spec.rollout?\n"
    assert rljob("explain", "maxTokens").stderr == "error: RLJob has no field 'maxTokens'; did you mean spec.rollout.maxTokens?\n"


def test_a_missing_data_file_is_found_before_anything_starts(job_file: Path, tmp_path: Path) -> None:
    done = rljob("run", job_file, "--workdir", tmp_path / "job")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: spec.data.train.path is 'train.jsonl', but {tmp_path}/train.jsonl does not exist; "
        "correct the path (it starts at the job file's folder)\n"
    )
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("spec.iterations=three", "spec.iterations"),
        ("spec.trainer.tensorParallel=3", "set accelerator.perNode to a multiple of 3"),
        ("spec.model.source={path: nowhere}", "spec.model.source.path is 'nowhere', but {folder}/nowhere does not exist; correct the path"),
    ],
)
def test_what_cannot_run_here_is_one_line_before_anything_starts(job_file: Path, tmp_path: Path, change: str, words: str) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    done = rljob("run", job_file, "--workdir", tmp_path / "job", "--set", change)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words.format(folder=tmp_path) in done.stderr
    assert not (tmp_path / "job").exists()


def test_a_folder_of_another_job_is_refused_and_left_as_it_is(job_file: Path, folder: Path) -> None:
    (job_file.parent / "train.jsonl").write_text("{}\n")
    job_file.write_text(JOB.replace("tiny", "other"))
    for flags in ((), ("--fresh",)):
        done = rljob("run", job_file, "--workdir", folder, *flags)
        assert done.returncode == 2
        assert "holds the job 'tiny'" in done.stderr
    assert (folder / "job.yaml").read_text() == JOB


def test_there_is_nothing_to_resume_in_a_new_folder(job_file: Path, tmp_path: Path) -> None:
    (job_file.parent / "train.jsonl").write_text("{}\n")
    done = rljob("run", job_file, "--workdir", tmp_path / "new", "--resume")
    assert (done.returncode, "holds nothing to resume; leave --resume out to start" in done.stderr) == (2, True)


def test_fresh_on_a_folder_that_is_in_use_is_refused_and_removes_nothing(job_file: Path, folder: Path) -> None:
    (job_file.parent / "train.jsonl").write_text("{}\n")
    with JobFolder(folder).claim():
        done = rljob("run", job_file, "--workdir", folder, "--fresh")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{folder} is in use by another `rljob run`" in done.stderr
    assert (folder / "job.yaml").read_text() == JOB
    assert (folder / "logs" / "worker-0.vllm.log").read_text() == "one\ntwo\n"


def test_a_suspended_job_does_not_run(job_file: Path) -> None:
    done = rljob("run", job_file, "--set", "spec.suspend=true")
    assert done.stderr == "error: spec.suspend is true, so there is nothing to run; set it to false\n"


def test_a_finished_job_shows_its_summary_again(job_file: Path, folder: Path) -> None:
    (job_file.parent / "train.jsonl").write_text("{}\n")
    (folder / "state").mkdir()
    (folder / "state" / "master.sqlite").touch()
    status = JobStatus(phase="Succeeded", iteration=100, iterations=100, policy_version=100, rewards=[0.1] * 50 + [0.9] * 50)
    (folder / "status.json").write_text(status.model_dump_json(by_alias=True))
    done = rljob("run", job_file, "--workdir", folder)
    assert done.returncode == 0, done.stderr
    assert "0.100 → 0.900" in done.stdout
    assert "--fresh starts over" in " ".join(done.stdout.split())


def test_status_tells_how_far_a_stopped_job_is(folder: Path) -> None:
    out = rljob("status", folder).stdout
    assert "Rollout, when it was stopped" in out
    assert "2 of 8 done" in out
    assert "0.100 → 0.300" in out
    assert json.loads(rljob("status", folder, "-o", "json").stdout)["policyVersion"] == 2


def test_status_says_once_what_the_switch_policy_came_to(folder: Path) -> None:
    nodes = [NodeStatus(name=f"worker-{i}", step="idle", switch="restart: auto restarts on CPU") for i in range(2)]
    status = JobStatus(phase="Rollout", iteration=3, iterations=8, policy_version=2, nodes=nodes)
    (folder / "status.json").write_text(status.model_dump_json(by_alias=True))
    shown = [line.split(maxsplit=1) for line in rljob("status", folder).stdout.splitlines() if line.startswith("switch")]
    assert shown == [["switch", "restart: auto restarts on CPU"]]


def test_status_says_when_the_last_failure_was(folder: Path) -> None:
    failure = LastFailure(stage="train", pod="worker-0", reason="Died", message="lost", at=datetime.now(UTC) - timedelta(days=2, hours=12))
    status = JobStatus(phase="Rollout", iteration=3, iterations=8, policy_version=2, last_failure=failure)
    (folder / "status.json").write_text(status.model_dump_json(by_alias=True))
    assert "worker-0, train, Died, 2 days ago: lost" in rljob("status", folder).stdout


def test_status_of_a_long_job_fits_a_screen(folder: Path) -> None:
    held_out = [HeldOutStatus(iteration=4 * n, accuracy=n / 1000) for n in range(251)]
    status = JobStatus(phase="Rollout", iteration=1001, iterations=5000, policy_version=1000, rewards=[0.5] * 1000, held_out=held_out)
    (folder / "status.json").write_text(status.model_dump_json(by_alias=True))
    shown = [line for line in rljob("status", folder).stdout.splitlines() if line.startswith("held-out")]
    assert [line.split() for line in shown] == [["held-out,", "it.", "0", "0.0", "%"], ["held-out,", "it.", "1000", "25.0", "%"]]


def test_a_status_that_cannot_be_read_is_said_so_and_keeps_nobody_from_going_on(folder: Path) -> None:
    (folder / "status.json").write_text('{"phase": "Dreaming"}')
    done = rljob("status", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"phase    unknown: {folder}/status.json is damaged or of another version; a run writes it anew" in done.stdout
    assert JobFolder(folder).status() is None


def test_the_status_of_a_job_that_this_version_cannot_read_is_shown_and_says_so(folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB + "  later: 1\n  and: 2\n")
    done = rljob("status", folder)
    assert (done.returncode, done.stderr) == (0, "")
    said = f"{folder}/job.yaml was changed or is from another version (spec.later: is not a field, and 1 more); change it back"
    assert ["job.yaml", said] in [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert re.search(r"^job +tiny$", done.stdout, re.MULTILINE)
    assert "2 of 8 done" in done.stdout


def test_logs_are_chosen_by_pod_and_container(folder: Path) -> None:
    assert rljob("logs", folder, "worker-0/vllm").stdout == "one\ntwo\n"
    assert rljob("logs", folder, "worker-0").stdout == "one\ntwo\n"
    assert rljob("logs", folder).stdout == "master.master: three\nworker-0.vllm: one\nworker-0.vllm: two\n"
    assert "there are: master/master, worker-0/vllm" in rljob("logs", folder, "worker-9").stderr


def test_followed_logs_grow_until_the_job_ends(folder: Path) -> None:
    log = folder / "logs" / "worker-0.vllm.log"
    going_on = iter([True, True, False])

    def wait(_: float) -> None:
        with log.open("a") as stream:
            stream.write("more, unfin")

    lines = list(read_logs(lambda: [log], follow=True, named=False, going_on=lambda: next(going_on), wait=wait))
    assert lines == ["one", "two", "more, unfinmore, unfin"]


def test_followed_logs_show_containers_that_start_later(folder: Path) -> None:
    (folder / "logs" / "master.master.log").unlink()
    command = [str(RLJOB), "logs", str(folder), "-f"]
    with JobFolder(folder).claim(), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert [next(following.stdout), next(following.stdout)] == ["worker-0.vllm: one\n", "worker-0.vllm: two\n"]
        (folder / "logs" / "rollout-0.vllm.log").write_text("three\n")
        assert next(following.stdout) == "rollout-0.vllm: three\n"
        following.terminate()


def test_what_is_no_job_folder_is_said_so(tmp_path: Path) -> None:
    for command in ("status", "logs", "stop"):
        done = rljob(command, tmp_path)
        assert (done.returncode, "is not a job folder (it has no job.yaml)" in done.stderr) == (2, True)


def test_stopping_what_does_not_run_is_no_error(folder: Path) -> None:
    with JobFolder(folder).claim():
        pass
    done = rljob("stop", folder)
    assert (done.returncode, done.stdout) == (0, f"{folder}: was not running\n")
