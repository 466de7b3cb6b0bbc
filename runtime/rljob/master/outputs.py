"""The files in the `output` volume, made from the status and from the history."""

import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path

from rljob.master.decisions.record import lines
from rljob.master.parts import Parts
from rljob.master.report import report_page
from rljob.master.status import job_status

STATUS_SECONDS = 1.0
"""Between two writings of status.json."""
STATUS_BYTES = 16_384
"""Of status.json in a second: after thousands of iterations it is long, and its volume may be far away."""


class Outputs:
    """Writes status.json, metrics.jsonl and report.html."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lines: list[str] = []
        """Of metrics.jsonl, as last written."""

    async def keep(self) -> None:
        """Keep them true, for ever: the status about every second and at every change, the others when a record was added."""
        activity, written = self._parts.activity, -1
        while True:
            size = self._write_status()
            if activity.records != written:
                written = activity.records
                self._write_records()
            with suppress(TimeoutError):
                await asyncio.wait_for(activity.news.wait(), max(STATUS_SECONDS, size / STATUS_BYTES))

    def write(self) -> None:
        """All of them, as things stand."""
        self._write_records()
        self._write_status()

    def _write_status(self) -> int:
        """Characters written."""
        text = job_status(self._parts).model_dump_json(by_alias=True, indent=1) + "\n"
        _replace(self._parts.folders.output / "status.json", text)
        return len(text)

    def _write_records(self) -> None:
        """Both files are written anew each time, so that no crash can double or lose a line. Of the lines only the newest one can still
        change, when its evaluation comes; those before it are not made again."""
        history, output = self._parts.state.history, self._parts.folders.output
        del self._lines[-1:]
        evaluations = {e.status.iteration: (e.status, e.record) for e in history.evaluations()}
        self._lines += [json.dumps(line) + "\n" for line in lines(history.iterations()[len(self._lines) :], evaluations)]
        _replace(output / "metrics.jsonl", "".join(self._lines))
        _replace(output / "report.html", report_page(self._parts))


def _replace(path: Path, text: str) -> None:
    """Write a file so that readers see the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
