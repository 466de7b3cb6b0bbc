"""The model folder's `config.json` as the trainer reads it. Which families there are: rljob.api.families."""

import json
from pathlib import Path

from rljob.api import ConfigurationError
from rljob.api.families import Architecture, read

__all__ = ["Architecture", "read_architecture"]


def read_architecture(folder: Path) -> Architecture:
    """Read `config.json`.

    Raises:
        ConfigurationError: it is missing or broken, the family is not supported, or it uses something of its family that is not.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"{path} does not exist; a model folder needs config.json, safetensors and a tokenizer") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from error
    return read(config, path)
