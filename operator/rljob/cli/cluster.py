"""`kubectl rljob ...`: a job in a cluster. `rljob status|logs|watch ... -n NAMESPACE` are the same functions."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.ansi import AnsiDecoder
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from rljob.api import ConfigurationError, InfrastructureError
from rljob.cli.output import Output
from rljob.cli.output import console as plain_console

if TYPE_CHECKING:
    # The kubernetes client takes a third of a second to import, and a machine without a cluster does not have it.
    from rljob.api import RLJob
    from rljob.remote.cluster import Api
    from rljob.remote.logs import Wanted
    from rljob.remote.observe import Snapshot

EXIT_FAILED_JOB = 1
"""Exit status of `watch` for a job that failed."""

Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace of the job. Default: the context's.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig. Default: the current one.")]
Kubeconfig = Annotated[Path | None, typer.Option("--kubeconfig", help="Kubeconfig file. Default: $KUBECONFIG, ~/.kube/config.")]
Name = Annotated[str, typer.Argument(help="Name of the RLJob.", show_default=False)]


@dataclass(frozen=True)
class Where:
    """The options that name a cluster and a namespace."""

    namespace: str | None
    context: str | None
    kubeconfig: Path | None

    @property
    def given(self) -> bool:
        """Does anything say that a cluster is meant?"""
        return any(value is not None for value in (self.namespace, self.context, self.kubeconfig))


def connect(where: Where) -> "Api":
    """The cluster that is meant.

    Raises:
        ConfigurationError: there is none, or the kubernetes client is not installed.
    """
    try:
        from rljob.remote.cluster import Target
        from rljob.remote.cluster import connect as connect_to
    except ModuleNotFoundError as error:
        if error.name != "kubernetes":
            raise
        why = "talking to a cluster needs the kubernetes client: pip install '.[cluster]' in a checkout of RLJob"
        raise ConfigurationError(why) from error
    return connect_to(Target(where.kubeconfig, where.context, where.namespace))


def _now() -> datetime:
    return datetime.now(UTC)


def _look(api: "Api", name: str) -> "Snapshot":
    from rljob.remote.observe import snapshot

    return snapshot(api, name, _now())


def status(where: Where, name: str | None, output: Output, everywhere: bool = False, console: Console | None = None) -> None:
    """Print one job's screen, or a line for each job."""
    api, console = connect(where), console or plain_console()
    from rljob.remote.observe import find, listed
    from rljob.remote.view import screen, table_of_jobs

    if output is not Output.table:
        said: Any = find(api, name).get("status", {}) if name else listed(api, everywhere)
        print(json.dumps(said, indent=1) if output is Output.json else yaml.safe_dump(said, sort_keys=False, allow_unicode=True), end="")
    elif name:
        console.print(screen(_look(api, name), _now()))
    elif jobs := listed(api, everywhere):
        console.print(table_of_jobs(jobs, _now(), everywhere))
    else:
        print("no RLJobs" + ("" if everywhere else f" in namespace {api.namespace}"))


def watch(where: Where, name: str, every: float, console: Console | None = None) -> int:
    """Show a job until it has ended; exit status 0 if it succeeded. Where nobody looks (no terminal): one line for what is new."""
    api, console = connect(where), console or plain_console()
    return _live(api, name, every, console) if console.is_terminal else _lines(api, name, every, console)


def _live(api: "Api", name: str, every: float, console: Console) -> int:
    from rljob.remote.view import screen

    seen = _look(api, name)
    with Live(screen(seen, _now()), console=console, auto_refresh=False) as live:
        while not seen.finished:
            time.sleep(every)
            shown: RenderableType
            try:
                seen = _look(api, name)
                shown = screen(seen, _now())
            except InfrastructureError as error:
                shown = screen(seen, _now(), f"{error}; trying again")
            live.update(shown, refresh=True)
    return 0 if seen.phase == "Succeeded" else EXIT_FAILED_JOB


def _lines(api: "Api", name: str, every: float, console: Console) -> int:
    from rljob.local.view import changes

    before: Snapshot | None = None
    while True:
        seen = _look(api, name)
        if before is None or before.phase != seen.phase:
            console.print(f"{name}: {seen.phase or 'not seen by an operator yet'}", soft_wrap=True)
        for line in changes(before.status if before else None, seen.status):
            console.print(line, soft_wrap=True)
        if seen.finished:
            return 0 if seen.phase == "Succeeded" else EXIT_FAILED_JOB
        before = seen
        time.sleep(every)


_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_yellow", "bright_magenta", "bright_blue")


