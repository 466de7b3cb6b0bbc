"""From a YAML file to an RLJob, or to a list of everything that is wrong with it, each with its line and the remedy."""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rljob.api.base import MEMORY, digits
from rljob.api.errors import ConfigurationError
from rljob.api.job import RLJob
from rljob.api.kube_yaml import Loader
from rljob.api.yaml_file import InvalidFile, Lines, Path_, Problem, dotted, read

STANDARD_INPUT = Path("-")
"""Stands for the file of a job that comes through a pipe, as for kubectl."""


def load(file: Path, overrides: Iterable[str] = ()) -> RLJob:
    """Read a job, from standard input if the file is `-`; `overrides` are `spec.iterations=3` and the like, applied on top.

    Raises:
        InvalidFile: it cannot be read, is no RLJob, or fields are wrong; all problems at once.
    """
    name = "standard input" if file == STANDARD_INPUT else str(file)
    try:
        text = sys.stdin.buffer.read().decode() if file == STANDARD_INPUT else file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidFile(name, [Problem("", "there is no such file; give the path of an RLJob in YAML")]) from None
    except UnicodeDecodeError as error:
        raise InvalidFile(name, [Problem("", f"is not UTF-8 (byte {error.start}); give an RLJob in YAML, saved as UTF-8")]) from error
    except IsADirectoryError:
        such = f", such as {file / 'rljob.yaml'}" if (file / "rljob.yaml").is_file() else ""
        raise InvalidFile(name, [Problem("", f"is a folder; give the path of an RLJob in YAML{such}")]) from None
    except OSError as error:
        raise InvalidFile(name, [Problem("", f"cannot be read ({error.strerror}); change its owner or mode")]) from error
    return parse(text, name, overrides)


def parse(text: str, name: str = "rljob.yaml", overrides: Iterable[str] = ()) -> RLJob:
    """Like `load`, from text; `name` stands in the messages."""
    data, lines = read(text, name)
    if not isinstance(data, dict):
        raise InvalidFile(name, [Problem("", "holds no RLJob; it begins with `apiVersion: rljob.dev/v1alpha1` and `kind: RLJob`")])
    # What a cluster says of a job is no part of the job: `kubectl get -o yaml` gives a file that can be run.
    data.pop("status", None)
    for override in overrides:
        path = _override(data, override)
        # What stands in the file there, and its line, are not what is used.
        lines = {at: line for at, line in lines.items() if at[: len(path)] != path} | {path: 0}
    return validated(RLJob, data, name, lines)


