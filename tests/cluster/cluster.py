"""Starts, adopts and removes a cluster of real servers on this machine."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import ssl
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
from tests.cluster import control, images, network, node, provisioner, requirements, state
from tests.cluster.box import Box, ClusterError, ContainerGone, Identity
from tests.cluster.build import RUNC, binary, built
from tests.cluster.handle import Cluster, Object, Server

CHECKOUT = Path(__file__).parents[2]
REGISTRY_PORT = 5000
MOST_NODES = 8
DEVICE_CLASS = "fake.rljob.dev"


class LocalServer(Server):
    """A process in a box. Its identity is kept in a file, so whoever adopts the cluster can stop it too."""

    def __init__(self, name: str, box: Box, argv: tuple[str, ...], folder: Path) -> None:
        self.name = name
        self._box = box
        self._argv = argv
        self.log = folder / "log" / f"{name.replace('/', '-')}.log"
        self._identity = self.log.with_suffix(".pid")

    def start(self) -> None:
        if self.running():
            return
        program = Path(self._argv[0]) if self._argv[0].startswith("/") else binary(self._argv[0])
        # containerd looks for its shim there.
        path = f"{program.parent}:{requirements.search_path()}"
        with self.log.open("ab") as log:
            # Of the parent's variables only those that matter: a proxy's would send a server's requests astray.
            child = self._box.start([program, *self._argv[1:]], log, {"PATH": path, "HOME": "/root", "PYTHONPATH": str(CHECKOUT)})
        identity = Identity.of(child.pid)
        if identity is None:
            raise ClusterError(f"{self.name} ended at once:\n{self.tail()}")
        self._identity.write_text(f"{identity.pid} {identity.started}")

    def identity(self) -> Identity | None:
        if not self._identity.exists():
            return None
        pid, started = self._identity.read_text().split()
        return Identity(int(pid), int(started))

    @property
    def pid(self) -> int:
        identity = self.identity()
        if identity is None or not identity.alive():
            raise ClusterError(f"{self.name} does not run:\n{self.tail()}")
        return identity.pid

    def running(self) -> bool:
        identity = self.identity()
        return identity is not None and identity.alive()

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        identity = self.identity()
        if identity is not None:
            identity.kill(number)
            state.until(lambda: not identity.alive(), f"{self.name} (process {identity.pid}) runs on, in spite of {number.name},")
            # Without a file nobody misses it.
            self._identity.unlink()

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else "(no log)"


class LocalCluster(Cluster):
    """A control plane and any number of nodes, each in a box of this machine. Made by `start` or `adopt`."""

    def __init__(self, record: state.Record) -> None:
        self.record = record
        self.folder = Path(record.folder)
        self.kubeconfig = self.folder / "admin.conf"
        self._boxes: dict[str, Box] = {}
        self._servers: dict[str, LocalServer] = {}

    @property
    def addresses(self) -> network.Addresses:
        if self.record.network is None:
            raise ClusterError(f"cluster {self.record.name} has no network yet")
        return network.Addresses(self.record.network)

    @property
    def nodes(self) -> list[str]:
        """Names of the real nodes."""
        return [name for name in self._boxes if name.startswith("node-")]

    # Making it.

    def _box(self, name: str) -> Box:
        box = Box.make([binary("probe"), "pause"], detached=self.record.owner is None)
        self._boxes[name] = box
        self.record = self.record.with_box(name, box.first)
        state.write(self.record)
        return box

    def make(self, nodes: int) -> None:
        """Starts everything and waits until it is ready."""
        for name in ("pki", "log", "volumes"):
            (self.folder / name).mkdir()
        box = self._box("control")
        self.record = replace(self.record, network=network.connect_host(box, self.record.name).number)
        state.write(self.record)
        self._boxes["control"].run([binary("probe"), *control.pki_arguments(self.folder / "pki", self.addresses, MOST_NODES)])
        for user in control.USERS:
            self._kubeconfig(user, self.folder / f"{user}.conf")
        (self.folder / "Corefile").write_text(control.corefile(self.folder, self.addresses))
        self._define_control()
        self._start("etcd", "kube-apiserver")
        for _ in range(nodes):
            self._start_node()
        self.wait_ready()
        self._start("kube-controller-manager")
        if nodes:
            self._start("kube-scheduler", "coredns", "provisioner")
            self.apply(provisioner.STORAGE_CLASS)
            self._wait_nodes()
            self._answers(f"http://{self.addresses.control}:{control.DNS_READY_PORT}/ready", "coredns", 60)
        # The first namespaces have what pods want.
        self.wait("serviceaccount/default", "create", namespace="default")

    def add_node(self) -> str:
        """One more node; returns its name when it is ready."""
        name = self._start_node()
        self._wait_nodes()
        return name

    def _kubeconfig(self, user: str, path: Path) -> None:
        path.write_text(control.kubeconfig(self.folder / "pki", user, self.addresses))

    def _define(self, name: str, box: str, argv: tuple[str, ...]) -> None:
        self._servers[name] = LocalServer(name, self._boxes[box], argv, self.folder)

    def _define_control(self) -> None:
        folder, addresses = self.folder, self.addresses
        server = f"https://{addresses.control}:{control.PORT}"
        for argv in (
            control.etcd(folder),
            control.api_server(folder, addresses),
            control.controller_manager(folder, addresses),
            control.scheduler(folder),
            control.coredns(folder),
            ("registry", "serve", f"{folder}/registry.yaml"),
            control.kwok(folder, addresses),
        ):
            self._define(argv[0], "control", argv)
        words = ("-m", "tests.cluster.provisioner", str(folder / "pki"), server, str(folder / "volumes"))
        self._define("provisioner", "control", (sys.executable, *words))

    def _define_node(self, name: str) -> None:
        folder = self.folder / name
        for argv in (node.containerd(folder), node.kubelet(folder, self.addresses, int(name.removeprefix("node-"))), node.proxy(folder)):
            self._define(f"{name}/{argv[0]}", name, argv)

    def _start(self, *names: str) -> None:
        for name in names:
            self._servers[name].start()

    def _start_node(self) -> str:
        index = len(self.nodes)
        if index >= MOST_NODES:
            raise ClusterError(f"a test cluster has at most {MOST_NODES} nodes")
        name = f"node-{index}"
        folder = self.folder / name
        box = self._box(name)
        network.connect_node(self._boxes["control"], box, self.addresses, index)
        (folder / "images").mkdir(parents=True)
        node.prepare(box, folder, folder / "images")
        self._write_node(name, index)
        self._define_node(name)
        self._start(f"{name}/containerd")
        # The kubelet asks its runtime once for its features, and ends if there is none.
        self._alive_until(lambda: self._containerd_answers(box), f"containerd of {name} does not answer", 60)
        self._import(box, self._probe_archive())
        self._start(f"{name}/kubelet", f"{name}/kube-proxy")
        return name

    def _write_node(self, name: str, index: int) -> None:
        folder, pki = self.folder / name, self.folder / "pki"
        cgroup = f"{self.record.name}/{name}"
        state.make_cgroup(cgroup)
        plugins = requirements.cni_folder()
        if plugins is None:
            raise ClusterError(f"no network plugins; install {requirements.CNI_PACKAGE}")
        registry = f"{self.addresses.control}:{REGISTRY_PORT}"
        hosts = folder / "registries" / registry
        for each in (hosts, folder / "cni"):
            each.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'server = "http://{registry}"\n[host."http://{registry}"]\ncapabilities = ["pull", "resolve"]\n')
        (folder / "cni" / "10-pods.conflist").write_text(node.cni_config(self.addresses, index))
        snapshotter = self._snapshotter()
        runc = binary("runc") if built(RUNC) else None
        (folder / "containerd.toml").write_text(node.containerd_config(plugins, folder / "cni", snapshotter, folder / "registries", runc))
        (folder / "kubelet.yaml").write_text(node.kubelet_config(folder, pki, self.addresses, cgroup))
        (folder / "proxy.yaml").write_text(node.proxy_config(folder, self.addresses, index))
        (folder / "resolv.conf").write_text(f"nameserver {self.addresses.control}\n")
        self._kubeconfig(name, folder / "kubelet.conf")
        self._kubeconfig("kube-proxy", folder / "kube-proxy.conf")

    def _snapshotter(self) -> str:
        """An overlay on an overlay is refused, so in a container everything is copied."""
        kind = self._boxes["control"].run(["stat", "--file-system", "--format=%T", self.folder]).strip()
        return "native" if kind == "overlayfs" else "overlayfs"

    # Waiting.

    def _alive_until(self, done: state.Condition, what: str, timeout: float) -> None:
        """Waits, and stops waiting when a server that was started is gone."""
        started = [server for server in self._servers.values() if server.identity() is not None]

        def check() -> bool:
            dead = next((server for server in started if not server.running()), None)
            if dead is not None:
                raise ClusterError(f"{dead.name} ended by itself:\n{dead.tail()}")
            return done()

        state.until(check, what, timeout)

    def wait_ready(self) -> None:
        """Waits until the API server is ready, also after it was started again."""
        self._answers(f"https://{self.addresses.control}:{control.PORT}/readyz", "kube-apiserver", 120)

    def _answers(self, url: str, server: str, timeout: float) -> None:
        context = ssl.create_default_context(cafile=str(self.folder / "pki" / "ca.crt"))
        with httpx.Client(verify=context, trust_env=False, timeout=5) as client:

            def ready() -> bool:
                try:
                    return client.get(url).status_code == httpx.codes.OK
                except httpx.TransportError:
                    return False

            self._alive_until(ready, f"{server} is not ready (see {self.log(server)}; {url})", timeout)

    def _wait_nodes(self) -> None:
        for name in self.nodes:
            self.wait(f"node/{name}", "create", timeout=60)
            self.wait(f"node/{name}", "condition=Ready", timeout=60)

    def _containerd_answers(self, box: Box) -> bool:
        try:
            box.run([binary("ctr"), "--address", node.CONTAINERD, "--timeout", "5s", "version"], timeout=15)
        except ClusterError:
            return False
        return True

    # What tests ask for.

    def _probe_archive(self) -> Path:
        archive = self.folder / "probe.tar"
        if not archive.exists():
            images.write_image(archive, self.probe, {"/probe": binary("probe")}, ["/probe"], ["pause"])
        return archive

    def _import(self, box: Box, archive: Path) -> None:
        words = (
            "--address",
            node.CONTAINERD,
            "--namespace",
            "k8s.io",
            "images",
            "import",
            # Unpacked they are there anyway, and pods need no more: half of the disk.
            "--local",
            "--discard-unpacked-layers",
            "--snapshotter",
            self._snapshotter(),
        )
        box.run([binary("ctr"), *words, archive], timeout=1800)

    def load_image(self, archive: Path) -> None:
        requirements.check([archive], nodes=0)
        # While one is loaded its layers are there twice.
        requirements.check_disk(self.folder, archive.stat().st_size * (len(self.nodes) + 1), f"the images of {len(self.nodes)} nodes")
        for name in self.nodes:
            self._import(self._boxes[name], archive.resolve())

    def registry(self) -> str:
        host = f"{self.addresses.control}:{REGISTRY_PORT}"
        storage = {"filesystem": {"rootdirectory": str(self.folder / "registry")}, "delete": {"enabled": True}}
        config = {"version": 0.1, "log": {"level": "warn"}, "storage": storage, "http": {"addr": host}}
        (self.folder / "registry.yaml").write_text(json.dumps(config))
        self._start("registry")
        self._answers(f"http://{host}/v2/", "registry", 30)
        return host

    def devices(self, count: int = 8) -> None:
        selector = {"cel": {"expression": f"device.driver == '{DEVICE_CLASS}'"}}
        self.apply(
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "DeviceClass",
                "metadata": {"name": DEVICE_CLASS},
                "spec": {"selectors": [selector]},
            }
        )
        for name in self.nodes:
            index = int(name.removeprefix("node-"))
            self._define(f"{name}/dra", name, node.driver(self.folder / name, index, count))
            self._start(f"{name}/dra")
            self._alive_until(partial(self._published, name), f"{name} publishes no devices", 90)

    @contextlib.contextmanager
    def network_policies(self) -> Iterator[bool]:
        for name in self.nodes:
            index = int(name.removeprefix("node-"))
            self._kubeconfig("kube-router", self.folder / name / "kube-router.conf")
            self._define(f"{name}/kube-router", name, node.router(self.folder / name, self.addresses, index))
            self._start(f"{name}/kube-router")
        for name in self.nodes:
            self._alive_until(partial(self._enforces, name), f"{name} enforces no NetworkPolicies", 60)
        try:
            yield True
        finally:
            for name in self.nodes:
                self._servers[f"{name}/kube-router"].stop()
                # Its rules outlive it. Without these, nothing leads to the others.
                for chain in node.ROUTER_CHAINS:
                    self._boxes[name].run(["iptables", "--wait", "--flush", chain])

    def _enforces(self, name: str) -> bool:
        try:
            return all("-j" in self._boxes[name].run(["iptables", "--wait", "--list-rules", chain]) for chain in node.ROUTER_CHAINS)
        except ClusterError:
            return False

    def _published(self, name: str) -> bool:
        slices = self.get("resourceslices", f"--field-selector=spec.nodeName={name},spec.driver={DEVICE_CLASS}")["items"]
        return bool(slices)

    def fake_nodes(self, count: int) -> None:
        self._start("kube-scheduler", "provisioner", "kwok")
        self.apply(provisioner.STORAGE_CLASS)
        self.apply([control.fake_node(index) for index in range(count)])
        self.kubectl("wait", "node", "--selector=type=kwok", "--for=condition=Ready", "--timeout=120s", timeout=150)

    def user_namespaces(self) -> str:
        """A RuntimeClass whose pods may have users of their own. `build.binary("runc")` must have been asked for before the cluster was
        made: a kubelet asks its runtime once what it can do. Raises `ClusterError`."""
        name = node.USER_NAMESPACES
        without = [each for each in self.nodes if f"runtimes.{name}]" not in (self.folder / each / "containerd.toml").read_text()]
        if without:
            remedy = "build runc (python -m tests.cluster build), and make the cluster anew"
            raise ClusterError(f"no pod of {', '.join(without)} can have users of its own: made before runc was built; {remedy}")
        self.apply({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": name})
        return name

    def add_seccomp_profile(self, name: str, profile: Path) -> None:
        """Lays a profile where every node's kubelet looks for it."""
        for each in self.nodes:
            target = f"{node.KUBELET}/seccomp/{name}"
            self._boxes[each].run(["mkdir", "-p", str(Path(target).parent)])
            self._boxes[each].run(["cp", profile, target])

    def signal_container(self, namespace: str, pod: str, container: str, signal: str) -> bool:
        found = self.get(f"pod/{pod}", namespace=namespace)
        (identity,) = [each["containerID"] for each in found["status"]["containerStatuses"] if each["name"] == container]
        words = ("--address", node.CONTAINERD, "--namespace", "k8s.io", "tasks", "kill", "--all", "--signal", signal)
        try:
            self._boxes[found["spec"]["nodeName"]].run([binary("ctr"), *words, identity.removeprefix("containerd://")])
        except ClusterError as error:
            if "no running task found" in str(error):
                raise ContainerGone(f"container {container} of {namespace}/{pod} has ended: {error}") from error
            raise
        return True

    def process(self, name: str) -> Server:
        if name not in self._servers:
            raise ClusterError(f"no server {name!r}; there are {', '.join(sorted(self._servers))}")
        return self._servers[name]

    def log(self, name: str) -> Path:
        if name not in self._servers:
            raise ClusterError(f"no server {name!r}; there are {', '.join(sorted(self._servers))}")
        return self._servers[name].log

    # Ending it.

    def leave(self) -> None:
        """Forgets an adopted cluster; it goes on."""
        for box in self._boxes.values():
            box.leave()

    def stop(self) -> None:
        """Removes everything that was made."""
        for box in reversed(self._boxes.values()):
            box.close()
        state.remove(self.record)

    @classmethod
    def adopt(cls, record: state.Record) -> "LocalCluster":
        """A cluster that another process started. Raises `ClusterError` if a box of it is gone."""
        cluster = cls(record)
        cluster._boxes = {name: Box.enter(first) for name, first in record.boxes.items()}
        cluster._define_control()
        for name in cluster.nodes:
            cluster._define_node(name)
        return cluster


