"""The process that engines are forked from, with something else than vLLM in its forks."""

import json
import subprocess
import sys
from pathlib import Path

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
