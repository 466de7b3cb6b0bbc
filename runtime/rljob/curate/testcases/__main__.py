"""`python -m rljob.curate.testcases JSON`: the process of `rljob data testcases`. JSON is a `rljob.api.testcases.TestCaseGeneration`."""

import asyncio
import sys

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rljob.api.errors import exit_status
from rljob.api.testcases import TestCaseGeneration
from rljob.curate.testcases.programs import Programs
from rljob.curate.testcases.run import Progress, generate, shown
from rljob.reward.outside import Outside
from rljob.wire.crowd import CrowdTransport


async def main(spec: TestCaseGeneration) -> None:
    """Make the tests, with a bar on standard error where that is a terminal."""
    columns = (TextColumn("running programs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        progress = Progress(lambda programs: bar.update(task, total=programs), lambda programs: bar.advance(task, programs))
        async with httpx.AsyncClient(timeout=None, transport=CrowdTransport(), trust_env=False) as http:
            programs = Programs(Outside(http), spec, lambda: bar.advance(task))
            found = await generate(spec, programs, progress)
    for line in shown(found):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: asyncio.run(main(TestCaseGeneration.model_validate_json(sys.argv[1])))))
