"""Threats: the network. There is none: no socket can be made, and the network namespace of a slot has no way out."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandbox.sandbox import Sandbox, only

_C_CONNECT = r"""
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
int main(int n, char **v) {
    struct addrinfo *a;
    int found = n == 3 && !getaddrinfo(v[1], v[2], 0, &a);
    puts(found && !connect(socket(a->ai_family, SOCK_STREAM, 0), a->ai_addr, a->ai_addrlen) ? "ESCAPED" : "refused");
}"""
CONNECT = {
    "c": _C_CONNECT,
    "cpp": _C_CONNECT,
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


HOSTS = (
    "169.254.169.254", "10.96.0.1", "kubernetes.default.svc", "metadata.google.internal", "1.1.1.1", "::1", "fd00:ec2::254", "localhost",
    "0.0.0.0",
)  # fmt: skip
_C_LOOK_UP = r"""
#include <netdb.h>
#include <stdio.h>
int main(void) { struct addrinfo *a; puts(getaddrinfo("example.com", "80", 0, &a) ? "refused" : "ESCAPED"); }"""
LOOK_UP = {
    "python": "import socket\ntry:\n    print('ESCAPED', socket.getaddrinfo('example.com', 80))\nexcept OSError:\n    print('refused')",
    "c": _C_LOOK_UP,
    "cpp": _C_LOOK_UP,
    "bash": "getent hosts example.com && echo ESCAPED || echo refused",
    "javascript": """
const dns = require('dns'), found = error => { if (!error) console.log('ESCAPED'); };
new dns.Resolver({timeout: 100, tries: 1}).resolve4('example.com', error => {
    found(error);
    dns.lookup('example.com', error => { found(error); console.log('refused'); });
});""",
}
_C_UNIX = r"""
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
int main(int n, char **v) {
    struct sockaddr_un a = {AF_UNIX, {0}};
    int abstract = n == 2 && v[1][0] == '@';
    strncpy(a.sun_path + abstract, v[1] + abstract, 100);
    socklen_t size = offsetof(struct sockaddr_un, sun_path) + strlen(v[1]);
    puts(connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&a, size) ? "refused" : "ESCAPED");
}"""
UNIX = {
    "python": """
import socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1].replace("@", chr(0)))
    print("ESCAPED")
except OSError:
    print("refused")
""",
    "c": "#include <stddef.h>" + _C_UNIX,
    "cpp": "#include <stddef.h>" + _C_UNIX,
    "javascript": "const s = require('net').connect({path: process.argv[2].replace('@', '\\0')});\n"
    "s.on('connect', () => { console.log('ESCAPED'); process.exit(); });\n"
    "s.on('error', () => { console.log('refused'); process.exit(); });",
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


@pytest.mark.parametrize("language", [name for name in only(*CONNECT) if name != "java"])
def test_addresses_of_services_and_of_metadata_are_out_of_reach(sandbox: Sandbox, language: str) -> None:
    program = sandbox.build(language, CONNECT[language])
    for host in HOSTS:
        result = sandbox.do(program.run(arguments=(host, "80")))
        assert result.run is not None
        assert result.run.stdout == "refused\n", (host, result)


@pytest.mark.parametrize("language", only(*LOOK_UP))
def test_names_are_not_looked_up(sandbox: Sandbox, language: str) -> None:
    assert sandbox.prints(language, LOOK_UP[language]) == "refused"


@pytest.mark.parametrize("language", only(*UNIX))
@pytest.mark.parametrize("abstract", [False, True])
def test_unix_sockets_of_the_machine_are_out_of_reach(sandbox: Sandbox, tmp_path: Path, abstract: bool, language: str) -> None:
    name = f"@rljob-test-{tmp_path.name}" if abstract else str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name.replace("@", "\0"))
        server.listen()
        assert sandbox.prints(language, UNIX[language], arguments=(name,)) == "refused"


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
