"""`python -m tests.local.fake_run FOLDER CODE [resume|fresh]`: what `rljob run` does, for a plan whose master is CODE."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from tests.local.fakes import JOB, SLEEP, container, master, plan_of

from rljob.api import RLJob, RLJobError
from rljob.cli.output import console
from rljob.local.folder import JobFolder
from rljob.local.run import Request, run_in
from rljob.plan.types import Plan, Pod

# A payload in a session of its own, with a file in shared memory, as a shim makes one.
PAYLOAD = (
    "import os, subprocess, sys\n"
    "open(os.environ['RLJOB_DIR_SHM'] + '/arena', 'w').close()\n"
    f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)\n" + SLEEP
)


def main(folder: Path, code: str, mode: Literal["auto", "resume", "fresh"] = "auto") -> int:
    """Run it."""
    worker = Pod("worker", "worker-0", (container("agent", SLEEP),), sidecars=(container("shim", PAYLOAD, "always"),))
    request = Request(folder / "rljob.yaml", folder, mode=mode)
    base = plan_of(master(code), worker)

    def planner(job: RLJob) -> Plan:
        replicas = [Pod("rollout", f"rollout-{i}", (container("agent", SLEEP),)) for i in range(job.spec.rollout.replicas)]
        return replace(base, pods=(*base.pods, *replicas))

    try:
        with (job_folder := JobFolder(folder)).claim():
            return run_in(job_folder, base, JOB, request, console(width=200), planner=planner)
    except RLJobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    wanted = cast(Literal["auto", "resume", "fresh"], sys.argv[3] if len(sys.argv) > 3 else "auto")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], wanted))
