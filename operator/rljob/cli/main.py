"""The commands. Each is a thin layer over a function that says what it does in its own package."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from rljob.api import ConfigurationError, RLJobError
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.api.load import load
from rljob.local.run import Request, run

app = typer.Typer(
    name="rljob",
    help="Reinforcement-learning post-training in the manner of Kimi k1.5: one YAML file, one job.",
    epilog="""Examples:\n
rljob validate rljob.yaml\n
rljob plan rljob.yaml\n
rljob run rljob.yaml --set spec.iterations=3\n
rljob status runs/tiny\n
rljob logs runs/tiny worker-0/vllm -f\n
rljob explain spec.rollout""",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(help="An RLJob in YAML.", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as spec.iterations=3.")]


@app.command("validate")
def validate_command(
    files: Annotated[list[Path], typer.Argument(help="RLJobs in YAML.", show_default=False)],
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
    if failed:
        raise typer.Exit(EXIT_CONFIGURATION)


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
    raise typer.Exit(run(Request(file, workdir, tuple(set_ or ()), mode), Console()))


def main() -> None:
    """Entry point: errors made for people become one line and an exit status."""
    try:
        app()
    except RLJobError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else 1)
    except OSError as error:
        # Disk full, no permission: the file system's word with the file's name is what helps.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
