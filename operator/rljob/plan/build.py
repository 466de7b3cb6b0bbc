"""From a job to its pods. Pure: the same job gives the same plan, here and in a cluster."""

import json

from rljob.api import RLJob
from rljob.plan.estimate import Estimate, Machine, engine_bytes, estimate
from rljob.plan.shape import ModelShape, of_scratch
from rljob.plan.types import (
    AdvertiseHost,
    Container,
    HttpProbe,
    Listen,
    Mount,
    Plan,
    Pod,
    PodHost,
    PodName,
    PodPort,
    Port,
    Probe,
    Resources,
    Service,
    ServiceUrl,
    Threads,
    Value,
    Volume,
    VolumePath,
)

MASTER, REWARD, SANDBOX = Port("master", 8080), Port("reward", 8081), Port("sandbox", 8082)
ENGINE, RENDEZVOUS, PRESENCE = Port("engine", 8000), Port("rendezvous", 29500), Port("presence", 29501)

_WORK = Mount("work", "/rljob/work")
_CACHE = Mount("cache", "/rljob/cache")
_JOB = Mount("job", "/rljob/job", read_only=True)
_SOURCE = Mount("source", "/rljob/source", read_only=True)
_MEMORY = Mount("shm", "/dev/shm")
_SOCKETS = Mount("sockets", "/rljob/sockets")

_TINY = 20_000_000
"""Below so many parameters a second thread costs more than it gives (440 against some 30 tokens/s, vLLM on two busy cores)."""


def plan(job: RLJob, shape: ModelShape | None = None) -> Plan:
    """Pods, volumes and services of a job. `shape` only refines what is asked for: memory and threads."""
    source = job.spec.model.source.scratch
    if shape is None and source is not None:
        shape = of_scratch(source)
    sizes = estimate(job, shape, Machine(cores=2, bf16=False))
    pods = [_master(job, sizes), *(_worker(job, sizes, i) for i in range(job.spec.trainer.nodes))]
    services = [Service("master", "master", MASTER.name)]
    if job.spec.generates:
        pods += [_rollout(job, sizes, i) for i in range(job.spec.rollout.replicas)]
        pods.append(_reward(job, sizes))
        services.append(Service("reward", "reward", REWARD.name))
    if job.spec.needs_sandbox:
        pods.append(_sandbox(job, sizes))
        services.append(Service("sandbox", "sandbox", SANDBOX.name))
    return Plan(
        job=job.metadata.name,
        pods=tuple(pods),
        volumes=_volumes(job, sizes),
        services=tuple(services),
        notes=sizes.notes,
        sized=sizes.shape is not None,
    )


def _volumes(job: RLJob, sizes: Estimate) -> tuple[Volume, ...]:
    # Room for two versions, also where there is no rollout pod: one may come at any time, and then peers still read the old version.
    shared = 2 * sizes.shape.parameters * engine_bytes(job) if sizes.shape else 0
    resolved = json.dumps(job.model_dump(mode="json", by_alias=True), indent=1)
    return (
        Volume("job", "config", files={"job.json": resolved}),
        Volume("source", "source"),
        Volume("work", "state", size=sizes.disk, claim=job.spec.checkpoint.volume),
        Volume("cache", "cache"),
        Volume("shm", "memory", size=shared),
        Volume("sockets", "sockets"),
    )


_FOLDERS: dict[str, VolumePath] = {
    "model": VolumePath("work", "source"),
    "data": VolumePath("work", "data"),
    "state": VolumePath("work", "state"),
    "checkpoints": VolumePath("work", "checkpoints"),
    "output": VolumePath("work"),
    "cache": VolumePath("cache"),
    "shm": VolumePath("shm"),
    "sockets": VolumePath("sockets"),
}


def _env(*folders: str, **more: Value) -> dict[str, Value]:
    """What every container gets, the folders it may use, and more."""
    common: dict[str, Value] = {
        "RLJOB_JOB": VolumePath("job", "job.json"),
        "RLJOB_NODE": PodName(),
        "RLJOB_ADVERTISE_HOST": AdvertiseHost(),
    }
    return common | {f"RLJOB_DIR_{name.upper()}": _FOLDERS[name] for name in folders} | more


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return ("python", "-m", f"rljob.{name}", *arguments)


