"""The commands. Each is a thin layer over a function that says what it does in its own package."""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml

from rljob.api import ConfigurationError, RLJob, RLJobError
from rljob.api.crd import crd_yaml
from rljob.api.errors import EXIT_CONFIGURATION, explained
from rljob.api.explain import explain
from rljob.api.load import STANDARD_INPUT, load
from rljob.api.notes import inert
from rljob.cli import cluster, data, reward, sandbox
from rljob.cli.cluster import Container, Context, Follow, Kubeconfig, Namespace, Previous, Tail, Where
from rljob.cli.output import Output, console
from rljob.cli.render import rendered
from rljob.cli.show_plan import document, show
from rljob.local import inspect, scale
from rljob.local.hub import known_shape
from rljob.local.preflight import missing_files, not_there, without_effect
from rljob.local.run import Request, run, this_machine
from rljob.plan import count_held_out, count_prompts, count_scorers, estimate, misfits, plan, prompt_length, read_shape

app = typer.Typer(
    name="rljob",
    help="Reinforcement-learning post-training in the manner of Kimi k1.5: one YAML file, one job.",
    epilog="""Examples:\n
rljob validate rljob.yaml\n
rljob plan rljob.yaml\n
rljob run rljob.yaml --set spec.iterations=3\n
rljob status runs/tiny\n
rljob logs runs/tiny worker-0/vllm -f\n
rljob scale runs/tiny --replicas 2\n
rljob status sums -n team-a          a job in a cluster: any of -n, --context, --kubeconfig says so\n
rljob watch sums -n team-a\n
rljob sandbox serve                  the code sandbox alone, for any program that speaks HTTP\n
rljob explain spec.rollout""",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Whether it can be read, `load` says, in one line.
File = Annotated[Path, typer.Argument(help="An RLJob in YAML; - is standard input.", show_default=False, readable=False)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as spec.iterations=3.")]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"rljob {version('rljob')}")
        raise typer.Exit


@app.callback()
@cluster.app.callback()
def options(
    shown: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """What stands before a command."""


@app.command("validate")
def validate_command(
    files: Annotated[list[Path], typer.Argument(help="RLJobs in YAML; - is standard input.", show_default=False, readable=False)],
) -> None:
    """Check jobs without starting anything."""
    failed = False
    for file in files:
        try:
            job = load(file)
        except ConfigurationError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"{file}: {job.metadata.name} is valid")
            for note in (*inert(job.spec), *_on_this_machine(job, file.absolute().parent), *_in_a_cluster(job)):
                print(f"note: {note}")
            for line in _against_model(job, file.absolute().parent):
                print(f"warning: {file}: {line}", file=sys.stderr)
    if failed:
        raise typer.Exit(EXIT_CONFIGURATION)


def _against_model(job: RLJob, folder: Path) -> Sequence[str]:
    """What of a job does not go with its model, if that is here."""
    try:
        return misfits(job, read_shape(job, folder))
    except ConfigurationError as error:
        return [str(error)]


def _on_this_machine(job: RLJob, folder: Path) -> Sequence[str]:
    """Files that are not here, of a job that does not say that they are in a cluster."""
    return [f"on this machine: {not_there(file)}" for file in missing_files(job, folder)] if job.spec.files is None else ()


def _in_a_cluster(job: RLJob) -> Sequence[str]:
    """Why an operator would not make a job's objects: it may still run here."""
    try:
        rendered(job, None, None)
    except ConfigurationError as error:
        return [f"in a cluster: {error}"]
    return ()


@app.command("crd")
def crd_command() -> None:
    """Print the CustomResourceDefinition, for `kubectl apply -f -`."""
    print(crd_yaml(), end="")


@app.command("explain")
def explain_command(field: Annotated[str, typer.Argument(help="Such as spec.rollout.")] = "spec") -> None:
    """Say what a field is for, and what is below it."""
    for depth, name, kind, text in explain(field):
        indent = "  " * depth
        print(f"{indent}{name}  <{kind}>")
        for line in text.splitlines():
            print(f"{indent}    {line}")


Env = Annotated[bool, typer.Option("--env", help="Show the environment of each container.")]
Printed = Annotated[Output, typer.Option("--output", "-o", help="What to print.")]
Planned = Annotated[
    str,
    typer.Argument(
        metavar="FILE|NAME", help="An RLJob in YAML (- is standard input), or the name of one in the cluster.", show_default=False
    ),
]


@app.command("plan")
def plan_command(
    file: Planned,
    set_: Set = None,
    output: Printed = Output.table,
    env: Env = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what a job would run, and what it needs. Nothing is started; memory and time are estimates. A job is a file, or with -n,
    --context or --kubeconfig the name of one in a cluster."""
    if (where := Where(namespace, context, kubeconfig)).given:
        return _show_plan(_of_cluster(where, file, set_), None, output, env)
    _show_plan(load(Path(file), set_ or ()), Path(file).absolute().parent, output, env)


def kubectl_plan_command(
    file: Planned,
    set_: Set = None,
    output: Printed = Output.table,
    env: Env = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what a job would run, and what it needs. Nothing is started; memory and time are estimates. A job is a file (with a dot or a
    slash in its name), or one of the cluster (without)."""
    if "/" in file or "." in file or Path(file) == STANDARD_INPUT:
        return _show_plan(load(Path(file), set_ or ()), Path(file).absolute().parent, output, env)
    _show_plan(_of_cluster(Where(namespace, context, kubeconfig), file, set_), None, output, env)


def _of_cluster(where: Where, name: str, overrides: Sequence[str] | None) -> RLJob:
    if overrides:
        raise ConfigurationError(f"--set {overrides[0]}: is for files; write the job into one (kubectl get rljob {name} -o yaml)")
    return cluster.typed(where, name)


def _show_plan(job: RLJob, folder: Path | None, output: Output, env: bool) -> None:
    """`folder`: of the job's file; None: the job is in a cluster, and so are its files."""
    here = folder or Path(os.devnull)
    shape = known_shape(job, here)
    if lines := misfits(job, shape):
        raise ConfigurationError("; also ".join(lines))
    counts = count_held_out(job, here), count_scorers(job, here), count_prompts(job, here), prompt_length(job, here)
    sizes = estimate(job, shape, this_machine(), *counts)
    planned = replace(plan(job, shape), notes=sizes.notes)
    local = inert(job.spec) + (without_effect(job) if folder else [])
    match output:
        case Output.table:
            out = console()
            show(out, job, planned, sizes, env)
            for note in (*local, *(_on_this_machine(job, folder) if folder else ())):
                out.print(f"note: {note}", style="dim", soft_wrap=True)
        case Output.yaml:
            print(yaml.safe_dump(document(planned, sizes, local), sort_keys=False, allow_unicode=True, width=140), end="")
        case Output.json:
            print(json.dumps(document(planned, sizes, local), indent=1, ensure_ascii=False))


@app.command("render")
def render_command(
    file: File,
    set_: Set = None,
    settings: Annotated[Path | None, typer.Option(help="The operator's settings file. Default: what a new installation has.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Default: the job's, else `default`.")] = None,
) -> None:
    """Print the Kubernetes objects that the operator makes of a job."""
    print(rendered(load(file, set_ or ()), settings, namespace), end="")


@app.command("run")
def run_command(
    file: File,
    workdir: Annotated[Path | None, typer.Option(help="Job folder. Default: runs/NAME.")] = None,
    set_: Set = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--fresh", help="Go on from what the folder holds (default if there is something), or remove it and start over."
        ),
    ] = None,
) -> None:
    """Run a job on this machine to its end. Ctrl-C stops it cleanly; the same command goes on."""
    mode: Literal["auto", "resume", "fresh"] = "auto" if resume is None else "resume" if resume else "fresh"
    raise typer.Exit(run(Request(file, workdir, tuple(set_ or ()), mode), console()))


Folder = Annotated[Path, typer.Argument(help="Job folder, such as runs/tiny.", show_default=False)]
Job = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER|NAME",
        help="Job folder, such as runs/tiny; with -n, --context or --kubeconfig the name of an RLJob.",
        show_default=False,
    ),
]


