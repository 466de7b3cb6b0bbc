"""Items to judge, and workers that must not be needed."""

from typing import Any

from rljob.wire.reward import ScoreItem


def item(verifier: str, answer: str, reference: Any = None, **options: Any) -> ScoreItem:
    """A finished answer."""
    return ScoreItem(id="a", verifier=verifier, options=options, prompt="p", answer=answer, reference=reference, finished=True)


class Nobody:
    """Workers that are not to be asked."""

    async def ask(self, item: ScoreItem, seconds: float) -> dict[str, Any]:
        raise AssertionError(f"{item.verifier} went to a worker")
