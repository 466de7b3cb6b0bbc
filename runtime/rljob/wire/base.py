"""What all messages have in common."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from rljob.api.errors import one_line


class Message(BaseModel):
    """JSON over HTTP between two of our own processes. Closed: a field the receiver does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Failure(Message):
    """Why something did not work; ends up in the job's status."""

    stage: str
    """Step of the cycle, such as `start` or `train`."""
    reason: str
    """One CamelCase word for machines, such as `EngineExited`."""
    message: Annotated[str, AfterValidator(one_line)]
    """One line for people: what, with the values, and what to do."""
    configuration: bool = False
    """True if trying again cannot help: the user has to change something."""
