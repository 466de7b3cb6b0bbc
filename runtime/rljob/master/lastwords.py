"""What a master leaves behind when its job has succeeded: the end of its status, as the message Kubernetes keeps of an ended container.

An operator asks now and then; what was finished after its last question, the final evaluation for one, it could not know otherwise, and no
operator need live at that moment. On one machine nobody reads it: `status.json` says the same and more.
"""

import json
import logging
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rljob.api.status import JobStatus

log = logging.getLogger(__name__)

FILE = Path("/dev/termination-log")
"""Where a kubelet reads the message (`terminationMessagePath`'s default); it makes the file."""
MOST = 4096
"""Bytes that a kubelet keeps."""
_LEFT_OUT = {"nodes", "progress", "last_failure"}


def last_words(status: JobStatus) -> str:
    """A JobStatus in JSON of at most `MOST` bytes: with the newest evaluations and the newest rewards that fit."""
    said: dict[str, Any] = status.model_dump(mode="json", by_alias=True, exclude=_LEFT_OUT, exclude_none=True)
    rewards, held_out = said.pop("rewards"), said.pop("heldOut")
    kept = _newest(held_out, MOST // 2, lambda part: said | {"heldOut": part})
    said["heldOut"] = kept
    fitting = _newest(rewards, MOST, lambda part: said | {"rewards": part, "rewardsBefore": len(rewards)})
    said |= {"rewards": fitting, "rewardsBefore": said.get("rewardsBefore", 0) + len(rewards) - len(fitting)}
    return _text(said)


def leave(status: JobStatus, file: Path = FILE) -> None:
    """Write them, where something keeps them. That they are lost is no reason to fail: the job has succeeded."""
    if not file.exists():
        return
    try:
        file.write_text(last_words(status))
    except OSError as error:
        log.warning("%s cannot be written: %s", file, error.strerror)


def _newest(items: list[Any], most: int, whole: Callable[[list[Any]], dict[str, Any]]) -> list[Any]:
    """The longest end of `items` with which the text stays within `most` bytes."""
    count = bisect_right(range(1, len(items) + 1), most, key=lambda n: len(_text(whole(items[len(items) - n :])).encode()))
    return items[len(items) - count :]


def _text(said: dict[str, Any]) -> str:
    return json.dumps(said, separators=(",", ":"))
