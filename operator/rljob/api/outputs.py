"""Files that a command writes when its work is done, which may have taken hours and been paid for."""

import os
from collections.abc import Iterable
from pathlib import Path

from rljob.api.errors import ConfigurationError, explained


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Before the work begins: can all be written, without losing what is read? Their folders are made.

    Raises:
        ConfigurationError: they cannot; names the file.
    """
    read = {file.resolve() for file in inputs}
    for file in outputs:
        if file.resolve() in read:
            raise ConfigurationError(f"OUT: {file} is read, and would be replaced; name another file to write")
        if file.is_dir():
            raise ConfigurationError(f"OUT: {file} is a folder; name a file to write")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"OUT: {explained(error)}") from None
        if not os.access(file.parent, os.W_OK):
            raise ConfigurationError(f"OUT: no permission to write into {file.parent}; change its owner or mode, or use another folder")
