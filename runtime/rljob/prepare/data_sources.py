"""Records out of a JSONL or Parquet file, a file on the hub, or a reasoning-gym generator."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from rljob.api import ConfigurationError
from rljob.api.sources import DataSource, ReasoningGymSource
from rljob.prepare.download import hub_data_file
from rljob.prepare.records import Located, check_columns, parse

SEED_STRIDE = 1_000_003
"""reasoning-gym draws item i from seed + i, so neighbouring seeds give the same list shifted by one. More than the largest size."""

_LOOKED_AT = 20
"""Prompts of a generator that are looked at before it is used."""
_CONSTANTS = ("0", "1", "nan", "x")
"""Answers that can be right now and then, but not most of the time."""


def load(source: DataSource, field: str, base: Path, cache: Path, *, distinct: bool = False) -> list[Located]:
    """All records of a source, each checked.

    Args:
        field: where the source stands in the job, for messages, such as `spec.data.train`.
        base: folder that a relative `path` starts from.
        cache: folder for downloads.
        distinct: of a generator's prompts, each question once: for what is measured on. What is trained on keeps those that come up again,
            because the easy ones of a generator are few: each once, 2 % of the training prompts of 1- and 2-digit sums had one digit.

    Raises:
        ConfigurationError: the source is missing, empty, or holds a malformed record.
    """
    check_columns(source.columns, field)
    rows = _rows(source, field, base, cache, distinct)
    records = [Located(where, parse(row, where, source.columns)) for where, row in islice(rows, source.limit)]
    if not records:
        raise ConfigurationError(f"{field} holds no records{f' ({source.path})' if source.path else ''}; a data set needs at least one")
    _refuse_duplicate_ids(records)
    return records


def _rows(source: DataSource, field: str, base: Path, cache: Path, distinct: bool) -> Iterator[tuple[str, Any]]:
    if source.reasoning_gym is not None:
        return generated(source.reasoning_gym, field, distinct)
    if source.hub is not None:
        file = hub_data_file(source.hub.repo, source.hub.revision, source.hub.file, cache)
        return _file(file, source.hub.file, f"{field}.hub.file", source.columns)
    assert source.path is not None  # DataSource has exactly one
    return _file(base / source.path, source.path, f"{field}.path", source.columns)


def _file(path: Path, name: str, field: str, columns: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """`name`: the path as the job has it, by which records are found again."""
    if path.is_dir():
        raise ConfigurationError(f"{field}: {path} is a folder; name a .jsonl or .parquet file, one of those in it perhaps")
    if not path.is_file():
        raise ConfigurationError(f"{field}: {path} does not exist; name a .jsonl or .parquet file")
    if path.suffix in (".jsonl", ".ndjson"):
        return _jsonl(path, name)
    if path.suffix == ".parquet":
        return _parquet(path, name, field, columns)
    raise ConfigurationError(f"{field}: {path} is neither .jsonl nor .parquet; convert it")


def _jsonl(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{name} line {number}"
            if not line.strip():
                continue
            try:
                # What the master reads prepared records with: it takes no NaN, no half of a surrogate pair, no endless nesting.
                yield where, from_json(line.decode("utf-8-sig"), allow_inf_nan=False)
            except UnicodeDecodeError as error:
                raise ConfigurationError(f"{where}: not UTF-8 (byte {error.start} of the line); save the file as UTF-8") from None
            except ValueError as error:
                reason = str(error).replace(" at line 1 column ", " at column ")
                raise ConfigurationError(f"{where}: not JSON ({reason}); one JSON object per line is expected") from None


def _parquet(path: Path, name: str, field: str, columns: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Rows, without the nulls within their columns: there every row has all fields that any row has. References stay as they are.

    If `columns` names some and all are there, only these are read.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    reference, named = columns.get("reference", "reference"), None
    try:
        file = ParquetFile(path)
        named = list(columns.values()) if columns and {*columns.values()} <= {*file.schema_arrow.names} else None
        rows = (row for batch in file.iter_batches(columns=named) for row in batch.to_pylist(maps_as_pydicts="lossy"))
        for number, row in enumerate(rows):
            yield f"{name} row {number}", {column: value if column == reference else _given(value) for column, value in row.items()}
    except (ArrowException, OSError, ValueError, LookupError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the operating system's: nothing is wrong with the file
        remedy = "mend the file" if named else "mend the file, or name in `columns` those that are needed"
        raise ConfigurationError(f"{field}: {path} cannot be read ({error}); {remedy}") from error


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _given(member) for name, member in value.items() if member is not None}
    return [_given(member) for member in value] if isinstance(value, list) else value


def generated(source: ReasoningGymSource, field: str, distinct: bool = False) -> Iterator[tuple[str, Any]]:
    """Prompts of a generator, as often as it draws them or (`distinct`) each question once.

    The record's reference is the whole entry, which the data set's own scorer needs.

    Raises:
        ConfigurationError: no such generator or parameter, or its entries cannot be scored once they were stored.
    """
    from reasoning_gym.factory import DATASETS, create_dataset

    if source.dataset not in DATASETS:
        near = get_close_matches(source.dataset, DATASETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(DATASETS))}"
        raise ConfigurationError(f"{field}.reasoningGym.dataset: no generator {source.dataset!r}; {hint}")
    for name in ("seed", "size"):
        if name in source.parameters:
            raise ConfigurationError(
                f"{field}.reasoningGym.parameters holds {name} ({source.parameters[name]!r}), a field of its own; set reasoningGym.{name}"
            )
    try:
        dataset = create_dataset(source.dataset, size=source.size, seed=source.seed * SEED_STRIDE, **source.parameters)
    except TypeError as error:
        known = ", ".join(n for n in DATASETS[source.dataset][1].__dataclass_fields__ if n not in ("seed", "size"))
        raise ConfigurationError(f"{field}.reasoningGym.parameters: {error}; {source.dataset} takes {known}") from None
    except Exception as error:  # noqa: BLE001 - of a hundred generators; most often an AssertionError
        raise ConfigurationError(f"{field}.reasoningGym.parameters: {source.dataset} refuses {source.parameters}: {error}") from None
    _refuse_unscorable(dataset, [_item(dataset, i, source, field) for i in range(min(source.size, _LOOKED_AT))], field, source.dataset)
    asked: set[str] = set()
    for index in range(source.size):
        entry = _item(dataset, index, source, field)
        if distinct and entry["question"] in asked:
            continue
        asked.add(entry["question"])
        yield f"{source.dataset} item {index}", _generated_row(source, index, entry)


def _item(dataset: Any, index: int, source: ReasoningGymSource, field: str) -> dict[str, Any]:
    """An entry as it will be stored.

    Raises:
        ConfigurationError: parameters that the generator took are none that it can make entries with.
    """
    try:
        return stored(dataset[index])
    except Exception as error:  # whatever one of a hundred generators raises: not with these parameters
        raise ConfigurationError(
            f"{field}.reasoningGym.parameters: {source.dataset} cannot make item {index} with {source.parameters} ({error!r}); change them"
        ) from error


def stored(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry as it comes back from JSON, in which records are kept."""
    copy: dict[str, Any] = json.loads(json.dumps(entry, default=_plain))
    return copy


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _generated_row(source: ReasoningGymSource, index: int, entry: dict[str, Any]) -> dict[str, Any]:
    row = {
        "id": f"{source.dataset}-{source.seed}-{index}",
        "prompt": entry["question"],
        "reference": {"dataset": source.dataset, "parameters": source.parameters, "entry": entry},
        "family": source.dataset,
    }
    if source.demonstration is not None and entry["answer"] is not None:
        shown = source.demonstration.replace("{question}", entry["question"]).replace("{answer}", entry["answer"])
        row["demonstration"] = shown if shown.strip() else None
    return row


