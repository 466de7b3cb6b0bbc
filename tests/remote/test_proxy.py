"""Which proxy leads to an API server."""

import pytest

from rljob.remote.proxy import proxy_of

PROXY = "http://proxy.corp:3128"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("server", "variable", "found"),
    [
        ("https://k.corp:6443", "HTTPS_PROXY", PROXY),
        ("https://k.corp:6443", "https_proxy", PROXY),
        ("https://k.corp:6443", "HTTP_PROXY", None),
        ("http://k.corp", "HTTP_PROXY", PROXY),
        ("http://k.corp", "HTTPS_PROXY", None),
        ("https://localhost:6443", "HTTPS_PROXY", None),
        ("https://127.0.0.9:6443", "HTTPS_PROXY", None),
        ("https://[::1]:6443", "HTTPS_PROXY", None),
    ],
)
def test_the_environment_names_one_for_each_scheme_and_none_leads_to_this_machine(
    server: str, variable: str, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, PROXY)
    assert proxy_of(server, None) == found


@pytest.mark.parametrize(
    ("server", "exceptions", "excluded"),
    [
        ("https://k.corp:6443", "*", True),
        ("https://k.corp:6443", "x.corp, k.corp", True),
        ("https://K.Corp:6443", "k.CORP", True),
        ("https://k.corp:6443", "corp", True),
        ("https://k.corp:6443", ".corp", True),
        ("https://k.corp:6443", "*.corp", True),
        ("https://corp:6443", "corp", True),
        ("https://k.mycorp:6443", "corp", False),
        ("https://k.corp:6443", "k.corp:6443", True),
        ("https://k.corp:6443", "k.corp:443", False),
        ("https://10.1.2.3:6443", "10.0.0.0/8", True),
        ("https://11.1.2.3:6443", "10.0.0.0/8", False),
        ("https://k.corp:6443", "10.0.0.0/8", False),
        ("https://10.1.2.3:6443", "10.1.2.3", True),
        ("https://10.1.2.3:6443", "10.1.2.3:6443", True),
        ("https://[fd00::1]:6443", "fd00::/8", True),
        ("https://[fd00::1]:6443", "fd00:0::1", True),
        ("https://[fd00::1]:6443", "[fd00::1]:6443", True),
        ("https://[fd00::1]:6443", "[fd00::1]:443", False),
        ("https://k.corp:6443", ", ,10.0.0.0/99,:,/", False),
        ("https://k.corp:6443", "", False),
    ],
)
def test_exceptions_are_read_as_kubectl_reads_them(server: str, exceptions: str, excluded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, exceptions)
        assert (proxy_of(server, None) is None) == excluded
        monkeypatch.delenv(name)


def test_the_kubeconfigs_own_proxy_has_no_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", "*")
    assert proxy_of("https://127.0.0.1:6443", "http://mine:1") == "http://mine:1"


@pytest.mark.parametrize(("said", "found"), [("proxy.corp:3128", PROXY), ("socks5://proxy.corp:1080", "socks5://proxy.corp:1080")])
def test_a_proxy_without_a_scheme_is_one_of_http(said: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_of("https://k.corp", said) == found
    monkeypatch.setenv("HTTPS_PROXY", said)
    assert proxy_of("https://k.corp", None) == found