def start(nodes: int = 1, detached: bool = False, parent: Path | None = None) -> LocalCluster:
    """A new cluster with `nodes` nodes; with none it has no scheduler, DNS and volumes either.

    It ends with this process, however that ends; `detached`, it stays until `LocalCluster.stop`. `parent` is the folder to make its own in
    (default the
    system's for temporary files). What crashed owners left is removed first. Raises `ClusterError` if it is not ready in time, after
    removing it, and
    `BuildError` if a program cannot be built.
    """
    parent = parent or Path(tempfile.gettempdir())
    requirements.check([parent, Path(sys.prefix), binary("kube").parent], nodes)
    state.reap()
    name = f"rljob-{secrets.token_hex(4)}"
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    folder.chmod(0o755)
    owner = None if detached else Identity.of(os.getpid())
    cluster = LocalCluster(state.Record(name, str(folder), str(CHECKOUT), state.boot_id(), owner))
    state.write(cluster.record)
    try:
        cluster.make(nodes)
    except BaseException:
        # What failed is in the logs, and they would go with the rest.
        if kept := os.environ.get("RLJOB_CLUSTER_KEEP_LOGS"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copytree(folder / "log", Path(kept) / name)
        cluster.stop()
        raise
    return cluster


__all__ = ["LocalCluster", "LocalServer", "Object", "start"]
