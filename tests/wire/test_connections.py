"""Connections end when the server says so, and what goes wrong with one is an error that httpx has."""

import asyncio
import gzip
import ssl
from collections.abc import Callable

import httpx
import pytest

from rljob.wire.connections import NO_CERTIFICATES, pool
from rljob.wire.crowd import CrowdTransport


class Server:
    """Answers `ok` to everything, and counts its connections."""

    def __init__(self, closes: bool = False, answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") -> None:
        """If it `closes`, each connection after its answer."""
        self.closes, self.answer = closes, answer
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(self.answer)
                if self.closes:
                    break
        except asyncio.IncompleteReadError:
            pass  # the client has gone
        finally:
            writer.close()


Transport = Callable[[], httpx.AsyncBaseTransport]
TRANSPORTS = pytest.mark.parametrize("transport", [pool, CrowdTransport])


async def ask(server: Server, transport: Transport, times: int = 1, pause: float = 0, patience: float = 60) -> list[httpx.Response]:
    """What it answers to one request after another, with pauses of so many seconds between them; `patience` is for each answer."""
    async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
        address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(transport=transport(), base_url=address) as http:
            answers = []
            for number in range(times):
                await asyncio.sleep(pause if number else 0)
                answers.append(await http.get("/", timeout=patience))
            return answers


@TRANSPORTS
def test_a_client_closes_no_idle_connection_by_its_own_clock(transport: Transport) -> None:
    """Else it may be one that a request has just been given (httpx closes after 5 s)."""
    server = Server()
    answers = asyncio.run(ask(server, transport, times=2, pause=6))
    assert [answer.text for answer in answers] == ["ok", "ok"]
    assert server.connections == 1


@TRANSPORTS
def test_a_connection_that_the_server_closed_is_not_used_again(transport: Transport) -> None:
    server = Server(closes=True)
    assert len(asyncio.run(ask(server, transport, times=20, pause=0.02))) == 20
    assert server.connections == 20


@TRANSPORTS
def test_a_proxy_of_the_environment_is_not_for_the_processes_of_a_job(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    assert asyncio.run(ask(Server(), transport))[0].text == "ok"


@TRANSPORTS
@pytest.mark.parametrize(
    ("answer", "closes", "error"),
    [
        (b"", False, httpx.ReadTimeout),
        (b"", True, (httpx.ReadError, httpx.RemoteProtocolError)),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nok", True, (httpx.ReadError, httpx.RemoteProtocolError)),
        (b"no HTTP at all\r\n\r\n", True, httpx.RemoteProtocolError),
    ],
)
def test_what_goes_wrong_on_the_way_is_an_error_of_httpx(
    transport: Transport, answer: bytes, closes: bool, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    with pytest.raises(error):
        asyncio.run(ask(Server(closes, answer), transport, patience=60 if closes else 0.5))


@TRANSPORTS
@pytest.mark.parametrize(
    ("address", "error"),
    [("http://127.0.0.1:1/", httpx.ConnectError), ("http://nowhere.invalid/", httpx.ConnectError), ("ftp://x/", httpx.UnsupportedProtocol)],
)
def test_an_address_that_leads_nowhere_is_an_error_of_httpx(transport: Transport, address: str, error: type[Exception]) -> None:
    async def go() -> None:
        async with httpx.AsyncClient(transport=transport()) as http:
            await http.post(address, json={})

    with pytest.raises(error):
        asyncio.run(go())


def test_the_context_for_https_trusts_nobody_and_lets_nobody_pass() -> None:
    assert (NO_CERTIFICATES.verify_mode, NO_CERTIFICATES.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert NO_CERTIFICATES.cert_store_stats()["x509"] == 0


def test_a_crowd_gets_what_the_server_said_and_redirects_and_encodings_are_httpx_matter() -> None:
    packed = gzip.compress(b'{"a": 1}')
    head = ["HTTP/1.1 307 Over There", "location: /x", "content-encoding: gzip", f"content-length: {len(packed)}", "x-one: 1", "x-one: 2"]
    (answer,) = asyncio.run(ask(Server(answer="\r\n".join([*head, "", ""]).encode() + packed), CrowdTransport))
    assert (answer.status_code, answer.json(), answer.headers.get_list("x-one")) == (307, {"a": 1}, ["1", "2"])


def test_a_crowd_has_no_more_connections_than_it_may() -> None:
    server = Server()

    async def go() -> None:
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            async with httpx.AsyncClient(transport=CrowdTransport(most=3), base_url=address) as http:
                await asyncio.gather(*(http.get("/") for _ in range(30)))

    asyncio.run(go())
    assert server.connections == 3
