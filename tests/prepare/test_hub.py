"""Model and data from a hub: the real client against a small server that answers as the hub does, by HF_ENDPOINT."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors
from tests.prepare.servers import COMMIT, hub, serving
from tests.prepare.support import run_process, words

from rljob.api import ConfigurationError
from rljob.prepare.download import from_hub

Saved = Callable[..., Path]


class Hub:
    """The stand-in's contents."""

    def __init__(self, root: Path, model: Path) -> None:
        self.asked: list[str] = []
        data = root / "sums"
        (data / "main").mkdir(parents=True)
        (data / "main" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in words(4)))
        (model / "README.md").write_text("not wanted")
        (model / "checkpoint-100").mkdir()
        (model / "checkpoint-100" / "trainer_state.json").write_text("of another model")
        (model / "pytorch_model.bin").write_text("not wanted either")
        self.repositories = {"models/owner/model": model, "models/owner/closed": model, "datasets/owner/sums": data}
        self.gated = {"models/owner/model": "hf_secret"}
        self.address = ""


@pytest.fixture
def served(tmp_path: Path, saved_model: Saved) -> Iterator[Hub]:
    made = Hub(tmp_path / "hub", saved_model())
    with serving(hub(made.repositories, made.gated, made.asked, ("models/owner/closed",))) as made.address:
        yield made


def job(model: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"source": {"hub": model}}, "data": {"train": {"hub": data}}, "rollout": {"maxTokens": 8}}


MODEL, DATA = {"repo": "owner/model"}, {"repo": "owner/sums", "file": "main/train.jsonl"}


def test_a_gated_model_and_a_data_set_come_from_the_endpoint_with_the_token_and_are_kept(tmp_path: Path, served: Hub) -> None:
    done = run_process(tmp_path, job(MODEL, DATA), HF_ENDPOINT=served.address, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert f"looking for owner/model at {served.address}" in done.stderr
    assert "hf_secret" not in done.stderr
    assert json.loads((tmp_path / "data" / "prepared.json").read_text())["train"] == 4
    files = {path.rpartition("/")[2] for path in served.asked if path.startswith("GET /owner/model/")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not {"README.md", "pytorch_model.bin", "trainer_state.json"} & files

    for folder in ("model", "data"):
        (tmp_path / folder).rename(tmp_path / f"old-{folder}")
    served.asked.clear()
    pinned = job(MODEL | {"revision": COMMIT}, DATA | {"revision": COMMIT})
    again = run_process(tmp_path, pinned, HF_ENDPOINT=served.address, HF_TOKEN="hf_secret")
    assert again.returncode == 0, again.stderr
    assert [request for request in served.asked if request.endswith((".safetensors", ".jsonl"))] == []


@pytest.mark.parametrize(
    ("model", "token", "message"),
    [
        (MODEL, None, "hub repository owner/model is gated: accept its terms at {hub}, then set HF_TOKEN to a token of that account"),
        (MODEL, "wrong", "hub repository owner/model is gated: accept its terms at {hub}, then set HF_TOKEN to a token of that account"),
        ({"repo": "owner/nothing"}, None, "hub repository owner/nothing does not exist or is private: check the name, or set HF_TOKEN"),
        (
            {"repo": "owner/model", "revision": "v9"},
            "hf_secret",
            "hub repository owner/model has no revision 'v9'; leave `revision` out for the main branch",
        ),
        ({"repo": "owner/closed"}, "x", "hub repository owner/closed is not for this token (403); check HF_TOKEN and its permissions"),
    ],
    ids=["gated, no token", "gated, no access", "missing", "no such revision", "forbidden"],
)
def test_a_model_that_the_hub_refuses_is_one_line_with_the_remedy(
    tmp_path: Path, served: Hub, model: dict[str, Any], token: str | None, message: str
) -> None:
    environment = {"HF_ENDPOINT": served.address} | ({"HF_TOKEN": token} if token else {})
    done = run_process(tmp_path, job(model, DATA), **environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == f"error: {message.format(hub=served.address)}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"repo": "owner/sums", "file": "test.jsonl"}, "hub repository owner/sums does not hold the file; check `file`"),
        (
            {"repo": "owner/nothing", "file": "train.jsonl"},
            "hub repository owner/nothing does not exist or is private: check the name, or set HF_TOKEN",
        ),
    ],
    ids=["no such file", "no such repository"],
)
def test_data_that_the_hub_does_not_have_is_one_line_with_the_remedy(
    tmp_path: Path, served: Hub, saved_model: Saved, data: dict[str, Any], message: str
) -> None:
    spec = job(MODEL, data) | {"model": {"source": {"path": str(saved_model())}}}
    done = run_process(tmp_path, spec, HF_ENDPOINT=served.address)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == f"error: {message}"


def test_a_hub_that_cannot_be_reached_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(words(1)[0]) + "\n")
    spec = job(MODEL, DATA) | {"data": {"train": {"path": "train.jsonl"}}}
    done = run_process(tmp_path, spec, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: hub repository owner/model cannot be fetched from http://127.0.0.1:9 (")
    assert "Connection refused" in error
    assert error.endswith("set HF_ENDPOINT to a mirror or HTTPS_PROXY, unset HF_HUB_OFFLINE, or use a `path` source")


def test_a_connection_that_breaks_is_no_traceback() -> None:
    def broken() -> None:
        raise errors.HfHubHTTPError.__bases__[0]("peer closed connection")

    with pytest.raises(ConfigurationError, match=r"owner/model cannot be fetched from .* \(peer closed connection\); set HF_ENDPOINT"):
        from_hub("owner/model", "main", broken)
