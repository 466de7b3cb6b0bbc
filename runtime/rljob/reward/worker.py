"""The worker process: keeps verifiers' libraries warm and forks one child for every judgement.

Covers: an answer that runs without end, eats memory, crashes the interpreter, or changes the libraries it is judged with; each costs one
child. Does not cover: an answer whose evaluation is code written to escape the child; that is a sandbox's work.

Frames on stdin and stdout: four bytes of length, then JSON. Single-threaded, so that forking is safe.
"""

import ctypes
import json
import logging
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from rljob.reward.registry import VERIFIERS, parse_options
from rljob.reward.verifier import Verifier
from rljob.wire.reward import ScoreItem

EXTRA_MEMORY = 1 << 30
"""Bytes that a judgement may claim on top of what the worker has mapped."""
PATIENCE = 6.0
"""How many times longer than its limit a judgement may take by the clock on a machine that is busy with other things."""
_PR_SET_PDEATHSIG = 1
_LONGEST_REASON = 300


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests `{"item": ScoreItem, "seconds": float}` until the end of the input."""
    while (request := read_frame(source)) is not None:
        write_frame(sink, handle(ScoreItem.model_validate(request["item"]), request["seconds"]))


def handle(item: ScoreItem, seconds: float) -> dict[str, Any]:
    """One judgement: `judged`, `raised`, `timeout`, `starved` or `died`, or `unready` if not even the reference could be read.

    Args:
        seconds: of processor time.
    """
    verifier = killable(item.verifier)
    try:
        options = parse_options(verifier, item.options)
        verifier.warm(item, options)
    except Exception as error:  # noqa: BLE001 - process boundary: libraries raise what they like, the service must hear of it
        return {"outcome": "unready", "reason": _reason(error)}
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_child(item, writer)
    os.close(writer)
    try:
        return _await_child(pid, reader, seconds)
    finally:
        os.close(reader)


def killable(name: str) -> Verifier:
    """The verifier of this name, which runs in a worker."""
    verifier = VERIFIERS[name]
    assert isinstance(verifier, Verifier), f"{name} does not run in a worker"
    return verifier


def _be_child(item: ScoreItem, writer: int) -> None:
    die_with_parent()
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + EXTRA_MEMORY, mapped + EXTRA_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    verifier = killable(item.verifier)
    try:
        found = verifier.judge(item, parse_options(verifier, item.options))
        said: dict[str, Any] = {"outcome": "judged", "right": found.right, "reason": found.reason[:_LONGEST_REASON]}
        said |= {} if found.reward is None else {"reward": found.reward}
    except BaseException as error:  # noqa: BLE001 - process boundary: the child has nobody to raise to
        said = {"outcome": "raised", "reason": _reason(error)}
    os.write(writer, json.dumps(said).encode())
    os._exit(0)


def _await_child(pid: int, reader: int, seconds: float) -> dict[str, Any]:
    """The limit is processor time: on a busy machine the clock on the wall says nothing of an answer. A child that only waits has had its
    time when the clock says so; one that wants to run and cannot, for much longer than its limit, was starved by others."""
    began = time.monotonic()
    wait = seconds
    while not select.select([reader], [], [], wait)[0]:
        used, state = _used(pid)
        if used >= seconds or state == "S":
            return _killed(pid, {"outcome": "timeout", "reason": f"not judged within {seconds:g} s"})
        if time.monotonic() - began >= PATIENCE * seconds:
            said = f"had {used:.1f} s of the processor in {PATIENCE * seconds:g} s; the machine is too busy"
            return _killed(pid, {"outcome": "starved", "reason": said})
        wait = max(0.01, min(seconds - used, began + PATIENCE * seconds - time.monotonic()))
    said_bytes = os.read(reader, 1 << 16)
    _, status = os.waitpid(pid, 0)
    if said_bytes:
        found: dict[str, Any] = json.loads(said_bytes)
        return found
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return {"outcome": "died", "signal": number, "reason": f"the verifier's process died of signal {number}"}


def _used(pid: int) -> tuple[float, str]:
    """Processor seconds of a process (a multiple of 10 ms) and its state: R wants to run, S waits for something."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), fields[0]


def _killed(pid: int, said: dict[str, Any]) -> dict[str, Any]:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return said


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_LONGEST_REASON]


def die_with_parent() -> None:
    """The kernel kills this process when the one that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def read_frame(source: BinaryIO) -> Any:
    """The next message; None at the end."""
    size = source.read(4)
    return json.loads(source.read(int.from_bytes(size, "big"))) if len(size) == 4 else None


def write_frame(sink: BinaryIO, message: Any) -> None:
    """Send one message."""
    sink.write(frame(message))
    sink.flush()


def frame(message: Any) -> bytes:
    """A message as bytes."""
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def main() -> None:
    """`python -m rljob.reward.worker PARENT NICENESS`"""
    die_with_parent()
    if os.getppid() != int(sys.argv[1]):
        return  # the parent ended before the kernel was told to watch it
    os.nice(int(sys.argv[2]))
    # Libraries that print must not garble the frames.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # It warns at every answer that its own time limits are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    write_frame(sink, {"outcome": "ready"})
    serve(sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
