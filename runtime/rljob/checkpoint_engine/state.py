"""What the node agent knows and sees, and the steps it can take. All immutable: state in, state out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from rljob.wire import node
from rljob.wire.base import Failure
from rljob.wire.node import TrainMetrics, TrainTask
from rljob.wire.trainer import TrainerStatus
from rljob.wire.weights import Manifest

Life = Literal["away", "stopped", "starting", "running", "exited"]
"""`ShimStatus.state`, or `away` while the shim itself does not answer."""
Owner = Literal["trainer", "engine"]


@dataclass(frozen=True)
class Site:
    """What does not change while the agent runs."""

    kind: Literal["worker", "rollout"]
    accelerator: Literal["cpu", "nvidia"]
    policy: Literal["auto", "restart", "sleep"]
    serves: bool = True
    """An engine belongs to it; not where a reward model is trained, which nobody asks for answers."""
    nodes: int = 1
    """Worker nodes that the trainer's ranks are spread over."""


@dataclass(frozen=True)
class TrainerSeen:
    """The megatron sidecar."""

    life: Life = "stopped"
    incarnation: str | None = None
    exit_status: int | None = None
    last_line: str = ""
    """The line of its log that says most."""
    status: TrainerStatus | None = None
    """None: it does not answer (yet)."""


@dataclass(frozen=True)
class EngineState:
    """What an engine says of itself."""

    version: int | None
    """None: weights that nobody vouches for."""
    checksum: str | None
    paused: bool
    """It sleeps or is paused: no request is worked on."""


@dataclass(frozen=True)
class EngineSeen:
    """The vllm sidecar."""

    life: Life = "stopped"
    incarnation: str | None = None
    exit_status: int | None = None
    last_line: str = ""
    state: EngineState | None = None
    """None: it does not answer (yet)."""
    ready: bool = False
    """A start would not have to wait for imports."""


@dataclass(frozen=True)
class Known:
    """What the agent remembers. Losing it costs time, never correctness: each entry is found out again by repeating a step."""

    manifest: Manifest | None = None
    """Describes what the arena holds."""
    registered: tuple[int, str] | None = None
    """Version and checksum that the master has confirmed."""
    unknown_to_master: int | None = None
    """The master has no manifest of this version: it must be exported here."""
    nobody_has: int | None = None
    """No other node has this version whole: the trainer must export it."""
    checkpointed: int | None = None
    saving: int | None = None
    """Version whose checkpoint the trainer was told to write; nobody has waited for it yet."""
    trained: TrainMetrics | None = None
    attested: tuple[str, int, str] | None = None
    """Engine incarnation, version and checksum that passed."""
    gate: Owner | None = None
    """For whom memory was found free; until somebody leaves the accelerator or a step fails."""
    baselines: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """By incarnation (a trainer's changes when it has trained): the rest in bytes that it kept at its first hand-over. On a device by both
    incarnations: what was left the first time that both were away."""
    peaks: Mapping[Owner, int] = field(default_factory=lambda: MappingProxyType({}))
    """The most bytes of main memory that an owner was seen to hold when it was about to leave."""
    given_back: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """By incarnation: the bytes of a device that became free when it last left and lived on; of a trainer once it has trained."""
    have_trained: frozenset[str] = frozenset()
    """Incarnations of trainers that have done a training task."""
    trainer: str | None = None
    """Incarnation that should be alive; None: nobody, or not known."""
    engine: str | None = None
    ahead: tuple[int, str | None] | None = None
    """Version for which an engine was to be forked ahead of time, and the engine's incarnation if there was memory for it."""
    unfit: frozenset[str] = frozenset()
    """Incarnations that failed and have to be ended."""
    arena_refused: bool = False
    """What the arena holds was refused: it has to be written again."""
    restart_reason: str = ""
    """Why `auto` no longer lets engines sleep; empty while it does."""
    switch_policy: Literal["restart", "sleep"] | None = None
    switch_reason: str = ""
    timings: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    failure: Failure | None = None
    failures: int = 0
    retry_at: float = 0.0
    """No step before this time; infinite after a configuration error."""


