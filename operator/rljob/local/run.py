"""`rljob run`: a job from its file to its end, on this machine."""

import asyncio
import os
import random
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from rljob.api import ConfigurationError, InfrastructureError, RLJob
from rljob.api.load import load
from rljob.api.notes import inert
from rljob.local import preflight, view
from rljob.local.decide import Limits
from rljob.local.display import Display, choose
from rljob.local.folder import Current, JobFolder, check_inputs, check_same_job, program
from rljob.local.hub import known_shape
from rljob.local.places import Places, service_url
from rljob.local.ports import pick
from rljob.local.scale import scaled
from rljob.local.supervisor import Guardian, Outcome, Supervisor, last_lines
from rljob.local.watch import Watcher
from rljob.plan import Machine, Plan, count_held_out, count_prompts, count_scorers, estimate, plan, prompt_length

_PORT_TRIES = 3


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    file: Path
    workdir: Path | None = None
    overrides: tuple[str, ...] = ()
    mode: Literal["auto", "resume", "fresh"] = "auto"


def this_machine() -> Machine:
    """Cores that this process may use, and whether they have bf16 arithmetic."""
    flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    return Machine(len(os.sched_getaffinity(0)), bool({"avx512_bf16", "amx_bf16"} & set(flags)))


def cache_folder() -> Path:
    """What jobs download is kept here for the next one. Made if it is not there.

    Raises:
        ConfigurationError: nothing says where it is, or it cannot be written.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "rljob"
    except RuntimeError as error:
        raise ConfigurationError("this user has no home folder, where downloads are kept; set XDG_CACHE_HOME to a folder") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make {folder}, where downloads are kept: {error.strerror}; set XDG_CACHE_HOME") from error
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"cannot write to {folder}, where downloads are kept; change its owner or mode, or set XDG_CACHE_HOME")
    return folder


def run(request: Request, console: Console) -> int:
    """Run a job to its end. Returns the exit status of the command.

    Raises:
        ConfigurationError: the job cannot run as it is, here or at all.
        InfrastructureError: the job failed.
    """
    job = load(request.file, request.overrides)
    if job.spec.suspend:
        raise ConfigurationError("spec.suspend is true, so there is nothing to run; set it to false")
    folder = JobFolder((request.workdir or Path("runs") / job.metadata.name).absolute())
    check_inputs(folder, job, request.file)
    with ExitStack() as held:
        # Whose it is comes before what the machine lacks, and what a killed run left in its memory goes first.
        if exists := not folder.empty:
            held.enter_context(folder.claim())
            _check_folder(folder, job, request)
        cache = cache_folder()  # refuses before anything else is made
        source = request.file.absolute().parent
        shape = known_shape(job, source)
        counts = count_held_out(job, source), count_scorers(job, source), count_prompts(job, source), prompt_length(job, source)
        sizes = estimate(job, shape, this_machine(), *counts)
        facts = preflight.gather(job, folder.root, source, cache)
        if found := preflight.problems(job, sizes, facts):
            raise ConfigurationError(found[0] if len(found) == 1 else "this cannot run here:\n  " + "\n  ".join(found))
        notes = (*preflight.warnings(sizes, facts), *inert(job.spec), *preflight.without_effect(job))
        if not exists:
            held.enter_context(folder.claim())
        return run_in(folder, plan(job, shape), job, request, console, notes, lambda scaled: plan(scaled, shape))


Planner = Callable[[RLJob], Plan]
"""The plan of a job whose scale has changed."""


def run_in(
    folder: JobFolder,
    planned: Plan,
    job: RLJob,
    request: Request,
    console: Console,
    notes: Sequence[str] = (),
    planner: Planner | None = None,
) -> int:
    """Run a plan in a folder that the caller has claimed: take it over as `request` says, or refuse. Returns the command's exit status.

    Without a `planner` the job stays as large as it is.

    Raises:
        ConfigurationError: the folder holds another job, or nothing to resume.
        InfrastructureError: the job failed.
    """
    resumed = _take_over(folder, job, request)
    done = folder.status()
    if resumed and done is not None and done.phase == "Succeeded" and done.iteration >= job.spec.iterations:
        _summarize(console, job, folder, 0.0, {}, done.finished)
        console.print("This job has finished before; --fresh starts over, a larger spec.iterations goes on.")
        return 0
    folder.write_job(job)
    say = f"resuming {job.metadata.name} in {folder.root}" if resumed else f"running {job.metadata.name} in {folder.root}"
    console.print(say, soft_wrap=True)
    for note in notes:
        console.print(Text.assemble(("note:", "yellow"), f" {note}"), soft_wrap=True)
    return run_plan(planned, job, folder, request, console, planner)


def _check_folder(folder: JobFolder, job: RLJob, request: Request) -> None:
    """May the claimed folder be this job's, as `request` says?"""
    if request.mode == "fresh":
        if why := folder.kept_from(job.metadata.name):
            raise ConfigurationError(f"{why}; give another folder with --workdir")
        return
    check_same_job(folder, job)
    if request.mode == "resume" and not folder.begun:
        raise ConfigurationError(f"{folder.root} holds nothing to resume; leave --resume out to start")


