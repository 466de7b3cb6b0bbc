"""The main example, whole, from its released weights: what `make run` does, against what it promises."""

import re
from pathlib import Path

import pytest
import torch
from tests.e2e.jobfolder import ROOT, metrics, processes, start, status, watch
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLE = ROOT / "examples" / "smollm2" / "rljob.yaml"
ITERATIONS = 8
HELD_OUT = len((EXAMPLE.parent / "heldout.jsonl").read_text().splitlines())

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def documented() -> set[str]:
    """Keys of a line of metrics.jsonl, as docs/metrics.md names them."""
    table = (ROOT / "docs" / "metrics.md").read_text().split("### `seconds`")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


def test_the_released_model_starts_where_it_should_and_learns_what_the_example_promises(tmp_path: Path) -> None:
    """Weights that were converted or tokenized wrongly follow no instruction at all: the accuracy at the start would be near 0."""
    folder = tmp_path / "job"
    process = start(EXAMPLE, folder)
    made = watch(process, folder, timeout=2700)
    output = folder.with_suffix(".out").read_text()
    assert process.returncode == 0, output[-3000:]
    assert processes(folder) == []
    assert [path for path in made if path.exists()] == []

    first, last = status(folder)["heldOut"]
    assert (first["iteration"], last["iteration"]) == (0, ITERATIONS)
    assert first["count"] == last["count"] == HELD_OUT >= 256
    assert first["accuracy"] > 0.2
    assert last["accuracy"] >= first["accuracy"] + 0.15
    assert len(last["families"]) == 3
    assert all(accuracy >= first["families"][family] - 0.05 for family, accuracy in last["families"].items())
    shown = f"held-out accuracy before the first iteration: {100 * first['accuracy']:.1f} % ({HELD_OUT} prompts)"
    assert 0 < output.find(shown) < output.index(f"iteration 1/{ITERATIONS}: ")

    lines = metrics(folder)
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    assert all(line.keys() == documented() for line in lines)
    assert (lines[0]["held_out_before"], lines[-1]["held_out"]) == (first["accuracy"], last["accuracy"])
    # Where the hardware has bf16 the trainer uses it, and the engine does not: 0.04 to 0.07 was measured on these answers.
    assert all(line["grad_norm"] > 0 and 0 < line["reward"] < 1 and line["logprob_gap"] < 0.15 for line in lines)

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        out = model.generate(**prompt, do_sample=False, max_new_tokens=24)
    assert "Paris" in tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
