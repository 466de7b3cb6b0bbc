"""The whole of `rljob run` around a small plan, from outside: signals, kill -9, a second run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import pytest
from tests.local.fakes import JOB

from rljob.api import ConfigurationError, InfrastructureError, RLJob
from rljob.api.load import load
from rljob.cli.output import console
from rljob.local import preflight
from rljob.local.folder import Current, JobFolder, program
from rljob.local.inspect import stop
from rljob.local.marked import marks
from rljob.local.run import Request, _take_over, run
from rljob.local.scale import scale
from rljob.prepare.preparation import _MARKER

ROOT = Path(__file__).parents[2]
FOREVER = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); signal.pause()"


@contextmanager
def running(folder: Path, code: str = FOREVER, mode: str = "auto") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.local.fake_run", str(folder), code, mode]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within 60 s"
        time.sleep(0.02)


def of_run(run: str) -> list[str]:
    return sorted({mark.partition("/")[2] for mark in marks().values() if mark.startswith(f"{run}/")})


def all_up(folder: Path) -> Current:
    """Wait until every container and the payload run."""
    job = JobFolder(folder)
    wait(lambda: job.current() is not None, "the start")
    current = job.current()
    assert current is not None
    wait(lambda: of_run(current.run) == ["master/master", "worker-0/agent", "worker-0/shim"], "the start of all containers")
    wait(lambda: list(Path(current.temporary[0]).glob("*/arena")) != [], "the arena")
    return current


def test_kill_9_of_the_supervisor_leaves_no_process_and_no_shared_memory(tmp_path: Path) -> None:
    with running(tmp_path / "job") as process:
        current = all_up(tmp_path / "job")
        process.kill()
        wait(lambda: of_run(current.run) == [], "the end of all processes")
        wait(lambda: not any(Path(folder).exists() for folder in current.temporary), "the removal of the temporary folders")


def test_a_new_run_cleans_up_after_one_whose_guardian_died_too(tmp_path: Path) -> None:
    with running(tmp_path / "job") as process:
        current = all_up(tmp_path / "job")
        guardians = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_guardian(p, current.run)]
        for pid in [process.pid, *guardians]:
            os.kill(pid, signal.SIGSTOP)
        for pid in [*guardians, process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
    assert of_run(current.run) != []
    with running(tmp_path / "job", "pass") as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert of_run(current.run) == []
    assert not any(Path(folder).exists() for folder in current.temporary)


def test_a_run_in_a_copy_of_a_folder_leaves_the_run_of_the_original_alone(tmp_path: Path) -> None:
    with running(tmp_path / "job"):
        current = all_up(tmp_path / "job")
        up = of_run(current.run)
        shutil.copytree(tmp_path / "job", tmp_path / "copy")
        with running(tmp_path / "copy", "pass") as process:
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
        assert of_run(current.run) == up
        assert list(Path(current.temporary[0]).glob("*/arena")) != []


def _is_guardian(proc: Path, run: str) -> bool:
    try:
        words = (proc / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"rljob.local.guardian" in words and run.encode() in words


def test_a_second_run_on_the_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with running(tmp_path / "job") as first:
        current = all_up(tmp_path / "job")
        with running(tmp_path / "job") as second:
            out, _ = second.communicate(timeout=60)
        assert second.returncode == 2
        assert f"is in use by another `rljob run` (process {current.pid}); stop it with `{program()} stop" in out
        assert first.poll() is None
        assert of_run(current.run) != []


def test_fresh_on_a_folder_that_is_in_use_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    with running(tmp_path / "job") as first:
        current = all_up(tmp_path / "job")
        (tmp_path / "job" / "state").mkdir()
        before = sorted(p.relative_to(tmp_path) for p in (tmp_path / "job").rglob("*"))
        with running(tmp_path / "job", mode="fresh") as second:
            out, _ = second.communicate(timeout=60)
        assert second.returncode == 2
        assert f"is in use by another `rljob run` (process {current.pid}); stop it with `{program()} stop" in out
        assert sorted(p.relative_to(tmp_path) for p in (tmp_path / "job").rglob("*")) == before
        assert first.poll() is None


SCRATCH = """\
# a comment
apiVersion: rljob.dev/v1alpha1
kind: RLJob
metadata: {name: tiny}
spec:
  model: {source: {scratch: {}}}
  data: {train: {path: data/train.jsonl}}
  warmStart: {}
"""


def refusal(file: Path, folder: Path | None, mode: Literal["auto", "resume", "fresh"] = "auto") -> str:
    """What a run of the job says, before anything is started."""
    with pytest.raises(ConfigurationError) as caught:
        run(Request(file, folder, mode=mode), console())
    return str(caught.value)


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=[False, True], ids=["never run in", "run in by an earlier release"])
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of a user's own, with names that a job folder has too."""
    for name in ("data/train.jsonl", "logs/mine.log", *(["run/lock"] if request.param else [])):
        (tmp_path / "project" / name).parent.mkdir(parents=True)
        (tmp_path / "project" / name).touch()
    return tmp_path / "project"


