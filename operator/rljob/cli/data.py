"""`rljob data`: prompt sets. The work is the runtime's, in a process of its own."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import BaseModel, ValidationError

from rljob.api import ConfigurationError
from rljob.api.curation import Curation
from rljob.api.load import describe
from rljob.api.testcases import TestCaseGeneration
from rljob.api.yaml_file import Problem

app = typer.Typer(help="Prompt sets.", no_args_is_help=True)

_DEFAULT = {name: field.default for name, field in Curation.model_fields.items()}
_TESTS = {name: field.default for name, field in TestCaseGeneration.model_fields.items()}


@app.callback()
def data() -> None:
    """Prompt sets."""


@app.command("curate")
def curate_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .jsonl or .parquet file of records.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .jsonl file to write.", show_default=False)],
    endpoint: Annotated[str, typer.Option(help="OpenAI-compatible service of the policy, such as http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="Name of the policy there.")],
    column: Annotated[list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="For files made by others: prompt=question.")] = None,
    verifier: Annotated[str, typer.Option(help="Judges answers to records that name no verifier.")] = _DEFAULT["verifier"],
    options: Annotated[str, typer.Option(metavar="JSON", help="Options of that verifier.")] = "{}",
    samples: Annotated[int, typer.Option(help="Answers to each prompt.")] = _DEFAULT["samples"],
    guesses: Annotated[int, typer.Option(help="Guesses without reasoning; a prompt that one passes is dropped.")] = _DEFAULT["guesses"],
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = _DEFAULT["temperature"],
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = _DEFAULT["max_tokens"],
    guess_tokens: Annotated[int, typer.Option(help="Longest guess.")] = _DEFAULT["guess_tokens"],
    min_pass: Annotated[float, typer.Option(help="Drop prompts that are passed less often.")] = _DEFAULT["min_pass"],
    max_pass: Annotated[float, typer.Option(help="Drop prompts that are passed more often.")] = _DEFAULT["max_pass"],
    balance: Annotated[float, typer.Option(help="Most of a family, relative to the median family; 0: all.")] = _DEFAULT["balance"],
    concurrency: Annotated[int, typer.Option(help="Prompts in progress at a time.")] = _DEFAULT["concurrency"],
) -> None:
    """Keep the prompts that a policy can learn from: neither too easy nor guessable, families in balance, each with its difficulty.

    OPENAI_API_KEY is sent to the endpoint if it is set. The same command goes on where it was stopped.
    """
    given: dict[str, Any] = {
        "source": str(source), "out": str(out), "endpoint": endpoint, "model": model, "columns": dict(map(_pair, column or ())),
        "verifier": verifier, "options": _parsed(options), "samples": samples, "guesses": guesses, "temperature": temperature,
        "max_tokens": max_tokens, "guess_tokens": guess_tokens, "min_pass": min_pass, "max_pass": max_pass, "balance": balance,
        "concurrency": concurrency,
    }  # fmt: skip
    _run("rljob.curate", Curation, given)


@app.command("testcases")
def cases_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .jsonl or .yaml file of code problems.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .jsonl file of records to write.", show_default=False)],
    sandbox: Annotated[
        str, typer.Option(help="Code sandbox that runs generators and submissions.", envvar="RLJOB_URL_SANDBOX")
    ] = "http://127.0.0.1:8082",
    cases: Annotated[int, typer.Option(help="Inputs generated for each problem.")] = _TESTS["cases"],
    submissions: Annotated[int, typer.Option(help="Reference submissions drawn for each problem.")] = _TESTS["submissions"],
    agree: Annotated[int, typer.Option(help="Submissions whose same output makes an input a test.")] = _TESTS["agree"],
    passing: Annotated[int, typer.Option(help="Submissions that have to pass all tests of a problem.")] = _TESTS["passing"],
    min_cases: Annotated[int, typer.Option(help="Tests that a problem must have.")] = _TESTS["min_cases"],
    seed: Annotated[int, typer.Option(help="Of inputs and of the choice of submissions.")] = _TESTS["seed"],
    cpu_seconds: Annotated[float, typer.Option(help="Processor time of a submission with one input.")] = _TESTS["cpu_seconds"],
    memory_mb: Annotated[int, typer.Option(help="Memory of a program, MiB.")] = _TESTS["memory_mb"],
    concurrency: Annotated[int, typer.Option(help="Programs in progress at a time.")] = _TESTS["concurrency"],
) -> None:
    """Make tests for code problems: inputs by a generator, outputs by the majority of reference submissions.

    All programs run in the sandbox (`rljob sandbox serve` starts one).
    """
    given: dict[str, Any] = {
        "source": str(source), "out": str(out), "sandbox": sandbox, "cases": cases, "submissions": submissions, "agree": agree,
        "passing": passing, "min_cases": min_cases, "seed": seed, "cpu_seconds": cpu_seconds, "memory_mb": memory_mb,
        "concurrency": concurrency,
    }  # fmt: skip
    _run("rljob.curate.testcases", TestCaseGeneration, given)


def _run(module: str, model: type[BaseModel], given: dict[str, Any]) -> NoReturn:
    """Check what was given, and end with what the process that does the work ends with."""
    try:
        spec = model.model_validate(given)
    except ValidationError as error:
        raise ConfigurationError("; ".join(map(_said, describe(error, model)))) from None
    if importlib.util.find_spec("rljob.curate") is None:
        raise ConfigurationError("this installation lacks the runtime: pip install '.[prepare,reward]' in a checkout of RLJob")
    raise typer.Exit(subprocess.run([sys.executable, "-m", module, spec.model_dump_json()], check=False).returncode)


def _said(problem: Problem) -> str:
    """With the field as it is written on the command line."""
    name = {"source": "IN", "out": "OUT", "columns": "--column"}.get(problem.path)
    option = name or "--" + problem.path.replace("_", "-")
    return f"{option}: {problem.message}" if problem.path else problem.message


def _pair(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not equals:
        raise ConfigurationError(f"--column {text}: expected FIELD=COLUMN, such as --column prompt=question")
    return field, column


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f'--options {text}: is not JSON ({error}); write it as \'{{"place": "boxed"}}\'') from None
