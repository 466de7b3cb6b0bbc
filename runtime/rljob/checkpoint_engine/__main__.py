"""`python -m rljob.checkpoint_engine`: the node agent of a pod."""

import asyncio
import logging
import os
import signal
import sys
import uuid
from pathlib import Path

import httpx
from pydantic import ValidationError

from rljob.api import ConfigurationError, InfrastructureError, RLJob
from rljob.api.errors import EXIT_CONFIGURATION
from rljob.checkpoint_engine.act import STOP_GRACE, Parts, Plan
from rljob.checkpoint_engine.clients import HttpEngine, HttpMaster, HttpShim, HttpTrainer, LocalArena, Shim, socket_client
from rljob.checkpoint_engine.container import complete
from rljob.checkpoint_engine.fill import Filler
from rljob.checkpoint_engine.gate import CpuMemory, DeviceMemory, NvmlMemory
from rljob.checkpoint_engine.mooncake import Memory, MooncakeTransport, open_engine
from rljob.checkpoint_engine.node import Node
from rljob.checkpoint_engine.pull import Puller
from rljob.checkpoint_engine.space import require_room
from rljob.checkpoint_engine.state import Owner, Site
from rljob.checkpoint_engine.transport import HttpTransport, Transport
from rljob.checkpoint_engine.weight_server import Shelf, WeightServer
from rljob.rollout.client import EngineClient
from rljob.rollout.engine import GPU_UTILIZATION, engine_argv, engine_environment, kv_cache_bytes
from rljob.wire.clock import steady_time
from rljob.wire.connections import pool
from rljob.wire.data import Prepared
from rljob.wire.environment import Environment

ARENA = "weights.safetensors"
"""Name of the arena below the pod's shared-memory folder."""
MiB, GiB = 1 << 20, 1 << 30
_OVERHEAD = GiB
"""What a process with torch takes besides weights and caches."""
_TRAINER_BYTES = 16
"""Per parameter: fp32 weight, gradient and Adam's two moments."""
_CHECKPOINT_BYTES, _SLOW_STORAGE = 12, 2e8
"""Per parameter: fp32 weight and the moments; bytes per second."""


def main() -> int:
    """Entry point; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        complete(os.environ)
        asyncio.run(run(Environment.current()))
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except InfrastructureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


async def run(environment: Environment) -> None:
    """Serve until the job is over or SIGTERM comes.

    Raises:
        ConfigurationError: the environment or the prepared model cannot be used, or the weights do not fit into shared memory.
    """
    job = environment.job
    check_shared_memory(job, environment)
    async with (
        socket_client(environment.socket("megatron-shim")) as trainer_shim,
        socket_client(environment.socket("vllm-shim")) as engine_shim,
        socket_client(environment.socket("trainer")) as trainer,
        httpx.AsyncClient(transport=pool(), base_url=environment.url("master")) as master,
        httpx.AsyncClient(transport=pool(20)) as engine,
    ):
        shims: dict[Owner, Shim] = {"trainer": HttpShim(trainer_shim, "megatron shim"), "engine": HttpShim(engine_shim, "vllm shim")}
        memory = device_memory(job, shims)
        shelf = Shelf(environment.directory("shm") / ARENA)
        transport, registered = weight_transport(job, environment.advertise_host)
        server = WeightServer(shelf, environment.listen("engine")[0], registered)
        plan = make_plan(job, environment, memory, server.port)
        client = HttpMaster(master, environment.node)
        puller = Puller(client, transport, shelf, plan.arena, plan.node, plan.weights_url, plan.deadline)
        parts = Parts(
            trainer_shim=shims["trainer"],
            trainer=HttpTrainer(trainer),
            engine_shim=shims["engine"],
            engine=HttpEngine(EngineClient(plan.engine_url, engine)),
            master=client,
            weights=LocalArena(plan.arena),
            memory=memory,
            new_incarnation=lambda: uuid.uuid4().hex,
            peers=puller if plan.site.kind == "rollout" or plan.site.nodes > 1 else None,
            filler=Filler(transport, shelf, plan.arena, plan.node, plan.deadline) if plan.site.nodes > 1 else None,
        )
        node = Node(plan, parts, uuid.uuid4().hex, steady_time)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, node.end)
        await node.run()


def weight_transport(job: RLJob, host: str) -> tuple[Transport, Memory | None]:
    """How other nodes' weights come here, and this node's memory for those that read it themselves.

    Raises:
        ConfigurationError: Mooncake is wanted and cannot be used.
    """
    how = job.spec.rollout.weights
    if how.transport == "http":
        return HttpTransport(), None
    engine = open_engine(host, how.protocol)
    return MooncakeTransport(engine), Memory(engine, host)


def device_memory(job: RLJob, shims: dict[Owner, Shim]) -> DeviceMemory:
    """The memory that the two take turns on: the one place that chooses by accelerator."""
    if job.spec.accelerator.type == "nvidia":
        return NvmlMemory.open(names=os.environ.get("CUDA_VISIBLE_DEVICES"), count=job.spec.accelerator.per_node)

    async def held(owner: Owner) -> int:
        status = await shims[owner].status(memory=True)
        return status.memory if status is not None else 0

    return CpuMemory(held)


def make_plan(job: RLJob, environment: Environment, memory: DeviceMemory, weights_port: int) -> Plan:
    """Everything that stays the same while this node works."""
    prepared = read_prepared(environment.directory("data") / "prepared.json")
    model = environment.directory("model")
    host, port = environment.listen("engine")
    spec = job.spec
    return Plan(
        site=Site(
            "rollout" if environment.node.startswith("rollout") else "worker",
            spec.accelerator.type,
            spec.switch.policy,
            spec.generates,
            spec.trainer.nodes,
        ),
        node=environment.node,
        engine_url=environment.advertised_url(port),
        engine_argv=tuple(engine_argv(job, prepared, model, host, port, alone=environment.node.startswith("rollout"))),
        engine_env=engine_environment(job),
        trainer_env={"NNODES": str(spec.trainer.nodes)},
        model=model,
        checkpoints=environment.directory("checkpoints"),
        arena=environment.directory("shm") / ARENA,
        deadline=spec.switch.deadline_seconds,
        storage=storage_seconds(prepared),
        gate_deadline=spec.switch.memory_gate.deadline_seconds,
        leak_tolerance=parse_size(spec.switch.memory_gate.leak_tolerance),
        claims=claims(job, prepared, model, memory),
        engine_grace=engine_grace(job),
        weights_url=environment.advertised_url(weights_port),
    )


def storage_seconds(prepared: Prepared) -> float:
    """Seconds that slow storage needs for a checkpoint with its optimizer."""
    return _CHECKPOINT_BYTES * prepared.parameters / _SLOW_STORAGE


def check_shared_memory(job: RLJob, environment: Environment) -> None:
    """Refuse a worker that has no room for the weights: the first export would find it, after the warm start. A rollout node that has none
    says so where the job goes on without it.

    Raises:
        ConfigurationError: the weights do not fit.
    """
    if environment.node.startswith("rollout"):
        return
    prepared, arena = read_prepared(environment.directory("data") / "prepared.json"), environment.directory("shm") / ARENA
    require_room(arena, weight_bytes(job, prepared), arena.stat().st_size if arena.exists() else 0)


def weight_bytes(job: RLJob, prepared: Prepared) -> int:
    """Bytes of a version in the engine's type."""
    return (4 if job.spec.engine_dtype == "float32" else 2) * prepared.parameters


