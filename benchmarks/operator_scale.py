"""One operator and a thousand RLJobs: how soon a job has its objects, what it costs to keep them.

    python benchmarks/operator_scale.py [--jobs 1000] [--burst 500] [--json]

The control plane is real (etcd, API server, controller manager, scheduler on this machine, beside everything else that runs here);
kubelets are played by kwok, masters by one small server that answers for all of them. All jobs mount one claim, since nothing here makes
volumes.

- *idle*: jobs come one at a time; from the API server's answer to the `apply` until a watch has seen the last of its objects.
- *burst*: many jobs at once; the same per job. The whole control plane shares this machine's cores, so beside the seconds it is told what
  CPU the operator, the API server, and the other servers of the cluster spend on one new job.
- *steady*: all jobs run, every master is asked for its progress and finishes an iteration every ten minutes; CPU and memory of the
  operator.
- *restart*: the operator is killed, pods are deleted while it is away; from its start until it has looked at every job and made up for
  the losses (without leader election: a clean stop gives the Lease back).
- *bare*: the limit of this control plane: no operator runs, and a client that knows beforehand what is to be made creates as many jobs and
  the same objects for each with plain concurrent POSTs. `burst_vs_bare` is how many times as long the operator took.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from tests.cluster.cluster import LocalCluster, start  # noqa: E402
from tests.controller.process import Process, install_crd  # noqa: E402

from rljob.controller.apiserver import ApiServer  # noqa: E402
from rljob.controller.client import ApiError  # noqa: E402
from rljob.controller.connection import from_kubeconfig  # noqa: E402
from rljob.controller.kinds import CHILDREN, Ref  # noqa: E402
from rljob.controller.metrics import Metrics  # noqa: E402
from rljob.controller.watch import SELECTOR  # noqa: E402

NAMESPACE = "default"
OBJECTS = 13
"""Of one job here: three ServiceAccounts, a ConfigMap, three NetworkPolicies, two Services, two Pods, a Deployment and its budget."""
SPACING = 0.7
"""Seconds between two jobs of the idle phase."""
ITERATION_SECONDS = 600.0

MASTERS = """
import http.server, json, os, time
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        now = time.time()
        # The address of the pod that was asked: each ends its iterations at a time of its own.
        shift = hash(self.connection.getsockname()[0]) % 600
        done = int((now + shift - START) // ITERATION)
        body = json.dumps({"phase": "Rollout", "iteration": done + 1, "iterations": 100, "policyVersion": done, "reward": 0.5,
                           "tokensPerSecond": now % 100, "updated": now}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
START, ITERATION = time.time(), ITERATION_SECONDS
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Answer).serve_forever()
"""


def rljob(name: str) -> dict[str, Any]:
    """A small complete job whose pods may run on kwok's nodes."""
    template = {"spec": {"tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]}}
    return {
        "apiVersion": "rljob.dev/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"source": {"path": "/models/small"}},
            "data": {"train": {"path": "/data/train.jsonl"}},
            "checkpoint": {"volume": "shared"},
            "templates": {role: template for role in ("master", "worker", "rollout", "reward")},
        },
    }


VOLUME: list[dict[str, Any]] = [
    {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "shared"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "hostPath": {"path": "/tmp"},
            "storageClassName": "none",
        },
    },
    {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared", "namespace": NAMESPACE},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "none",
            "volumeName": "shared",
        },
    },
]


