"""Threats: the network. There is none: no socket can be made, and the network namespace of a slot has no way out."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandbox.sandbox import Sandbox, only

CONNECT = {
    "python": "import socket, sys\nhost, port = sys.argv[1:]\ntry:\n    socket.create_connection((host, int(port)), 0.5)\n"
    "    print('ESCAPED')\n"
    "except OSError:\n    print('refused')\n",
    "bash": '(exec 3<> "/dev/tcp/$1/$2") 2> /dev/null && echo ESCAPED || echo refused',
    "javascript": "const s = require('net').connect({host: process.argv[2], port: +process.argv[3]});\n"
    "s.on('connect', () => { console.log('ESCAPED'); process.exit(); });\n"
    "s.on('error', () => { console.log('refused'); process.exit(); });",
    "java": "public class Main { public static void main(String[] a) { try { new java.net.Socket(a[0], Integer.parseInt(a[1])); "
    'System.out.println("ESCAPED"); } catch (Exception e) { System.out.println("refused"); } } }',
}


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of the machine's loopback that somebody listens on; a connection to it fails the test."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        stop, met = threading.Event(), []

        def accept() -> None:
            while not stop.is_set():
                try:
                    met.append(server.accept())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1]
        stop.set()
        thread.join()
        assert met == []


@pytest.mark.parametrize("language", only(*CONNECT))
def test_the_machines_loopback_is_out_of_reach(sandbox: Sandbox, language: str, listening: int) -> None:
    program = sandbox.build(language, CONNECT[language], memory_mb=512)
    result = sandbox.do(program.run(arguments=("127.0.0.1", str(listening))))
    assert result.run is not None
    assert result.run.stdout == "refused\n", result


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "10.96.0.1",
        "kubernetes.default.svc",
        "metadata.google.internal",
        "1.1.1.1",
        "::1",
        "fd00:ec2::254",
        "localhost",
        "0.0.0.0",
    ],
)
def test_addresses_of_services_and_of_metadata_are_out_of_reach(sandbox: Sandbox, host: str) -> None:
    assert sandbox.prints("python", CONNECT["python"], arguments=(host, "80")) == "refused"


def test_names_are_not_looked_up(sandbox: Sandbox) -> None:
    code = "import socket\ntry:\n    print('ESCAPED', socket.getaddrinfo('example.com', 80))\nexcept OSError:\n    print('refused')"
    assert sandbox.prints("python", code) == "refused"


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_sockets_of_the_machine_are_out_of_reach(sandbox: Sandbox, tmp_path: Path, abstract: bool) -> None:
    name = f"\0rljob-test-{tmp_path.name}" if abstract else str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        code = f"""
import socket
try:
    socket.socket(socket.AF_UNIX).connect({name!r})
    print("ESCAPED")
except OSError:
    print("refused")
"""
        assert sandbox.prints("python", code) == "refused"


def test_there_is_no_interface_but_a_loopback_that_is_down(sandbox: Sandbox) -> None:
    code = "print([line.split(':')[0].strip() for line in open('/proc/self/net/dev').read().splitlines()[2:]])"
    assert sandbox.prints("python", code) == "['lo']"


def test_a_pair_of_sockets_serves_within_the_program(sandbox: Sandbox) -> None:
    """What event loops and process pools need keeps working."""
    code = """
import asyncio, multiprocessing, subprocess
async def main():
    process = await asyncio.create_subprocess_exec("echo", "a", stdout=subprocess.PIPE)
    return (await process.communicate())[0].decode().strip()
print(asyncio.run(main()), multiprocessing.get_context("fork").Pool(2).map(abs, [-1, -2]))
"""
    assert sandbox.prints("python", code, cpu_seconds=5, wall_seconds=20) == "a [1, 2]"
