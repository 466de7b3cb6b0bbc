"""What a user might write for the verifier `import`."""

import os
import time
from pathlib import Path
from typing import Any


def shorter(prompt: str, answer: str, reference: Any, than: int = 10) -> tuple[float, str]:
    """A graded reward with a reason."""
    return min(1.0, than / max(1, len(answer))), f"{len(answer)} characters"


def right(prompt: str, answer: str, reference: Any) -> bool:
    """A plain yes or no."""
    return bool(answer == reference)


def full_marks(prompt: str, answer: str, reference: Any) -> float:
    """A sum of shares, by addition in floating point."""
    total = 0.0
    for share in answer.split():
        total += float(share)
    return total


def raises(prompt: str, answer: str, reference: Any) -> float:
    """Has a mistake."""
    return float(reference["no such key"])


def too_much(prompt: str, answer: str, reference: Any) -> float:
    """Is no reward."""
    return 7.0


def text(prompt: str, answer: str, reference: Any) -> str:
    """Is no number."""
    return "good"


def spins(prompt: str, answer: str, reference: Any) -> float:
    """Never ends."""
    while True:
        time.sleep(0.01)


def slowly(prompt: str, answer: str, reference: Any, log: str) -> bool:
    """Takes as long as one that asks a service, and until another one has begun, and notes when it is called and when it is done."""
    noted, late = Path(log), time.monotonic() + 4
    with noted.open("a") as lines:
        lines.write(f"begin {answer}\n")
    time.sleep(0.4)
    while noted.read_text().count("begin") < 2 and time.monotonic() < late:
        time.sleep(0.01)
    with noted.open("a") as lines:
        lines.write(f"end {answer}\n")
    return True


def secrets(prompt: str, answer: str, reference: Any) -> tuple[bool, str]:
    """What of the environment it sees."""
    return True, ",".join(sorted(name for name in os.environ if "TOKEN" in name))


remembered: list[str] = []


def remembers(prompt: str, answer: str, reference: Any) -> bool:
    """Whether an earlier answer left something behind."""
    remembered.append(answer)
    return len(remembered) == 1
