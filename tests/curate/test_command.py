"""`rljob data curate`: what it is told is checked before anything starts, and the page says what it takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rljob.api import ConfigurationError
from rljob.cli.main import app

PAGE = (Path(__file__).parents[2] / "docs" / "curate.md").read_text()
GOOD = ["data", "curate", "in.jsonl", "out.jsonl", "--endpoint", "http://localhost:1/v1", "--model", "m"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--min-pass", "2"], "--min-pass: is 2.0; it must be at most 1"),
        (["--min-pass", "0.95"], "minPass (0.95) is more than maxPass (0.9); no prompt could be kept"),
        (["--endpoint", "localhost"], "--endpoint: is 'localhost'; it must match ^https?://"),
        (["--verifier", "maths"], "--verifier: is 'maths'; it is one of"),
        (["--verifier", "math", "--options", '{"plac": 1}'], "--options.plac: is no option of math; did you mean place?"),
        (["--options", "{"], "--options {: is not JSON"),
        (["--column", "prompt"], "--column prompt: expected FIELD=COLUMN, such as --column prompt=question"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_the_remedy(more: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*GOOD, *more])
    assert isinstance(result.exception, ConfigurationError)
    assert message in str(result.exception)


def test_a_file_that_is_not_there_is_said_by_the_process_that_reads_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(app, ["data", "curate", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *GOOD[4:]])
    assert result.exit_code == 2
    assert capfd.readouterr().err == f"error: IN.path: {tmp_path / 'in.jsonl'} does not exist; name a .jsonl or .parquet file\n"


def test_every_option_of_the_page_exists() -> None:
    group = typer.main.get_group(app).commands["data"]
    assert isinstance(group, typer.core.TyperGroup)
    known = {option for parameter in group.commands["curate"].params for option in parameter.opts}
    named = re.findall(r"`(--[\w-]+)", PAGE) + [
        word for line in re.findall(r"^rljob data curate (.*)$", PAGE, re.MULTILINE) for word in shlex.split(line) if word.startswith("--")
    ]
    assert set(named) <= known
