"""What is read of an OpenAI-compatible service's answer to `POST …/chat/completions`. Open: services add fields of their own."""

from pydantic import BaseModel, ConfigDict, ValidationError


class _Open(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ChatMessage(_Open):
    content: str | None = None


class Choice(_Open):
    message: ChatMessage
    finish_reason: str | None = None


class Usage(_Open):
    """Tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Completion(_Open):
    """One answer with one choice or more."""

    choices: tuple[Choice, ...]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choices[0].message.content or ""

    @property
    def finished(self) -> bool:
        """False if the first choice was cut by its length."""
        return self.choices[0].finish_reason != "length"


def read_completion(body: bytes) -> Completion:
    """The answer, with at least one choice.

    Raises:
        ValueError: it is none; one line.
    """
    try:
        found = Completion.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(f"no chat completion: {str(error).splitlines()[0]}") from None
    if not found.choices:
        raise ValueError("no chat completion: it has no choices")
    return found
