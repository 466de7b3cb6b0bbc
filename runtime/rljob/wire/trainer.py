"""Between the node agent and its trainer: HTTP over the unix socket `trainer` (the node's first rank listens).

| call | body | answer |
|---|---|---|
| `GET /v1/status` | - | TrainerStatus, at any time |
| `POST /v1/load` | LoadCommand | TrainerStatus |
| `POST /v1/train` | `Batch.encode()`, header `X-RLJob-Task`: TrainTask as JSON | TrainMetrics |
| `POST /v1/export` | ExportCommand | `rljob.wire.weights.Manifest` |
| `POST /v1/checkpoint` | CheckpointCommand | TrainerStatus |
| `POST /v1/offload` | OffloadCommand, or nothing | TrainerStatus |
| `POST /v1/onload` | - | TrainerStatus |

Commands answer when done and run one at a time; repeating one that is already fulfilled answers at once. `checkpoint` works offloaded too
(it reads the host copy), `train` and `export` need the accelerator, `load` takes it. Errors carry TrainerError:
409 wrong state, 422 configuration error, 500 failure.
"""

from rljob.wire.base import Message
from rljob.wire.node import Progress, TrainMetrics

TASK_HEADER = "X-RLJob-Task"
"""Header of `POST /v1/train` that holds the TrainTask as JSON."""


class LoadCommand(Message):
    """Take weights. From a Hugging Face folder, or from a checkpoint, whose version must then be `version`."""

    version: int
    path: str


class ExportCommand(Message):
    """Write the held version into the arena file, which the node's first rank makes if it is missing and which is rewritten in place."""

    version: int
    arena: str
    """Path of the arena file."""


class CheckpointCommand(Message):
    """Write the held version to the folder `path`, all or nothing, and durable when answered."""

    version: int
    path: str


class OffloadCommand(Message):
    """Leave the accelerator."""

    keep_freed: bool = False
    """Keep the memory of what is dropped for the next training, as far as that is a choice: where trainer and engine share main memory,
    giving it back and getting it again costs more than the rest of a hand-over. False gives it back, also if it was kept before."""


class TrainerStatus(Message):
    """What the trainer is."""

    incarnation: str
    """New for every process."""
    version: int | None
    """Version of the weights it holds; None before the first load and after a failure that left them half changed."""
    resident: bool
    """True while the state is on the accelerator; False after an offload."""
    freed: int = 0
    """Bytes of freed memory that the offloaded trainer keeps, all its ranks together."""
    busy: str | None = None
    """Command in progress: `start`, `load`, `train`, `export`, `checkpoint`, `offload` or `onload`."""
    progress: Progress | None = None
    """Micro-batches of the running `train`."""
    exported: int | None = None
    """Newest version that this process has exported."""
    checkpointed: int | None = None
    """Newest version that this process has made durable or loaded from a checkpoint."""
    error: str | None = None
    """Why the last command failed; None after one that worked."""
    trained: TrainMetrics | None = None
    """Result of the newest task that this process has finished."""


class TrainerError(Message):
    """Body of every answer that is not 200."""

    error: str
