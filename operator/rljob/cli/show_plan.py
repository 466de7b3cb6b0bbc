"""`rljob plan`: a plan and its estimate as tables, YAML or JSON."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rljob.api import RLJob
from rljob.plan import Container, Estimate, Plan, Pod
from rljob.plan.types import AdvertiseHost, ExecProbe, Listen, PodHost, PodName, PodPort, Probe, ServiceUrl, Threads, VolumePath

MiB = 1 << 20


def reference(value: Any) -> str:
    """An environment variable's value as people read it."""
    match value:
        case VolumePath(volume, sub):
            return f"<{volume}>/{sub}" if sub else f"<{volume}>"
        case ServiceUrl(name):
            return f"<address of {name}>"
        case Listen(port):
            return f"<listen on {port}>"
        case PodName():
            return "<pod name>"
        case AdvertiseHost():
            return "<host of this pod>"
        case PodHost(pod):
            return f"<host of {pod}>"
        case PodPort(pod, port):
            return f"<port {port} of {pod}>"
        case Threads(processes):
            return "<cores>" if processes == 1 else f"<cores / {processes}>"
    return str(value)


def plain(thing: Any) -> Any:
    """A plan as plain data, references as text."""
    if isinstance(thing, VolumePath | ServiceUrl | Listen | PodName | AdvertiseHost | PodHost | PodPort | Threads):
        return reference(thing)
    if dataclasses.is_dataclass(thing):
        return {f.name: plain(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
    if isinstance(thing, Mapping):
        return {name: plain(value) for name, value in thing.items()}
    if isinstance(thing, tuple | list):
        return [plain(value) for value in thing]
    return thing


def document(plan: Plan, sizes: Estimate, here: Sequence[str] = ()) -> dict[str, Any]:
    """What `--output yaml|json` prints. `here`: what is different when the plan runs on this machine."""
    estimate = plain(sizes)
    estimate["memory"] = {name: {"total": m.total, **dict(m.parts)} for name, m in sizes.memory.items()}
    return {"plan": plain(plan), "estimate": estimate, "here": list(here)}


def _size(size: int) -> str:
    return f"{size / MiB:,.0f} MiB" if size < 10 * 1024 * MiB else f"{size / MiB / 1024:,.1f} GiB"


def _probe(probe: Probe) -> str:
    if isinstance(probe.check, ExecProbe):
        return " ".join(probe.check.command)
    return f"GET {probe.check.path} on {reference(probe.check.at)}"


def show(console: Console, job: RLJob, plan: Plan, sizes: Estimate, env: bool) -> None:
    """Print a plan for people."""
    spec, t = job.spec, job.spec.trainer
    shape = sizes.shape
    model = f"{shape.family}, {shape.parameters / 1e6:,.1f} M parameters" if shape else "not on this machine yet"
    if shape and shape.experts:
        model += f" ({shape.active / 1e6:,.1f} M a token: {shape.chosen} of {shape.experts} experts)"
    parallel = f"data {spec.data_parallel} × tensor {t.tensor_parallel} × pipeline {t.pipeline_parallel} × context {t.context_parallel}"
    if t.virtual_pipeline_parallel > 1:
        parallel += f", {t.virtual_pipeline_parallel} chunks in a stage"
    if t.expert_parallel > 1:
        parallel += f", expert {t.expert_parallel}"
    console.print(Text.assemble((plan.job, "bold"), f"  {model}  {spec.accelerator.type}, trainer: {parallel}"))
    _containers(console, plan)
    if env:
        _environment(console, plan)
    _volumes(console, plan)
    _memory(console, sizes)
    _time(console, job, sizes)
    for note in plan.notes:
        console.print(f"note: {note}", style="dim")


def _containers(console: Console, plan: Plan) -> None:
    console.print("Pods", style="italic")
    for (role, lines), alike in itertools.groupby(plan.pods, lambda pod: (pod.role, _lines(pod))):
        first, *more = alike
        name = first.name if first.replicas == 1 else f"{first.name} × {first.replicas}"
        if more:
            name = f"{first.name} to {more[-1].name.removeprefix(f'{role}-')}"
        waits = f"  waits for {', '.join(reference(w) for w in first.waits)}" if first.waits else ""
        console.print(Text.assemble((name, "bold"), (waits, "dim")), soft_wrap=True)
        for line, dim in lines:
            console.print(line, style="dim" if dim else "", soft_wrap=True)


def _lines(pod: Pod) -> tuple[tuple[str, bool], ...]:
    """Of its containers, each with whether it matters less."""
    lines: list[tuple[str, bool]] = []
    for kind, container in _kinds(pod):
        label = f"{container.name} ({kind})" if kind else container.name
        lines.append((f"  {label:<20} {' '.join(container.command)}", False))
        details = [f"port {p.name} {p.number}" for p in container.ports]
        details += [f"probe {_probe(container.probe)}"] if container.probe else []
        if details:
            lines.append((f"  {'':<20} {', '.join(details)}", True))
    return tuple(lines)


def _kinds(pod: Pod) -> list[tuple[str, Container]]:
    init = [("init", c) for c in pod.init_containers]
    return init + [("sidecar", c) for c in pod.sidecars] + [("", c) for c in pod.containers]


def _environment(console: Console, plan: Plan) -> None:
    for pod in plan.pods:
        for container in pod.all_containers:
            table = Table(title=f"{pod.name}/{container.name}", title_justify="left", box=None, show_header=False, pad_edge=False)
            for name, value in container.env.items():
                table.add_row(f"  {name}", reference(value))
            console.print(table)


def _volumes(console: Console, plan: Plan) -> None:
    table = Table(title="Volumes", title_justify="left", box=None, pad_edge=False)
    for column in ("volume", "kind", "needs", "used by"):
        table.add_column(column)
    for volume in plan.volumes:
        users = [c.name for pod in plan.pods for c in pod.all_containers if any(m.volume == volume.name for m in c.mounts)]
        kind = f"{volume.kind} (claim {volume.claim})" if volume.claim else volume.kind
        table.add_row(volume.name, kind, _size(volume.size) if volume.size else "", ", ".join(dict.fromkeys(users)))
    console.print(table)


def _memory(console: Console, sizes: Estimate) -> None:
    table = Table(title="Memory, at most (estimate)", title_justify="left", box=None, pad_edge=False)
    for column in ("process", "total", "of which"):
        table.add_column(column, justify="right" if column == "total" else "left")
    for name, memory in sizes.memory.items():
        table.add_row(name, _size(memory.total), ", ".join(f"{part} {_size(size)}" for part, size in memory.parts))
    if sizes.arena:
        table.add_row("shared weights", _size(sizes.arena), "in /dev/shm of every worker and rollout pod")
    console.print(table)


def _time(console: Console, job: RLJob, sizes: Estimate) -> None:
    a, pairs = job.spec.algorithm, job.spec.reward_model
    what = f"{a.prompts_per_iteration} prompts × {a.samples_per_prompt} answers, about {sizes.answer_tokens:,} generated and"
    if pairs is not None:
        what = f"{pairs.steps_per_iteration} steps × {pairs.batch_size} pairs, about"
    console.print(f"One iteration: {what} {sizes.trained_tokens:,} trained tokens.")
    if sizes.seconds:
        total = sum(sizes.seconds.values())
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sizes.seconds.items())
        whole = total * job.spec.iterations / 60
        warm = f", after a warm start of {job.spec.warm_start.steps} steps" if job.spec.warm_start else ""
        console.print(f"Time, roughly: {total:.1f} s an iteration ({parts}); {job.spec.iterations} iterations in {whole:.1f} min{warm}.")
