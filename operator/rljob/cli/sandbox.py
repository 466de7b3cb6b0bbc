"""`rljob sandbox serve`: the code sandbox by itself."""

import importlib.util
import os
import sys
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import ValidationError

from rljob.api import ConfigurationError
from rljob.api.platform import SandboxSpec

app = typer.Typer(name="sandbox", help="The code sandbox, without a job.", no_args_is_help=True, rich_markup_mode=None)

_DEFAULTS = SandboxSpec()


class Minimum(StrEnum):
    """Isolation below which the service refuses to start."""

    namespaces = "namespaces"
    full = "full"


class Backend(StrEnum):
    """What isolates."""

    namespaces = "namespaces"
    crun = "crun"


@app.callback()
def sandbox() -> None:
    """The code sandbox, without a job."""


@app.command("serve")
def serve_command(
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8082,
    host: Annotated[str, typer.Option(help="Address to listen on. Whoever reaches it can run programs.")] = "127.0.0.1",
    slots: Annotated[
        int | None, typer.Option(help="Programs that run at the same time. Default: one per core, and one more.", show_default=False, min=1)
    ] = None,
    memory_per_run: Annotated[str, typer.Option(help="The most that one program may ask for.")] = _DEFAULTS.memory_per_run,
    queue: Annotated[int, typer.Option(help="Requests taken in at the same time.", min=1)] = _DEFAULTS.queue,
    minimum: Annotated[Minimum, typer.Option(help="Refuse to start with less isolation; full wants cgroups too.")] = Minimum.namespaces,
    backend: Annotated[Backend, typer.Option(help="Prepared slots, or a crun container for each run.")] = Backend.namespaces,
) -> None:
    """Run programs that nobody trusts, and judge them, for whoever asks over HTTP (docs/sandbox.md). Ctrl-C stops it."""
    if importlib.util.find_spec("uvicorn") is None:
        raise ConfigurationError("the sandbox needs packages that are not installed here; pip install '.[sandbox]' in a checkout of RLJob")
    # One more than cores: while a run's slot is cleared away, another runs.
    settings = {"slots": slots or len(os.sched_getaffinity(0)) + 1, "memoryPerRun": memory_per_run, "queue": queue}
    try:
        spec = SandboxSpec.model_validate(settings | {"minimum": minimum.value, "backend": backend.value})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "-".join(map(str, first["loc"])).replace("memoryPerRun", "memory-per-run")
        raise ConfigurationError(f"--{name}: is {first['input']!r}: {first['msg']}") from None
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    print(f"the sandbox listens on http://{address} with {spec.slots} slots; /openapi.json describes it", file=sys.stderr, flush=True)
    given = {"RLJOB_SANDBOX": spec.model_dump_json(by_alias=True), "RLJOB_LISTEN_SANDBOX": f"{host}:{port}"}
    os.execve(sys.executable, [sys.executable, "-m", "rljob.sandbox"], dict(os.environ) | given)
