"""What examples promise, by running them whole: `python benchmarks/examples.py [--example smollm2 …] [--seed 0 1] [--json]`.

Each run is `rljob run` on a new folder, set-up done: held-out accuracy before and after, the family of prompts that gained least, seconds
until the first held-out figure is on screen, and until the end. Of `smollm2`, the main example, at least 15 points are promised on every
seed, no family down by more than 5, the first figure within 2 minutes and the whole within 10, on two idle cores. `--json` prints the worst
of all runs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
FIRST = "before the first iteration: "


@dataclass(frozen=True)
class Run:
    """One finished run."""

    example: str
    seed: int
    before: float
    after: float
    prompts: int
    worst_family: float
    """Change of accuracy; of the whole where there are no families."""
    first_s: float
    """Until the first held-out figure was on screen."""
    total_s: float

    @property
    def gain(self) -> float:
        """Change of accuracy."""
        return self.after - self.before


def run(example: str, seed: int, folder: Path) -> Run:
    """Runs an example in a new folder.

    Raises:
        CalledProcessError: it did not succeed.
    """
    file = ROOT / "examples" / example / "rljob.yaml"
    command = [str(Path(sys.executable).parent / "rljob"), "run", str(file), "--workdir", str(folder), "--set", f"spec.seed={seed}"]
    began, first = time.monotonic(), float("nan")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if FIRST in line:
                first = time.monotonic() - began
            sys.stderr.write(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    held_out = json.loads((folder / "status.json").read_text())["heldOut"]
    before, after = held_out[0], held_out[-1]
    families = after.get("families") or {}
    changes = [accuracy - before["families"][name] for name, accuracy in families.items()] or [after["accuracy"] - before["accuracy"]]
    total = time.monotonic() - began
    return Run(example, seed, before["accuracy"], after["accuracy"], after["count"], min(changes), first, total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--example", nargs="+", default=["smollm2"], help="folders of examples/")
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = [run(e, seed, Path(temporary) / f"{e}-{seed}") for e in arguments.example for seed in arguments.seed]
    table = Table(
        "example", "seed", "held-out", "gain", "worst family", "first figure", "whole", title="Examples, from the command to the end"
    )
    for each in runs:
        held_out = f"{each.before:.1%} → {each.after:.1%} of {each.prompts}"
        points = f"{100 * each.gain:+.1f}", f"{100 * each.worst_family:+.1f}"
        table.add_row(each.example, str(each.seed), held_out, *points, f"{each.first_s:.0f} s", f"{each.total_s:.0f} s")
    Console().print(table)
    if arguments.json:
        worst = {"gain": min(r.gain for r in runs), "worst_family": min(r.worst_family for r in runs)}
        print(json.dumps(worst | {"first_s": max(r.first_s for r in runs), "total_s": max(r.total_s for r in runs)}))


if __name__ == "__main__":
    main()
