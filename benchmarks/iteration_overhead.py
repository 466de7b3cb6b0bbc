"""Share of an iteration's wall time that is training compute or generation, on the main example.

    python benchmarks/iteration_overhead.py [--iterations 4] [--workdir DIR] [--json]

Runs the example for a few iterations without evaluations (or reads a finished job folder, `--workdir` of one that is there) and takes the
phase times from its metrics.jsonl. Useful is what the rollout phase spends with requests in flight and what the trainer spends on batches.
The first iteration is left out: it pays for starting the processes.

`overhead_s` is what the others have beside that, per iteration. It tells more than the share, which falls when training becomes faster.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
USEFUL = ("rollout", "train")


def records(folder: Path, iterations: int) -> list[dict[str, Any]]:
    """Iteration records of the job in `folder`, which is run if it is not there."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        example = ROOT / "examples" / "smollm2" / "rljob.yaml"
        command = [str(Path(sys.executable).parent / "rljob"), "run", str(example), "--workdir", str(folder)]
        subprocess.run([*command, "--set", f"spec.iterations={iterations}", "--set", "spec.evaluation=null"], check=True, stdout=sys.stderr)
    return [json.loads(line) for line in file.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = records(arguments.workdir or Path(temporary) / "job", arguments.iterations)[1:]
    names = sorted({name for row in rows for name in row["seconds"]} - {"total", "evaluation"}, key=lambda n: (n not in USEFUL, n))
    total = sum(row["seconds"]["total"] - row["seconds"].get("evaluation", 0.0) for row in rows)
    table = Table("phase", "seconds per iteration", "share", title="Main example, iterations 2 to the last")
    for name in names:
        seconds = sum(row["seconds"].get(name, 0.0) for row in rows)
        table.add_row(name, f"{seconds / len(rows):.2f}", f"{seconds / total:.1%}")
    useful = sum(row["seconds"].get(name, 0.0) for row in rows for name in USEFUL)
    share, overhead = useful / total, (total - useful) / len(rows)
    table.add_row("useful (rollout + train)", f"{useful / len(rows):.2f}", f"{share:.1%}", style="bold")
    table.add_row("overhead", f"{overhead:.2f}", f"{1 - share:.1%}", style="bold")
    Console().print(table)
    if arguments.json:
        print(json.dumps({"useful_share": share, "overhead_s": overhead}))


if __name__ == "__main__":
    main()
