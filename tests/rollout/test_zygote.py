"""The process that engines are forked from, with something else than vLLM in its forks."""

import io
import json
import os
import selectors
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rljob.rollout.zygote import Zygote

ZYGOTE = """
import sys, tempfile, time
from rljob.rollout.zygote import Zygote
def launch(argv, env):
    print(tempfile.mkstemp()[1], flush=True)
    time.sleep(60 if argv else 0)
tempfile.gettempdir()  # vLLM asks at its import
Zygote(0, sys.stdout, launch).run()
"""


def test_temporary_files_of_an_engine_end_with_it(tmp_path: Path) -> None:
    """vLLM leaves sockets behind, several for each engine, whether it ends by itself or is killed."""
    with subprocess.Popen([sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as zygote:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        for argv in ([], ["lives"]):
            log = tmp_path / f"log-{len(argv)}"
            zygote.stdin.write(json.dumps({"start": {"argv": argv, "env": {}, "log": str(log)}}) + "\n")
            zygote.stdin.flush()
            assert "started" in json.loads(zygote.stdout.readline())
            if not argv:
                assert json.loads(zygote.stdout.readline())["exited"]["status"] == 0
                made = Path(log.read_text().strip())
                assert made.parent.name.startswith("vllm-")
                assert not made.parent.exists()
        zygote.stdin.close()
        assert "exited" in json.loads(zygote.stdout.readline())
        lived = log.read_text().strip()
        assert not lived or not Path(lived).parent.exists()


@pytest.mark.parametrize("missing", ["folder", "log"])
def test_a_start_that_is_refused_leaves_nothing_open_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """The folder for temporary files is full or gone, say, and a start is tried again and again."""
    nowhere = str(tmp_path / "nowhere")
    monkeypatch.setattr(tempfile, "tempdir", nowhere if missing == "folder" else str(tmp_path))
    log = f"{nowhere}/log" if missing == "log" else os.devnull
    answers = io.StringIO()
    zygote = Zygote(0, answers, lambda argv, env: None)
    before = os.listdir("/proc/self/fd")
    with selectors.DefaultSelector() as selector:
        zygote._obey(json.dumps({"start": {"argv": [], "env": {}, "log": log}}).encode(), selector)
    assert os.listdir("/proc/self/fd") == before
    assert "No such file or directory" in json.loads(answers.getvalue())["error"]
    assert list(tmp_path.iterdir()) == []
