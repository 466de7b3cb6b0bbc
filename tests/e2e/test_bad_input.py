"""What keeps a job from running ends the real command in one line with its remedy, before time is spent; what is there already stays."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.enclosure import enclosure, fill, unable_to_override
from tests.e2e.jobfolder import RLJOB, ROOT, assert_complete, processes, small_job, status, wait

from rljob.api.load import load
from rljob.api.sources import ScratchSource
from rljob.local.folder import Current, JobFolder, program
from rljob.prepare import scratch

TINY = ROOT / "examples" / "tiny" / "rljob.yaml"


def refusal(command: list[str]) -> str:
    """The one line with which a command ends with status 2."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


def run(folder: Path, job: Path = TINY) -> list[str]:
    return [str(RLJOB), "run", str(job), "--workdir", str(folder)]


class TestTheMachine:
    """Nothing is started, so this takes a second each."""

    def test_a_disk_that_is_too_small(self, tmp_path: Path) -> None:
        with enclosure() as inside:
            inside.mount(tmp_path, "40M")
            assert refusal(inside.command(*run(tmp_path / "job"))).endswith(
                "MiB on the disk of the job folder, 40 MiB are free for it; "
                "free space, lower spec.checkpoint.keep, or give a folder on another disk with --workdir"
            )
            assert list(inside.path(tmp_path).iterdir()) == []

    def test_shared_memory_that_is_too_small(self, tmp_path: Path) -> None:
        with enclosure() as inside:
            inside.mount(Path("/dev/shm"), "8M")
            assert refusal(inside.command(*run(tmp_path / "job"))).endswith(
                "MiB in /dev/shm, 8 MiB are free; enlarge it (mount -o remount,size=..., or --shm-size for a container)"
            )
        assert not (tmp_path / "job").exists()

    def test_a_read_only_disk(self, tmp_path: Path) -> None:
        with enclosure() as inside:
            inside.mount(tmp_path, "4G", "ro")
            assert refusal(inside.command(*run(tmp_path / "job"))) == (
                f"error: cannot write to {tmp_path}/job: Read-only file system; give another folder with --workdir"
            )

    @pytest.mark.parametrize("existing", [False, True], ids=["new folder", "folder of a job"])
    def test_no_permission(self, tmp_path: Path, existing: bool) -> None:
        folder = tmp_path / "job"
        if existing:
            (folder / "run").mkdir(parents=True)
            (folder / "run" / "lock").touch(0o444)
            JobFolder(folder).write_job(load(TINY))
            (folder / "run").chmod(0o555)
        tmp_path.chmod(0o555)
        try:
            line = refusal([*unable_to_override(), *run(folder)])
        finally:
            tmp_path.chmod(0o755)
            if existing:
                (folder / "run").chmod(0o755)
        assert line == f"error: cannot write to {folder}: Permission denied; give another folder with --workdir"

    def test_a_subfolder_that_cannot_be_written(self, tmp_path: Path) -> None:
        """Left by a run as somebody else, say."""
        (tmp_path / "job" / "run").mkdir(parents=True)
        (tmp_path / "job" / "run" / "lock").touch()
        (tmp_path / "job" / "logs").mkdir(mode=0o555)
        done = subprocess.run([*unable_to_override(), *run(tmp_path / "job")], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 1
        where = tmp_path / "job" / "logs" / "master.prepare.log"
        assert done.stderr == f"error: no permission for {where} (Permission denied); change its owner or mode, or use another folder\n"
        assert processes(tmp_path / "job") == []

    def test_no_port_that_may_be_listened_on(self, tmp_path: Path) -> None:
        with enclosure(own_network=True) as inside:
            command = inside.without_ports(*run(tmp_path / "job"))
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 1
        assert done.stderr == "error: no free port between 20000 and 31999; end programs that listen there\n"
        assert processes(tmp_path / "job") == []

    def test_a_second_run_on_one_folder(self, tmp_path: Path) -> None:
        folder = JobFolder(tmp_path / "job")
        with folder.claim():
            folder.write_job(load(TINY))
            folder.write_current(Current("r", 4711, 0.0, (), "http://127.0.0.1:1", str(TINY)))
            before = folder.job_file.read_bytes()
            assert refusal(run(folder.root)) == (
                f"error: {folder.root} is in use by another `rljob run` (process 4711); stop it with `{program()} stop {folder.root}` "
                "or give another folder with --workdir"
            )
            assert folder.job_file.read_bytes() == before


class Begun:
    """A job that has come some way and is run again with something wrong in its model or data."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.job: dict[str, Any] = yaml.safe_load(TINY.read_text())
        for name in ("train.jsonl", "heldout.jsonl"):
            shutil.copy(TINY.parent / name, root / name)

    def model(self, **changes: Any) -> Path:
        """Start from a Hugging Face folder, with changes of its config.json."""
        folder = self.root / "model"
        folder.mkdir()
        scratch.create(ScratchSource.model_validate(self.job["spec"]["model"]["source"]["scratch"]), 0, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        self.job["spec"]["model"] = {"source": {"path": "model"}}
        return folder

    def train(self, *lines: str) -> None:
        """Other training data."""
        (self.root / "train.jsonl").write_text("".join(line + "\n" for line in lines))

    def refused(self) -> str:
        """Run it; the one line. What the job had reached is still there."""
        file, folder = self.root / "rljob.yaml", JobFolder(self.root / "job")
        file.write_text(yaml.safe_dump(self.job))
        with folder.claim():
            folder.write_job(load(file))
        reached = [folder.root / name for name in ("state/master.sqlite", "checkpoints/version-000003/x", "metrics.jsonl", "model/x")]
        for path in reached:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("reached")
        line = refusal(run(folder.root, file))
        assert {path.read_text() for path in reached} == {"reached"}
        assert processes(folder.root) == []
        return line


def _unsupported_family(begun: Begun) -> str:
    folder = begun.model(model_type="mamba")
    families = "llama, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe"
    return f"error: {folder}/config.json: model family 'mamba' is not supported by the trainer; choose one of {families}"


def _tokenizer_of_another_model(begun: Begun) -> str:
    folder = begun.model()
    scratch.tokenizer([f"<{i}>" for i in range(60)]).save(str(folder / "tokenizer.json"))
    return (
        f"error: {folder}: the tokenizer has token 161, the model's vocabulary ends at 127; "
        "tokenizer and model do not belong together, take both from one place"
    )


RECORD = '{"prompt": "ab", "reference": "ba", "demonstration": "ba"}'


def _malformed_line(begun: Begun) -> str:
    begun.train(RECORD, "", "{oops")
    return "error: train.jsonl line 3: not JSON (key must be a string at column 2); one JSON object per line is expected"


def _empty_file(begun: Begun) -> str:
    begun.train()
    return "error: spec.data.train holds no records (train.jsonl); a data set needs at least one"


def _prompt_longer_than_the_context(begun: Begun) -> str:
    begun.train(RECORD, json.dumps({"id": "long", "prompt": "x" * 80, "reference": "y", "demonstration": "y"}))
    return (
        "error: prompt 'long' has 84 tokens; with rollout.maxTokens (8) that is 92, more than the model's context (64): "
        "shorten it, lower maxTokens, or set spec.data.tooLong: drop"
    )


def _duplicate_ids(begun: Begun) -> str:
    begun.train(*(json.dumps({"id": "a", **json.loads(RECORD)}) for _ in range(2)))
    return "error: train.jsonl line 2: id 'a' stands already in train.jsonl line 1; ids must be unique, or leave them out"


@pytest.mark.slow
def test_what_was_refused_before_it_began_is_corrected_in_place(tmp_path: Path) -> None:
    """The remedy of a refusal is a change of the job."""
    begun = Begun(tmp_path)
    begun.job["spec"]["data"]["train"] = {"reasoningGym": {"dataset": "chainsum", "size": 9}}
    file = tmp_path / "rljob.yaml"
    for dataset, next_refusal in (("chainsum", "did you mean chain_sum"), ("chain_sum", "chain_sum item 0: verifier exact")):
        begun.job["spec"]["data"]["train"]["reasoningGym"]["dataset"] = dataset
        file.write_text(yaml.safe_dump(begun.job))
        assert next_refusal in refusal(run(tmp_path / "job", file))


CASES = [_unsupported_family, _tokenizer_of_another_model, _malformed_line, _empty_file, _prompt_longer_than_the_context, _duplicate_ids]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.strip("_"))
def test_model_or_data_that_cannot_be_used(tmp_path: Path, case: Callable[[Begun], str]) -> None:
    begun = Begun(tmp_path)
    assert case(begun) == begun.refused()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_disk_that_fills_up_ends_the_job_and_freed_space_lets_it_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "job"
    folder.parent.mkdir()
    job = small_job(tmp_path, 3)
    with enclosure() as inside:
        inside.mount(folder.parent, "400M")
        seen = inside.path(folder)
        log = tmp_path / "out"
        with log.open("wb") as out:
            first = subprocess.Popen(
                inside.command(*run(folder, job), "--set", "spec.backoffLimit=2"), stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
            wait(lambda: first.poll() is not None or status(seen).get("iteration", 0) > 1, "the second iteration")
            filler = fill(seen)
            assert first.wait(timeout=200) in (1, 2)
        text = log.read_text()
        assert "Traceback" not in text
        error = text.splitlines()[-1]
        assert error.startswith("error: ")
        assert any(words in error for words in ("free some", "free space", "check space")), text[-3000:]
        assert processes(folder) == []
        filler.unlink()
        again = subprocess.run(inside.command(*run(folder, job)), capture_output=True, text=True, check=False, timeout=300)
        assert again.returncode == 0, again.stdout[-3000:] + again.stderr
        assert processes(folder) == []
        # SQLite does not open a file through /proc.
        shutil.copytree(seen, tmp_path / "copy")
    assert_complete(tmp_path / "copy", 3)