def _refuse_unscorable(dataset: Any, entries: list[dict[str, Any]], field: str, name: str) -> None:
    first = entries[0]
    # Without an answer the generator only knows how to check one.
    if first["answer"] is not None and dataset.score_answer(first["answer"], first) < 1.0:
        raise ConfigurationError(
            f"{field}.reasoningGym.dataset: {name} does not recognise its own answers once they were stored as JSON; "
            "choose another generator"
        )
    different = list({entry["question"] if entry["answer"] is None else entry["answer"]: entry for entry in entries}.values())
    for constant in _CONSTANTS:
        right = sum(_is_right(dataset, constant, entry) for entry in different)
        if right > 1 and right > len(different) / 2:
            raise ConfigurationError(
                f"{field}.reasoningGym.dataset: the scorer of {name} takes {constant!r} for right in {right} of {len(different)} prompts "
                "with different answers, so that a policy would learn to write nothing else; choose another generator"
            )


def _is_right(dataset: Any, answer: str, entry: dict[str, Any]) -> bool:
    try:
        return bool(dataset.score_answer(answer, entry) >= 1.0)
    except Exception:  # noqa: BLE001 - scorers of a hundred generators; what they raise for an odd answer counts as wrong
        return False


def _refuse_duplicate_ids(records: list[Located]) -> None:
    first: dict[str, str] = {}
    for located in records:
        name = located.record.id
        if name is None:
            continue
        if name in first:
            raise ConfigurationError(f"{located.where}: id {name!r} stands already in {first[name]}; ids must be unique, or leave them out")
        first[name] = located.where
