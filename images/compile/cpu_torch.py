"""Stand-ins for NVIDIA's libraries on a machine without a GPU.

The package registry holds one torch for Linux, the one with CUDA. The dynamic linker wants every library that its headers name,
2.7 GB of NVIDIA's packages, although no function in them is ever called without a GPU. This program makes libraries of those names, 15 kB
each, in which every function that torch can ask for answers an error code. torch's own libraries are untouched, and so is the CUDA
runtime (0.7 MB), whose answer "no device" makes `torch.cuda.is_available()` False as usual.

    cpu_torch.py LIB OUT     LIB: torch's folder `lib`; OUT: a new folder that gets the stand-ins

Needs gcc and binutils. Not covered: a library outside torch that asks NVIDIA's for more than torch does.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RUNTIME = "libcudart.so"
"""Starts the name of the one library that stays. When a new CUDA changes another name, the stand-ins follow by themselves."""
NVIDIA = re.compile(r"lib(cu(?!da\.)|nv|nccl)\w*\.so")
"""Libraries that stand-ins are made for. Not the driver's, libcuda.so: whether that is there tells others whether there is a GPU."""
UNVERSIONED = re.compile(r"(cuFile|curand|cusparseLt|nccl|nvshmem)")
"""How names of functions begin that come from libraries without symbol versions."""
NO_DEVICE = 100
"""What a stand-in's functions answer: cudaErrorNoDevice, and an error in the other libraries' enumerations too."""


@dataclass(frozen=True)
class Symbol:
    """An entry of a dynamic symbol table. `version`: its symbol version, often the name of its library; empty if it has none."""

    name: str
    version: str
    defined: bool


def parse_symbols(output: str) -> list[Symbol]:
    """What `nm -D --with-symbol-versions` prints."""
    found = []
    for line in output.splitlines():
        *_, kind, name = line.split()
        plain, _, version = name.replace("@@", "@").partition("@")
        found.append(Symbol(plain, version, kind not in "Uw"))
    return found


def parse_needed(output: str) -> set[str]:
    """What `readelf -dW` prints: the names of the libraries that are asked for."""
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", output))


def parse_versions(output: str) -> dict[str, str]:
    """What `readelf -VW` prints: symbol version -> the library that has to define it."""
    found: dict[str, str] = {}
    library = ""
    for line in output.splitlines():
        if named := re.search(r"\bFile: (\S+)", line):
            library = named[1]
        elif version := re.search(r"\bName: (\S+)  Flags", line):
            found[version[1]] = library
    return found


def distribute(symbols: list[Symbol], owners: dict[str, str], missing: set[str]) -> dict[str, list[Symbol]]:
    """Which stand-in (by the library's name) provides which symbols. `owners`: symbol version -> library.

    Symbols with a version go to the library that owns it; the linker looks for the others everywhere, so they may all be in one without.
    """
    defined = {s.name for s in symbols if s.defined}
    wanted = {(s.name, s.version): s for s in symbols if not s.defined and s.name not in defined}
    made: dict[str, list[Symbol]] = {name: [] for name in sorted(missing)}
    plain = next((name for name in made if name not in owners.values()), "")
    for _, symbol in sorted(wanted.items()):
        library = owners.get(symbol.version, "")
        if library in made:
            made[library].append(symbol)
        elif plain and not symbol.version and UNVERSIONED.match(symbol.name):
            made[plain].append(symbol)
    return made


def assembly(provided: list[Symbol]) -> str:
    """A stand-in in assembly language for x86-64."""
    functions = [
        line for s in provided for line in (f".globl {s.name}", f".type {s.name},@function", f"{s.name}: mov ${NO_DEVICE}, %eax", "ret")
    ]
    return "\n".join([".text", *functions, '.section .note.GNU-stack,"",@progbits', ""])


def version_script(provided: list[Symbol]) -> str:
    """Gives the symbols the versions that torch asks for. (A name that is wanted in two versions is not provided for; there is none.)"""
    versions = sorted({s.version for s in provided})
    nodes = {v: " ".join(f"{s.name};" for s in provided if s.version == v) for v in versions} or {"": "*;"}
    return "".join(f"{version} {{ global: {names} }};\n" for version, names in nodes.items())


def build(library: str, provided: list[Symbol], folder: Path) -> None:
    """Compiles one stand-in to `folder`."""
    source, versions = folder / f"{library}.s", folder / f"{library}.map"
    source.write_text(assembly(provided))
    versions.write_text(version_script(provided))
    options = ["-shared", "-nostdlib", f"-Wl,-soname,{library}", f"-Wl,--version-script,{versions}", "-Wl,--build-id=none", "-s"]
    subprocess.run(["gcc", *options, "-o", str(folder / library), str(source)], check=True)
    source.unlink()
    versions.unlink()


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def make(lib: Path, out: Path) -> None:
    """Makes every stand-in that the libraries in `lib` need."""
    libraries = sorted(p for p in lib.iterdir() if ".so" in p.name)
    symbols = [s for p in libraries for s in parse_symbols(run("nm", "-D", "--with-symbol-versions", str(p)))]
    owners = {v: name for p in libraries for v, name in parse_versions(run("readelf", "-VW", str(p))).items()}
    needed = {name for p in libraries for name in parse_needed(run("readelf", "-dW", str(p)))}
    missing = {n for n in needed if NVIDIA.match(n) and not n.startswith(RUNTIME)} - {p.name for p in libraries}
    out.mkdir(parents=True)
    for library, provided in distribute(symbols, owners, missing).items():
        build(library, provided, out)
        print(f"{library}: {len(provided)} functions")


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
