"""Files from elsewhere: the Hugging Face hub, http(s) and s3 addresses. Each failure says what to set."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import constants, errors, hf_hub_download, snapshot_download

from rljob.api import ConfigurationError
from rljob.prepare import s3
from rljob.prepare.files import CACHE, explained, require_space

MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
IN_FOLDERS = ["*/*"]
"""The hub's `*` matches `/` too: `checkpoint-100/model.safetensors` is no part of the model."""
_TIMEOUT = httpx.Timeout(30.0)
_TRANSPORT: type[Exception] = errors.HfHubHTTPError.__bases__[0]
"""What the HTTP library under huggingface_hub raises; which library that is differs between its releases."""


def hub_snapshot(repo: str, revision: str, cache: Path) -> Path:
    """Folder of a model repository, safetensors only.

    Raises:
        ConfigurationError: no such repository, no access, or the hub cannot be reached.
    """
    folder = cache / "hub"
    with explained(f"fetching {repo}", folder, CACHE):
        return Path(
            from_hub(
                repo,
                revision,
                lambda: snapshot_download(
                    repo, revision=revision, cache_dir=folder, allow_patterns=MODEL_FILES, ignore_patterns=IN_FOLDERS
                ),
            )
        )


def hub_data_file(repo: str, revision: str, file: str, cache: Path) -> Path:
    """A file of a data set repository.

    Raises:
        ConfigurationError: no such repository or file, no access, or the hub cannot be reached.
    """
    folder = cache / "hub"
    with explained(f"fetching {file} of {repo}", folder, CACHE):
        return Path(from_hub(repo, revision, lambda: hf_hub_download(repo, file, repo_type="dataset", revision=revision, cache_dir=folder)))


def from_hub(repo: str, revision: str, download: Callable[[], Any]) -> Any:
    """What `download` gives, its refusals as messages for people.

    Raises:
        ConfigurationError: no such repository, revision or file, no access, or the hub cannot be reached.
    """
    try:
        return download()
    except errors.GatedRepoError as error:
        terms = f"accept its terms at {constants.ENDPOINT}, then set HF_TOKEN to a token of that account"
        raise ConfigurationError(f"hub repository {repo} is gated: {terms}") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigurationError(f"hub repository {repo} does not exist or is private: check the name, or set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise ConfigurationError(f"hub repository {repo} has no revision {revision!r}; leave `revision` out for the main branch") from error
    except errors.RemoteEntryNotFoundError as error:
        raise ConfigurationError(f"hub repository {repo} does not hold the file; check `file`") from error
    except (_TRANSPORT, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(repo, error) from error
    except ValueError as error:  # a name that no repository or file can have
        raise ConfigurationError(f"hub repository {repo} cannot be asked for ({_first_line(error)}); check `repo` and `file`") from error


def _unreachable(repo: str, error: Exception) -> ConfigurationError:
    """The library looks for a local copy when the hub refuses, and reports that; the refusal is then the cause."""
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return ConfigurationError(f"hub repository {repo} is not for this token ({status}); check HF_TOKEN and its permissions")
    return ConfigurationError(
        f"hub repository {repo} cannot be fetched from {constants.ENDPOINT} ({_first_line(cause)}); set HF_ENDPOINT to a mirror or "
        "HTTPS_PROXY, unset HF_HUB_OFFLINE, or use a `path` source"
    )


def shown(url: str) -> str:
    """An address without what may be secret in it: a user's password, a signature."""
    return re.sub(r"//[^/?#]*@", "//", re.sub(r"\?[^#]*", "", url))


def fetch_url(url: str, out: Path) -> None:
    """Stream an address into a file, put in place complete. A download that breaks off leaves nothing.

    Raises:
        NoSpace: the file does not fit.
        ConfigurationError: the address cannot be reached or answers with an error.
    """

    def announced(size: int) -> None:
        require_space(out.parent, size, shown(url), CACHE)

    partial = out.with_name(f".{out.name}.partial")
    try:
        with explained(f"fetching {shown(url)}", out.parent, CACHE), partial.open("wb") as file:
            for chunk in s3.chunks(url, announced) if url.startswith("s3://") else _http_chunks(url, announced):
                file.write(chunk)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _http_chunks(url: str, announced: Callable[[int], None]) -> Iterator[bytes]:
    try:
        with (
            httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client,
            client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response,
        ):
            response.raise_for_status()
            announced(int(response.headers.get("Content-Length", 0)))
            yield from response.iter_raw(1 << 20)
    except httpx.HTTPStatusError as error:
        raise ConfigurationError(f"{shown(url)} answers {error.response.status_code}; check the address and its permissions") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigurationError(f"{shown(url)} cannot be fetched ({_first_line(error)}); check the address, or set HTTPS_PROXY") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
