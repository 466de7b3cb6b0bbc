"""A TCP proxy before an API server, which a test can cut or make mute. What it passes on stays encrypted."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class Proxy:
    """Passes bytes on, on a loop of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._up = True
        self._speaks = asyncio.Event()
        self._speaks.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self.port = 0

    async def serve(self, started: threading.Event) -> None:
        """Until the loop is stopped."""
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await server.serve_forever()

    def cut(self) -> None:
        """Every connection breaks, and every new one at once."""
        self._loop.call_soon_threadsafe(self._cut)

    def mend(self) -> None:
        """All is well again; what was held back comes late."""
        self._loop.call_soon_threadsafe(self._mend)

    def mute(self) -> None:
        """Requests get through, answers do not."""
        self._loop.call_soon_threadsafe(self._speaks.clear)

    def _cut(self) -> None:
        self._up = False
        for writer in self._writers:
            writer.transport.abort()

    def _mend(self) -> None:
        self._up = True
        self._speaks.set()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._up:
            writer.transport.abort()
            return
        there_reader, there = await asyncio.open_connection(*self._to)
        self._writers |= {writer, there}
        with suppress(OSError):
            await asyncio.gather(self._pass(reader, there, False), self._pass(there_reader, writer, True))
        self._writers -= {writer, there}
        writer.transport.abort()
        there.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool) -> None:
        while block := await reader.read(65536):
            if answers:
                await self._speaks.wait()
            writer.write(block)
            await writer.drain()
        # One side has ended: the other one has nobody to talk to.
        raise ConnectionResetError

    def run(self, started: threading.Event) -> None:
        """The thread."""
        asyncio.set_event_loop(self._loop)
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self.serve(started))

    def stop(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()


@contextmanager
def proxied(kubeconfig: Path, folder: Path) -> Iterator[tuple[Proxy, Path]]:
    """A proxy before the server of a kubeconfig, and a kubeconfig that goes through it."""
    data = yaml.safe_load(kubeconfig.read_text())
    chosen = next(c for c in data["contexts"] if c["name"] == data["current-context"])["context"]["cluster"]
    cluster = next(c for c in data["clusters"] if c["name"] == chosen)["cluster"]
    where = urlsplit(cluster["server"])
    proxy, started = Proxy(str(where.hostname), where.port or 443), threading.Event()
    thread = threading.Thread(target=proxy.run, args=(started,), daemon=True)
    thread.start()
    started.wait(10)
    # The server's certificate need not name the proxy's address.
    for name in [name for name in cluster if name.startswith("certificate-authority")]:
        del cluster[name]
    cluster |= {"server": f"https://127.0.0.1:{proxy.port}", "insecure-skip-tls-verify": True}
    through = folder / "through-the-proxy.json"
    through.write_text(json.dumps(data))
    try:
        yield proxy, through
    finally:
        proxy.stop()
        thread.join(10)