def validated[M: BaseModel](model: type[M], data: Any, name: str, lines: Lines) -> M:
    """What was read, as what it should be.

    Raises:
        InvalidFile: fields are wrong; all problems at once, in the order of the file.
    """
    try:
        return model.model_validate(data, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        problems = [_problem(e, lines, model) for e in error.errors(include_url=False)]
        raise InvalidFile(name, sorted(problems, key=lambda p: p.line or 0)) from error


def describe(error: ValidationError, model: type[BaseModel] = RLJob) -> list[Problem]:
    """What is wrong with a job, or something else of that model, whose lines are not known."""
    return [_problem(e, {}, model) for e in error.errors(include_url=False)]


def _override(data: dict[str, Any], override: str) -> Path_:
    """Apply `spec.iterations=3`; the value is YAML. Returns where.

    Raises:
        ConfigurationError: it has no `=` or no value, or goes below something that is no mapping.
    """
    path, equals, text = override.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise ConfigurationError(f"--set {override}: expected FIELD=VALUE, such as --set spec.iterations=3")
    if not text.strip():
        raise ConfigurationError(f"--set {override}: has no value; write {path}=null for the field's default, or {path}='\"\"' for no text")
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
    return tuple(names)


def _problem(error: ErrorDetails, lines: Lines, root: type[BaseModel]) -> Problem:
    """One pydantic error in a person's words."""
    # Of a map's entry whose name is wrong, pydantic adds a part that stands in no file.
    path = tuple(part for part in error["loc"] if part != "[key]")
    # The nearest thing above that does stand in the file has a line.
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    return Problem(dotted(path), _message(error, path, root), line)


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list", "dict": "a mapping"}


def _message(error: ErrorDetails, path: Path_, root: type[BaseModel]) -> str:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    said = _shown(value)
    if kind == "extra_forbidden":
        return _unknown(path, root)
    if kind == "missing":
        return "is missing" + _described(path, root)
    if kind == "value_error":
        return str(context["error"]).removeprefix(f"{dotted(path)} ")
    if kind == "literal_error":
        choices = [c.strip("'\"") for c in re.split(r", | or ", str(context["expected"]))]
        near = difflib.get_close_matches(str(value), choices, 1, 0.7)
        if len(choices) == 1:
            return f"is {said}; it must be {choices[0]}"
        return f"is {said}; it is one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")
    for comparison, words, bound in (
        ("greater_than_equal", "at least", "ge"),
        ("greater_than", "more than", "gt"),
        ("less_than_equal", "at most", "le"),
        ("less_than", "less than", "lt"),
    ):
        if kind == comparison:
            return f"is {said}; it must be {words} {digits(context[bound])}"
    if kind == "string_pattern_mismatch":
        form = "be a size such as 512Mi or 2Gi" if context["pattern"] == MEMORY else f"match {context['pattern']}"
        return f"is {said}; it must {form}" + _described(path, root)
    if kind == "string_too_short":
        return f"is {said}; it must not be empty" + _described(path, root)
    if kind in ("model_type", "dict_type", "mapping_type", "model_attributes_type"):
        remedy = "write them without a dash or bracket" if isinstance(value, list) else "write them below it, indented"
        return f"is {said}, but has fields of its own; {remedy}"
    for prefix, words in _KINDS.items():
        if kind.startswith(f"{prefix}_"):
            quotes = "; remove the quotes" if isinstance(value, str) and prefix in ("int", "float", "bool") and _is_plain(value) else ""
            if prefix == "string" and isinstance(value, bool | int | float):
                quotes = "; put it in quotes"
            unit = " of seconds" if prefix in ("int", "float") and str(path[-1]).lower().endswith("seconds") else ""
            return f"is {said}; it must be {words}{unit}{quotes}"
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


def all_fields(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, str]]:
    """(name, path) of every field below a model."""
    for field in model.model_fields.values():
        path = f"{at}.{field.alias}" if at else str(field.alias)
        yield str(field.alias), path
        for below in models_in(field.annotation):
            yield from all_fields(below, path)


def _unknown(path: Path_, root: type[BaseModel]) -> str:
    """An unknown field: the near name beside it, and where a field of that name does exist."""
    name, above = str(path[-1]), [str(part) for part in path[:-1]]
    model = model_at(path[:-1], root)
    # But for what only a cluster writes: nobody means that.
    beside = [str(f.alias) for f in model.model_fields.values() if not f.exclude] if model else []
    plain, word = {known.lower(): known for known in beside}, re.sub("[-_]", "", name).lower()
    longer = sorted((known for known in plain if known.startswith(word)), key=len)
    near = [plain[known] for known in longer[:1] or difflib.get_close_matches(word, plain, 1, 0.7)]
    elsewhere = [where for known, where in all_fields(root) if known == name and (root is not RLJob or where.startswith("spec."))]
    # Below this place if there are any: another topic's field of that name would do something else.
    for depth in range(len(above), -1, -1):
        if nearest := [where for where in elsewhere if where.split(".")[:depth] == above[:depth]]:
            break
    if near:
        return f"is not a field; did you mean {' or '.join(near + (nearest if depth == len(above) else []))}?"
    has = f"{dotted(path[:-1]) or ('an RLJob' if root is RLJob else 'this file')} has {', '.join(beside)}"
    if not nearest:
        return f"is not a field; {has}"
    return f"is not a field here; there is {' and '.join(nearest)}" + (f"; {has}" if depth < len(above) else "")
