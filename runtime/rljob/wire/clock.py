"""The time that decisions are made by."""

import time

_BEGAN = time.time() - time.monotonic()


def steady_time() -> float:
    """Unix time as it was when this process began, and what has passed since.

    It goes on evenly when somebody sets the machine's clock: a pause after a failure would else last as long as the clock was set back, and
    whoever was heard a moment ago would be gone for good when it is set forward.
    """
    return _BEGAN + time.monotonic()
