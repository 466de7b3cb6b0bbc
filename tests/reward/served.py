"""A judge that is a language model: vLLM's OpenAI server on CPU, as somebody would serve one beside a job."""

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tests.reward.listening import Listener
from tests.reward.scripted import Body
from tests.rollout.engines import JOB

from rljob.rollout.engine import zygote_environment
from rljob.wire.openai import Completion, read_completion


@dataclass(frozen=True)
class Served:
    """The model of a folder, by the name `judge`; it may still be starting."""

    root: str
    """Address of the server, such as `http://127.0.0.1:8000`."""
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def endpoint(self) -> str:
        """Base address for whoever asks it."""
        return f"{self.root}/v1"

    def wait(self, seconds: float = 180) -> None:
        """Until it answers."""
        end = time.monotonic() + seconds
        while not self.healthy():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            select.select([], [], [], 0.1)

    def healthy(self) -> bool:
        """Whether it answers."""
        try:
            return httpx.get(f"{self.root}/health", trust_env=False, verify=False).status_code == 200
        except httpx.TransportError:
            return False


@dataclass
class Relayed:
    """Another address of the model, between which and the model every question and reply is noted; nothing is changed."""

    endpoint: str
    """Base address for whoever asks it; refuses connections until `open`."""
    open: Callable[[], None]
    heard: list[tuple[Body, Completion]] = field(default_factory=list)
    """What was asked, and what the model replied with 200, in the order of the replies."""


@contextmanager
def relaying(served: Served) -> Iterator[Relayed]:
    """Have an address of its own until the end of the block."""

    def answer(path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        sent = {"content-type": headers["content-type"]}
        reply = httpx.post(f"{served.root}{path}", content=body, headers=sent, timeout=None, trust_env=False, verify=False)
        if reply.status_code == 200:
            relayed.heard.append((json.loads(body), read_completion(reply.content)))
        return reply.status_code, reply.content

    listener = Listener(answer)
    relayed = Relayed(f"{listener.address}/v1", listener.open)
    try:
        yield relayed
    finally:
        listener.close()


@contextmanager
def serving_model(folder: Path, length: int, kv_cache_mb: int) -> Iterator[Served]:
    """Begin to serve the model of a folder, which becomes its log's too, up to `length` tokens of question and reply together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = {
        "model": str(folder), "served-model-name": "judge", "host": "127.0.0.1", "port": str(port), "dtype": "float32", "max-num-seqs": "4",
        "kv-cache-memory-bytes": str(kv_cache_mb << 20), "block-size": "32", "max-model-len": str(length), "generation-config": "vllm",
        # A model that is no good at it would put in spaces for ever.
        "structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
    }  # fmt: skip
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [part for name, value in arguments.items() for part in (f"--{name}", value)]
    environment = zygote_environment(JOB, {**os.environ, "VLLM_PLUGINS": "", "OMP_NUM_THREADS": "1"})
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield Served(f"http://127.0.0.1:{port}", server, folder / "log")
    finally:
        server.terminate()
        server.wait(30)
