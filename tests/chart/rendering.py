"""The chart through a real Helm: values in, objects out."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "charts" / "rljob"
Json = dict[str, Any]


class RefusedError(Exception):
    """Helm did not take the values; the text is what it said."""


class Chart:
    """`charts/rljob` as release `rljob` in namespace `rljob-system`."""

    def __init__(self, helm: Path) -> None:
        self.helm = helm
        self._known: dict[str, str] = {}

    def run(self, *arguments: str, stdin: str = "") -> str:
        """Output of a helm command.

        Raises:
            RefusedError: it failed.
        """
        done = subprocess.run([str(self.helm), *arguments], input=stdin, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RefusedError(done.stderr)
        return done.stdout

    def text(self, values: Mapping[str, Any] | None = None) -> str:
        """What `helm template` prints.

        Raises:
            RefusedError: the values are wrong.
        """
        given = json.dumps(dict(values or {}), sort_keys=True)
        if given not in self._known:
            command = ("template", "rljob", str(FOLDER), "--namespace", "rljob-system", "--values", "-")
            self._known[given] = self.run(*command, stdin=given)
        return self._known[given]

    def objects(self, values: Mapping[str, Any] | None = None) -> list[Json]:
        """The rendered objects."""
        # The C loader: the definition alone takes the other one a second.
        return [item for item in yaml.load_all(self.text(values), Loader=yaml.CSafeLoader) if item]

    def one(self, kind: str, values: Mapping[str, Any] | None = None) -> Json:
        """The only object of a kind."""
        (found,) = [item for item in self.objects(values) if item["kind"] == kind]
        return found


def settings_of(objects: list[Json]) -> str:
    """The operator's settings file in a rendering."""
    (found,) = [item for item in objects if item["kind"] == "ConfigMap"]
    text: str = found["data"]["settings.yaml"]
    return text
