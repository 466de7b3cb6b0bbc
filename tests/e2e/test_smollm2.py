"""The main example's first two iterations, from its released weights: what `make run` does, only shorter."""

import re
from pathlib import Path

import pytest
import torch
from tests.e2e.jobfolder import ROOT, metrics, processes, start, status, watch
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLE = ROOT / "examples" / "smollm2" / "rljob.yaml"
ITERATIONS, HELD_OUT = 2, 64
SHORTER = (f"spec.iterations={ITERATIONS}", f"spec.evaluation.data.limit={HELD_OUT}")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def documented() -> set[str]:
    """Keys of a line of metrics.jsonl, as docs/metrics.md names them."""
    table = (ROOT / "docs" / "metrics.md").read_text().split("### `seconds`")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


def test_the_released_model_starts_where_it_should_and_is_trained(tmp_path: Path) -> None:
    """Weights that were converted or tokenized wrongly follow no instruction at all: the accuracy at the start would be near 0."""
    folder = tmp_path / "job"
    process = start(EXAMPLE, folder, *(word for change in SHORTER for word in ("--set", change)))
    made = watch(process, folder, timeout=2700)
    assert process.returncode == 0, folder.with_suffix(".out").read_text()[-3000:]
    assert processes(folder) == []
    assert [path for path in made if path.exists()] == []

    first, last = status(folder)["heldOut"][0], status(folder)["heldOut"][-1]
    assert (first["iteration"], last["iteration"]) == (0, ITERATIONS)
    assert first["count"] == last["count"] == HELD_OUT
    assert first["accuracy"] > 0.2
    assert last["accuracy"] > 0.2, "training has not broken it"

    lines = metrics(folder)
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    assert all(line.keys() == documented() for line in lines)
    # Where the hardware has bf16 the trainer uses it, and the engine does not: 0.04 to 0.07 was measured on these answers.
    assert all(line["grad_norm"] > 0 and 0 < line["reward"] < 1 and line["logprob_gap"] < 0.15 for line in lines)

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        out = model.generate(**prompt, do_sample=False, max_new_tokens=24)
    assert "Paris" in tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
