"""Between the master and a node's checkpoint-engine: the master says what it wants, the node what is.

`POST {master}/v1/nodes/{node}/sync?wait=SECONDS` takes a NodeReport and answers with NodeDesired: at once if `desired.revision` differs
from `report.seen_revision`, else after `wait` seconds at the latest (a long poll). Lost or repeated calls do no harm.
"""

from typing import Literal

from pydantic import Field

from rljob.wire.base import Failure, Message
from rljob.wire.pieces import HeldWeights


class TrainTask(Message):
    """Make the next version. Fetched batch: `GET {master}/v1/batches/{version}` (rljob.wire.batch)."""

    version: int
    """The version that this task makes, from version - 1."""
    kind: Literal["rl", "sft", "preference"]
    steps: int
    """Optimizer steps; for `sft` and `preference` the batch's samples are split evenly among them in the order given."""
    iteration: int
    """Iteration of the job, for logs; 0 for the warm start."""


class PairMetrics(Message):
    """What a reward model's training task reports of pairs; a margin is r_chosen - r_rejected."""

    right: float
    """Share of the training pairs that were in the right order when their step came."""
    margin: float
    """Mean margin of the training pairs when their step came."""
    held_out: tuple[float, ...] = ()
    """Margins of the batch's held-out pairs under the new version, in the order given."""
    held_out_before: tuple[float, ...] = ()
    """The same under the version before; of the job's first iteration only."""


class TrainMetrics(Message):
    """What a finished training task reports."""

    version: int
    loss: float
    grad_norm: float
    learning_rate: float
    steps: int
    samples: int
    tokens: int
    """Tokens that went through the model, prompts counted once per group."""
    seconds: float
    kl: float
    """Mean over samples of (log-ratio to the iteration's start)^2 / 2 after the last step seen; 0 with one step."""
    logprob_gap: float
    """Mean absolute difference per answer token between the trainer's and the engine's log-probs at the iteration's start."""
    pairs: PairMetrics | None = None
    """Of a `preference` task."""


Step = Literal[
    "start-trainer", "load", "train", "export", "register", "checkpoint", "offload", "gate", "pull", "start-engine", "load-engine",
    "attest", "rollout", "stop-engine", "onload", "idle",
]  # fmt: skip
"""What a node is doing; the cycle of docs/design.md."""


class Progress(Message):
    """How far the step in progress is."""

    done: int
    total: int


class EngineReport(Message):
    """A vLLM engine of this node."""

    url: str
    incarnation: str
    """New for every process; a request answered by another incarnation than the one it was sent to is void."""
    version: int
    checksum: str
    routable: bool
    """Attested and not paused: version and checksum are proven, requests may be sent."""
    leaving: bool = False
    """It is about to end: no new request may be sent; what runs comes back with the tokens that there are, and goes on elsewhere."""


class TrainerReport(Message):
    """The trainer of this node; None fields are not known yet."""

    incarnation: str
    version: int | None
    resident: bool
    """True while the trainer's state is on the accelerator."""


class NodeReport(Message):
    """What is."""

    node: str
    kind: Literal["worker", "rollout"]
    incarnation: str
    """New for every start of the node agent."""
    number: int = 0
    """Rises with every report of an incarnation: one that was on its way for long does not take the place of a newer one."""
    seen_revision: int
    """Newest NodeDesired.revision this node has taken up; 0 for none."""
    step: Step
    step_started: float
    """Unix time at which this step began."""
    progress: Progress | None = None
    trainer: TrainerReport | None = None
    engine: EngineReport | None = None
    weights_url: str = ""
    """Address of this node's weight server."""
    weights: HeldWeights | None = None
    """The complete version that other nodes can have from this one."""
    trained: TrainMetrics | None = None
    """Result of the newest finished training task."""
    checkpointed: int | None = None
    """Newest version whose checkpoint is durable."""
    timings: dict[str, float] = Field(default_factory=dict)
    """Seconds of each step since the last change of desired.version or phase, by step name."""
    switch_policy: Literal["restart", "sleep"] | None = None
    """What the last hand-over did, and `switch_reason` why."""
    switch_reason: str = ""
    failure: Failure | None = None
    """The step in progress keeps failing for this reason; None once it works again."""
    failures: int = 0
    """Failures in a row."""


class NodeDesired(Message):
    """What the master wants. A node that has lost everything can get here from this message alone."""

    revision: int
    phase: Literal["train", "rollout", "idle", "stop"]
    """`train`: make `task.version`. `rollout`: serve `version`. `idle`: keep state, use no accelerator. `stop`: the job is over."""
    version: int
    """The committed version; its weights are in `checkpoints/` (version 0: the starting model's folder)."""
    checksum: str | None
    """Checksum of `version`'s weights once known: an export that differs is an error."""
    task: TrainTask | None = None
    ahead: bool = False
    """While `train`: nodes without a trainer serve `version`, for the next iteration."""
    attempt: int = 0
    """Raised to make nodes try again."""


class NodeAddresses(Message):
    """Where nodes give their weights."""

    weights: dict[str, str]
    """Address of the weight server of every worker node that has reported."""
    held: dict[str, int]
    """Version that a node, of whatever kind, has whole."""
