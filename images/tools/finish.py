"""Last step of every layer: bytecode for every module, and nothing that differs between two builds.

    finish.py FOLDER [FINAL]    FINAL: where the folder will lie in the image, if not where it is now

Images run with a read-only root, so what has no bytecode would be compiled at every start (vLLM: ten seconds). It is compiled here,
"unchecked": Python never compares it with its source, whose time stamp a build sets to a constant. Modules that have such bytecode
already, from a layer below, are left alone.
"""

import csv
import os
import py_compile
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib.util import cache_from_source
from pathlib import Path

UNCHECKED = 0b01
"""Flags of a bytecode file (PEP 552): made from a hash of the source, never compared with it."""
TESTS = (
    "matplotlib/tests",
    "mpl_toolkits/*/tests",
    "numpy/*/tests",
    "numpy/tests",
    "sympy/*/tests",
    "sympy/*/*/tests",
    "networkx/**/tests",
    "mpmath/tests",
    "pyarrow/tests",
)
"""Test suites of packages, a tenth of the slim images."""
NOT_NEEDED = (*TESTS, "pyarrow/include", "pyarrow/src", "*.dist-info/uv_cache.json", "*.dist-info/direct_url.json", "*.dist-info/sboms")


def is_unchecked(bytecode: Path) -> bool:
    """Whether `bytecode` is there and is never compared with its source."""
    try:
        with bytecode.open("rb") as file:
            return int.from_bytes(file.read(8)[4:8], "little") == UNCHECKED
    except FileNotFoundError:
        return False


def to_compile(folder: Path) -> list[Path]:
    """Modules in `folder` that have no unchecked bytecode yet, in a fixed order."""
    return sorted(p for p in folder.rglob("*.py") if not is_unchecked(Path(cache_from_source(str(p)))))


def compile_module(job: tuple[str, str]) -> None:
    """Compiles one module; templates and other things that only look like one are left as they are."""
    path, final = job
    try:
        py_compile.compile(path, dfile=final, doraise=True, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except py_compile.PyCompileError:
        pass


def prune(folder: Path) -> None:
    """Removes what is not needed, from the packages' own lists of files too."""
    for pattern in NOT_NEEDED:
        for path in folder.glob(pattern):
            for root, folders, files in os.walk(path, topdown=False):
                for name in files:
                    Path(root, name).unlink()
                for name in folders:
                    Path(root, name).rmdir()
            path.rmdir() if path.is_dir() else path.unlink()
    for record in folder.glob("*.dist-info/RECORD"):
        with record.open(newline="") as file:
            rows = list(csv.reader(file))
        kept = sorted(row for row in rows if row and (folder / row[0]).exists())
        if kept != rows:
            with record.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(kept)


def main(folder: Path, final: Path) -> None:
    warnings.simplefilter("ignore", SyntaxWarning)  # other people's code
    prune(folder)
    modules = [(str(p), str(final / p.relative_to(folder))) for p in to_compile(folder)]
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(compile_module, modules, chunksize=16):
            pass


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[-1]))