class Watcher:
    """When each job's objects were seen."""

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        self.seen: dict[str, set[tuple[str, str]]] = {}
        self.complete: dict[str, float] = {}
        self.open = asyncio.Semaphore(0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Watcher"]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._follow(kind)) for kind in CHILDREN if not kind.optional]
            for _ in tasks:
                await self.open.acquire()
            yield self
            for task in tasks:
                task.cancel()

    async def _follow(self, kind: Any) -> None:
        bare = kind._replace(whole=False)
        version, opened = (await self.api.list_objects(bare, None, selector=SELECTOR)).version, False
        while True:
            try:
                async with self.api.watch(bare, None, version, SELECTOR) as changes:
                    if not opened:
                        self.open.release()
                        opened = True
                    async for change in changes:
                        meta = change.object["metadata"]
                        version = meta["resourceVersion"]
                        if change.type == "ADDED" and meta["ownerReferences"][0]["kind"] == "RLJob":
                            self._take(meta["labels"]["rljob.dev/job"], (kind.kind, meta["name"]))
            except ApiError as error:
                # A stream of what nobody makes here falls silent.
                if not error.temporary:
                    raise

    def _take(self, job: str, child: tuple[str, str]) -> None:
        there = self.seen.setdefault(job, set())
        there.add(child)
        if len(there) >= OBJECTS:
            self.complete.setdefault(job, time.perf_counter())


async def create(api: ApiServer, name: str, at: dict[str, float]) -> None:
    """Apply one job."""
    await api.create(rljob(name))
    at[name] = time.perf_counter()


async def until(condition: Any, seconds: float, what: str) -> None:
    """Wait for something.

    Raises:
        TimeoutError: it did not come true.
    """
    end = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        await asyncio.sleep(0.2)


def spread(watcher: Watcher, at: dict[str, float]) -> dict[str, float]:
    """Median, 99th percentile and longest of the seconds from apply to all objects."""
    times = sorted(max(0.0, watcher.complete[name] - began) for name, began in at.items())
    return {"p50_s": statistics.median(times), "p99_s": times[min(len(times) - 1, int(len(times) * 0.99))], "max_s": times[-1]}


SERVERS = ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler", "kwok")


def cpu_seconds(pid: int) -> float:
    """What a process has used so far (proc_pid_stat(5), utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Figures:
    """The operator from outside, and the servers beside it."""

    def __init__(self, operator: Process, cluster: LocalCluster) -> None:
        self.operator = operator
        self.cluster = cluster

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far: the operator's, the API server's, and those of the cluster's other servers."""
        return {"operator": self.metrics()["process_cpu_seconds_total"], **self.servers()}

    def servers(self) -> dict[str, float]:
        """The same without the operator."""
        used = {name: cpu_seconds(self.cluster.process(name).pid) for name in SERVERS}
        return {"api_server": used.pop("kube-apiserver"), "others": sum(used.values())}

    def metrics(self) -> dict[str, float]:
        """Everything on /metrics, and requests to the API server in all."""
        found: dict[str, float] = {}
        for line in self.operator.get("/metrics").text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        found["requests"] = sum(v for n, v in found.items() if n.startswith("rljob_operator_api_requests_total"))
        return found


def tell(found: dict[str, Any], phase: str) -> None:
    """Each phase as soon as it is done: a run that is cut off is not for nothing."""
    print(f"{phase}: {json.dumps(found[phase])}", file=sys.stderr, flush=True)


def looks(metrics: dict[str, float]) -> float:
    """Looks at jobs so far."""
    return metrics.get("rljob_operator_reconcile_seconds_count", 0.0)


async def idle(api: ApiServer, watcher: Watcher, count: int) -> dict[str, float]:
    """Jobs that come one by one."""
    at: dict[str, float] = {}
    for index in range(count):
        await create(api, f"idle-{index}", at)
        await asyncio.sleep(SPACING)
    await until(lambda: all(name in watcher.complete for name in at), 60, "objects of the idle jobs")
    return spread(watcher, at)


async def burst(api: ApiServer, watcher: Watcher, names: list[str]) -> dict[str, float]:
    """Jobs that come at once."""
    at: dict[str, float] = {}
    slots = asyncio.Semaphore(32)

    async def one(name: str) -> None:
        async with slots:
            await create(api, name, at)

    began = time.perf_counter()
    await asyncio.gather(*(one(name) for name in names))
    applied = time.perf_counter() - began
    await until(lambda: all(name in watcher.complete for name in at), 240, "objects of the burst")
    return spread(watcher, at) | {"apply_s": applied, "all_s": time.perf_counter() - began}


async def steady(figures: Figures, seconds: float) -> dict[str, float]:
    """What a minute without events costs."""
    before, began = figures.metrics(), time.perf_counter()
    await asyncio.sleep(seconds)
    after, wall = figures.metrics(), time.perf_counter() - began
    return {
        "cpu_share_of_core": (after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]) / wall,
        "rss_mb": after["process_resident_memory_bytes"] / 1e6,
        "api_requests_per_s": (after["requests"] - before["requests"]) / wall,
        "looks_per_s": (looks(after) - looks(before)) / wall,
        "polls_per_s": sum(after[n] - before.get(n, 0.0) for n in after if n.startswith("rljob_operator_progress_polls_total")) / wall,
    }


async def restart(api: ApiServer, operator: Process, figures: Figures, jobs: list[str]) -> dict[str, float]:
    """From the start of a new process until all is as it should be."""
    operator.kill()
    lost = [Ref("Pod", NAMESPACE, f"{name}-worker-0") for name in random.Random(0).sample(jobs, min(20, len(jobs)))]
    for ref in lost:
        await api.delete(ref, (await api.get(ref))["metadata"]["uid"])
    began = time.perf_counter()
    operator.start()
    await until(lambda: "metrics and probes" in operator.log.read_text(), 30, "the operator's start")
    up = time.perf_counter() - began

    def done() -> bool:
        now = figures.metrics()
        return looks(now) >= len(jobs) and now["rljob_operator_queue_depth"] == 0

    await until(done, 120, "a look at every job")
    looked = time.perf_counter() - began
    for ref in lost:
        await until_back(api, ref)
    return {
        "process_s": up,
        "looked_s": looked,
        "seconds": time.perf_counter() - began,
        "rss_mb": figures.metrics()["process_resident_memory_bytes"] / 1e6,
    }


