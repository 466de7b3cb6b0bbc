"""`python -m rljob.rollout.zygote`: imports vLLM once and forks an OpenAI server whenever it is told to.

JSON lines. It says `{"ready": seconds}` after the imports. Asked `{"start": {"argv": [...], "env": {...}, "log": path}}` on stdin it forks
a server in a session of its own and answers `{"started": pid}`; when that ends it says `{"exited": {"pid": pid, "status": n}}` (negative:
the signal). A line it does not understand is answered `{"error": why}`. When stdin ends it kills every session it started and ends.

Nothing outlives it: the server asks the kernel to be killed when the zygote dies, and so does every process the server forks, so that also
`kill -9` of the API server alone leaves no engine core behind (by itself vLLM leaves an orphan with all its memory).

The zygote itself never touches an accelerator and starts no thread pool: neither survives a fork. What is written to stdout by imported
libraries goes to stderr; stdout carries only the lines above.
"""

import ctypes
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
SERVER = "vllm.entrypoints.launchers.api_server.entry"
"""Module of vLLM's OpenAI server (`python -m vllm.entrypoints.openai.api_server` ends up there)."""
IMPORTS = {
    "cpu": ("vllm.v1.worker.cpu_worker",),
    "cuda": ("vllm.v1.worker.gpu_worker", "vllm.v1.attention.backends.flash_attn", "vllm.device_allocator.cumem"),
}
"""What an engine of a platform imports; the rest comes with the server."""
COMMON = (
    "vllm.v1.engine.async_llm", "vllm.v1.engine.core", "vllm.v1.engine.core_client", "vllm.v1.executor.uniproc_executor",
    "vllm.v1.executor.multiproc_executor", "vllm.model_executor.models.llama", "vllm.model_executor.models.qwen2",
    "vllm.model_executor.model_loader.dummy_loader", "vllm.model_executor.model_loader.reload", "vllm.entrypoints.rl.online.api_router",
    "vllm.entrypoints.scale_out.token_in_token_out.api_router", "rljob.rollout.weight_transfer",
    "vllm.model_executor.layers.quantization.online.base", "vllm.distributed.elastic_ep.elastic_execute", "setproctitle",
    "vllm.entrypoints.generate.api_router", "vllm.entrypoints.generate.structured_decisions.api_router",
    "vllm.entrypoints.generate.generative_scoring.api_router", "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.cohere.api_router",
    "vllm.entrypoints.openai.chat_completion.api_router", "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.openai.models.api_router", "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.openai.chat_completion.batch_serving", "vllm.entrypoints.rl.factories", "vllm.entrypoints.scale_out.factories",
    "vllm.entrypoints.scale_out.render.api_router", "vllm.entrypoints.scale_out.derender.api_router", "vllm.collect_env",
    "vllm.entrypoints.serve.instrumentator.metrics", "model_hosting_container_standards.sagemaker", "prometheus_fastapi_instrumentator",
    "uvicorn.lifespan.on", "uvicorn.protocols.http.httptools_impl", "uvicorn.protocols.websockets.websockets_sansio_impl",
    "multiprocessing.popen_fork",
)  # fmt: skip
"""Modules that a server imports late; one that a release of vLLM does not have only makes the first engine's start slower."""


