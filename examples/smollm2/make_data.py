"""Makes train.jsonl and heldout.jsonl of this folder: questions with an instruction that a program can check.

Every prompt asks something about an everyday topic and adds one instruction. An answer is right if it follows the instruction, mentions the
topic, has a few words, and ends by itself. The held-out prompts ask about topics that no training prompt mentions.

    python examples/smollm2/make_data.py
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEED = 20240521
TRAIN, HELD_OUT = 3000, 258

TRAIN_TOPICS = """
dogs cats trees rivers mountains bread music cars trains books birds fish rain snow winter summer bees flowers apples milk cheese coffee tea
chess football swimming gold iron salt sugar paper glass clocks maps boats bridges houses farms horses cows sheep wolves lions elephants
whales sharks eagles stars planets oceans deserts islands forests volcanoes computers phones televisions cameras bicycles airplanes rockets
robots pens chairs tables windows doors shoes hats coats rings lamps candles fire ice wind clouds storms rainbows spring autumn breakfast
dinner soup rice pasta potatoes tomatoes onions carrots bananas oranges grapes lemons honey umbrellas gardens castles pianos
""".split()
HELD_OUT_TOPICS = """
ducks frogs turtles penguins monkeys spiders strawberries pumpkins mushrooms chocolate pizza pancakes guitars drums violins tennis
basketball dancing painting museums libraries schools hospitals markets kitchens mirrors pillows blankets balloons kites trucks
submarines tractors lakes waterfalls caves beaches thunder silver diamonds
""".split()

IRREGULAR = {"wolves": ["wolf", "wolv"], "volcanoes": ["volcano"], "potatoes": ["potato"], "tomatoes": ["tomato"], "glass": ["glass"],
             "strawberries": ["strawberr"], "libraries": ["librar"], "chess": ["chess"], "tennis": ["tennis"], "dancing": ["danc"],
             "painting": ["paint"], "swimming": ["swim"], "beaches": ["beach"], "pens": ["pen", "pens"]}  # fmt: skip

QUESTIONS = (
    "Tell me about {}.",
    "Why do people like {}?",
    "What is good about {}?",
    "Give me a fact about {}.",
    "Describe {}.",
    "What do you know about {}?",
    "What should a child know about {}?",
    "What makes {} special?",
    "How would you explain {} to a friend?",
    "What are {} used for or known for?",
    "Say something interesting about {}.",
    "What comes to your mind when you think of {}?",
)


def at_most(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A limit on the number of words."""
    limit = draw.randint(8, 16)
    return f"Answer in at most {limit} words.", {"max_words": limit}


def one_sentence(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """Exactly one sentence."""
    return "Answer in exactly one sentence.", {"sentences": 1}


def no_commas(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """No comma, in an answer of some length."""
    return "Do not use any commas.", {"no_commas": True, "min_words": 5}


FAMILIES: dict[str, Callable[[random.Random], tuple[str, dict[str, Any]]]] = {
    "at most N words": at_most,
    "one sentence": one_sentence,
    "no commas": no_commas,
}


def stems(topic: str) -> list[str]:
    """Beginnings of the words that count as mentioning the topic."""
    return IRREGULAR.get(topic, [topic.removesuffix("s")])


def records(topics: list[str], count: int, draw: random.Random) -> list[dict[str, Any]]:
    """Distinct prompts, the families in turn.

    Raises:
        ValueError: there are not as many; the rarest family has one prompt for each topic and question.
    """
    if count > len(FAMILIES) * len(topics) * len(QUESTIONS) * 0.9:
        raise ValueError(f"{count} prompts need more topics or questions")
    made: dict[str, dict[str, Any]] = {}
    while len(made) < count:
        family = list(FAMILIES)[len(made) % len(FAMILIES)]
        topic, question = draw.choice(topics), draw.choice(QUESTIONS)
        instruction, options = FAMILIES[family](draw)
        prompt = f"{question.format(topic)} {instruction}"
        if prompt not in made:
            made[prompt] = {"prompt": prompt, "family": family, "options": {"mention": stems(topic), "min_words": 3} | options}
    return list(made.values())


def main() -> None:
    """Write both files next to this script."""
    assert not set(TRAIN_TOPICS) & set(HELD_OUT_TOPICS)
    for name, topics, count in (("train", TRAIN_TOPICS, TRAIN), ("heldout", HELD_OUT_TOPICS, HELD_OUT)):
        made = records(topics, count, random.Random(f"{SEED} {name}"))
        (Path(__file__).parent / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
        print(f"{name}.jsonl: {len(made)} records")


if __name__ == "__main__":
    main()