async def bare(api: ApiServer, figures: Figures, count: int) -> dict[str, float]:
    """As many jobs and objects as a burst makes, copied from an idle job's, by POSTs alone; until the last is answered."""
    patterns = []
    for kind in (kind for kind in CHILDREN if not kind.optional):
        listed = await api.raw(f"{kind.path}/namespaces/{NAMESPACE}/{kind.plural}?labelSelector=rljob.dev/job=idle-0")
        for item in (item for item in listed["items"] if item["metadata"]["ownerReferences"][0]["kind"] == "RLJob"):
            patterns.append(json.dumps(fresh({**item, "apiVersion": kind.api_version, "kind": kind.kind})))
    slots = asyncio.Semaphore(32)

    async def one(name: str) -> None:
        async with slots:
            uid = (await api.create(rljob(name)))["metadata"]["uid"]
            for pattern in patterns:
                await api.create(json.loads(pattern.replace("idle-0", name).replace("OWNER", uid)))

    used, began = figures.servers(), time.perf_counter()
    await asyncio.gather(*(one(f"bare-{i}") for i in range(count)))
    wall = time.perf_counter() - began
    spent = {f"{name}_cpu_s_per_job": (now - used[name]) / count for name, now in figures.servers().items()}
    return {"all_s": wall, "objects_per_job": len(patterns), **spent}


def fresh(item: dict[str, Any]) -> dict[str, Any]:
    """An object as it can be created again, for the owner OWNER: without what the servers have put in."""
    kept = {name: item["metadata"][name] for name in ("name", "namespace", "labels", "annotations") if name in item["metadata"]}
    owners = [{**owner, "uid": "OWNER"} for owner in item["metadata"]["ownerReferences"]]
    made = {name: value for name, value in item.items() if name != "status"} | {"metadata": {**kept, "ownerReferences": owners}}
    if item["kind"] == "Service" and made["spec"].get("clusterIP") != "None":
        made["spec"] = {name: value for name, value in made["spec"].items() if not name.startswith("clusterIP")}
    if item["kind"] == "Pod":
        made["spec"] = {name: value for name, value in made["spec"].items() if name != "nodeName"}
    return made


async def until_back(api: ApiServer, ref: Ref) -> None:
    """A deleted pod can be on its way out for a moment longer.

    Raises:
        ApiError: it has not come back.
    """
    for attempt in range(100):
        try:
            if "deletionTimestamp" not in (await api.get(ref))["metadata"]:
                return
        except ApiError as error:
            if not error.missing or attempt == 99:
                raise
        await asyncio.sleep(0.2)


