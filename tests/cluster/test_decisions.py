"""What is decided before anything is made: names, addresses, what is abandoned, what is missing."""

import hashlib
import ipaddress
import json
import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from tests.cluster import build, network, provisioner, requirements, state
from tests.cluster.box import ClusterError, Identity
from tests.cluster.build import MODULES, BuildError, binary, content_hash, flags
from tests.cluster.existing import in_use
from tests.cluster.handle import MADE_HERE
from tests.cluster.images import write_image

FILES = {"go.mod": b"module x", "main.go": b"package main"}


def test_the_same_source_has_the_same_name_and_any_change_another() -> None:
    name = content_hash(FILES, ("go1.26.8", "-trimpath"))
    assert name == content_hash(dict(reversed(FILES.items())), ("go1.26.8", "-trimpath"))
    others = [
        content_hash({**FILES, "main.go": b"package main\n"}, ("go1.26.8", "-trimpath")),
        content_hash({"go.mod": b"module xpackage main", "main.go": b""}, ("go1.26.8", "-trimpath")),
        content_hash(FILES, ("go1.26.9", "-trimpath")),
        content_hash(FILES, ("go1.26.8", "-trim", "path")),
    ]
    assert len({name, *others}) == 5


def test_every_module_says_where_it_comes_from() -> None:
    for module in MODULES:
        assert "-trimpath" in flags(module)
        assert (Path(__file__).parent / "go" / module.name / "go.mod").exists()


def test_an_unknown_program_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BuildError, match=r"no program 'kubectll'; there are .*kubectl"):
        binary("kubectll")