def _resources(sizes: Estimate, name: str, cpus: float, accelerators: int = 0) -> Resources:
    return Resources(sizes.memory[name].total, cpus, accelerators)


def _master(job: RLJob, sizes: Estimate) -> Pod:
    prepare = Container(
        name="prepare",
        command=_module("prepare"),
        env=_env("model", "data", "cache", RLJOB_SOURCE_DIR=VolumePath("source")),
        mounts=(_JOB, _SOURCE, _WORK, _CACHE),
        resources=_resources(sizes, "prepare", 0.25),
        restart="on-failure",
    )
    reward: dict[str, Value] = {"RLJOB_URL_REWARD": ServiceUrl("reward")} if job.spec.generates else {}
    master = Container(
        name="master",
        command=_module("master"),
        env=_env(
            "model",
            "data",
            "state",
            "checkpoints",
            "output",
            "cache",
            RLJOB_LISTEN_MASTER=Listen(MASTER.name),
            RLJOB_URL_MASTER=ServiceUrl("master"),
            **reward,
        ),
        mounts=(_JOB, _WORK, _CACHE),
        resources=_resources(sizes, "master", 0.25),
        restart="on-failure",
        ports=(MASTER,),
        probe=Probe(HttpProbe(Listen(MASTER.name), "/healthz")),
    )
    return Pod("master", "master", (master,), init_containers=(prepare,))


def _threads(sizes: Estimate, processes: int) -> dict[str, Value]:
    tiny = sizes.shape is not None and sizes.shape.parameters < _TINY
    # A thread that waits would spin, and take the core from whoever shares it: two jobs on two cores took six times as long as one alone,
    # and take twice as long so. A job alone takes a twentieth longer.
    return {"OMP_NUM_THREADS": "1" if tiny else Threads(processes), "OMP_WAIT_POLICY": "PASSIVE"}


def _shim(
    payload: str, name: str, env: dict[str, Value], sizes: Estimate, job: RLJob, ports: tuple[Port, ...], processes: int
) -> Container:
    """A sidecar: the shim is its first process and starts the payload, of so many processes, when the node agent says so."""
    devices = processes if job.spec.accelerator.type != "cpu" else 0
    return Container(
        name=name,
        command=_module("checkpoint_engine.shim", "--payload", payload),
        env=env,
        mounts=(_JOB, _WORK, _CACHE, _MEMORY, _SOCKETS),
        resources=_resources(sizes, name, processes, devices),
        restart="always",
        ports=ports,
        probe=Probe(HttpProbe(VolumePath("sockets", f"{name}-shim.sock"), "/v1/status")),
    )


def _megatron(job: RLJob, sizes: Estimate, rank: int) -> Container:
    per_node = job.spec.accelerator.per_node
    ranks: dict[str, Value] = {"LOCAL_WORLD_SIZE": str(per_node), "NODE_RANK": str(rank)} | _threads(sizes, per_node)
    ports: tuple[Port, ...] = ()
    if job.spec.trainer.nodes > 1:
        # Ranks of one node meet on a port that they find themselves; several nodes need an address that all know.
        ranks |= {"MASTER_ADDR": PodHost("worker-0"), "MASTER_PORT": PodPort("worker-0", RENDEZVOUS.name)}
        ranks["RLJOB_PRESENCE_PORT"] = PodPort("worker-0", PRESENCE.name)
        if rank == 0:
            ranks["RLJOB_LISTEN_PRESENCE"] = Listen(PRESENCE.name)
            ports = (RENDEZVOUS, PRESENCE)
    if not job.spec.generates:
        ports = (*ports, ENGINE)  # the node's address for others, which else is the engine's
    folders = ("model", "data", "checkpoints", "cache", "shm", "sockets")
    return _shim("trainer", "megatron", _env(*folders, RLJOB_URL_MASTER=ServiceUrl("master"), **ranks), sizes, job, ports, per_node)