@pytest.mark.parametrize("mode", ["auto", "fresh"])
def test_neither_a_jobs_file_nor_its_data_is_overwritten_or_removed(project: Path, mode: Literal["auto", "fresh"]) -> None:
    (project / "job.yaml").write_text(SCRATCH)
    before = files_of(project)
    assert refusal(project / "job.yaml", project, mode) == (
        f"spec.data.train.path is 'data/train.jsonl', but the job itself writes and removes {project}/data; copy it elsewhere, "
        "or give another folder with --workdir"
    )
    (project / "data" / "train.jsonl").rename(project / "train.jsonl")
    (project / "job.yaml").write_text(SCRATCH.replace("data/train", "train"))
    before = files_of(project)
    said = refusal(project / "job.yaml", project, mode)
    assert said.startswith(f"the job's file is '{project}/job.yaml', but the job itself writes and removes it; copy it elsewhere")
    assert files_of(project) == before


@pytest.mark.parametrize("mode", ["auto", "fresh"])
def test_a_job_yaml_of_somebody_else_makes_no_job_folder(project: Path, mode: Literal["auto", "fresh"]) -> None:
    (project / "job.yaml").write_text("apiVersion: batch/v1\nkind: Job\nmetadata: {name: tiny}\n")
    (file := project.parent / "rljob.yaml").write_text(SCRATCH)
    before = files_of(project)
    said = refusal(file, project, mode)
    if (project / "run").exists():
        words = {
            "auto": "job.yaml was changed or is from another version",
            "fresh": "job.yaml is no job's, so --fresh removes nothing there",
        }
        assert words[mode] in said
        assert "start over" not in said
    else:
        assert "is not a job folder (it holds data, job.yaml, logs); give an empty or new folder with --workdir" in said
    assert files_of(project) == before


def test_a_job_does_not_go_on_from_the_model_that_its_fresh_start_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = JobFolder(tmp_path / "runs" / "tiny")
    (tmp_path / "rljob.yaml").write_text(SCRATCH.replace("scratch: {}", "path: runs/tiny/model").replace("data/train", "train"))
    with folder.claim():
        folder.write_job(load(tmp_path / "rljob.yaml"))
    for name in ("state/master.sqlite", "model/config.json"):
        (folder.root / name).parent.mkdir()
        (folder.root / name).touch()
    modes: tuple[Literal["auto", "resume", "fresh"], ...] = ("auto", "resume", "fresh")
    for mode in modes:
        said = refusal(Path("rljob.yaml"), None, mode)
        assert said.startswith("spec.model.source.path is 'runs/tiny/model', but the job itself writes and removes it; copy")
    assert (folder.root / "model" / "config.json").exists()


def test_whose_the_folder_is_comes_before_what_the_machine_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a killed run left in memory is memory for the next one."""
    (tmp_path / "rljob.yaml").write_text(SCRATCH)
    folder, left = JobFolder(tmp_path / "job"), tmp_path / "left"
    held: list[bool] = []

    def free() -> int:
        held.append(folder.running())
        return 8 << 20 if left.exists() else 1 << 30

    monkeypatch.setattr(preflight, "shared_memory_free", free)
    left.mkdir()
    assert "in /dev/shm, 8 MiB are free; enlarge it" in refusal(tmp_path / "rljob.yaml", folder.root)
    assert not folder.root.exists()
    with folder.claim():
        folder.write_job(load(tmp_path / "rljob.yaml", ["metadata.name=other"]))
        assert f"{folder.root} is in use by another `rljob run`" in refusal(tmp_path / "rljob.yaml", folder.root)
    assert "holds the job 'other', not 'tiny'" in refusal(tmp_path / "rljob.yaml", folder.root)
    folder.write_job(load(tmp_path / "rljob.yaml"))
    folder.write_current(Current("nobody", os.getpid(), 0.0, (str(left),), "http://127.0.0.1:1", "x"))
    said = refusal(tmp_path / "rljob.yaml", folder.root)
    assert "data/train.jsonl does not exist" in said
    assert "/dev/shm" not in said
    assert not left.exists()
    assert held == [False, True], "else `rljob stop` takes a run that has only looked at its folder for one that has ended"


def test_a_model_that_has_changed_is_taken_anew_before_the_job_has_begun(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "job")
    made = [folder.root / "source" / _MARKER, folder.root / "data" / "prepared.json"]
    with folder.claim():
        for begun in (True, False):
            for path in (*made, folder.root / "state" / "master.sqlite"):
                path.parent.mkdir(exist_ok=True)
                path.touch()
            if not begun:
                (folder.root / "state" / "master.sqlite").unlink()
            assert _take_over(folder, JOB, Request(tmp_path / "rljob.yaml")) is begun
            assert [path.exists() for path in made] == [begun, begun]


REMEMBERING = """
import os, pathlib
state = pathlib.Path(os.environ['WORK'], 'state')
state.mkdir(exist_ok=True)
with (state / 'master.sqlite').open('a') as file:
    file.write('x')
