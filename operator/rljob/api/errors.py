"""The error tree. The type of an exception is its retry policy.

RLJobError
├── ConfigurationError      the user has to change something: stop, say what; exit status 2
├── InfrastructureError     something of ours or below us failed: retry with back-off; never a reward; exit status 1
└── JobFailed               the job has used up its retries: stop until a person looks at it; exit status 3

What the policy (the language model) writes is never an exception: a wrong answer is a result.
"""

import errno
import sys
from collections.abc import Callable

EXIT_CONFIGURATION = 2
"""Exit status of a process whose job cannot work as written. A supervisor does not restart it."""
EXIT_FAILED = 3
"""Exit status of a process that has decided that the whole job has failed. A supervisor does not restart it either."""


class RLJobError(Exception):
    """Base of every error this project raises on purpose. `str(error)` is one line made for a person."""


class ConfigurationError(RLJobError):
    """The job, its data or its machine cannot work as they are; the message names the field, the value and the remedy."""


class InfrastructureError(RLJobError):
    """A process, a disk, a network or a deadline failed; trying again can succeed."""


class JobFailed(RLJobError):
    """`spec.backoffLimit` is used up; what was committed is kept."""


def one_line(text: str) -> str:
    """Text that may quote anybody (a program, a model's answer) as one line that does nothing to a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def explained(error: OSError) -> str:
    """One line for a person about what the file system refused, with the remedy where it is known."""
    where = error.filename if error.filename is not None else "the file system"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left at {where}: free some, then run the same again; what was committed is kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission for {where} ({error.strerror}); change its owner or mode, or use another folder"
    return str(error)


def exit_status(work: Callable[[], None]) -> int:
    """Do the work of a command in a process of its own, and say how it ends: a failure that is no fault of the
    program is one line on standard error."""
    try:
        work()
    except RLJobError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else 1
    except OSError as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