async def measure(cluster: LocalCluster, operator: Process, jobs: int, crowd: int) -> dict[str, Any]:
    """All phases."""
    found: dict[str, Any] = {"jobs": jobs, "burst": crowd, "objects_per_job": OBJECTS}
    figures = Figures(operator, cluster)
    async with ApiServer(from_kubeconfig(cluster.kubeconfig), Metrics()) as api:
        async with Watcher(api).running() as watcher:
            singles = min(30, jobs // 10)
            found["idle"] = await idle(api, watcher, singles)
            tell(found, "idle")
            await asyncio.sleep(5)
            before, used = figures.metrics(), figures.cpu()
            names = [f"burst-{i}" for i in range(crowd)]
            every = [f"idle-{i}" for i in range(singles)] + names
            found["burst_of"] = await burst(api, watcher, names)
            found["cpu_s_per_new_job"] = {name: (now - used[name]) / crowd for name, now in figures.cpu().items()}
            tell(found, "burst_of")
            tell(found, "cpu_s_per_new_job")
            if rest := [f"rest-{i}" for i in range(jobs - singles - crowd)]:
                await burst(api, watcher, rest)
            every += rest
            after = figures.metrics()
        found["api_requests_per_new_job"] = (after["requests"] - before["requests"]) / (len(names) + len(rest))
        found["api_requests_per_look"] = (after["requests"] - before["requests"]) / (looks(after) - looks(before))
        tell(found, "api_requests_per_new_job")
        phase = 'rljob_operator_jobs{phase="Rollout"}'
        await until(lambda: figures.metrics().get(phase, 0) >= 0.98 * jobs, 150, "all jobs running")
        await asyncio.sleep(10)
        found["steady"] = await steady(figures, 45)
        tell(found, "steady")
        found["restart"] = await restart(api, operator, figures, every)
        tell(found, "restart")
        operator.kill()
        found["bare"] = await bare(api, figures, crowd)
        found["burst_vs_bare"] = found["burst_of"]["all_s"] / found["bare"]["all_s"]
        tell(found, "bare")
    return found


@dataclass(frozen=True)
class Bar:
    """A figure that must stay below a limit."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def holds(self) -> bool:
        return self.value < self.limit


def bars(found: dict[str, Any]) -> list[Bar]:
    """What is asked of the operator, and what was measured."""
    idle_, crowd, rest, again = found["idle"], found["burst_of"], found["steady"], found["restart"]
    return [
        Bar("apply to all objects, idle, p99", idle_["p99_s"], 1, "s"),
        Bar(f"the same in a burst of {found['burst']}, p99", crowd["p99_s"], 5, "s"),
        Bar(f"steady with {found['jobs']} jobs, CPU", 100 * rest["cpu_share_of_core"], 5, "% of a core"),
        Bar("steady, memory", rest["rss_mb"], 200, "MB"),
        Bar(f"restart until all {found['jobs']} jobs are looked at", again["seconds"], 30, "s"),
    ]


def show(found: dict[str, Any]) -> None:
    """Figures beside their bars, then those that have none."""
    table = Table("figure", "value", "bar", "")
    for bar in bars(found):
        word = "[green]pass[/green]" if bar.holds else "[red]miss[/red]"
        table.add_row(bar.name, f"{bar.value:.4g} {bar.unit}", f"under {bar.limit:g} {bar.unit}", word)
    table.add_section()
    rest, again = found["steady"], found["restart"]
    polls, seen, requests = rest["polls_per_s"], rest["looks_per_s"], rest["api_requests_per_s"]
    table.add_row("apply to all objects, p50 idle / in the burst", f"{found['idle']['p50_s']:.3f} / {found['burst_of']['p50_s']:.2f} s")
    table.add_row("steady, polls / looks / API requests per s", f"{polls:.1f} / {seen:.1f} / {requests:.1f}")
    table.add_row("API requests per new job / per look", f"{found['api_requests_per_new_job']:.1f} / {found['api_requests_per_look']:.1f}")
    cpu = found["cpu_s_per_new_job"]
    words = f"{1e3 * cpu['operator']:.0f} / {1e3 * cpu['api_server']:.0f} / {1e3 * cpu['others']:.0f} ms"
    table.add_row("CPU per new job: operator / API server / others", words)
    alone = found["bare"]
    limit = f"{found['burst_of']['all_s']:.1f} / {alone['all_s']:.1f} s, {found['burst_vs_bare']:.2f} times"
    table.add_row("all objects of the burst: by the operator / by bare POSTs", limit)
    words = f"{1e3 * alone['api_server_cpu_s_per_job']:.0f} / {1e3 * alone['others_cpu_s_per_job']:.0f} ms"
    table.add_row("CPU per new job by bare POSTs: API server / others", words)
    table.add_row("memory after the restart", f"{again['rss_mb']:.0f} MB")
    Console().print(table)


def masters(cluster: LocalCluster) -> subprocess.Popen[bytes]:
    """One server that answers at every address of kwok's pods, in the control plane's network: the operator asks through the API server."""
    inside = ["nsenter", f"--net=/proc/{cluster.record.boxes['control'].pid}/ns/net"]
    subprocess.run(
        [*inside, "ip", "route", "add", "local", str(ip_network(cluster.addresses.fake_pods, strict=False)), "dev", "lo"],
        check=True,
        timeout=10,
    )
    code = MASTERS.replace("ITERATION_SECONDS", str(ITERATION_SECONDS))
    return subprocess.Popen([*inside, sys.executable, "-c", code])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--burst", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cluster = start(0)
    with tempfile.TemporaryDirectory() as folder:
        operator = Process(cluster, Path(folder), [], leaderElection="{enabled: false}")
        answering = masters(cluster)
        try:
            cluster.fake_nodes(4)
            install_crd(cluster)
            cluster.apply(VOLUME)
            operator.start()
            found = asyncio.run(measure(cluster, operator, options.jobs, options.burst))
        finally:
            answering.kill()
            if operator.running():
                operator.kill()
            cluster.stop()
    if options.json:
        print(json.dumps(found | {"bars": [asdict(bar) | {"holds": bar.holds} for bar in bars(found)]}, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    main()