"""


def test_a_run_goes_on_from_the_folder_unless_it_is_to_start_over(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    (folder / "notes.txt").parent.mkdir()
    said = []
    for mode in ("auto", "auto", "resume", "fresh"):
        with running(folder, REMEMBERING, mode) as process:
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
        said.append((out.split()[0], (folder / "state" / "master.sqlite").read_text()))
        (folder / "notes.txt").write_text("the user's own")
    assert said == [("running", "x"), ("resuming", "xx"), ("resuming", "xxx"), ("running", "x")]
    assert (folder / "notes.txt").read_text() == "the user's own"


@pytest.mark.parametrize("text", ["metadata: {name: NAME}\nspec: {ofAnotherVersion: 1}\n", "damaged: ["])
def test_to_start_over_needs_no_job_that_this_version_can_read(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "job"
    with running(folder, REMEMBERING) as process:
        process.communicate(timeout=60)
    (folder / "job.yaml").write_text(text.replace("NAME", JOB.metadata.name))
    for mode, status, starts in (("auto", 2, "x"), ("fresh", 0, "x")):
        with running(folder, REMEMBERING, mode) as process:
            out, _ = process.communicate(timeout=60)
        assert process.returncode == status, out
        assert (folder / "state" / "master.sqlite").read_text() == starts
    (folder / "job.yaml").write_text("metadata: {name: another}\nspec: {ofAnotherVersion: 1}\n")
    with running(folder, REMEMBERING, "fresh") as process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, "holds the job 'another', which --fresh would remove" in out) == (2, True)


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM, "rljob stop"])
def test_a_run_stops_cleanly_and_says_how_to_go_on(tmp_path: Path, asked: signal.Signals | str) -> None:
    with running(tmp_path / "job") as process:
        current = all_up(tmp_path / "job")
        if isinstance(asked, signal.Signals):
            process.send_signal(asked)
        else:
            stopped = rljob("stop", str(tmp_path / "job"))
            assert (stopped.returncode, stopped.stdout) == (0, f"{tmp_path}/job: stopped\n"), stopped.stderr
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + (asked if isinstance(asked, signal.Signals) else signal.SIGTERM)
    assert f"stopped cleanly; go on with: {program()} run {tmp_path}/job/rljob.yaml --workdir {tmp_path}/job" in out
    assert out.index("worker-0/agent has ended") < out.index("worker-0/shim has ended")
    assert of_run(current.run) == []
    assert not any(Path(folder).exists() for folder in current.temporary)
    assert not JobFolder(tmp_path / "job").current_file.exists()


def test_a_run_that_does_not_stop_is_said_so(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "job")
    with folder.claim(), subprocess.Popen(["sleep", "60"]) as other:
        with pytest.raises(InfrastructureError, match=r"the run on .*/job is only just starting, or .* in another container; try"):
            stop(folder, 1.0, lambda _: None)
        folder.write_current(Current("run0", 2**22 + 1, 0.0, (), "http://127.0.0.1:1", "job.yaml"))
        with pytest.raises(InfrastructureError, match="only just starting"):
            stop(folder, 1.0, lambda _: None)
        folder.write_current(Current("run1", other.pid, 0.0, (), "http://127.0.0.1:1", "job.yaml"))
        waited: list[float] = []
        with pytest.raises(InfrastructureError, match=rf"process {other.pid} has not ended within 1 s; see .*/job/logs"):
            stop(folder, 1.0, waited.append)
        assert sum(waited) == pytest.approx(1.0)
        assert other.wait(timeout=60) == -signal.SIGTERM


def test_a_run_that_only_begins_is_waited_for_and_who_has_the_number_of_the_one_before_is_left_alone(tmp_path: Path) -> None:
    folder, stack = JobFolder(tmp_path / "job"), ExitStack()
    stack.enter_context(folder.claim())
    with subprocess.Popen(["sleep", "60"]) as bystander, subprocess.Popen(["sleep", "60"]) as other:
        folder.write_current(Current("killed", bystander.pid, 0.0, (), "http://127.0.0.1:1", "job.yaml"))
        record = json.loads(folder.current_file.read_text())
        folder.current_file.write_text(json.dumps(record | {"began": record["began"] - 1}))
        steps = [lambda: folder.write_current(Current("new", other.pid, 0.0, (), "x", "x")), lambda: None, stack.close]
        assert stop(folder, 60.0, lambda _: steps.pop(0)())
        assert other.wait(timeout=60) == -signal.SIGTERM
        assert bystander.poll() is None
        bystander.kill()
    assert steps == []


def test_a_container_that_keeps_failing_gives_a_cause_and_no_trace_of_the_supervisor(tmp_path: Path) -> None:
    with running(tmp_path / "job", "raise SystemExit('the disk is on fire')") as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "  the disk is on fire" in out
    assert "error: master failed 2 times in a row without progress of the job (spec.backoffLimit is 1): exited with status 1" in out
    assert "Traceback" not in out
    assert "supervisor.py" not in out


THIEF = """
import os, pathlib, subprocess, sys, urllib.request
host, port = os.environ['LISTEN'].split(':')
seen = pathlib.Path(os.environ['WORK'], 'port')
if seen.exists():
    assert seen.read_text() != port
    urllib.request.urlopen(f'http://{host}:{seen.read_text()}/end')
    sys.exit(0)
