"""Between the node agent and the shim around a sidecar: HTTP over the unix sockets `megatron-shim` and `vllm-shim`.

| call | body | answer |
|---|---|---|
| `GET /v1/status` | - | ShimStatus, at any time; `memory` only if asked for by `?memory=1`, because it costs a walk through /proc |
| `POST /v1/start` | StartRequest | ShimStatus once the payload runs; the same incarnation again: nothing |
| `POST /v1/stop` | StopRequest | ShimStatus once no process of the payload is left; repeated: nothing |

Errors carry ShimError: 409 another incarnation runs, 422 the request is not one, 500 failure.
"""

from typing import Literal

from pydantic import Field

from rljob.wire.base import Message

INCARNATION = "RLJOB_INCARNATION"
"""Environment variable in which a payload finds its incarnation."""


class StartRequest(Message):
    """Run the payload."""

    argv: tuple[str, ...] = ()
    """Arguments of the payload; which program it is, the shim knows."""
    env: dict[str, str] = Field(default_factory=dict)
    """Added to the shim's own environment."""
    incarnation: str
    """Name of this start, chosen by who asks; never used twice."""


class StopRequest(Message):
    """End the payload: SIGTERM to all its processes, after the grace SIGKILL, until none is left."""

    grace_seconds: float


class ShimStatus(Message):
    """What the payload is."""

    incarnation: str | None = None
    """The start that `state` speaks of; None before the first and after a stop."""
    state: Literal["stopped", "starting", "running", "exited"] = "stopped"
    """`stopped`: nothing runs, as asked. `exited`: it ended by itself, whole."""
    exit_status: int | None = None
    """Of an exited payload; negative: the signal that killed it."""
    pid: int | None = None
    """Leader of a running payload."""
    started_at: float | None = None
    """Unix time of the start."""
    ready: bool = True
    """False while the shim itself prepares (pre-imports) what a start needs; a start waits for it."""
    memory: int = 0
    """Anonymous memory of the payload's processes in bytes: neither shared memory nor files count."""
    last_log_lines: tuple[str, ...] = ()
    """Newest lines of the payload's output."""


class ShimError(Message):
    """Body of every answer that is not 200."""

    error: str
