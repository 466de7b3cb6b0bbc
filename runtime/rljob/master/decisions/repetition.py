"""Repetition detection (Kimi k1.5 §2.6.2): finds where an answer has begun to loop."""

import numpy as np

from rljob.master.trajectory import Tokens


def loop_end(tokens: Tokens, window: int, times: int) -> int | None:
    """Length at which the answer counts as looping, or None.

    It loops once its last `window * times` tokens repeat with some period of at most `window` tokens. Short periods must last as long
    as long ones: four equal digits are not a loop, sixty-four are (window 16, 4 times). The result is the shortest such length, so it
    does not depend on how the answer was cut into requests.
    """
    span = window * times
    if len(tokens) < span:
        return None
    runs = (_first_run(tokens[period:] == tokens[:-period], span - period) for period in range(1, window + 1))
    # `span - p` equalities at distance p, from index i on, span the tokens i to i + span - 1.
    return min((start + span for start in runs if start is not None), default=None)


def _first_run(equal: np.ndarray[tuple[int], np.dtype[np.bool_]], need: int) -> int | None:
    """Start of the first run of at least `need` true values."""
    if need > len(equal):
        return None
    sums = np.concatenate([[0], np.cumsum(equal)])
    full = np.flatnonzero(sums[need:] - sums[:-need] == need)
    return int(full[0]) if len(full) else None
