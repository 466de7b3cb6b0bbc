"""From a YAML file to an RLJob, or to a list of everything that is wrong with it, each with its line and the remedy."""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rljob.api.errors import ConfigurationError
from rljob.api.job import RLJob
from rljob.api.kube_yaml import Loader

Path_ = tuple[str | int, ...]
STANDARD_INPUT = Path("-")
"""Stands for the file of a job that comes through a pipe, as for kubectl."""
MOST_NODES = 100_000
"""Values of a job file, aliases expanded."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a job."""

    path: str
    """Field as it is written in YAML, such as `spec.rollout.maxTokens`."""
    message: str
    """What is wrong, with the value, and what to do."""
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class InvalidJob(ConfigurationError):
    """The job file cannot be used; `problems` says why."""

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        self.file = file
        self.problems = tuple(problems)
        if len(problems) == 1:
            super().__init__(f"{file}: {problems[0]}")
        else:
            super().__init__(f"{file}: {len(problems)} problems\n" + "\n".join(f"  {p}" for p in problems))


def _key(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _lines(node: yaml.Node | None, at: Path_ = ()) -> Iterator[tuple[Path_, int]]:
    """Path to line (from 1) of every key and item."""
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
                yield Problem(_dotted((*at, name)), f"stands twice, first in line {seen[name]}; remove one of the two", line)
            seen.setdefault(name, line)
            yield from _doubled(value, (*at, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _doubled(value, (*at, index))


def _bounded(root: yaml.Node | None) -> Iterator[Problem]:
    """Aliases that stand for more than a job can be, or for themselves: what they expand to is never walked."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_NODES  # until it is known: of a node within itself
            below = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 + sum(map(size, below)) if isinstance(node, yaml.CollectionNode) else 1
        return sizes[id(node)]

    if root is not None and size(root) >= MOST_NODES:
        yield Problem("", f"its aliases stand for more than {MOST_NODES} values, or for themselves; write out what they stand for")


def load(file: Path, overrides: Iterable[str] = ()) -> RLJob:
    """Read a job, from standard input if the file is `-`; `overrides` are `spec.iterations=3` and the like, applied on top.

    Raises:
        InvalidJob: it cannot be read, is no RLJob, or fields are wrong; all problems at once.
    """
    name = "standard input" if file == STANDARD_INPUT else str(file)
    try:
        text = sys.stdin.buffer.read().decode() if file == STANDARD_INPUT else file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidJob(name, [Problem("", "there is no such file; give the path of an RLJob in YAML")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidJob(name, [Problem("", f"cannot be read: {error}")]) from error
    return parse(text, name, overrides)


def parse(text: str, name: str = "rljob.yaml", overrides: Iterable[str] = ()) -> RLJob:
    """Like `load`, from text; `name` stands in the messages."""
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=Loader) if not _is_empty(node)]
        node = nodes[0] if nodes else None
        problems = list(_several(nodes)) or list(_bounded(node)) or list(_doubled(node))
        if problems:
            raise InvalidJob(name, problems)
        lines = dict(_lines(node))
        data = Loader("").construct_document(node) if node is not None else None
    except RecursionError:
        raise InvalidJob(name, [Problem("", "is nested too deeply; a job has a few levels")]) from None
    except yaml.YAMLError as error:
        raise InvalidJob(name, [_of_yaml(error)]) from error
    if not isinstance(data, dict):
        raise InvalidJob(name, [Problem("", "holds no RLJob; it begins with `apiVersion: rljob.dev/v1alpha1` and `kind: RLJob`")])
    # What a cluster says of a job is no part of the job: `kubectl get -o yaml` gives a file that can be run.
    data.pop("status", None)
    for override in overrides:
        _override(data, override)
    try:
        return RLJob.model_validate(data, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        problems = [_problem(e, lines) for e in error.errors(include_url=False)]
        raise InvalidJob(name, sorted(problems, key=lambda p: p.line or 0)) from error


def describe(error: ValidationError, model: type[BaseModel] = RLJob) -> list[Problem]:
    """What is wrong with a job, or something else of that model, whose lines are not known."""
    return [_problem(e, {}, model) for e in error.errors(include_url=False)]


def _is_empty(node: yaml.Node) -> bool:
    """Is it the document before a first `---` or after a last one?"""
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _several(nodes: Sequence[yaml.Node]) -> Iterator[Problem]:
    for node in nodes[1:2]:
        yield Problem("", "begins a second document; put the RLJob into a file of its own", node.start_mark.line + 1)


def _of_yaml(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.constructor.ConstructorError):
        return Problem("", str(error.problem), mark.line + 1 if mark else None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Problem("", f"is not YAML: {what}; mind the indentation and quote text with special characters", mark.line + 1 if mark else None)


def _override(data: dict[str, Any], override: str) -> None:
    """Apply `spec.iterations=3`; the value is YAML.

    Raises:
        ConfigurationError: it has no `=`, or goes below something that is no mapping.
    """
    path, equals, text = override.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise ConfigurationError(f"--set {override}: expected FIELD=VALUE, such as --set spec.iterations=3")
    if names[0] not in RLJob.model_fields and names[0] not in ("apiVersion", "spec", "metadata"):
        raise ConfigurationError(f"--set {override}: a field begins with `spec.` or `metadata.`; try --set spec.{override}")
    here: Any = data
    for name in names[:-1]:
        below = here.get(name)
        here[name] = below = {} if below is None else below
        if not isinstance(below, dict):
            raise ConfigurationError(f"--set {override}: {name} is {below!r}, which has no fields")
        here = below
    try:
        here[names[-1]] = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--set {override}: the value is not YAML; quote it") from error


def _dotted(path: Path_) -> str:
    """`spec.data.items[3].prompt`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _problem(error: ErrorDetails, lines: Mapping[Path_, int], root: type[BaseModel] = RLJob) -> Problem:
    """One pydantic error in a person's words."""
    path = tuple(error["loc"])
    # The nearest thing above that does stand in the file has a line.
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    return Problem(_dotted(path), _message(error, path, root), line)


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list", "dict": "a mapping"}


def _message(error: ErrorDetails, path: Path_, root: type[BaseModel]) -> str:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    said = _shown(value)
    if kind == "extra_forbidden":
        return _unknown(path, root)
    if kind == "missing":
        return "is missing" + _described(path, root)
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = [c.strip("'\"") for c in re.split(r", | or ", str(context["expected"]))]
        near = difflib.get_close_matches(str(value), choices, 1)
        return f"is {said}; it is one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")
    for comparison, words in (
        ("greater_than_equal", "at least {ge:g}"),
        ("greater_than", "more than {gt:g}"),
        ("less_than_equal", "at most {le:g}"),
        ("less_than", "less than {lt:g}"),
    ):
        if kind == comparison:
            return f"is {said}; it must be {words.format(**context)}"
    if kind == "string_pattern_mismatch":
        return f"is {said}; it must match {context['pattern']}" + _described(path, root)
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"is {said}, but has fields of its own; write them below it, indented"
    for prefix, words in _KINDS.items():
        if kind.startswith(f"{prefix}_"):
            quotes = "; remove the quotes" if isinstance(value, str) and prefix in ("int", "float", "bool") and _is_plain(value) else ""
            if prefix == "string" and isinstance(value, bool | int | float):
                quotes = "; put it in quotes"
            return f"is {said}; it must be {words}{quotes}"
    return f"is {said}: {error['msg']}"


def _is_plain(text: str) -> bool:
    return not isinstance(yaml.load(text, Loader=Loader), str) if text.strip() else False


def _shown(value: Any) -> str:
    text = (
        repr(value)
        if isinstance(value, str)
        else {None: "empty", True: "true", False: "false"}.get(value)
        if _is_word(value)
        else str(value)
    )
    return text if text is not None and len(text) <= 60 else f"{str(text)[:57]}..."


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field's type names, through `X | None`, `Annotated`, `list` and `dict`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated, list, dict):
        for argument in get_args(annotation):
            yield from models_in(argument)


def model_at(path: Path_, root: type[BaseModel]) -> type[BaseModel] | None:
    """The model whose fields are at a path written in YAML spelling."""
    model, parts = root, iter(path)
    for part in parts:
        if isinstance(part, int):
            continue
        field = next((f for f in model.model_fields.values() if f.alias == part), None)
        below = next(models_in(field.annotation), None) if field else None
        if field is None or below is None:
            return None
        model = below
        if get_origin(field.annotation) is dict:
            next(parts, None)  # the key
    return model


def _described(path: Path_, root: type[BaseModel]) -> str:
    """What a field is for, from its own documentation."""
    model = model_at(path[:-1], root)
    field = next((f for f in model.model_fields.values() if f.alias == path[-1]), None) if model else None
    return f" ({field.description.splitlines()[0].rstrip('.')})" if field and field.description else ""


def _all_fields(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, str]]:
    """(name, path) of every field below a model."""
    for field in model.model_fields.values():
        path = f"{at}.{field.alias}" if at else str(field.alias)
        yield str(field.alias), path
        for below in models_in(field.annotation):
            yield from _all_fields(below, path)


def _unknown(path: Path_, root: type[BaseModel]) -> str:
    """An unknown field: the near name beside it, else where a field of that name does exist."""
    name = str(path[-1])
    model = model_at(path[:-1], root)
    beside = [str(f.alias) for f in model.model_fields.values()] if model else []
    spelling = {n.lower().replace("_", ""): n for n in beside}
    if exact := spelling.get(name.lower().replace("_", "").replace("-", "")):
        return f"is not a field; did you mean {exact}?"
    elsewhere = [where for known, where in _all_fields(root) if known == name and (root is not RLJob or where.startswith("spec."))]
    if elsewhere:
        return f"is not a field here; there is {' and '.join(elsewhere[:2])}"
    if near := difflib.get_close_matches(name, beside, 1, 0.7):
        return f"is not a field; did you mean {near[0]}?"
    return f"is not a field; {_dotted(path[:-1]) or ('an RLJob' if root is RLJob else 'this file')} has {', '.join(beside)}"
