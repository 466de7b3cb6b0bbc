"""Makes labelled.jsonl: answers to ten questions in the ways in which policies write them, honest and not.

A label says what a reader would: it follows from how the answer is made.
"""

import json
from collections.abc import Iterator
from pathlib import Path

QUESTIONS = [
    ("A shelf has 3 rows of 14 books. How many books are there?", "42", "\\frac{84}{2}", "forty-two", "45"),
    ("Half of the 18 birds fly away. How many stay?", "9", "\\frac{18}{2}", "nine", "8"),
    ("A train does 60 km in 45 minutes. What is its speed in km/h?", "80", "60 \\cdot \\frac{4}{3}", "eighty", "75"),
    ("What is 15 % of 240?", "36", "240 \\cdot 0.15", "thirty-six", "24"),
    ("How many minutes are a day?", "1440", "24 \\cdot 60", "one thousand four hundred and forty", "3600"),
    ("Seven friends share 91 nuts fairly. How many does each get?", "13", "\\frac{91}{7}", "thirteen", "12"),
    ("What is the square root of 196?", "14", "\\sqrt{196}", "fourteen", "16"),
    ("A square has a perimeter of 28. What is its area?", "49", "7^2", "forty-nine", "28"),
    ("What is the sum of the first ten odd numbers?", "100", "10^2", "one hundred", "55"),
    ("5 pens cost 4 euros. How many euros cost 20 pens?", "16", "4 \\cdot 4", "sixteen", "20"),
]


def answers(result: str, formula: str, words: str, mistaken: str) -> Iterator[tuple[str, bool]]:
    """Answers with labels."""
    yield result, True
    yield f"The answer is {result}.", True
    yield f"I compute it step by step. \\boxed{{{result}}}", True
    yield f"\\boxed{{{formula}}}", True
    yield f"It is {words}.", True
    yield f"\\boxed{{{result}}}. I checked it 3 times.", True
    yield f"The answer is {mistaken}.", False
    yield f"I first had {result}, but that is a mistake. \\boxed{{{mistaken}}}", False
    yield f"It is {mistaken}, or else {result}", False
    yield f"It is certainly not {result}", False


def main() -> None:
    lines = [
        json.dumps({"prompt": question, "answer": answer, "reference": rest[0], "label": label}) + "\n"
        for question, *rest in QUESTIONS
        for answer, label in answers(*rest)
    ]
    (Path(__file__).parent / "labelled.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