code = (
    "import http.server, signal, sys; signal.alarm(120); h = http.server.BaseHTTPRequestHandler; asked = []; "
    "h.do_GET = lambda self: (self.send_response(200), self.end_headers(), asked.append(self.path)); "
    "s = http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), h); print('ready', flush=True)\\n"
    "while '/end' not in asked: s.handle_request()"
)
thief = subprocess.Popen([sys.executable, '-c', code, port], env={}, stdout=subprocess.PIPE, start_new_session=True)
thief.stdout.readline()
seen.write_text(port)
sys.exit(1)
"""


def test_a_port_that_another_program_took_meanwhile_is_replaced(tmp_path: Path) -> None:
    """The master dies, and a program that is not of the job listens on its port when it is to start again."""
    with running(tmp_path / "job", THIEF) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "another program took one of the ports; trying again with others" in out


def rljob(*words: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    command = [sys.executable, "-c", "from rljob.cli.main import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


WHEN_ASKED = """
import os, pathlib, time

def until(name):
    while not pathlib.Path(os.environ['WORK'], name).exists():
        time.sleep(0.02)

until('looked at' if pathlib.Path(os.environ['WORK'], 'port').exists() else 'scaled')
"""


def test_a_run_that_takes_other_ports_stays_as_large_as_it_was_scaled_to(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    with running(folder, WHEN_ASKED + THIEF) as process:
        first = all_up(folder).run
        assert rljob("scale", str(folder), "--replicas=1").returncode == 0
        (folder / "scaled").touch()
        wait(lambda: (now := JobFolder(folder).current()) is not None and now.run != first, "the second try")
        wait(lambda: (now := JobFolder(folder).current()) is not None and "rollout-0/agent" in of_run(now.run), "the replica")
        assert (job := JobFolder(folder).job()) is not None
        assert job.spec.rollout.replicas == 1
        (folder / "looked at").touch()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out


def test_a_run_is_scaled_while_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    with running(folder):
        current = all_up(folder)
        assert rljob("scale", str(folder), "--replicas=2").stdout == f"{folder}: rollout replicas 0 -> 2\n"
        wait(lambda: {"rollout-0/agent", "rollout-1/agent"} <= set(of_run(current.run)), "two replicas")
        assert rljob("scale", str(folder), "--replicas=0").stdout == f"{folder}: rollout replicas 2 -> 0\n"
        wait(lambda: of_run(current.run) == ["master/master", "worker-0/agent", "worker-0/shim"], "the end of the replicas")
        refused = rljob("scale", str(folder), "--replicas=-1")
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: spec.rollout.replicas: -1 is not possible (")
        assert refused.stderr.count("\n") == 1
    wait(lambda: of_run(current.run) == [], "the end of all processes")
    stopped = rljob("scale", str(folder), "--replicas=1")
    assert (stopped.returncode, stopped.stdout) == (2, "")
    assert stopped.stderr == (
        f"error: no `rljob run` uses {folder}; set spec.rollout.replicas in the job's file, or --set spec.rollout.replicas=1\n"
    )
    assert "is not a job folder" in rljob("scale", str(tmp_path / "nothing"), "--replicas=1").stderr


def test_a_run_is_not_scaled_to_more_accelerators_than_it_sees(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "job")
    data = JOB.model_dump(by_alias=True, exclude_none=True)
    with folder.claim():
        folder.write_job(RLJob.model_validate(data | {"spec": data["spec"] | {"accelerator": {"type": "nvidia"}}}))
        folder.write_current(Current("run1", os.getpid(), 0.0, (), "http://127.0.0.1:1", str(tmp_path / "job.yaml")))
        with pytest.raises(ConfigurationError, match="need 1001 nvidia devices"):
            scale(folder, 1000)
        assert folder.wanted_replicas() is None
