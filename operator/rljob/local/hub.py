"""The shape of a model that is still on the hub: its config.json, some kilobytes, read before anything is downloaded."""

import os
from pathlib import Path
from urllib.parse import quote

import httpx

from rljob.api import RLJob
from rljob.plan.shape import ModelShape, of_config, read_shape

_SECONDS = 5.0
"""An estimate is not worth a longer wait."""


def known_shape(job: RLJob, folder: Path) -> ModelShape | None:
    """`read_shape`, and of a model on the hub what the hub says; None also if it does not answer.

    The hub is the one that `HF_ENDPOINT` names, asked with `HF_TOKEN` if that is set, and not at all with `HF_HUB_OFFLINE=1`.

    Raises:
        ConfigurationError: the model's family, or something that it uses, is not supported.
    """
    found, source = read_shape(job, folder), job.spec.model.source.hub
    if found is not None or source is None or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return found
    token = os.environ.get("HF_TOKEN")
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    address = f"{hub}/{source.repo}/resolve/{quote(source.revision, safe='')}/config.json"
    try:
        answer = httpx.get(
            address, headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=_SECONDS, follow_redirects=True
        ).raise_for_status()
        config = answer.json()
        return of_config(config, f"config.json of {source.repo}") if isinstance(config, dict) else None
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, KeyError, ValueError, TypeError, ArithmeticError):
        # What is wrong with the model is for `rljob.prepare` to say. ImportError: a SOCKS proxy is set, for which httpx lacks a package.
        return None
