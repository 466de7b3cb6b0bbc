"""Files from elsewhere: the Hugging Face hub, http(s) and s3 addresses. Each failure says what to set."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import httpx
from huggingface_hub import constants, errors, hf_hub_download, snapshot_download

from rljob.api import ConfigurationError

MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_TIMEOUT = httpx.Timeout(30.0)


def hub_snapshot(repo: str, revision: str, cache: Path) -> Path:
    """Folder of a model repository, safetensors only.

    Raises:
        ConfigurationError: no such repository, no access, or the hub cannot be reached.
    """
    return Path(
        _from_hub(repo, revision, lambda: snapshot_download(repo, revision=revision, cache_dir=cache / "hub", allow_patterns=MODEL_FILES))
    )


def hub_data_file(repo: str, revision: str, file: str, cache: Path) -> Path:
    """A file of a data set repository.

    Raises:
        ConfigurationError: no such repository or file, no access, or the hub cannot be reached.
    """
    return Path(
        _from_hub(
            repo, revision, lambda: hf_hub_download(repo, file, repo_type="dataset", revision=revision, cache_dir=cache / "hub")
        )
    )  # fmt: skip


def _from_hub(repo: str, revision: str, download: Callable[[], Any]) -> Any:
    try:
        return download()
    except errors.GatedRepoError as error:
        raise ConfigurationError(f"hub repository {repo} is gated: accept its terms, then set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigurationError(f"hub repository {repo} does not exist or is private: check the name, or set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise ConfigurationError(f"hub repository {repo} has no revision {revision!r}; leave `revision` out for the main branch") from error
    except errors.EntryNotFoundError as error:
        if not isinstance(error, errors.LocalEntryNotFoundError):
            raise ConfigurationError(f"hub repository {repo}: {_first_line(error)}; check `file`") from error
        raise _unreachable(repo, error) from error
    except (httpx.HTTPError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(repo, error) from error


def _unreachable(repo: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"hub repository {repo} cannot be fetched from {constants.ENDPOINT} ({_first_line(error)}); set HF_ENDPOINT to a mirror or "
        "HTTPS_PROXY, unset HF_HUB_OFFLINE, or use a `path` source"
    )


def fetch_url(url: str, out: Path) -> None:
    """Stream an address into a file, put in place complete.

    Raises:
        ConfigurationError: the address cannot be reached or answers with an error.
    """
    partial = out.with_name(f".{out.name}.partial")
    if url.startswith("s3://"):
        _fetch_s3(url, partial)
    else:
        _fetch_http(url, partial)
    os.replace(partial, out)


def _fetch_http(url: str, out: Path) -> None:
    try:
        with (
            httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client,
            client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response,
            out.open("wb") as file,
        ):
            response.raise_for_status()
            for chunk in response.iter_raw(1 << 20):
                file.write(chunk)
    except httpx.HTTPStatusError as error:
        raise ConfigurationError(f"{url} answers {error.response.status_code}; check the address and its permissions") from error
    except httpx.HTTPError as error:
        raise ConfigurationError(f"{url} cannot be fetched ({_first_line(error)}); check the address, or set HTTPS_PROXY") from error


def _fetch_s3(url: str, out: Path) -> None:
    try:
        files = fsspec.filesystem("s3")
    except ImportError:
        raise ConfigurationError(
            f"{url} needs the package s3fs in the prepare image: `pip install s3fs`, or use an https address"
        ) from None
    try:
        files.get_file(url, str(out))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{url} does not exist; check bucket and key") from error
    except OSError as error:  # s3fs translates every answer of the service into an OSError
        raise ConfigurationError(
            f"{url} cannot be fetched ({_first_line(error)}); set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