def engine_grace(job: RLJob) -> float:
    """Seconds that an engine gets to end in order. One that is alone with main memory has nothing to put in order: the 0.15 s of each
    hand-over that vLLM 0.32 takes go into a search for other users of its port. More than one process, or a device, may have."""
    alone = job.spec.accelerator.type == "cpu" and job.spec.rollout.tensor_parallel == 1
    return 0.0 if alone else STOP_GRACE


def claims(job: RLJob, prepared: Prepared, model: Path, memory: DeviceMemory) -> dict[Owner, int]:
    """Bytes that each owner takes at least: of main memory on CPU, of one device else.

    Raises:
        ConfigurationError: rollout.engine.extraArgs cannot be used.
    """
    t = job.spec.trainer
    ranks = job.spec.accelerator.per_node if job.spec.accelerator.type == "cpu" else 1
    # Only experts are spread over expertParallel ranks too; how much of a model they are is not known here, so all of it counts as them.
    shards = t.tensor_parallel * t.pipeline_parallel * t.expert_parallel
    trainer = ranks * (_TRAINER_BYTES * prepared.parameters // shards + _OVERHEAD)
    if job.spec.accelerator.type == "nvidia":
        # vLLM itself refuses to start when less than this share of the device is free.
        return {"trainer": trainer, "engine": int(utilization(job) * memory.total())}
    return {"trainer": trainer, "engine": weight_bytes(job, prepared) + kv_cache_bytes(job, prepared, model) + _OVERHEAD}


def utilization(job: RLJob) -> float:
    """Share of a device that an engine claims.

    Raises:
        ConfigurationError: the job says something else than a share.
    """
    said = job.spec.rollout.engine.extra_args.get("gpu-memory-utilization", str(GPU_UTILIZATION))
    try:
        share = float(said)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigurationError(f"rollout.engine.extraArgs.gpu-memory-utilization is {said!r}: say a share of the device, such as 0.85")
    return share


def read_prepared(path: Path) -> Prepared:
    """What the init container found out about the model.

    Raises:
        ConfigurationError: it is not there or not readable.
    """
    try:
        return Prepared.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}; `rljob.prepare` writes it") from error


def parse_size(text: str) -> int:
    """`512Mi` or `2Gi` in bytes."""
    return int(text[:-2]) * (MiB if text.endswith("Mi") else GiB)


if __name__ == "__main__":
    sys.exit(main())