def _take_over(folder: JobFolder, job: RLJob, request: Request) -> bool:
    """Make the claimed folder this job's. Is there something to go on from?"""
    _check_folder(folder, job, request)
    if request.mode == "fresh":
        folder.clear()
    elif not folder.begun:
        # Pods wait for it, and the job may have changed since it was prepared.
        (folder.root / "data" / "prepared.json").unlink(missing_ok=True)
        if job.spec.model.source.path is not None:
            # The same of a model that lies at the same path: without its mark it is taken anew.
            (folder.root / "source" / ".source.json").unlink(missing_ok=True)
    return folder.begun


def run_plan(plan: Plan, job: RLJob, folder: JobFolder, request: Request, console: Console, planner: Planner | None = None) -> int:
    """Run a plan in a folder that the caller has claimed; see `run`."""
    begun, before = time.monotonic(), folder.status()
    for _ in range(_PORT_TRIES):
        places = _places(plan, folder, request)
        display = choose(console, job.metadata.name)
        try:
            ended = asyncio.run(_session(plan, places, job, folder, request, display, planner))
        finally:
            display.close()
        if ended.outcome.kind != "port-taken":
            break
        console.print("another program took one of the ports; trying again with others")
        plan, job = ended.plan, ended.job  # as large as it was scaled to meanwhile
    else:
        raise InfrastructureError(f"ports were taken by other programs {_PORT_TRIES} times in a row; run again")
    return _conclude(ended, folder, request, console, time.monotonic() - begun, before.finished if before else 0)


def _places(plan: Plan, folder: JobFolder, request: Request) -> Places:
    run_id = secrets.token_hex(4)
    wanted = [(pod.name, port.name) for pod in plan.pods for container in pod.all_containers for port in container.ports]
    return Places(
        run=run_id,
        folder=folder.root,
        source=request.file.absolute().parent,
        cache=cache_folder(),
        memory=Path("/dev/shm") / f"rljob-{run_id}",
        sockets=Path("/tmp") / f"rljob-{run_id}",
        ports=pick(wanted, random.SystemRandom()),
        python=sys.executable,
        cores=this_machine().cores,
        devices=preflight.devices_here(os.environ),
    )


@dataclass(frozen=True)
class _Ended:
    """How a session ended."""

    outcome: Outcome
    watcher: Watcher
    stopped_by: signal.Signals | None
    plan: Plan
    """What ran at last."""
    job: RLJob


async def _session(
    plan: Plan, places: Places, job: RLJob, folder: JobFolder, request: Request, display: Display, planner: Planner | None
) -> _Ended:
    """One run of the plan with everything around it: guardian, signals, view."""
    temporary = (str(places.memory), str(places.sockets))
    master = service_url(plan, places, "master")
    folder.scale_file.unlink(missing_ok=True)
    folder.write_current(Current(places.run, os.getpid(), time.time(), temporary, master, str(request.file.absolute())))
    guardian = Guardian(places.run, temporary)
    watcher = Watcher(master, display.status, folder.status())
    limits = Limits(job.spec.backoff_limit, job.spec.active_deadline_seconds)
    supervisor = Supervisor(plan, places, limits, display.event, watcher.progress)
    received: list[signal.Signals] = []
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, _stop_on, number, supervisor, received, display)
    watching = asyncio.create_task(watcher.watch())
    showing = asyncio.create_task(_show(display, watcher, folder, guardian))
    scaling = asyncio.create_task(_scale(planner, job, supervisor, folder, display))
    try:
        outcome = await supervisor.run()
        # The master's last words may have come between two looks at it.
        if (last := folder.status()) is not None:
            watcher.take(last)
    finally:
        for task in (watching, showing, scaling):
            task.cancel()
        await asyncio.gather(watching, showing, scaling, return_exceptions=True)
        await asyncio.to_thread(guardian.release)
        folder.write_current(None)
    return _Ended(outcome, watcher, received[0] if received else None, supervisor.plan, folder.job() or job)


