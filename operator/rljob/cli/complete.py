"""What kubectl asks when somebody presses the tab key behind `kubectl rljob`: `kubectl_complete-rljob WORDS...`.

The answer is one word a line, then `:` and a number that tells the shell what to do if none fits (cobra's `ShellCompDirective`, see
k8s.io/kubectl/pkg/cmd/plugin/plugin_completion.go).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

import rljob.cli.main  # noqa: F401 - brings the commands that take a file
from rljob.api import ConfigurationError, InfrastructureError
from rljob.cli import cluster

_NO_FILES, _FILES = 4, 0
_OF_FILES = "validate"
_ROLES = ("master", "worker", "rollout", "reward", "sandbox")


def candidates(words: Sequence[str], jobs: Sequence[str]) -> tuple[list[str], int]:
    """(Words that fit, what to do if none does) for a command line without `kubectl rljob`; its last word is the unfinished one."""
    commands = [str(info.name) for info in cluster.app.registered_commands]
    *before, begun = words or [""]
    plain = _arguments(before)
    if not plain:
        return [c for c in commands if c.startswith(begun)], _NO_FILES
    if plain[0] == _OF_FILES:
        return [], _FILES
    if len(plain) == 1:
        return [j for j in jobs if j.startswith(begun)], _FILES if plain[0] == "plan" else _NO_FILES
    return [r for r in _ROLES if plain[0] == "logs" and len(plain) == 2 and r.startswith(begun)], _NO_FILES


_WITH_VALUE = ("-n", "--namespace", "--context", "--kubeconfig", "-c", "--container", "-o", "--output", "--tail", "--every")


def _arguments(words: Sequence[str]) -> list[str]:
    """The words that are no options and no values of options."""
    return [w for i, w in enumerate(words) if not w.startswith("-") and (i == 0 or words[i - 1] not in _WITH_VALUE)]


def where(words: Sequence[str]) -> cluster.Where:
    """The cluster and namespace that a command line without its last word means."""
    kubeconfig = _value(words, "--kubeconfig")
    return cluster.Where(_value(words, "--namespace", "-n"), _value(words, "--context"), Path(kubeconfig) if kubeconfig else None)


def _value(words: Sequence[str], long: str, short: str | None = None) -> str | None:
    """Value of an option, written `--long VALUE`, `--long=VALUE`, `-s VALUE` or `-sVALUE`; None if it is not there."""
    for word, after in zip(words, [*words[1:], None], strict=True):
        if word in (long, short):
            return after
        if word.startswith(f"{long}="):
            return word.partition("=")[2]
        if short and word.startswith(short):
            return word.removeprefix(short)
    return None


def main() -> None:
    """Entry point."""
    words = sys.argv[1:]
    jobs: list[str] = []
    if len(_arguments(words[:-1])) == 1 and words[0] != _OF_FILES:
        try:
            jobs = cluster.names(where(words[:-1]))
        except (ConfigurationError, InfrastructureError):
            # Nobody reads an error while typing.
            jobs = []
    found, directive = candidates(words, jobs)
    for word in found:
        typer.echo(word)
    typer.echo(f":{directive}")
