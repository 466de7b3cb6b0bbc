"""A kubeconfig file, read so that what is wrong with it is one sentence that says what to do."""

from pathlib import Path
from typing import Any

import yaml

from rljob.api.errors import ConfigurationError

_LIKE = "a kubeconfig is what `kubectl config view --raw` prints"


def read_kubeconfig(path: Path, named: str) -> dict[str, Any]:
    """The file's content; an empty file is an empty kubeconfig. `named`: where the path comes from, such as `--kubeconfig`.

    Raises:
        ConfigurationError: it is no file that can be read, no YAML, or no mapping.
    """
    where = f"{named} {path}"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{where}: there is no such file; give the path of a kubeconfig, often ~/.kube/config") from error
    except IsADirectoryError as error:
        raise ConfigurationError(f"{where}: is a folder; give the path of the kubeconfig file in it") from error
    except OSError as error:
        raise ConfigurationError(f"{where}: cannot be read: {error.strerror}; give the path of a file that you may read") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{where}: is not YAML: {_place(error)}; {_LIKE}") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigurationError(f"{where}: is no kubeconfig: it is a {type(data).__name__} and has no fields; {_LIKE}")
    return data or {}


def _place(error: UnicodeDecodeError | yaml.YAMLError) -> str:
    """What is wrong and where, in one line."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no UTF-8"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem or error.context}"
    return " ".join(str(error).split())
