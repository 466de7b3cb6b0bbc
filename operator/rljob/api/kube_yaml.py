"""YAML as kubectl and the API server read it, so that a file means the same here and there.

They turn YAML into JSON with sigs.k8s.io/yaml (go-yaml v2, `resolve.go`): `yes`, `on` and `y` are true, `017` is 15, `1e3` and `1000.0` are
the whole number 1000, dates are text, keys are text, and what JSON cannot say (`.nan`, `.inf`) is an error.
"""

import math
import re
from typing import Any

import yaml

_TRUE = ("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE")
_FALSE = ("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE")
_INT = re.compile(r"([-+]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)|(?P<dec>0|[1-9][0-9]*))")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_LONGEST = 400
"""Characters of a number; Python refuses to read thousands of digits."""
_BASES = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}


def number(text: str) -> int | float | None:
    """The number that a plain word is; None if it is none. Whole numbers come as int, however they are written."""
    plain = text.replace("_", "")
    if len(plain) > _LONGEST:
        return None
    if match := _INT.fullmatch(plain):
        base, digits = next((_BASES[name], value) for name, value in match.groupdict().items() if value is not None)
        value = int(digits, base) * (-1 if match[1] == "-" else 1)
        if -(2**63) <= value < 2**64:
            return value
    if _FLOAT.fullmatch(plain):
        real = float(plain)
        if math.isinf(real):
            return None
        return int(real) if real.is_integer() and abs(real) < 2**63 else real
    return None


class Loader(yaml.SafeLoader):
    """The reader."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        return {self._name(key): self.construct_object(value, deep=True) for key, value in node.value}

    def _name(self, node: yaml.Node) -> str:
        """A key, which is text whatever it looks like."""
        key = self.construct_object(node, deep=True)
        if isinstance(key, bool):
            return str(key).lower()
        if isinstance(key, str | int | float):
            return str(key)
        raise yaml.constructor.ConstructorError(None, None, "a field needs a name", node.start_mark)


def _construct_number(loader: Loader, node: yaml.ScalarNode) -> int | float:
    text = str(loader.construct_scalar(node))
    if _NOT_FINITE.fullmatch(text):
        raise yaml.constructor.ConstructorError(None, None, f"{text} is no number that JSON has; leave it out", node.start_mark)
    value = number(text)
    if value is None:
        raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no number", node.start_mark)
    return value


def _construct_bool(loader: Loader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node))
    if text not in (*_TRUE, *_FALSE):
        raise yaml.constructor.ConstructorError(None, None, f"{text!r} is neither true nor false", node.start_mark)
    return text in _TRUE


def _construct_text(loader: Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


class _Number:
    """Stands where PyYAML wants a regular expression: matches the plain words that are numbers."""

    def match(self, text: str) -> bool:
        return number(text) is not None or _NOT_FINITE.fullmatch(text) is not None


_TAG = "tag:yaml.org,2002:"
Loader.yaml_implicit_resolvers = {}
Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(rf"(?:{'|'.join([*_TRUE, *_FALSE])})$"), list("yYnNtTfFoO"))
Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<$"), ["<"])
for _first in "-+.0123456789":
    Loader.yaml_implicit_resolvers.setdefault(_first, []).append((f"{_TAG}float", _Number()))
Loader.add_constructor(f"{_TAG}bool", _construct_bool)
Loader.add_constructor(f"{_TAG}int", _construct_number)
Loader.add_constructor(f"{_TAG}float", _construct_number)
Loader.add_constructor(f"{_TAG}merge", _construct_text)
