"""What the loop works with; put together in `app`."""

from dataclasses import dataclass
from pathlib import Path

from rljob.api import RLJob
from rljob.master.activity import Activity
from rljob.master.engines import EnginePool
from rljob.master.exchange import Exchange
from rljob.master.inputs import Inputs
from rljob.master.nodes import Nodes
from rljob.master.scoring import Decode, Scorer
from rljob.master.state import Buffer, Database, History, Versions
from rljob.master.timing import Clock, Stopwatch
from rljob.master.watch import Watch


@dataclass(frozen=True)
class Folders:
    """The master's volumes."""

    model: Path
    data: Path
    state: Path
    output: Path
    checkpoints: Path


@dataclass(frozen=True)
class State:
    """Everything durable."""

    database: Database
    buffer: Buffer
    versions: Versions
    history: History


@dataclass(frozen=True)
class Parts:
    """Everything that the loop uses."""

    job: RLJob
    folders: Folders
    inputs: Inputs
    decode: Decode
    state: State
    nodes: Nodes
    exchange: Exchange
    pool: EnginePool
    scorer: Scorer
    watch: Watch
    stopwatch: Stopwatch
    activity: Activity
    clock: Clock
