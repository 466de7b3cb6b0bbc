"""What the README shows is true: its job parses, the commands and files it names exist."""

import re
from pathlib import Path

from typer.testing import CliRunner

from rljob.api.load import parse
from rljob.cli.main import app
from rljob.cli.render import rendered

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_job_in_the_readme_is_valid() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert parse(text).metadata.name == "sums"


def test_the_job_in_the_readme_can_run_in_a_cluster_as_it_is() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert "name: sums-worker-0" in rendered(parse(text), None, None)


def test_every_command_in_the_readme_exists() -> None:
    listed = CliRunner().invoke(app, ["--help"]).output
    named = {word for words in re.findall(r"^rljob ([\w|]+)", README, re.MULTILINE) for word in words.split("|")}
    assert {"validate", "plan", "run", "status"} <= named
    assert [name for name in named if name not in listed] == []


def test_every_file_that_the_readme_links_to_exists() -> None:
    assert [link for link in re.findall(r"\]\(([\w./-]+)\)", README) if not (ROOT / link).exists()] == []
