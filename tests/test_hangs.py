"""A test that waits in native code ends too, is named, and holds up nobody else."""

import subprocess
import sys
from pathlib import Path

HANGING = """
import ctypes
import pytest

def test_before(): ...

@pytest.mark.timeout(1)
def test_that_waits_for_itself():
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)

def test_after(): ...
"""
SOONER = "from tests import hangs\n\nhangs.GRACE = 1.0\n"
ROOT = Path(__file__).parents[1]


def test_what_hangs_in_native_code_is_ended_and_named_and_the_others_run(tmp_path: Path) -> None:
    (tmp_path / "test_hanging.py").write_text(HANGING)
    (tmp_path / "conftest.py").write_text(SOONER)
    command = [sys.executable, "-m", "pytest", "-p", "tests.hangs", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", "--numprocesses=1"]
    ended = subprocess.run([*command, "-c", "/dev/null", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "crashed while running 'test_hanging.py::test_that_waits_for_itself'" in ended.stdout
    assert "1 failed, 2 passed" in ended.stdout
    assert "in test_that_waits_for_itself" in ended.stderr, "where it hung is said"
