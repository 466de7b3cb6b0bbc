"""The error tree. The type of an exception is its retry policy.

RLJobError
├── ConfigurationError      the user has to change something: stop, say what; exit status 2
├── InfrastructureError     something of ours or below us failed: retry with back-off; never a reward; exit status 1
└── JobFailed               the job has used up its retries or its time: stop until a person looks at it; exit status 3

What the policy (the language model) writes is never an exception: a wrong answer is a result.
"""

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
    """`spec.backoffLimit` or `spec.activeDeadlineSeconds` is used up; what was committed is kept."""
