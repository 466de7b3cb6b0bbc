"""`rljob reward`: verifiers without a job. The work is the runtime's, in a process of its own."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from rljob.api import ConfigurationError
from rljob.api.comparison import load_comparison
from rljob.api.outputs import check_outputs

app = typer.Typer(help="Verifiers, without a job.", no_args_is_help=True)


@app.callback()
def reward() -> None:
    """Verifiers, without a job."""


@app.command("compare")
def compare_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Verifiers and labelled answers, in YAML.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .html page to write; a .json file beside it.", show_default=False)],
) -> None:
    """Compare verifiers on answers that people labelled: accuracy with its confidence interval, agreement, cost, seconds
    (docs/compare.md)."""
    spec = load_comparison(file)
    if out.suffix != ".html":
        raise ConfigurationError(f"OUT: is {out}; it must end in .html, because a page is written")
    check_outputs((out, out.with_suffix(".json")), (file, Path(spec.data)))
    if importlib.util.find_spec("rljob.compare") is None or importlib.util.find_spec("prometheus_client") is None:
        raise ConfigurationError("this installation lacks the runtime: pip install '.[reward]' in a checkout of RLJob")
    command = [sys.executable, "-m", "rljob.compare", spec.model_dump_json(by_alias=True), str(out)]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
