"""A YAML file that a person wrote: what it holds, and where each part of it stands."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rljob.api.errors import ConfigurationError
from rljob.api.kube_yaml import Loader

Path_ = tuple[str | int, ...]
Lines = Mapping[Path_, int]
"""Path to line (from 1) of every key and item."""
MOST_NODES = 100_000
"""Values that aliases add to those that are written."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file."""

    path: str
    """Field as it is written in YAML, such as `spec.rollout.maxTokens`."""
    message: str
    """What is wrong, with the value, and what to do."""
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class InvalidFile(ConfigurationError):
    """The file cannot be used; `problems` says why."""

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        self.file = file
        self.problems = tuple(problems)
        if len(problems) == 1:
            super().__init__(f"{file}: {problems[0]}")
        else:
            super().__init__(f"{file}: {len(problems)} problems\n" + "\n".join(f"  {p}" for p in problems))


def read(text: str, name: str) -> tuple[Any, Lines]:
    """What the one document of a file holds; `name` stands in the messages.

    Raises:
        InvalidFile: it is no YAML, a field stands twice, or there are several documents.
    """
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=Loader) if not _is_empty(node)]
        node = nodes[0] if nodes else None
        problems = list(_several(nodes)) or list(_bounded(node)) or list(_doubled(node))
        if problems:
            raise InvalidFile(name, problems)
        return Loader("").construct_document(node) if node is not None else None, dict(_lines(node))
    except RecursionError:
        raise InvalidFile(name, [Problem("", "is nested too deeply; such a file has a few levels")]) from None
    except yaml.YAMLError as error:
        raise InvalidFile(name, [_of_yaml(error)]) from error


def dotted(path: Path_) -> str:
    """`spec.data.items[3].prompt`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _key(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _lines(node: yaml.Node | None, at: Path_ = ()) -> Iterator[tuple[Path_, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*at, _key(key))
            yield path, key.start_mark.line + 1
            yield from _lines(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*at, index), value.start_mark.line + 1
            yield from _lines(value, (*at, index))


def _doubled(node: yaml.Node | None, at: Path_ = ()) -> Iterator[Problem]:
    """Keys that stand twice; YAML would silently take the second."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = _key(key), key.start_mark.line + 1
            if name in seen:
                yield Problem(dotted((*at, name)), f"stands twice, first in line {seen[name]}; remove one of the two", line)
            seen.setdefault(name, line)
            yield from _doubled(value, (*at, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _doubled(value, (*at, index))


def _bounded(root: yaml.Node | None) -> Iterator[Problem]:
    """Aliases that stand for more than a file can mean, or for themselves: what they expand to is never walked."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_NODES  # until it is known: of a node within itself
            below = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 + sum(map(size, below)) if isinstance(node, yaml.CollectionNode) else 1
        return sizes[id(node)]

    if root is not None and size(root) - len(sizes) >= MOST_NODES:
        yield Problem("", f"its aliases stand for more than {MOST_NODES} values, or for themselves; write out what they stand for")


def _is_empty(node: yaml.Node) -> bool:
    """Is it the document before a first `---` or after a last one?"""
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _several(nodes: Sequence[yaml.Node]) -> Iterator[Problem]:
    for node in nodes[1:2]:
        yield Problem("", "begins a second document; put it into a file of its own", node.start_mark.line + 1)


def _of_yaml(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    if isinstance(error, yaml.constructor.ConstructorError):
        return Problem("", what, mark.line + 1 if mark else None)
    if isinstance(error, yaml.scanner.ScannerError) and what.startswith("could not find expected ':'"):
        mark = error.context_mark  # where the key begins; the problem is found in the next line
    return Problem("", f"is not YAML: {what}; mind the indentation and quote text with special characters", mark.line + 1 if mark else None)
