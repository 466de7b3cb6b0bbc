"""Splits what every image needs into the lists of its layers: requirements/images/VARIANT/*.txt. Run by `make lock`.

    layers.py FOLDER VARIANT OUT

FOLDER holds one resolved list with hashes per process (`core.txt`, `operator.txt`, ..., as `uv pip compile --no-annotate` writes them), all
constrained by one lock, so that a package has one version everywhere. A layer holds what the layers below it do not. Pure, but for `main`.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

Pins = Mapping[str, str]
"""Package -> its lines: version, marker, hashes."""

SDISTS = frozenset({"cellpylib", "pycosat", "zss"})
"""Packages without wheels; a stage with a compiler makes them. The build refuses any other source package, by its name."""
NVIDIA = re.compile(r"(nvidia-|cuda-)")
"""GPU packages; of these a CPU image needs the CUDA runtime only (compile/cpu_torch.py)."""
RUNTIME = "nvidia-cuda-runtime"
PLOTS = frozenset({"matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pillow", "pyparsing"})
"""matplotlib and what only it needs in reward and trainer, where nothing draws: 90 MB. compile/no_plots has a stand-in."""
HEADER = "# Made by `make lock` (images/layers.py).\n"


def parse(text: str) -> dict[str, str]:
    """The packages of a compiled list."""
    entries = re.findall(r"^([a-z0-9][a-z0-9.-]*==(?:[^\n]*\\\n)*[^\n]*\n)", text, flags=re.MULTILINE)
    return {entry.split("==")[0]: entry for entry in entries}


def without(pins: Pins, *others: Iterable[str]) -> dict[str, str]:
    """What none of the others has."""
    gone = {name for other in others for name in other}
    return {name: lines for name, lines in pins.items() if name not in gone}


def split(lists: Mapping[str, Pins], variant: str) -> dict[str, dict[str, str]]:
    """Layer -> its packages.

    `core` is in every image. `torch`, `shared` and `rollout` lie on it; so do `torch`, `shared` and `trainer`; the combined image
    has all of them. `sdists` is compiled apart and copied into reward, trainer and combined.
    """
    if variant == "cpu":
        lists = {name: {p: lines for p, lines in pins.items() if not NVIDIA.match(p) or p == RUNTIME} for name, pins in lists.items()}
    lists = {name: without(pins, PLOTS) if name in ("reward", "trainer") else pins for name, pins in lists.items()}
    core, torch = lists["core"], lists["torch"]
    both = {name: lines for name, lines in lists["trainer"].items() if name in lists["rollout"]}
    layers = {
        "core": dict(core),
        "torch": without(torch, core),
        "shared": without(both, core, torch),
        "trainer": without(lists["trainer"], core, torch, both),
        "rollout": without(lists["rollout"], core, torch, both),
    } | {name: without(lists[name], core) for name in ("operator", "master", "reward", "sandbox")}
    compiled = {name: lines for pins in lists.values() for name, lines in pins.items() if name in SDISTS}
    return {name: without(pins, SDISTS) for name, pins in layers.items()} | {"sdists": compiled}


def main(folder: Path, variant: str, out: Path) -> None:
    lists = {path.stem: parse(path.read_text()) for path in sorted(folder.glob("*.txt"))}
    out.mkdir(parents=True, exist_ok=True)
    for name, pins in split(lists, variant).items():
        (out / f"{name}.txt").write_text(HEADER + "".join(pins[package] for package in sorted(pins)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