def _vllm(job: RLJob, sizes: Estimate, devices: int) -> Container:
    """`devices`: of the pod. In a worker pod those of the trainer, which may be more than the engine uses."""
    folders = ("model", "data", "checkpoints", "cache", "shm", "sockets")
    env = _env(*folders, RLJOB_LISTEN_ENGINE=Listen(ENGINE.name), **_threads(sizes, job.spec.rollout.tensor_parallel))
    return _shim("vllm", "vllm", env, sizes, job, (ENGINE,), devices)


def _agent(memory: int) -> Container:
    folders = ("model", "data", "checkpoints", "cache", "shm", "sockets")
    return Container(
        name="checkpoint-engine",
        command=_module("checkpoint_engine"),
        env=_env(*folders, RLJOB_URL_MASTER=ServiceUrl("master"), RLJOB_LISTEN_ENGINE=Listen(ENGINE.name)),
        mounts=(_JOB, _WORK, _CACHE, _MEMORY, _SOCKETS),
        resources=Resources(memory, 0.1),
        restart="on-failure",
    )


_PREPARED = (VolumePath("work", "data/prepared.json"), VolumePath("work", "source/config.json"))


def _worker(job: RLJob, sizes: Estimate, index: int) -> Pod:
    megatron = _megatron(job, sizes, index)
    sidecars = (megatron, _vllm(job, sizes, job.spec.accelerator.per_node)) if job.spec.generates else (megatron,)
    agent = _agent(sizes.memory["checkpoint-engine"].total)
    return Pod("worker", f"worker-{index}", (agent,), sidecars=sidecars, waits=_PREPARED)


def _rollout(job: RLJob, sizes: Estimate, index: int) -> Pod:
    # No batch passes through it, and it has devices for its engine alone.
    agent = _agent(dict(sizes.memory["checkpoint-engine"].parts)["interpreter"])
    return Pod("rollout", f"rollout-{index}", (agent,), sidecars=(_vllm(job, sizes, job.spec.rollout.tensor_parallel),), waits=_PREPARED)


def _reward(job: RLJob, sizes: Estimate) -> Pod:
    more: dict[str, Value] = {"RLJOB_URL_SANDBOX": ServiceUrl("sandbox")} if job.spec.needs_sandbox else {}
    beside = bool(job.spec.reward.model_folders)
    more |= {"RLJOB_SOURCE_DIR": VolumePath("source")} if beside else {}
    reward = Container(
        name="reward",
        command=_module("reward"),
        env=_env("cache", RLJOB_LISTEN_REWARD=Listen(REWARD.name), **more),
        mounts=(_JOB, _SOURCE, _CACHE) if beside else (_JOB, _CACHE),
        resources=_resources(sizes, "reward", 0.25),
        restart="always",
        ports=(REWARD,),
        probe=Probe(HttpProbe(Listen(REWARD.name), "/healthz")),
    )
    return Pod("reward", "reward", (reward,), replicas=job.spec.reward.replicas)


def _sandbox(job: RLJob, sizes: Estimate) -> Pod:
    """Told nothing of the job and given none of its volumes: what a program could steal is not there."""
    settings = job.spec.sandbox.model_dump_json(by_alias=True, exclude={"enabled", "replicas"})
    sandbox = Container(
        name="sandbox",
        command=_module("sandbox"),
        env={"RLJOB_SANDBOX": settings, "RLJOB_LISTEN_SANDBOX": Listen(SANDBOX.name)},
        mounts=(),
        resources=_resources(sizes, "sandbox", job.spec.sandbox.slots),
        restart="always",
        ports=(SANDBOX,),
        probe=Probe(HttpProbe(Listen(SANDBOX.name), "/healthz")),
        grace_seconds=40.0,
    )
    return Pod("sandbox", "sandbox", (sandbox,), replicas=job.spec.sandbox.replicas)
