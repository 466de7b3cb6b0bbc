"""`make setup` on machines that lack something: one clear line that names the Debian package, or another way found.

The scripts run for real, on a PATH of fakes: nothing is downloaded or installed.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "cat", "cut", "dirname", "rm", "mkdir", "sha256sum", "env", "chmod")
INTERPRETER = """#!/bin/sh
case "$2" in
    *'sys.version_info < (3, 10)'*) exit {old} ;;
    *'import venv, ensurepip'*) exit {no_venv} ;;
    *'not in ((3, 12), (3, 13))'*) exit {unsupported} ;;
    *'print("%d.%d"'*) echo {version} ;;
    *Python.h*) exit {incomplete} ;;
esac
case "$1 $2" in
    '-m venv') mkdir -p "$3/bin"; cp "$FAKES/uv" "$3/bin/uv"; cp "$0" "$3/bin/python"; echo "$0 -m venv" >> "$CALLS" ;;
    '-m pip') echo "pip install" >> "$CALLS" ;;
    '--version ') echo "Python {version}" ;;
esac
"""
UV = """#!/bin/sh
case "$1" in
    python) exit 1 ;;
    venv) mkdir -p .venv/bin; for last; do :; done; cp "$5" .venv/bin/python ;;
esac
echo "uv $*" >> "$CALLS"
"""


@dataclass
class Machine:
    """A machine with just these programs, and a checkout."""

    root: Path

    def program(self, name: str, text: str, folder: str = "bin") -> Path:
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def python(self, name: str, version: str, folder: str = "bin", venv: bool = True, complete: bool = True) -> Path:
        """An interpreter that answers what the scripts ask of one."""
        minor = int(version.split(".")[1])
        return self.program(
            name,
            INTERPRETER.format(
                old=int(minor < 10),
                no_venv=int(not venv),
                unsupported=int(minor not in (12, 13)),
                version=version,
                incomplete=int(not complete),
            ),
            folder,
        )

    def setup(self) -> subprocess.CompletedProcess[str]:
        """`make setup`."""
        variables = {
            "PATH": f"{self.root}/bin",
            "HOME": str(self.root / "home"),
            "FAKES": f"{self.root}/fakes",
            "CALLS": f"{self.root}/calls",
        }
        script = self.root / "checkout" / "scripts" / "setup.sh"
        return subprocess.run(["/bin/sh", script], env=variables, capture_output=True, text=True, check=False, timeout=60)

    @property
    def calls(self) -> list[str]:
        """What was run that would change the machine."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def refusal(self) -> str:
        """The one line of a set-up that failed."""
        done = self.setup()
        assert done.returncode == 1, done.stderr
        lines = [line for line in done.stderr.splitlines() if not line.startswith("setup: ")]
        assert len(lines) == 1, done.stderr
        return lines[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Everything is there but Python; the user is not root."""
    made = Machine(tmp_path)
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "checkout")
    (tmp_path / "bin").mkdir()
    for tool in (*TOOLS, "cp"):
        os.symlink(shutil.which(tool) or tool, tmp_path / "bin" / tool)
    made.program("uname", "#!/bin/sh\necho Linux x86_64\n")
    made.program("id", "#!/bin/sh\necho 1000\n")
    made.program("ldconfig", "#!/bin/sh\necho '  libnuma.so.1 (libc6) => /x'; echo '  libgomp.so.1 (libc6) => /y'\n")
    made.program("lscpu", "#!/bin/sh\n")
    made.program("cc", "#!/bin/sh\n")
    made.program("apt-get", '#!/bin/sh\necho "apt-get $*" >> "$CALLS"\n')
    made.program("uv", UV, "fakes")
    return made


def make_root(machine: Machine) -> None:
    machine.program("id", "#!/bin/sh\necho 0\n")


def test_a_complete_machine_is_set_up_once(machine: Machine) -> None:
    machine.python("python3", "3.13")
    assert machine.setup().returncode == 0
    assert machine.calls[:2] == [f"{machine.root}/bin/python3 -m venv", "pip install"]
    assert [call.split()[:2] for call in machine.calls[2:]] == [["uv", "venv"], ["uv", "pip"], ["uv", "pip"], ["uv", "pip"]]
    before = machine.calls
    again = machine.setup()
    assert (again.returncode, again.stderr, machine.calls) == (0, "", before)


def test_an_environment_whose_interpreter_is_gone_is_made_again(machine: Machine) -> None:
    machine.python("python3", "3.13")
    machine.setup()
    (machine.root / "checkout" / ".venv" / "bin" / "python").unlink()
    before = len(machine.calls)
    assert machine.setup().returncode == 0
    assert any(call.startswith("uv venv") for call in machine.calls[before:])


def test_no_python_at_all(machine: Machine) -> None:
    assert machine.refusal() == "error: no Python >= 3.10 found; install with: sudo apt-get install python3 python3-venv"


def test_a_default_python_without_venv_names_the_package(machine: Machine) -> None:
    machine.python("python3", "3.11", venv=False)
    assert machine.refusal() == (
        f"error: {machine.root}/bin/python3 cannot make virtual environments; install with: sudo apt-get install python3.11-venv"
    )


def test_another_python_that_has_venv_is_taken_instead(machine: Machine) -> None:
    machine.python("python3", "3.11", venv=False)
    other = machine.python("python3", "3.12", folder="home/.pyenv/versions/3.12.1/bin")
    assert machine.setup().returncode == 0
    assert machine.calls[0] == f"{other} -m venv"


def test_python_3_12_is_enough(machine: Machine) -> None:
    machine.python("python3", "3.11")
    other = machine.python("python3", "3.12", folder="home/.pyenv/versions/3.12.1/bin")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert f"uv venv --quiet --clear --python {other} .venv" in machine.calls
    assert "(Python 3.12)" in done.stderr


def test_neither_3_12_nor_3_13_names_what_to_install(machine: Machine) -> None:
    machine.python("python3", "3.11")
    assert machine.refusal() == (
        "error: no Python 3.13 or 3.12 could be downloaded or found; "
        "install one with: sudo apt-get install python3.13 python3.13-dev (or with pyenv)"
    )


def test_a_python_without_headers_names_the_package(machine: Machine) -> None:
    machine.python("python3", "3.13", complete=False)
    assert machine.refusal() == f"error: {machine.root}/bin/python3 has no headers; install with: sudo apt-get install python3.13-dev"


def _no_libraries(machine: Machine) -> None:
    machine.program("ldconfig", "#!/bin/sh\necho '  libc.so.6 (libc6) => /x'\n")
    for tool in ("lscpu", "cc"):
        (machine.root / "bin" / tool).unlink()


def _no_headers_of_the_c_library(machine: Machine) -> None:
    machine.program("cc", "#!/bin/sh\nexit 1\n")


def _no_numa(machine: Machine) -> None:
    machine.program("ldconfig", "#!/bin/sh\necho '  libgomp.so.1 (libc6) => /y'\n")


@pytest.mark.parametrize(
    ("take_away", "packages"),
    [
        (_no_libraries, "libnuma1 libgomp1 util-linux gcc libc6-dev"),
        (_no_headers_of_the_c_library, "gcc libc6-dev"),
        (_no_numa, "libnuma1"),
    ],
)
def test_missing_system_libraries_are_named(machine: Machine, take_away: Callable[[Machine], None], packages: str) -> None:
    machine.python("python3", "3.13")
    take_away(machine)
    assert machine.refusal() == f"error: system libraries are missing; install with: sudo apt-get install {packages}"
    assert machine.calls == []


def test_root_has_them_installed(machine: Machine) -> None:
    machine.python("python3", "3.13")
    make_root(machine)
    _no_numa(machine)
    assert machine.setup().returncode == 0
    assert machine.calls[:2] == ["apt-get -qq update", "apt-get -qq install -y --no-install-recommends libnuma1"]


def test_an_installation_that_fails_is_one_line(machine: Machine) -> None:
    machine.python("python3", "3.13")
    make_root(machine)
    _no_numa(machine)
    machine.program("apt-get", "#!/bin/sh\nexit 100\n")
    assert machine.refusal() == "error: apt-get could not install libnuma1 (system libraries are missing)"


def test_another_machine_is_refused(machine: Machine) -> None:
    machine.program("uname", "#!/bin/sh\necho Darwin arm64\n")
    assert machine.refusal() == "error: this needs Linux on x86-64, not Darwin arm64"
