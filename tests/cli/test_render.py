"""`rljob render`, as it is called from a shell."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RLJOB = Path(sys.executable).parent / "rljob"
TINY = ROOT / "examples/tiny/rljob.yaml"
FILES = "spec.files.configMap=tiny-files"


def rljob(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RLJOB, *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_it_prints_every_object_without_an_owner() -> None:
    done = rljob("render", TINY, "--set", FILES, "--namespace", "team")
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    assert {o["metadata"]["namespace"] for o in objects} == {"team"}
    assert {"tiny-master", "tiny-worker-0"} <= {o["metadata"]["name"] for o in objects if o["kind"] == "Pod"}
    assert not any("ownerReferences" in o["metadata"] for o in objects)


@pytest.mark.parametrize(
    ("words", "field"), [(("--namespace", "Bad Name"), "--namespace"), (("--set", "metadata.namespace=Bad Name"), "metadata.namespace")]
)
def test_what_cannot_be_a_namespace_is_refused(words: tuple[str, str], field: str) -> None:
    done = rljob("render", TINY, "--set", FILES, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{field}: is 'Bad Name'; use lower-case letters, digits and dashes" in done.stderr


def test_the_operators_settings_are_followed(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("images: {master: 'mirror/master:3'}\nnetworkPolicies: false\n")
    done = rljob("render", TINY, "--set", FILES, "--settings", settings)
    assert "image: mirror/master:3" in done.stdout
    assert "kind: NetworkPolicy" not in done.stdout


def test_what_cannot_run_in_a_cluster_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = rljob("render", TINY)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: spec.data.train.path: train.jsonl is relative")
    assert len(done.stderr.splitlines()) == 1
    missing = rljob("render", TINY, "--set", FILES, "--settings", tmp_path / "none.yaml")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1)
    assert "name the operator's settings file" in missing.stderr
