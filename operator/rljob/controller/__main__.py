"""`python -m rljob.controller --settings FILE [--dev KUBECONFIG]`."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import ValidationError

from rljob.api import ConfigurationError, InfrastructureError
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.controller.connection import from_kubeconfig, in_cluster
from rljob.controller.log import configure
from rljob.controller.main import first_cause, run
from rljob.manifests import Settings


def read_settings(path: Path | None) -> Settings:
    """The settings file; None: all defaults.

    Raises:
        ConfigurationError: it cannot be read, or a field is wrong.
    """
    if path is None:
        return Settings()
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--settings {path}: cannot be read: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (is {e['input']!r})" for e in error.errors(include_url=False))
        raise ConfigurationError(f"--settings {path}: {wrong}") from error


def main(
    settings: Annotated[Path | None, typer.Option(help="Settings file, as the chart writes it.")] = None,
    dev: Annotated[Path | None, typer.Option(help="Run outside the cluster with this kubeconfig.")] = None,
    verbose: Annotated[bool, typer.Option(help="Log everything.")] = False,
) -> None:
    """Run the RLJob operator."""
    configure(verbose)
    try:
        connection = from_kubeconfig(dev) if dev else in_cluster()
        with first_cause():
            asyncio.run(run(read_settings(settings), connection, dev is not None))
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_CONFIGURATION) from error
    except InfrastructureError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    typer.run(main)
