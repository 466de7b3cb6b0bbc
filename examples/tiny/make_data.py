"""Makes train.jsonl and heldout.jsonl of this folder: spell a word backward. Run it again and the same files come out.

The demonstrations are a mixture on purpose: half of them reverse the word, the others copy it. Imitating them teaches both, and leaves the
model undecided; reinforcement learning, which is only told whether an answer is right, has to find out which one pays.

    python examples/tiny/make_data.py
"""

import json
import random
from pathlib import Path

import reasoning_gym

SEED = 20240521
TRAIN, HELD_OUT = 6000, 256
REVERSED_SHARE = 0.5
LETTERS = range(3, 6)


def words() -> list[str]:
    """Distinct words of a novel that reasoning-gym carries, without palindromes, in an order that only depends on SEED."""
    entries = reasoning_gym.create_dataset("spell_backward", size=60_000, seed=SEED, min_word_len=LETTERS[0], max_word_len=LETTERS[-1])
    found = {entry["metadata"]["word"].lower() for entry in entries}
    usable = sorted(w for w in found if w.isascii() and w.isalpha() and len(w) in LETTERS and w != w[::-1])
    random.Random(SEED).shuffle(usable)
    return usable


def record(word: str, draw: random.Random | None) -> dict[str, str]:
    """One prompt; with a demonstration if it is to be trained on."""
    made = {"prompt": word, "reference": word[::-1], "family": f"{len(word)} letters"}
    if draw is not None:
        made["demonstration"] = word[::-1] if draw.random() < REVERSED_SHARE else word
    return made


def fresh(seed: int, count: int) -> list[dict[str, str]]:
    """Prompts that stand in neither file, chosen by `seed`: whoever has seen both has not seen these."""
    return [record(word, None) for word in random.Random(seed).sample(words()[HELD_OUT + TRAIN :], count)]


def main() -> None:
    """Write both files next to this script."""
    here, found, draw = Path(__file__).parent, words(), random.Random(SEED)
    splits = {
        "heldout": [record(w, None) for w in found[:HELD_OUT]],
        "train": [record(w, draw) for w in found[HELD_OUT : HELD_OUT + TRAIN]],
    }
    for name, records in splits.items():
        (here / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        print(f"{name}.jsonl: {len(records)} records")


if __name__ == "__main__":
    main()