@app.command("status")
def status_command(
    folder: Job,
    output: Annotated[Output, typer.Option("--output", "-o", help="What to print.")] = Output.table,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Say how far a job is. A run of this machine goes by its folder, a job of a cluster by its name."""
    if (where := Where(namespace, context, kubeconfig)).given:
        return cluster.status(where, str(folder), output)
    job = inspect.open_folder(folder)
    if output is not Output.table:
        status = job.status()
        data = status.model_dump(mode="json", by_alias=True) if status else {}
        print(json.dumps(data, indent=1) if output is Output.json else yaml.safe_dump(data, sort_keys=False), end="")
        return
    rows = inspect.describe(job, time.time())
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        print(f"{label:<{width}}  {text}")


@app.command("logs")
def logs_command(
    folder: Job,
    which: Annotated[
        str | None, typer.Argument(help="POD or POD/CONTAINER, in a cluster also a role; default all.", show_default=False)
    ] = None,
    follow: Follow = False,
    namespace: Namespace = None,
    container: Container = None,
    tail: Tail = None,
    previous: Previous = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print what a job's containers wrote. A run of this machine goes by its folder, a job of a cluster by its name."""
    if (where := Where(namespace, context, kubeconfig)).given:
        return cluster.logs_of(where, str(folder), which, container, follow, tail, previous)
    if container or previous or tail is not None:
        raise ConfigurationError("-c, -p and --tail are for jobs of a cluster (add -n NAMESPACE); here write POD/CONTAINER")
    job = inspect.open_folder(folder)
    # Of one container no line needs a name; of all others more may come while they are followed.
    named = "/" not in (which or "") and (follow or len(inspect.logs(job, which)) > 1)
    for line in inspect.read_logs(lambda: inspect.logs(job, which), follow, named, job.running):
        print(line, flush=follow)


@app.command("watch")
def watch_command(
    name: cluster.Name,
    namespace: Namespace = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 2.0,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show a job of a cluster live until it has ended. (`rljob run` shows a run of this machine by itself.)"""
    raise typer.Exit(cluster.watch(Where(namespace, context, kubeconfig), name, every))


@app.command("stop")
def stop_command(
    folder: Folder,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the end.")] = 60.0,
) -> None:
    """Stop a running job cleanly; `rljob run` goes on later."""
    stopped = inspect.stop(inspect.open_folder(folder), timeout)
    print(f"{folder}: stopped" if stopped else f"{folder}: was not running")


@app.command("scale")
def scale_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|FILE|NAME",
            help="Job folder, such as runs/tiny, or the file of a job that runs in its own folder; with -n, --context or --kubeconfig the "
            "name of an RLJob.",
            show_default=False,
        ),
    ],
    replicas: Annotated[int, typer.Option("--replicas", help="Rollout-only replicas.", show_default=False)],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Set how many rollout-only replicas a job has. It goes on meanwhile, on this machine or in a cluster."""
    if (where := Where(namespace, context, kubeconfig)).given:
        return cluster.scale(where, str(folder), replicas)
    job = scale.folder_of(folder)
    before, after = scale.scale(job, replicas)
    print(f"{folder}: rollout replicas {before} -> {after}")


app.add_typer(sandbox.app)
app.add_typer(data.app, name="data")
app.add_typer(reward.app, name="reward")
cluster.app.command("plan")(kubectl_plan_command)
cluster.app.command("validate")(validate_command)


def main() -> None:
    """Entry point of `rljob`."""
    _run(app, "rljob")


def kubectl_main() -> None:
    """Entry point of `kubectl rljob`."""
    _run(cluster.app, "kubectl rljob")


def _run(commands: typer.Typer, name: str) -> None:
    """Errors made for people become one line and an exit status."""
    try:
        commands(prog_name=name)
    except RLJobError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        sys.exit(1)
