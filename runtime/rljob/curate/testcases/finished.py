"""Problems that are finished, kept beside OUT until the whole run is: an interrupted run goes on where it was.

One file for each problem, which comes to stand whole or not at all. Its name is made of everything that its result depends on (the problem,
the numbers of the run), so a changed problem or another option is worked on anew.
"""

import json
import os
import shutil
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from rljob.api.testcases import TestCaseGeneration
from rljob.curate.testcases.majority import Outcome
from rljob.curate.testcases.problem import Located

_IRRELEVANT = {"source", "out", "sandbox", "concurrency"}
"""Fields of a run that change no result."""


class Finished:
    """The results of a run so far."""

    def __init__(self, spec: TestCaseGeneration) -> None:
        self.folder = Path(spec.out).with_suffix(".unfinished")
        self._numbers = spec.model_dump(mode="json", exclude=_IRRELEVANT)

    def get(self, one: Located) -> Outcome | None:
        """What a run before this one made of a problem."""
        try:
            found = json.loads(self._file(one).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return Outcome(**found | {"tests": tuple((given, expected) for given, expected in found["tests"])})

    def put(self, one: Located, outcome: Outcome) -> None:
        """Keep a result."""
        self.folder.mkdir(exist_ok=True)
        file = self._file(one)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(outcome)))
        os.replace(draft, file)

    def remove(self) -> None:
        """The run is over: its results stand in OUT."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, one: Located) -> Path:
        # The name takes part because it draws the submissions.
        said = json.dumps([self._numbers, one.name, one.problem.model_dump(mode="json")], sort_keys=True)
        return self.folder / f"{sha256(said.encode()).hexdigest()[:32]}.json"
