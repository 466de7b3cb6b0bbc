"""All verifiers by name. A new one is one file in `verifiers/`, its options in `rljob.api.verifiers`, and one line here."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from pydantic import ValidationError

from rljob.api.verifiers import Options, named, uses
from rljob.reward.verifier import AnyVerifier, CombinedVerifier
from rljob.reward.verifiers import (
    choice,
    code,
    exact,
    http,
    imported,
    instruction,
    language_model,
    length,
    math,
    numeric,
    reasoning_gym,
    regex,
    repetition,
    reward_model,
    weighted,
)

VERIFIERS: dict[str, AnyVerifier] = {
    m.VERIFIER.name: m.VERIFIER
    for m in (
        exact,
        numeric,
        math,
        choice,
        regex,
        instruction,
        reasoning_gym,
        code,
        length,
        repetition,
        weighted,
        imported,
        http,
        language_model,
        reward_model,
    )
}


def parse_options(verifier: AnyVerifier, options: dict[str, Any]) -> Options:
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


def check(name: str, options: dict[str, Any], reference: Any, allowed: Set[str] = frozenset()) -> None:
    """Whether a verifier could judge answers to such a record. `allowed` is what the job itself names (`rljob.api.verifiers.named`).

    Raises:
        KeyError: there is no verifier of this name.
        ValueError: it cannot use these options or this reference.
    """
    verifier = VERIFIERS[name]
    parsed = parse_options(verifier, options)
    check_named(name, options, allowed)
    verifier.check_reference(reference, parsed)
    if isinstance(verifier, CombinedVerifier):
        for term in verifier.terms(parsed):
            check(term.verifier, term.options, reference, allowed)


def check_turns(name: str, options: Mapping[str, Any], roles: Iterable[str]) -> None:
    """A model that judges is shown a chat's last message alone.

    Args:
        roles: of the chat's messages.

    Raises:
        ValueError: the chat has several turns, and a model judges its answers.
    """
    turns = sum(role not in ("system", "developer") for role in roles)
    if turns > 1 and uses(name, options) & {"judge", "reward-model"}:
        raise ValueError(
            f"it is shown the last message alone, and `messages` has {turns} turns; put what matters of them into the last one, or "
            "name another verifier"
        )


def check_named(name: str, options: Mapping[str, Any], allowed: Set[str]) -> None:
    """Data is written by many and read by few: it must not choose whose code runs, nor which address is called.

    Args:
        options: that have been parsed.

    Raises:
        ValueError: the options name code or an address that the job does not.
    """
    for target in named(name, options):
        if target not in allowed:
            raise ValueError(f"{target!r:.200} is not named in spec.reward of the job; only the job may name code or an address, no record")
