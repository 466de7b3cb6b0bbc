"""The process that holds a reward model: `python -m rljob.reward.scorer FOLDER DEVICE BATCH_TOKENS PARENT`.

It loads the folder with transformers and answers one request after the other; who asks it kills it when it takes too long. Frames as those
of `rljob.reward.worker`. First it says `{"ready": context}` or `{"error": why}`; then `{"items": [{"chat": [...], "answer": "..."}]}` is
answered with `{"scores": [...]}`: a number each, or null for a conversation that is longer than the model's context.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rljob.api.families import is_scorer
from rljob.reward.worker import die_with_parent, read_frame, write_frame
from rljob.wire.reward_model import prompt_text, reply_text


def describe(folder: Path) -> str | None:
    """Why a folder is no reward model; None if it looks like one. Reads its configuration alone."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except OSError as error:
        return f"{folder / 'config.json'} cannot be read ({error.strerror}); name the folder that the job of a reward model wrote (`model`)"
    except ValueError:
        return f"{folder / 'config.json'} is not JSON"
    if not isinstance(config, dict) or not is_scorer(config):
        return f"{folder} holds no reward model: its config.json names no …ForSequenceClassification; train one with spec.rewardModel"
    labels = len(config.get("id2label") or {}) or config.get("num_labels", 2)
    return None if labels == 1 else f"{folder} gives {labels} labels, a reward model gives one score"


class Model:
    """A loaded reward model."""

    def __init__(self, folder: Path, device: str, batch_tokens: int) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._torch, self._batch_tokens = torch, batch_tokens
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        dtype = torch.float32 if self._device == "cpu" else torch.bfloat16
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, dtype=dtype, output_loading_info=True
        )
        if missing := sorted(found["missing_keys"]):
            raise ValueError(f"{missing[0]} is missing in its weights")
        if not hasattr(model, "score"):
            raise ValueError(f"{type(model).__name__} has no layer `score`")
        self._body, self._score = model.base_model.to(self._device).eval(), model.score.to(self._device).float()
        self.context = int(model.config.max_position_embeddings)
        self.scores([{"chat": [{"role": "user", "content": "a"}], "answer": "b"}])  # what cannot score this cannot score anything

    def scores(self, items: Sequence[dict[str, Any]]) -> list[float | None]:
        """The score of each conversation at its last token; None for one that is longer than the context."""
        rows = [self._tokens(item["chat"], item["answer"]) for item in items]
        found: list[float | None] = [None] * len(rows)
        for batch in batches([len(row) for row in rows], self._batch_tokens, self.context):
            for index, score in zip(batch, self._forward([rows[i] for i in batch]), strict=True):
                found[index] = score
        return found

    def _tokens(self, chat: Sequence[dict[str, str]], answer: str) -> list[int]:
        """As prompt and reply are tokenized in training: each by itself."""
        texts = [prompt_text(self._tokenizer, chat), reply_text(self._tokenizer, chat, answer)]
        return [token for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids]

    def _forward(self, rows: Sequence[list[int]]) -> list[float]:
        torch, longest = self._torch, max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self._device)
        last = torch.tensor([len(row) - 1 for row in rows], device=self._device)
        with torch.inference_mode():
            hidden = self._body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            scores = self._score(hidden[torch.arange(len(rows), device=self._device), last].float())[:, 0]
        found: list[float] = scores.tolist()
        return found


def batches(lengths: Sequence[int], budget: int, context: int) -> Iterator[list[int]]:
    """Places of rows that go through the model together: alike in length, at most `budget` tokens with padding, or one row. Rows longer
    than `context` are left out."""
    batch: list[int] = []
    for index in sorted((i for i, n in enumerate(lengths) if n <= context), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def main() -> None:
    """Load, say so, serve until the input ends."""
    folder, device, batch_tokens, parent = sys.argv[1:]
    die_with_parent()
    if os.getppid() != int(parent):
        return  # it ended before the kernel was told to watch it
    # Libraries that print must not garble the frames.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        model = Model(Path(folder), device, int(batch_tokens))
    except ImportError as error:
        remedy = "set `endpoint`, or use an image made from rljob/reward with torch and transformers"
        write_frame(sink, {"error": f"a model in a folder needs torch and transformers where the reward service runs ({error}); {remedy}"})
        return
    except Exception as error:  # noqa: BLE001 - process boundary: whatever a library raises is why the model cannot be used
        lines = (str(error).strip() or type(error).__name__).splitlines()
        write_frame(sink, {"error": f"{type(error).__name__}: {lines[0]}"[:500]})
        return
    write_frame(sink, {"ready": model.context})
    while (request := read_frame(sys.stdin.buffer)) is not None:
        write_frame(sink, {"scores": model.scores(request["items"])})


if __name__ == "__main__":
    main()
