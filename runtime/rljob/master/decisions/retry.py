"""How long to wait before trying again."""

FIRST = 0.25
LONGEST = 15.0


def delay(failures: int) -> float:
    """Seconds to wait after so many failures in a row (from 1): doubling, bounded."""
    return float(min(LONGEST, FIRST * 2 ** min(failures - 1, 10)))
