"""The arithmetic example with one short iteration: a generator's prompts, a warm start on demonstrations, the verifier `reasoning-gym`."""

import re
from pathlib import Path

import pytest
from tests.e2e.jobfolder import ROOT, database, metrics, processes, start, status, watch

EXAMPLE = ROOT / "examples" / "arithmetic" / "rljob.yaml"
PROMPTS, HELD_OUT = 16, 64
SHORTER = ("spec.iterations=1", f"spec.algorithm.promptsPerIteration={PROMPTS}", f"spec.evaluation.data.limit={HELD_OUT}")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def total(question: str) -> int:
    """Of the two numbers that a question asks about."""
    found = re.search(r"(\d+) ([+-]) (\d+) =", question)
    assert found is not None, question
    first, sign, second = found.groups()
    return int(first) + int(sign + second)


def test_demonstrations_teach_the_form_and_right_sums_alone_earn_the_reward(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    process = start(EXAMPLE, folder, *(word for change in SHORTER for word in ("--set", change)))
    made = watch(process, folder, timeout=1700)
    assert process.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
    assert processes(folder) == []
    assert [path for path in made if path.exists()] == []

    held_out = status(folder)["heldOut"]
    assert [(each["iteration"], each["count"]) for each in held_out] == [(0, HELD_OUT), (1, HELD_OUT)]
    assert all(each["accuracy"] > 0.1 for each in held_out), "the released model has none right, the whole warm start makes it a third"

    with database(folder) as db:
        rows = db.execute("SELECT question, answer, is_right FROM held_out").fetchall()
    assert len(rows) == 2 * HELD_OUT
    assert all(f"\\boxed{{{total(question)}}}" in answer for question, answer, is_right in rows if is_right)
    wrong = [answer for _, answer, is_right in rows if not is_right]
    assert sum("\\boxed{" in answer for answer in wrong) > len(wrong) / 2, "they have the form, the number is wrong"

    (line,) = metrics(folder)
    assert (line["iteration"], line["version"], line["groups"]) == (1, 2, PROMPTS)
    assert 0 < line["reward"] < 1
    assert line["zero_advantage"] < 1
    assert line["grad_norm"] > 0
    assert line["logprob_gap"] < 0.15
