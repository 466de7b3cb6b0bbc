"""A kubeconfig that cannot be used is refused in one line that names the file and the remedy."""

import subprocess
import sys
from pathlib import Path

import pytest

from rljob.api import ConfigurationError
from rljob.api.kubeconfig import read_kubeconfig

NO_SERVER = "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]\nclusters: [{name: c, cluster: {}}]\n"


def test_a_folder_a_missing_file_and_an_unreadable_one_are_told_apart(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "is a folder; give the path of the kubeconfig file in it"),
        (tmp_path / "none", "there is no such file; give the path of a kubeconfig"),
        (tmp_path / "none" / "x", "there is no such file"),
        (Path("/proc/1/mem/x"), "cannot be read: Not a directory; give the path of a file that you may read"),
    ):
        with pytest.raises(ConfigurationError) as refused:
            read_kubeconfig(path, "--kubeconfig")
        assert str(refused.value).startswith(f"--kubeconfig {path}: {words}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"clusters:\n  - [1", "is not YAML: line 2, column 7: expected ',' or ']'"),
        (b"a: \x01", "is not YAML: unacceptable character"),
        (b"\xff\xfe", "is not YAML: byte 0 is no UTF-8"),
        (b"hello", "is no kubeconfig: it is a str and has no fields"),
        (b"- a", "is no kubeconfig: it is a list and has no fields"),
    ],
)
def test_what_is_no_kubeconfig_is_told_with_its_place(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        read_kubeconfig(path, "KUBECONFIG")
    said = str(refused.value)
    assert said.startswith(f"KUBECONFIG {path}: {words}"), said
    assert said.endswith("a kubeconfig is what `kubectl config view --raw` prints")
    assert "\n" not in said


def test_an_empty_file_and_a_good_one_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("")
    assert read_kubeconfig(path, "KUBECONFIG") == {}
    path.write_text("current-context: x\n")
    assert read_kubeconfig(path, "KUBECONFIG") == {"current-context": "x"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (NO_SERVER, "no current context with a cluster, server and user"),
        (NO_SERVER.replace("cluster: {}", "cluster: {server: nowhere}"), "the server is 'nowhere'; it must be an address"),
        (
            NO_SERVER.replace("cluster: {}", "cluster: {server: 'https://127.0.0.1:1', certificate-authority: none.crt}"),
            "the certificates for https://127.0.0.1:1 cannot be used",
        ),
    ],
)
def test_the_operator_refuses_them_in_one_line_too(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    command = [sys.executable, "-m", "rljob.controller", "--dev", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1), said.stderr
    assert words in said.stderr