def logs(where: Where, name: str, wanted: "Wanted", follow: bool, console: Console | None = None) -> None:
    """Print the logs of a job's pods, merged; each line says where it comes from if there are several."""
    from rljob.remote.logs import Source, choose, followed, merged
    from rljob.remote.observe import find, pods_of

    api, console = connect(where), console or plain_console()
    find(api, name)
    colours: dict[str, str] = {}

    def look() -> tuple[Sequence[Source], bool]:
        phase = find(api, name).get("status", {}).get("phase", "")
        return choose(name, pods_of(api, name), wanted), phase not in ("Succeeded", "Failed")

    sources = choose(name, pods_of(api, name), wanted)
    several = follow or len(sources) > 1
    for line in followed(api, look, wanted) if follow else merged(api, sources, wanted):
        colour = colours.setdefault(line.source, _COLOURS[len(colours) % len(_COLOURS)])
        prefix = Text(f"{line.source:<18} ", style=colour) if several else Text()
        console.print(Text.assemble(prefix, AnsiDecoder().decode_line(line.text)), soft_wrap=True)


app = typer.Typer(
    name="kubectl rljob",
    help="Look at RLJobs in a cluster, and steer them. For a run on this machine use `rljob`.",
    epilog="""Examples:\n
kubectl rljob status                        every job of the namespace\n
kubectl rljob status sums                   one job, in one screen\n
kubectl rljob watch sums                    the same, live, until it has ended\n
kubectl rljob logs sums                     all its logs, in the order of time\n
kubectl rljob logs sums worker-0 -c vllm -f\n
kubectl rljob plan rljob.yaml               what a job would run and need\n
kubectl rljob plan sums                     the same of a job of the cluster\n
kubectl rljob scale sums 4                  four rollout-only pods\n
kubectl rljob suspend sums""",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command("status")
def status_command(
    name: Annotated[str | None, typer.Argument(help="Name of the RLJob; default: a line for each.", show_default=False)] = None,
    namespace: Namespace = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="A line for each job of every namespace.")] = False,
    output: Annotated[Output, typer.Option("--output", "-o", help="What to print.")] = Output.table,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Say how far a job is, and what to do next. It is one screen; without NAME, one line for each job."""
    status(Where(namespace, context, kubeconfig), name, output, everywhere)


@app.command("watch")
def watch_command(
    name: Name,
    namespace: Namespace = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 2.0,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show a job live until it has ended. Exit status 1 if it failed."""
    raise typer.Exit(watch(Where(namespace, context, kubeconfig), name, every))


Which = Annotated[str | None, typer.Argument(metavar="ROLE|POD", help="Such as worker, worker-0 or worker-0/vllm.", show_default=False)]
Container = Annotated[str | None, typer.Option("--container", "-c", help="Only this container, such as vllm.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on as long as the job runs, also with pods that come later.")]
Tail = Annotated[int | None, typer.Option("--tail", help="Only so many lines of each container.", min=0)]
Previous = Annotated[bool, typer.Option("--previous", "-p", help="Of the container's life before its last restart.")]


@app.command("logs")
def logs_command(
    name: Name,
    which: Which = None,
    namespace: Namespace = None,
    container: Container = None,
    follow: Follow = False,
    tail: Tail = None,
    previous: Previous = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print what the pods of a job wrote, merged in the order of time."""
    logs_of(Where(namespace, context, kubeconfig), name, which, container, follow, tail, previous)


def logs_of(where: Where, name: str, which: str | None, container: str | None, follow: bool, tail: int | None, previous: bool) -> None:
    """`logs`, from what stands on a command line."""
    connect(where)
    from rljob.remote.logs import Wanted

    logs(where, name, Wanted(which, container, tail, previous), follow)


@app.command("scale")
def scale_command(
    name: Name,
    replicas: Annotated[int, typer.Argument(help="Rollout-only pods.", show_default=False)],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Set the number of rollout-only pods; also of a job that runs."""
    scale(Where(namespace, context, kubeconfig), name, replicas)


def scale(where: Where, name: str, replicas: int) -> None:
    """`scale`, from what stands on a command line."""
    api = connect(where)
    from rljob.remote.change import scale as change

    before, after = change(api, name, replicas)
    print(f"{name}: rollout replicas {before} -> {after}")


@app.command("suspend")
def suspend_command(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Stop a job's pods and keep its state."""
    _suspend(Where(namespace, context, kubeconfig), name, True)


@app.command("resume")
def resume_command(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Let a suspended job go on."""
    _suspend(Where(namespace, context, kubeconfig), name, False)


def _suspend(where: Where, name: str, suspended: bool) -> None:
    api = connect(where)
    from rljob.remote.change import suspend

    changed = suspend(api, name, suspended)
    word = "suspended" if suspended else "resumed"
    print(f"{name}: {word}" if changed else f"{name}: is {'suspended' if suspended else 'not suspended'} already")


def typed(where: Where, name: str) -> "RLJob":
    """A job of the cluster as if it had been read from a file.

    Raises:
        ConfigurationError, InfrastructureError: there is none, or the cluster does not tell.
    """
    api = connect(where)
    from rljob.remote.observe import typed as read

    return read(api, name)


def names(where: Where) -> list[str]:
    """Names of the jobs of a namespace, for shell completion.

    Raises:
        ConfigurationError, InfrastructureError: the cluster does not tell.
    """
    api = connect(where)
    from rljob.remote.observe import listed

    return [str(job["metadata"]["name"]) for job in listed(api)]