@dataclass
class Zygote:
    """The loop: requests from one descriptor, answers to another, children watched by pidfd."""

    requests: int
    answers: IO[str]
    launch: Callable[[Sequence[str], Mapping[str, str]], None]
    """What the child becomes; runs in the child, in its own session."""
    children: dict[int, int] = field(default_factory=dict)
    """Process id to pidfd."""
    folders: dict[int, str] = field(default_factory=dict)
    """Process id to its folder for temporary files: vLLM leaves sockets and more there however it ends."""
    _pending: bytes = b""

    def run(self) -> None:
        """Serve until the requests end, then leave nothing behind."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.requests, selectors.EVENT_READ, None)
            while True:
                for key, _ in selector.select():
                    if key.data is not None:
                        selector.unregister(key.fd)
                        self._reap(key.data)
                    elif not self._read(selector):
                        return self._end()

    def say(self, message: Mapping[str, Any]) -> None:
        """One line to whoever started us; if nobody listens any more, the end of stdin says so too."""
        try:
            self.answers.write(json.dumps(message) + "\n")
            self.answers.flush()
        except BrokenPipeError:
            pass

    def _read(self, selector: selectors.BaseSelector) -> bool:
        data = os.read(self.requests, 1 << 16)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in filter(None, map(bytes.strip, lines)):
            self._obey(line, selector)
        return bool(data)

    def _obey(self, line: bytes, selector: selectors.BaseSelector) -> None:
        try:
            start = json.loads(line)["start"]
            argv, env, log = list(start["argv"]), dict(start["env"]), str(start["log"])
            folder = tempfile.mkdtemp(prefix="vllm-")
            try:
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            except (ValueError, OSError):
                os.rmdir(folder)
                raise
        except (ValueError, KeyError, TypeError, OSError) as error:
            return self.say({"error": f"cannot start from {line[:200]!r}: {error!r}"})
        pid = self._fork(argv, {**env, "TMPDIR": folder}, output)
        os.close(output)
        self.folders[pid] = folder
        self.children[pid] = os.pidfd_open(pid)
        selector.register(self.children[pid], selectors.EVENT_READ, pid)
        self.say({"started": pid})

    def _fork(self, argv: Sequence[str], env: Mapping[str, str], output: int) -> int:
        parent = os.getpid()
        heard, said = os.pipe()
        pid = os.fork()
        if pid:
            os.close(said)
            os.read(heard, 1)  # nobody hears of a server that has no session yet, by which it is found and ended
            os.close(heard)
            return pid
        status = 1
        try:
            os.close(heard)
            os.setsid()
            os.close(said)
            self._become_child(parent, env, output)
            self.launch(argv, env)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except KeyboardInterrupt:  # SIGTERM before the server is up
            status = 128 + signal.SIGTERM
        except BaseException:  # noqa: BLE001 - process boundary: whatever happens goes to the log and becomes the status
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _become_child(self, parent: int, env: Mapping[str, str], output: int) -> None:
        die_with(parent)
        os.register_at_fork(after_in_child=die_with_parent)
        silence = os.open(os.devnull, os.O_RDONLY)
        os.dup2(silence, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for descriptor in (silence, output, self.requests, self.answers.fileno(), *self.children.values()):
            if descriptor > 2:
                os.close(descriptor)
        os.environ.update(env)
        tempfile.tempdir = None  # known from before the fork

    def _reap(self, pid: int) -> None:
        os.close(self.children.pop(pid))
        shutil.rmtree(self.folders.pop(pid), ignore_errors=True)
        _, status = os.waitpid(pid, 0)
        self.say({"exited": {"pid": pid, "status": os.waitstatus_to_exitcode(status)}})

    def _end(self) -> None:
        for pid in list(self.children):
            kill_session(pid)
            self._reap(pid)


def die_with(parent: int) -> None:
    """Be killed by the kernel when `parent` (our parent) dies, also if that has just happened."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def die_with_parent() -> None:
    """`die_with` for whoever forked us; runs in the child right after the fork."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def kill_session(leader: int) -> None:
    """SIGKILL to every process of a session until none is left alive."""
    while alive := [pid for pid in session_members(leader)]:
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)


def session_members(leader: int) -> list[int]:
    """Processes of a session that are not zombies."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            if int(rest[2]) == leader and state not in "ZX":
                members.append(int(entry.name))
    return members


def import_vllm() -> None:
    """Import all that a server needs, and patch what must be patched before the fork (see `rljob.rollout.linear`)."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        from rljob.rollout import startup

        startup.without_compiler()
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    importlib.import_module(SERVER)
    for name in (*COMMON, *IMPORTS["cpu" if current_platform.is_cpu() else "cuda"]):
        _import_if_there(name)
    if current_platform.is_cpu():
        from rljob.rollout import kernels, linear, startup

        linear.install()
        kernels.install()
        startup.install()
    _fork_engine_cores()
    # The argument parser is 0.3 s of pure Python whose caches a fork inherits.
    _parse([])


def serve(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Be vLLM's OpenAI server until it ends."""
    import uvloop

    uvloop.run(importlib.import_module(SERVER).run_server(_parse(argv)))


def _parse(argv: Sequence[str]) -> Any:
    cli: Any = importlib.import_module("vllm.entrypoints.launchers.cli_args")
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = cli.make_arg_parser(FlexibleArgumentParser(prog="vllm")).parse_args(list(argv))
    cli.validate_parsed_serve_args(args)
    return args


def _import_if_there(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise


def _fork_engine_cores() -> None:
    """Fork the engine core, and its workers if ranks share a model, instead of spawning them: that would import everything again, without
    what `import_vllm` patches.

    vLLM's CPU platform sets VLLM_WORKER_MULTIPROC_METHOD to `spawn` while it reads the configuration (platforms/cpu.py), after anything
    that we could set; so the places where these processes are made get a context that does not ask the environment.
    """
    import multiprocessing

    for name in ("vllm.v1.engine.utils", "vllm.v1.executor.multiproc_executor"):
        module: Any = importlib.import_module(name)
        module.get_mp_context = lambda: multiprocessing.get_context("fork")


def main() -> None:
    """Entry point."""
    began = time.monotonic()
    os.environ.setdefault("SPT_NOENV", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.disable()  # of a million objects that modules make and keep, collections while they are made take a tenth of the time
    import_vllm()
    gc.collect()
    gc.freeze()  # a collection in a child would copy the pages it touches
    gc.enable()
    zygote = Zygote(0, answers, serve)
    zygote.say({"ready": round(time.monotonic() - began, 3)})
    zygote.run()


if __name__ == "__main__":
    main()
