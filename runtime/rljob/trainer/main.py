"""The trainer process. One per rank: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and the job's environment; with several nodes
also RLJOB_PRESENCE_PORT, on which rank 0 listens."""

import logging
import os
import sys
import uuid
import warnings
from pathlib import Path

from rljob.api import ConfigurationError, InfrastructureError
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.trainer import device as devices
from rljob.trainer.architecture import read_architecture
from rljob.trainer.presence import attend
from rljob.trainer.ranks import Ranks, local_rank
from rljob.trainer.server import HttpBoard, serve
from rljob.wire.environment import Environment
from rljob.wire.trainer import TrainerStatus

log = logging.getLogger(__name__)


def main() -> None:
    """Run this rank until it is ended. Exits with 2 on a configuration error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _quieten_libraries()
    try:
        run(Environment.current())
    except (ConfigurationError, InfrastructureError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else 1)


def run(environment: Environment) -> None:
    """Check, join the other ranks, build the model, obey."""
    spec = environment.job.spec
    incarnation = uuid.uuid4().hex
    board = None
    if local_rank() == 0:
        board = HttpBoard(TrainerStatus(incarnation=incarnation, version=None, resident=False, busy="start"))
        serve(board, environment.socket("trainer"))
    model_folder = environment.directory("model")
    architecture = read_architecture(model_folder)
    device = devices.choose(spec.accelerator.type, local_rank())
    device.prepare()
    from rljob.trainer.build import build, check  # Megatron can be imported only now
    from rljob.trainer.loop import Trainer, follow, lead
    from rljob.trainer.nodes import lead_node

    check(spec.trainer, architecture, spec.world_size)
    if port := os.environ.get("RLJOB_PRESENCE_PORT"):
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        attend(rank, size, *(environment.listen("presence") if rank == 0 else (os.environ["MASTER_ADDR"], int(port))))
    ranks = Ranks.joined(devices.join(device), environment.node)
    replica = build(architecture, spec.trainer, devices.precision(spec.trainer.precision, device), device, ranks.names)
    trainer = Trainer(
        replica,
        ranks,
        spec,
        model_folder=model_folder,
        scratch=_scratch(environment),  # of this machine: `checkpoints` may be on a network
        node=environment.node,
        arenas=environment.directory("shm"),
        incarnation=ranks.share(incarnation.encode() if ranks.leads else None).decode(),
    )
    log.info("rank %d of %d: %s, %s", ranks.rank, ranks.size, architecture.family, replica.precision)
    if board is None:
        follow(trainer)
    elif ranks.leads:
        lead(trainer, board)
    else:
        lead_node(trainer, board)


def _scratch(environment: Environment) -> Path:
    folder = environment.directory("cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _quieten_libraries() -> None:
    """What Megatron and torch say of every start: Transformer Engine, Apex and Triton are missing, as they may be; GPTModel is deprecated
    (rljob.trainer.build says why it is used)."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    for name in ("megatron", "torch.utils.flop_counter"):
        logging.getLogger(name).setLevel(logging.ERROR)