def test_when_one_program_cannot_be_built_none_is_begun_any_more_nor_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a person interrupts: whoever waits for what another session builds hears of it, and does not go on in its place."""

    def refuse(module: build.Module, folder: Path) -> None:
        raise BuildError(f"{module.name} has no source")

    monkeypatch.setattr(build, "_folder", lambda module: tmp_path / module.name)
    monkeypatch.setattr(build, "_compile", refuse)
    first, second = (module.name for module in MODULES[:2])
    (tmp_path / f"{first}.killed").mkdir()
    with build.alone(tmp_path / f"{second}.lock", Event()), pytest.raises(BuildError, match=f"{first} has no source"):
        build.build_all(lambda text: None, {first, second})
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [], "nothing stays, also of a session that was killed"
    over = Event()
    over.set()
    with pytest.raises(BuildError, match="given up before its turn came"):
        build.build(MODULES[0], over)


def test_a_network_in_use_is_left_alone_and_a_default_route_is_not_in_use() -> None:
    free = network.free_numbers(["0.0.0.0/0", "10.100.0.0/16", "10.101.2.0/24", "10.102.3.4", "10.104.0.0/14", "fd00::/8"], range(100, 110))
    assert free == [103, 108, 109]


def test_all_addresses_are_apart_and_within_the_clusters_own() -> None:

    addresses = network.Addresses(123)
    whole = ipaddress.IPv4Network(addresses.all)
    names = (addresses.pods, addresses.services, addresses.fake_pods, "10.123.0.0/24")
    ranges = [ipaddress.IPv4Network(each, strict=False) for each in names]
    assert all(each.subnet_of(whole) for each in ranges)
    assert not any(one.overlaps(other) for one in ranges for other in ranges if one is not other)
    assert ipaddress.ip_address(addresses.kubernetes) in ranges[1]


ME = Identity(10, 100)
BOX = Identity(11, 101)


@pytest.mark.parametrize(
    ("owner", "boxes", "boot", "alive", "expected"),
    [
        (ME, {"control": BOX}, "today", {ME, BOX}, False),
        (ME, {"control": BOX}, "today", {BOX}, True),
        (ME, {}, "today", {ME}, False),
        (ME, {"control": BOX}, "yesterday", {ME, BOX}, True),
        (None, {"control": BOX}, "today", {BOX}, False),
        (None, {"control": BOX}, "today", set(), True),
        (None, {}, "today", set(), False),
    ],
)
def test_a_cluster_is_abandoned_when_nobody_will_remove_it(
    owner: Identity | None, boxes: dict[str, Identity], boot: str, alive: set[Identity], expected: bool
) -> None:
    record = state.Record("x", "/nowhere", "/checkout", boot, owner, None, boxes)
    assert state.abandoned(record, "today", lambda each: each in alive) is expected


def test_a_record_is_read_as_it_was_written() -> None:

    record = state.Record("x", "/nowhere", "/checkout", "boot", ME, 100, {"control": BOX})
    assert state.parse(json.dumps(asdict(record))) == record
    assert state.parse(json.dumps(asdict(state.Record("x", "/n", "/c", "b", None)))) == state.Record("x", "/n", "/c", "b", None)


def test_missing_commands_are_named_by_their_packages() -> None:
    have = {"ip", "ipset", "mount", "setpriv", "sysctl", "nft"}
    missing = requirements.missing_packages(lambda name: name if name in have else None, None)
    assert missing == ["containernetworking-plugins", "iptables", "runc"]


def test_network_plugins_are_found_only_where_all_of_them_are() -> None:
    complete = requirements.CNI_FOLDERS[1]
    assert requirements.cni_folder(lambda path: path.parent == complete or path.name == "ptp") == complete
    assert requirements.cni_folder(lambda path: path.name == "ptp") is None


def test_images_that_would_leave_a_kubelet_too_little_disk_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    requirements.check_disk(tmp_path, 0, "the images of 0 nodes")
    with pytest.raises(ClusterError, match=r"the images of 2 nodes take up to .* GB below .*; free some, or set TMPDIR"):
        requirements.check_disk(tmp_path, free, "the images of 2 nodes")


def claim(name: str, node: str = "node-0", **spec: Any) -> dict[str, Any]:
    chosen = {"annotations": {provisioner.SELECTED_NODE: node}} if node else {}
    body = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "local", **spec}
    return {"metadata": {"name": name, "namespace": "n", "uid": f"u-{name}"} | chosen, "spec": body}


def test_a_claim_that_a_pod_with_a_node_uses_gets_a_volume_and_a_released_volume_goes(tmp_path: Path) -> None:
    claims = [
        claim("new"),
        claim("made"),
        claim("waits", node=""),
        claim("bound", volumeName="pvc-u-bound"),
        claim("other", storageClassName="ssd"),
        claim("none", storageClassName=None),
    ]
    volumes = [
        {"metadata": {"name": "pvc-u-made"}, "spec": {"storageClassName": "local"}, "status": {"phase": "Available"}},
        {"metadata": {"name": "pvc-u-old"}, "spec": {"storageClassName": "local"}, "status": {"phase": "Released"}},
        {"metadata": {"name": "else"}, "spec": {"storageClassName": "ssd"}, "status": {"phase": "Released"}},
    ]
    work = provisioner.decide(claims, volumes, tmp_path)
    assert [volume["metadata"]["name"] for volume in work.make] == ["pvc-u-new"]
    assert work.make[0]["spec"]["hostPath"]["path"] == str(tmp_path / "pvc-u-new")
    assert work.make[0]["spec"]["claimRef"]["uid"] == "u-new"
    assert work.remove == ("pvc-u-old",)


def test_an_image_is_a_layout_whose_digests_are_right(tmp_path: Path) -> None:

    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    write_image(tmp_path / "image.tar", "localhost/x:1", {"/bin/program": program}, ["/bin/program"], ["serve"])
    with tarfile.open(tmp_path / "image.tar") as archive:
        content = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    for name, blob in content.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(blob).hexdigest() == name.rpartition("/")[2]
    (entry,) = json.loads(content["index.json"])["manifests"]
    assert entry["annotations"] == {"io.containerd.image.name": "localhost/x:1"}
    manifest = json.loads(content["blobs/sha256/" + entry["digest"].removeprefix("sha256:")])
    assert {each["digest"] for each in (manifest["config"], *manifest["layers"])} < {
        "sha256:" + name.rpartition("/")[2] for name in content if name.startswith("blobs/")
    }


def named(name: str, namespace: str = "", **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels} | ({"namespace": namespace} if namespace else {})}


PLAIN = [named("default"), named("kube-system")]


@pytest.mark.parametrize(
    ("namespaces", "operators", "jobs", "why"),
    [
        ([*PLAIN, named("test-1", **{MADE_HERE: "true"})], [], [], "(test-1); wait for them, or remove what they left"),
        ([*PLAIN, named("rljob-system")], [], [], "(namespace rljob-system), and would act on the tests' jobs; uninstall it"),
        (PLAIN, [named("rljob-operator", "ops")], [], "(Deployment ops/rljob-operator), and would act"),
        (PLAIN, [], [named(f"j{n}", "team") for n in range(7)], "(team/j0, team/j1, team/j2, team/j3, team/j4 and 2 more)"),
    ],
)
def test_a_cluster_in_use_is_not_tested_on(namespaces: list[Any], operators: list[Any], jobs: list[Any], why: str) -> None:
    assert why in in_use(namespaces, operators, jobs)


def test_a_cluster_that_nobody_uses_for_rljob_may_be_tested_on() -> None:
    assert in_use(PLAIN, [], []) == ""
