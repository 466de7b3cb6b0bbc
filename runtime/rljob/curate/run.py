"""From a file of records to a smaller one, and a report."""

import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from rljob.api import ConfigurationError
from rljob.api.curation import Curation
from rljob.api.outputs import check_outputs
from rljob.api.sources import DataSource
from rljob.api.verifiers import named, uses
from rljob.curate.choose import BINS, FATES, Measured, fates, report
from rljob.curate.measure import Meter
from rljob.prepare.data_sources import load
from rljob.prepare.files import write_atomically
from rljob.prepare.records import Located
from rljob.reward.judge import standard_judge
from rljob.reward.outside import Outside
from rljob.reward.pool import WorkerPool
from rljob.reward.registry import VERIFIERS, check, check_turns

Say = Callable[[str], None]
JUDGEMENT_SECONDS = 5.0


async def curate(spec: Curation, pool: WorkerPool, policy: Outside, judges: Outside, say: Say) -> dict[str, object]:
    """Measure, choose, write `spec.out` and its report; the report.

    Args:
        policy: by which the endpoint is reached.
        judges: by which verifiers reach the sandbox and a user's own service.

    Raises:
        ConfigurationError: the records cannot be read or judged, or nothing can be written.
        InfrastructureError: the endpoint does not answer; the same command goes on.
    """
    out = Path(spec.out)
    journal = out.with_suffix(".measured.jsonl")
    check_outputs((out, journal, out.with_suffix(".report.json")), (Path(spec.source),))
    located = load(DataSource(path=spec.source, columns=spec.columns), "IN", Path(), Path())
    allowed = frozenset(named(spec.verifier, spec.options))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(pool.stop)
        judge = standard_judge(pool, JUDGEMENT_SECONDS, judges, allowed)
        meter = Meter(spec, policy, judge, journal)
        _check(located, meter, allowed, judges.sandbox)
        measured = await meter.measure([one.record for one in located], say)
    found = fates(measured, spec)
    kept = [(one, m) for one, m, fate in zip(located, measured, found, strict=True) if fate == "kept"]
    lines = [one.record.model_dump(mode="json", exclude_defaults=True) | {"difficulty": m.difficulty} for one, m in kept]
    write_atomically(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    made = {"spec": spec.model_dump(mode="json", by_alias=True)} | report(measured, found)
    write_atomically(out.with_suffix(".report.json"), json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    for line in shown(measured, made):
        say(line)
    return made


def _check(located: Sequence[Located], meter: Meter, allowed: frozenset[str], sandbox: str | None) -> None:
    for one in located:
        name, options = meter.verifier_of(one.record)
        if name not in VERIFIERS:
            raise ConfigurationError(f"{one.where}: no verifier {name!r}; there are {', '.join(VERIFIERS)}")
        try:
            check(name, options, one.record.reference, allowed)
            if "code" in uses(name, options) and sandbox is None:
                raise ValueError("programs run in the sandbox; set RLJOB_URL_SANDBOX to the address of one")
            check_turns(name, options, (message.role for message in one.record.chat))
        except ValueError as error:
            raise ConfigurationError(f"{one.where}: verifier {name}: {error}") from None


def shown(prompts: Sequence[Measured], made: dict[str, object]) -> list[str]:
    """The report for people."""
    counts, rates, families = made["fates"], made["pass_rates"], made["families"]
    assert isinstance(counts, dict)
    assert isinstance(rates, dict)
    assert isinstance(families, dict)
    lines = [f"{counts['kept']} of {len(prompts)} prompts kept"]
    lines += [f"  {fate}: {counts[fate]}" for fate in FATES if fate != "kept" and counts[fate]]
    if counts["unjudged"]:
        lines.append("  (the same command asks again for those that could not be judged)")
    most = max(1, *rates["all"])
    lines.append("pass rate       all   kept")
    for place, (every, kept) in enumerate(zip(rates["all"], rates["kept"], strict=True)):
        name = "none" if place == 0 else f"to {place / BINS:.0%}"
        lines.append(f"  {name:>8} {every:8d} {kept:6d}  {'█' * round(30 * every / most)}")
    if len(families) > 1:
        lines.append("family: kept of all, pass rate")
        rate = {name: "-" if some["pass_rate"] is None else f"{some['pass_rate']:.0%}" for name, some in families.items()}
        lines += [f"  {name or '(none)'}: {some['kept']} of {some['prompts']}, {rate[name]}" for name, some in families.items()]
    return lines