@dataclass(frozen=True)
class Observed:
    """Everything that a decision may depend on, gathered in one place."""

    site: Site
    trainer: TrainerSeen
    engine: EngineSeen
    arena: int | None
    """Version that the arena holds completely."""
    known: Known


# --- steps ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartTrainer:
    """Start it, or go on waiting until it answers."""


@dataclass(frozen=True)
class EndTrainer:
    """End its processes."""

    reason: str


@dataclass(frozen=True)
class Load:
    """The trainer takes a version's weights from its checkpoint."""

    version: int


@dataclass(frozen=True)
class Train:
    task: TrainTask


@dataclass(frozen=True)
class Save:
    """The trainer begins to write the version's checkpoint, without being waited for."""

    version: int


@dataclass(frozen=True)
class Checkpoint:
    """The version's checkpoint is durable: written now, or waited for after `Save`."""

    version: int


@dataclass(frozen=True)
class Export:
    """The trainer writes the arena."""

    version: int
    checksum: str | None
    """What it has to come out as, if known."""


@dataclass(frozen=True)
class Recall:
    """Ask the master for the manifest of what the arena holds."""

    version: int


@dataclass(frozen=True)
class Pull:
    """Other nodes' weights come into the arena."""

    version: int
    checksum: str | None
    """What it has to be, if known."""


@dataclass(frozen=True)
class Register:
    """Tell the master what the arena holds."""

    version: int


@dataclass(frozen=True)
class Offload:
    """The trainer leaves the accelerator."""


@dataclass(frozen=True)
class Onload:
    """The trainer takes the accelerator."""


@dataclass(frozen=True)
class Gate:
    """Wait until there is memory for the next owner."""

    owner: Owner


@dataclass(frozen=True)
class StartEngine:
    """Start it, or go on waiting until it answers."""


@dataclass(frozen=True)
class ForkEngine:
    """Start it ahead of time, without weights and without waiting, while the trainer still saves a version."""

    version: int


@dataclass(frozen=True)
class LoadEngine:
    """The engine takes the arena's weights; wakes it if it sleeps."""

    version: int


@dataclass(frozen=True)
class Attest:
    """The engine proves that it holds these weights."""

    version: int


@dataclass(frozen=True)
class StopEngine:
    """End its processes."""

    reason: str


@dataclass(frozen=True)
class SleepEngine:
    """The engine leaves the accelerator but lives on."""

    reason: str


@dataclass(frozen=True)
class Rollout:
    """Nothing to do: the engine serves."""


@dataclass(frozen=True)
class Idle:
    """Nothing to do until the master wants something else, the world changes, or `until` (Unix time)."""

    reason: str
    until: float | None = None


@dataclass(frozen=True)
class Finish:
    """End everything and leave."""


Step = (
    StartTrainer | EndTrainer | Load | Train | Save | Checkpoint | Export | Recall | Pull | Register | Offload | Onload | Gate
    | StartEngine | ForkEngine | LoadEngine | Attest | StopEngine | SleepEngine | Rollout | Idle | Finish
)  # fmt: skip

NAMES: Mapping[type[Step], node.Step] = {
    StartTrainer: "start-trainer",
    EndTrainer: "offload",
    Load: "load",
    Train: "train",
    Save: "checkpoint",
    Checkpoint: "checkpoint",
    Export: "export",
    Recall: "register",
    Pull: "pull",
    Register: "register",
    Offload: "offload",
    Onload: "onload",
    Gate: "gate",
    StartEngine: "start-engine",
    ForkEngine: "start-engine",
    LoadEngine: "load-engine",
    Attest: "attest",
    StopEngine: "stop-engine",
    SleepEngine: "stop-engine",
    Rollout: "rollout",
    Idle: "idle",
    Finish: "idle",
}
"""What the master and the user read."""
TRAINER_STEPS = (StartTrainer, Load, Train, Save, Checkpoint, Export, Offload, Onload)
"""Steps after whose failure nobody knows what state the trainer is in."""
ENGINE_STEPS = (StartEngine, ForkEngine, LoadEngine, Attest, SleepEngine)
"""Likewise the engine."""
