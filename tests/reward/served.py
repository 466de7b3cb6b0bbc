"""A judge that is a language model: vLLM's OpenAI server on CPU, as somebody would serve one beside a job."""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from tests.rollout.engines import JOB

from rljob.rollout.engine import zygote_environment


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
            return httpx.get(f"{self.root}/health").status_code == 200
        except httpx.TransportError:
            return False

    def finished(self) -> int:
        """Requests that it has answered in full or up to their limit, by its own count."""
        lines = httpx.get(f"{self.root}/metrics").text.splitlines()
        return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("vllm:request_success_total{"))


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
