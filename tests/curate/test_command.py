"""`rljob data`: what its commands are told is checked before anything starts, and their pages say what they take."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from tests.sandbox.test_process import free_port, started
from typer.testing import CliRunner

from rljob.api import ConfigurationError
from rljob.cli.main import app

DOCS = Path(__file__).parents[2] / "docs"
GOOD = ["data", "curate", "in.jsonl", "out.jsonl", "--endpoint", "http://localhost:1/v1", "--model", "m"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--min-pass", "2"], "--min-pass: is 2.0; it must be at most 1"),
        (["--min-pass", "0.95"], "--min-pass (0.95) is more than --max-pass (0.9); no prompt could be kept"),
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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--agree", "11"], "--agree (11) is more than --submissions (10); no problem could be kept"),
        (["--agree", "5"], "--agree (5) is no majority of --submissions (10); two outputs could be expected"),
        (["--min-cases", "51"], "--min-cases (51) is more than --cases (50); no problem could be kept"),
        (["--cases", "101"], "--cases (101) × --cpu-seconds (2) is 202 s, but the verifier `code` gives an answer 200 s for all tests"),
        (["--passing", "0"], "--passing: is 0; it must be at least 1"),
        (["--sandbox", "localhost"], "--sandbox: is 'localhost'; it must match ^https?://"),
    ],
)
def test_numbers_by_which_no_problem_could_be_kept_are_refused(more: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["data", "testcases", "in.jsonl", "out.jsonl", *more])
    assert isinstance(result.exception, ConfigurationError)
    assert message in str(result.exception)


def test_problems_that_are_not_there_are_said_by_the_process_that_reads_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(app, ["data", "testcases", str(tmp_path / "in.yaml"), str(tmp_path / "out.jsonl")])
    assert result.exit_code == 2
    assert f"error: IN: {tmp_path / 'in.yaml'} cannot be read" in capfd.readouterr().err


def test_the_command_makes_tests_with_a_sandbox_that_runs_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    problem = {
        "prompt": "Double it.",
        "generator": "def generate(case, cases): return str(case)",
        "submissions": ["print(2 * int(input()))"] * 2,
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(problem) + "\n")
    port = free_port()
    given = {"RLJOB_SANDBOX": '{"slots": 1}', "RLJOB_LISTEN_SANDBOX": f"127.0.0.1:{port}"}
    few = ["--cases", "3", "--submissions", "2", "--agree", "2", "--passing", "2", "--min-cases", "3"]
    with started([sys.executable, "-m", "rljob.sandbox"], port, **given):
        command = [
            "data",
            "testcases",
            str(tmp_path / "in.jsonl"),
            str(tmp_path / "out.jsonl"),
            "--sandbox",
            f"http://127.0.0.1:{port}",
            *few,
        ]
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert capfd.readouterr().out == "1 of 1 problems kept, with 3 tests\n"
    (record,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert record == {
        "prompt": "Double it.",
        "verifier": "code",
        "options": {"cpu_seconds": 2.0, "wall_seconds": 6.0, "total_seconds": 200.0, "memory_mb": 256},
        "reference": {"tests": [{"stdin": str(n), "expected": str(2 * n)} for n in range(3)], "checker": {"kind": "tokens"}},
    }


@pytest.mark.parametrize("command", ["curate", "testcases"])
def test_every_option_of_the_page_exists(command: str) -> None:
    group = typer.main.get_group(app).commands["data"]
    assert isinstance(group, typer.core.TyperGroup)
    known = {option for parameter in group.commands[command].params for option in parameter.opts}
    page = (DOCS / f"{command}.md").read_text().replace("\\\n", "")
    shown = re.findall(rf"^rljob data {command} (.*)$", page, re.MULTILINE)
    assert shown
    named = re.findall(r"`(--[\w-]+)", page) + [word for line in shown for word in shlex.split(line) if word.startswith("--")]
    assert set(named) <= known
