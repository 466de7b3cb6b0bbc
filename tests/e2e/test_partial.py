"""Partial rollouts with real engines: answers that several versions of the policy wrote, each its own segment."""

import json
from pathlib import Path

import pytest
import yaml
from tests.e2e.jobfolder import (
    EXAMPLE,
    PROMPTS,
    assert_every_prompt_is_accounted_for,
    database,
    metrics,
    processes,
    small_job,
    start,
    wait,
)

ITERATIONS = 4
SAMPLES = 4
"""Answers to a prompt. Few, as an iteration in which no prompt has all of its answers goes on with the same policy."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def mixed(folder: Path) -> set[tuple[int, int]]:
    """Answers that are complete, wait to be trained on or are, and were written by more than one version."""
    if not (folder / "state" / "master.sqlite").exists():
        return set()
    with database(folder) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'batches'").fetchone():
            return set()
        batch = db.execute("SELECT groups FROM batches").fetchone()
        found = db.execute("SELECT group_id, sample FROM pieces GROUP BY group_id, sample HAVING count(DISTINCT checksum) > 1").fetchall()
    return {(group, sample) for group, sample in found if batch is not None and group in json.loads(batch[0])}


def test_answers_that_several_versions_wrote_are_trained_on_and_trainer_and_engine_agree_on_them(tmp_path: Path) -> None:
    """An engine that went on with keys and values of old weights, or a segment under a wrong version, would show in the gap."""
    file, folder = small_job(tmp_path, ITERATIONS), tmp_path / "job"
    job = yaml.safe_load(file.read_text())
    job["spec"]["rollout"]["tokenBudget"] = 5  # a word of four letters and its end; longer ones go on
    job["spec"]["algorithm"]["samplesPerPrompt"] = SAMPLES
    job["spec"]["warmStart"]["steps"] = 120  # most answers are as long as they should be
    file.write_text(yaml.safe_dump(job))
    process = start(file, folder)
    trained: set[tuple[int, int]] = set()

    def ended() -> bool:
        trained.update(mixed(folder))
        return process.poll() is not None

    try:
        wait(ended, "the end of the job", timeout=900)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=180)
    assert process.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
    assert processes(folder) == []
    lines = metrics(folder)
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    assert len(trained) > SAMPLES
    # Whether an iteration leaves answers unfinished is chance; what it leaves is trained on in the next one, and is stale there.
    assert any(line["carried"] > 0 for line in lines[:-1])
    assert [line["stale_tokens"] > 0 for line in lines[1:]] == [line["carried"] > 0 for line in lines[:-1]]
    assert all(line["masked_tokens"] == pytest.approx(line["stale_tokens"]) for line in lines), "maxStaleness is 0"
    assert max(line["logprob_gap"] for line in lines) < 1e-3
    epoch = len((EXAMPLE / "train.jsonl").read_text().splitlines())
    with database(folder) as db:
        assert_every_prompt_is_accounted_for(db, lines, per_iteration=PROMPTS, samples=SAMPLES, epoch=epoch)
