"""Makes the data of this folder. Run it again and the same files come out.

The task is that of `examples/tiny`: spell a word backward. No word stands in two files.

- `train.jsonl`, `heldout.jsonl`: pairs. The word spelled backward is preferred to one of the things that a policy writes instead.
- `labelled.jsonl`: single answers with a label, for `rljob reward compare`.
- `words.jsonl`, `questions.jsonl`: prompts for a policy. Those to train on have no reference: only the reward model can judge them.

    python examples/reward-model/make_data.py
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reasoning_gym

SEED = 20261128
PAIRS, HELD_OUT_PAIRS, LABELLED, WORDS, HELD_OUT_WORDS = 6000, 256, 128, 4000, 256
LETTERS = range(4, 6)
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
SHOWN_SHARE = 0.5


def words() -> list[str]:
    """Distinct words of a novel that reasoning-gym carries, without palindromes, in an order that only depends on SEED."""
    entries = reasoning_gym.create_dataset("spell_backward", size=60_000, seed=SEED, min_word_len=LETTERS[0], max_word_len=LETTERS[-1])
    found = {entry["metadata"]["word"].lower() for entry in entries}
    usable = sorted(w for w in found if w.isascii() and w.isalpha() and len(w) in LETTERS and w != w[::-1])
    random.Random(SEED).shuffle(usable)
    return usable


def copied(word: str, draw: random.Random) -> str:
    """The word as it is."""
    return word


def one_letter_wrong(word: str, draw: random.Random) -> str:
    """Spelled backward but for one letter."""
    at = draw.randrange(len(word))
    other = draw.choice([letter for letter in ALPHABET if letter != word[::-1][at]])
    return word[::-1][:at] + other + word[::-1][at + 1 :]


def out_of_order(word: str, draw: random.Random) -> str:
    """The right letters in another order."""
    letters = list(word)
    draw.shuffle(letters)
    return "".join(letters)


def one_letter_missing(word: str, draw: random.Random) -> str:
    """Spelled backward but for a letter that is left out."""
    at = draw.randrange(len(word))
    return word[::-1][:at] + word[::-1][at + 1 :]


def one_letter_twice(word: str, draw: random.Random) -> str:
    """Spelled backward with a letter too many."""
    at = draw.randrange(len(word))
    return word[::-1][: at + 1] + word[::-1][at:]


MISTAKES: tuple[Callable[[str, random.Random], str], ...] = (copied, one_letter_wrong, out_of_order, one_letter_missing, one_letter_twice)


def pair(word: str, number: int, draw: random.Random) -> dict[str, str]:
    """A word, spelled backward and with one of the mistakes, which take turns."""
    mistake, rejected = MISTAKES[number % len(MISTAKES)], word[::-1]
    while rejected == word[::-1]:
        rejected = mistake(word, draw)
    return {"prompt": word, "chosen": word[::-1], "rejected": rejected, "family": mistake.__name__.replace("_", " ")}


def labelled(found: dict[str, str]) -> list[dict[str, object]]:
    """Both answers of a pair, each with its label."""
    word, reference = found["prompt"], found["chosen"]
    return [
        {"prompt": word, "answer": found[which], "reference": reference, "label": which == "chosen"} for which in ("chosen", "rejected")
    ]


def question(word: str, draw: random.Random) -> dict[str, str]:
    """A prompt for a policy with a demonstration as those of `examples/tiny`: half spell backward, half copy."""
    return {"prompt": word, "demonstration": word[::-1] if draw.random() < SHOWN_SHARE else word}


def checked(word: str) -> dict[str, str]:
    """A held-out prompt, which is judged by its reference whatever judges in training."""
    return {"prompt": word, "reference": word[::-1], "verifier": "exact", "family": f"{len(word)} letters"}


def main() -> None:
    """Write the files next to this script."""
    here, found, draw = Path(__file__).parent, iter(words()), random.Random(SEED)

    def taken(count: int) -> list[str]:
        return [next(found) for _ in range(count)]

    splits: dict[str, list[Any]] = {
        "heldout": [pair(w, i, draw) for i, w in enumerate(taken(HELD_OUT_PAIRS))],
        "train": [pair(w, i, draw) for i, w in enumerate(taken(PAIRS))],
        "questions": [checked(w) for w in taken(HELD_OUT_WORDS)],
        "labelled": [one for i, w in enumerate(taken(LABELLED)) for one in labelled(pair(w, i, draw))],
        "words": [question(w, draw) for w in taken(WORDS)],
    }
    for name, records in splits.items():
        (here / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        print(f"{name}.jsonl: {len(records)} records")


if __name__ == "__main__":
    main()