def _stop_on(number: signal.Signals, supervisor: Supervisor, received: list[signal.Signals], display: Display) -> None:
    first = not received
    received.append(number)
    display.say("stopping; once more to kill what is left" if first else "killing what is left")
    supervisor.stop()


async def _scale(planner: Planner | None, job: RLJob, supervisor: Supervisor, folder: JobFolder, display: Display) -> None:
    """Take up what `rljob scale` asks for; the job folder's `job.yaml` says what is taken up."""
    while planner is not None:
        before, after = job.spec.rollout.replicas, folder.wanted_replicas()
        if after is not None and after != before:
            job = scaled(job, after)
            supervisor.adopt(planner(job))
            folder.write_job(job)
            display.say(f"rollout replicas {before} -> {after}")
        await asyncio.sleep(0.25)


async def _show(display: Display, watcher: Watcher, folder: JobFolder, guardian: Guardian) -> None:
    while True:
        note = "" if watcher.latest else _newest_line(folder)
        display.refresh(watcher.latest, note)
        guardian.check()
        await asyncio.sleep(0.25)


def _newest_line(folder: JobFolder) -> str:
    """What the preparation says it is doing."""
    log = folder.log("master", "prepare")
    lines = last_lines(log, 0, 1) if log.exists() else ()
    return "" if not lines or lines[0].startswith("---") else lines[0]


def _conclude(ended: _Ended, folder: JobFolder, request: Request, console: Console, seconds: float, before: int) -> int:
    """Say how it ended; so many iterations were done `before`. Returns the exit status."""
    outcome = ended.outcome
    if outcome.kind == "succeeded":
        _summarize(console, ended.job, folder, seconds, ended.watcher.times.seconds, before)
        return 0
    if outcome.kind == "stopped":
        status = folder.status()
        done = f" after {status.finished} of {status.iterations} iterations" if status else ""
        console.print(f"stopped cleanly{done}; go on with: {_again(request)}", soft_wrap=True)
        return 128 + (ended.stopped_by or signal.SIGTERM)
    _show_log(outcome, console)
    if outcome.kind == "configuration":
        raise ConfigurationError(outcome.message)
    raise InfrastructureError(f"{outcome.message}; what was committed is kept, go on with: {_again(request)}")


def _show_log(outcome: Outcome, console: Console) -> None:
    if outcome.log is None:
        return
    console.print(f"the last lines of {outcome.log}:" if outcome.lines else f"see {outcome.log}", soft_wrap=True)
    for line in outcome.lines:
        console.print(f"  {line}", soft_wrap=True)


def _again(request: Request) -> str:
    words = [program(), "run", str(request.file)]
    if request.workdir is not None:
        words += ["--workdir", str(request.workdir)]
    for override in request.overrides:
        words += ["--set", override]
    return shlex.join(words)


def _summarize(console: Console, job: RLJob, folder: JobFolder, seconds: float, phases: dict[str, float], before: int) -> None:
    status = folder.status()
    if status is None:
        console.print(f"{job.metadata.name} has finished; it left no status in {folder.root}", soft_wrap=True)
        return
    rows = view.summary(view.Result(job.metadata.name, status, seconds, phases, folder.root))
    took = f"{f', {status.finished - before} of them' if before else ''} in {view.span(seconds)}" if seconds else ""
    console.print()
    console.print(Text.assemble((f"{job.metadata.name} has finished", "bold green"), f": {status.iteration} iterations{took}"))
    width = max((len(label) for label, _ in rows), default=0)
    for label, text in rows:
        console.print(f"  {label:<{width}}  {text}", soft_wrap=True)
    if (folder.root / "model").is_dir():
        model, generates = folder.root / "model", job.spec.generates
        console.print("\nTalk to the model:" if generates else "\nHave it judge the answers of another job:")
        step = view.next_step(model, sys.executable) if generates else view.use_as_verifier(model)
        console.print(f"  {step}", soft_wrap=True)
