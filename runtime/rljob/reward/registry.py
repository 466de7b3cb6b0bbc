"""All verifiers by name. A new one is one file in `verifiers/` and one line here."""

from typing import Any

from pydantic import ValidationError

from rljob.reward.verifier import Options, Verifier
from rljob.reward.verifiers import exact, instruction, math, numeric, reasoning_gym

VERIFIERS: dict[str, Verifier] = {
    v.name: v for v in (exact.VERIFIER, numeric.VERIFIER, math.VERIFIER, reasoning_gym.VERIFIER, instruction.VERIFIER)
}


def parse_options(verifier: Verifier, options: dict[str, Any]) -> Options:
    """Typed options.

    Raises:
        ValueError: an unknown option or a wrong type; one line.
    """
    try:
        return verifier.options.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        known = ", ".join(verifier.options.model_fields) or "none"
        hint = f" (options are {known})" if first["type"] == "extra_forbidden" else ""
        raise ValueError(f"option `{field}`: {message}{hint}" if field else message) from None


def check(name: str, options: dict[str, Any], reference: Any) -> None:
    """Whether a verifier could judge answers to such a record.

    Raises:
        KeyError: there is no verifier of this name.
        ValueError: it cannot use these options or this reference.
    """
    verifier = VERIFIERS[name]
    verifier.check_reference(reference, parse_options(verifier, options))
