"""What a plan knows of a model that is still on the hub."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.prepare.servers import Quiet, serving
from typer.testing import CliRunner

from rljob.api import ConfigurationError, RLJob
from rljob.cli.main import app
from rljob.local.hub import known_shape

CONFIG: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
SPEC: dict[str, Any] = {
    "model": {"source": {"hub": {"repo": "Qwen/Qwen2.5-7B", "revision": "v1"}}},
    "data": {"train": {"reasoningGym": {"dataset": "chain_sum", "size": 100}}},
    "accelerator": {"type": "nvidia", "perNode": 4},
    "trainer": {"tensorParallel": 4},
    "rollout": {"tensorParallel": 4},
}


def job() -> RLJob:
    return RLJob.model_validate({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "seven"}, "spec": SPEC})


def hub(config: Any, asked: list[tuple[str, str | None]]) -> type[Quiet]:
    class Hub(Quiet):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            self.answer(200, config if isinstance(config, bytes) else json.dumps(config).encode())

    return Hub


def test_a_model_on_the_hub_is_planned_with_what_its_config_json_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tmp_path / "seven.json").write_text(job().model_dump_json(by_alias=True))
    with serving(hub(CONFIG, asked)) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        shape = known_shape(job(), tmp_path)
        said = CliRunner().invoke(app, ["plan", str(tmp_path / "seven.json"), "--output", "json"])
    assert asked == [("/Qwen/Qwen2.5-7B/resolve/v1/config.json", "Bearer secret")] * 2
    assert shape is not None
    assert shape.parameters == 7_615_616_512
    assert said.exit_code == 0, said.output
    assert "a device has to hold a trainer rank of at most" in said.stdout


def test_a_family_that_cannot_be_trained_is_refused_before_it_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving(hub(CONFIG | {"model_type": "mamba"}, [])) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ConfigurationError, match=r"config.json of Qwen/Qwen2.5-7B.*mamba"):
            known_shape(job(), tmp_path)


@pytest.mark.parametrize("body", [b"<html>", b"[]"])
def test_a_hub_that_says_nothing_of_use_leaves_the_shape_unknown(body: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving(hub(body, [])) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert known_shape(job(), tmp_path) is None
    assert known_shape(job(), tmp_path) is None, "nobody listens there any more"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_leaves_the_shape_unknown(proxy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("ALL_PROXY", proxy)
    assert known_shape(job(), tmp_path) is None


def test_offline_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with serving(hub(CONFIG, asked)) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert known_shape(job(), tmp_path) is None
    assert asked == []
