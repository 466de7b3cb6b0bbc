"""`kubectl rljob` against whatever answers: something between it and the cluster, and logs of any content."""

import io
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tests.remote.twins import container, job, pod

from rljob.api import ConfigurationError, InfrastructureError
from rljob.cli import cluster
from rljob.cli.cluster import Where
from rljob.remote.cluster import Target, connect
from rljob.remote.logs import Wanted
from rljob.remote.observe import jobs_path

Answer = tuple[int, str, bytes]
"""Status, content type, body."""


@contextmanager
def serving(answers: Mapping[str, Answer], asked: list[str] | None = None) -> Iterator[str]:
    """Address of a server that has an answer for each path, `*` for those that are not named."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            status, kind, body = answers.get(self.path.partition("?")[0]) or answers["*"]
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def kubeconfig(folder: Path, server: str, **more: str) -> Path:
    (folder / "config").write_text(
        yaml.safe_dump(
            {
                "current-context": "x",
                "contexts": [{"name": "x", "context": {"cluster": "c", "namespace": "team-a"}}],
                "clusters": [{"name": "c", "cluster": {"server": server} | more}],
            }
        )
    )
    return folder / "config"


def as_json(data: Any) -> Answer:
    return 200, "application/json", json.dumps(data).encode()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    "answer",
    [
        (200, "text/html", b"<html>Log in</html>"),
        (200, "application/json", b'{"a":'),
        (200, "application/json", b"\xff"),
        (302, "text/html", b""),
        as_json([1]),
        as_json(None),
    ],
    ids=["a page", "half an object", "no text", "a redirection", "a list", "null"],
)
def test_what_is_no_api_server_is_said_so(answer: Answer, tmp_path: Path) -> None:
    with serving({"*": answer}) as server:
        with pytest.raises(InfrastructureError, match=r"what answers is no Kubernetes API server .* is a proxy or a login page in between"):
            connect(Target(kubeconfig(tmp_path, server))).get("/version")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((403, "text/html", b"<html>\n<p>Forbidden by the gateway</p>\n</html>\n"), "not allowed: <html> <p>Forbidden by the gateway"),
        ((404, "application/json", b'{"message": "no such thing", "details": null}'), "no such thing"),
        ((422, "application/json", b"{"), "the API server refuses: {"),
    ],
)
def test_a_refusal_of_any_form_is_one_line(answer: Answer, message: str, tmp_path: Path) -> None:
    with serving({"*": answer}) as server, pytest.raises(ConfigurationError) as caught:
        connect(Target(kubeconfig(tmp_path, server))).get("/version")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("server", ["https://[::1", "https://host:port", "https://", "host:6443"])
def test_an_address_that_is_none_is_refused_with_its_context(server: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the server of context x is .*; it must be an address such as https://HOST:6443"):
        connect(Target(kubeconfig(tmp_path, server)))


def test_a_proxy_of_the_environment_is_asked_unless_the_environment_excepts_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    with serving({"*": as_json({"gitVersion": "far"})}, asked) as proxy, serving({"*": as_json({"gitVersion": "near"})}) as near:
        monkeypatch.setenv("HTTP_PROXY", proxy.removeprefix("http://"))
        assert connect(Target(kubeconfig(tmp_path, "http://rljob.invalid:6443"))).get("/version") == {"gitVersion": "far"}
        assert asked == ["http://rljob.invalid:6443/version"]
        assert connect(Target(kubeconfig(tmp_path, near))).get("/version") == {"gitVersion": "near"}
        assert connect(Target(kubeconfig(tmp_path, near, **{"proxy-url": proxy}))).get("/version") == {"gitVersion": "far"}
        monkeypatch.setenv("NO_PROXY", ".invalid")
        with pytest.raises(InfrastructureError, match="the cluster does not answer"):
            connect(Target(kubeconfig(tmp_path, "http://rljob.invalid:6443"))).get("/version")


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("gopher://me:secret@proxy.corp", "the proxy proxy.corp .* cannot be used: .*; it must be an address such as http://HOST:3128"),
        ("http://me:secret@[::1", r"the proxy \[::1 .* cannot be used: .*; it must be an address such as http://HOST:3128"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(proxy: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        connect(Target(kubeconfig(tmp_path, "https://k.corp", **{"proxy-url": proxy})))
    assert "secret" not in str(caught.value)


def test_a_proxy_that_speaks_socks_is_refused_with_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # as if it were not installed
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.corp:1080")
    with pytest.raises(ConfigurationError, match=r"SOCKS needs one more package: pip install 'httpx\[socks\]'"):
        connect(Target(kubeconfig(tmp_path, "https://k.corp")))


def test_logs_keep_their_order_and_every_word_whatever_a_line_holds(tmp_path: Path) -> None:
    at = [f"2026-01-01T00:00:0{second}.000000000Z " for second in range(4)]
    texts = {
        "worker-0": f"{at[0]}loading 0%\rloading 50%\rloading 100%\n{at[2]}a\x0bb\x0cc\x85d\u2028e\r\n{at[3]}\n{at[3]}no end",
        "rollout-0": f"{at[1]}between\n",
    }
    pods = [pod(name, name.partition("-")[0], container("vllm")) for name in texts]
    answers = {jobs_path("team-a", "sums"): as_json(job()), "/api/v1/namespaces/team-a/pods": as_json({"items": pods})}
    for name, text in texts.items():
        answers[f"/api/v1/namespaces/team-a/pods/sums-{name}/log"] = (200, "text/plain", text.encode())
    shown = io.StringIO()
    with serving(answers) as server:
        cluster.logs(Where(None, None, kubeconfig(tmp_path, server)), "sums", Wanted(), False, Console(file=shown, width=200))
    # A terminal is not given what would move its cursor.
    assert [line.split(maxsplit=1) for line in shown.getvalue().split("\n")] == [
        ["worker-0/vllm", "loading 0%"],
        ["worker-0/vllm", "loading 50%"],
        ["worker-0/vllm", "loading 100%"],
        ["rollout-0/vllm", "between"],
        ["worker-0/vllm", "abc\x85d\u2028e"],
        ["worker-0/vllm"],
        ["worker-0/vllm", "no end"],
        [],
    ]
