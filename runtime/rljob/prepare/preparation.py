"""The way from a job to `model/` and `data/`. Everything that is wrong with model or data is found here."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from huggingface_hub import constants
from jinja2 import TemplateError, TemplateSyntaxError

from rljob.api import ConfigurationError, RLJobSpec
from rljob.api.sources import DataSource, ModelSource
from rljob.prepare import scratch
from rljob.prepare.data_sources import load
from rljob.prepare.download import shown
from rljob.prepare.files import JOB_FOLDER, clear_folder, explained, filled_folder, require_space, write_atomically
from rljob.prepare.model_folder import ModelFacts, check_parallel_sizes, check_tokenizer, disk_bytes, inspect
from rljob.prepare.model_sources import alone_with, fetched_again_if_refused, locate
from rljob.prepare.preferences import add_value_head, check_pair_length, pair_records, paired, replies
from rljob.prepare.prompts import (
    PromptTokenizer,
    check_length,
    check_prepared,
    judged,
    only_shown,
    open_tokenizer,
    prompt_records,
    without_heldout,
    write_tokenizer,
)
from rljob.prepare.records import Located, Record
from rljob.wire.data import Prepared, PromptRecord
from rljob.wire.reward_model import prompt_text

Say = Callable[[str], None]

_MARKER = ".source.json"
_FORMAT = 2
"""Raised when this code writes other files for the same job."""


@dataclass(frozen=True)
class Folders:
    """Where to read and write."""

    model: Path
    data: Path
    cache: Path
    source: Path
    """What relative paths of the job start from."""


def prepare(spec: RLJobSpec, folders: Folders, say: Say) -> Prepared:
    """Make the model folder and the prompts; what is already there for the same job stays.

    Raises:
        ConfigurationError: model or data cannot be used as they are.
    """
    with explained("preparing the job"):
        key, done = _data_key(spec, folders), folders.data / "prepared.json"
        if _marked(folders.model, _model_key(spec)) and _marked(folders.data, key) and done.exists():
            prepare_model(spec, folders, say)
            if spec.generates:
                check_prepared(spec, folders.data)
            say(f"data: already in {folders.data}")
            return Prepared.model_validate_json(done.read_text())
        done.unlink(missing_ok=True)
        read = read_splits(spec, folders, say)  # before the model, which takes long
        return prepare_data(spec, folders, prepare_model(spec, folders, say), read, key, say)


def prepare_model(spec: RLJobSpec, folders: Folders, say: Say) -> ModelFacts:
    """Version 0 of the weights as a Hugging Face folder in `folders.model`."""
    key = _model_key(spec)
    if _marked(folders.model, key):
        say(f"model: already in {folders.model}")
    else:
        clear_folder(folders.model)
        with alone_with(spec.model.source, folders.cache, say), filled_folder(folders.model) as partial:
            _write_model(spec, folders, partial, say)
            if not spec.generates:
                with fetched_again_if_refused(spec.model.source, folders.cache):
                    add_value_head(partial, spec.seed)
        write_atomically(folders.model / _MARKER, key)
    facts = inspect(folders.model)
    check_parallel_sizes(facts, spec)
    say(f"model: {facts.model_type}, {facts.parameters / 1e6:.1f} M parameters, context {facts.context_length}")
    return facts


def _write_model(spec: RLJobSpec, folders: Folders, out: Path, say: Say) -> None:
    """Fill `out`. What is refused here is not kept, so that it can be mended where it came from."""
    source = spec.model.source
    if source.scratch is not None:
        say("model: new random weights")
        scratch.create(source.scratch, spec.seed, out)
        check_parallel_sizes(inspect(out), spec)
        return
    say(f"model: looking for {_name(source)}")
    found = locate(source, folders.source, folders.cache)
    if found.is_dir():
        with fetched_again_if_refused(source, folders.cache):
            facts = inspect(found)
        _check_fit(facts, spec)
        files = [f for f in sorted(found.iterdir()) if f.is_file() and f.suffix in (".json", ".safetensors", ".jinja", ".txt", ".model")]
        size = sum(f.stat().st_size for f in files)
        _require_disk(folders.model, facts, spec, size)
        say(f"model: copying {found} ({size >> 20} MiB)")
        for file in files:
            shutil.copyfile(file, out / file.name)
    else:
        from rljob.prepare.gguf_model import convert

        say(f"model: converting {found.name} ({found.stat().st_size >> 20} MiB)")
        with fetched_again_if_refused(source, folders.cache):
            convert(found, out)
            facts = inspect(out, found)
        _check_fit(facts, spec)
        _require_disk(folders.model, facts, spec)
    with fetched_again_if_refused(source, folders.cache):
        _check_text(out, found, facts, spec)


def _check_fit(facts: ModelFacts, spec: RLJobSpec) -> None:
    """Whether this job can use this model, nothing being wrong with either."""
    if facts.architecture.scored and spec.generates:
        raise ConfigurationError(
            f"{_name(spec.model.source)} is a reward model, which writes no answers; name a language model in spec.model.source, or set "
            "spec.rewardModel to train it on"
        )
    check_parallel_sizes(facts, spec)


def _check_text(folder: Path, name: Path, facts: ModelFacts, spec: RLJobSpec) -> None:
    """The tokenizer belongs to the model, and the chat template can be used. `name` is what the folder was made of."""
    tokens = open_tokenizer(folder, spec.data.system, name)
    write_tokenizer(tokens, folder, name)
    check_tokenizer(name, tokens.highest_token, facts.vocab_size)
    question = Located(str(name), Record(prompt="a"))
    try:
        if spec.generates:
            tokens.rendered(question, prompt_text, "mend the template")
        else:
            replies(question, ["b"], tokens, "mend the template")
    except ConfigurationError as error:
        # A template may refuse this chat and take those of the job; one that does not is told of the first record that it refuses.
        if not isinstance(error.__cause__, TemplateError) or isinstance(error.__cause__, TemplateSyntaxError):
            raise


def _require_disk(folder: Path, facts: ModelFacts, spec: RLJobSpec, copied: int = 0) -> None:
    """Refuse a disk that the job would fill after its warm start; of a model from elsewhere the size is known only now."""
    what = f"a job with {facts.parameters:,} parameters and spec.checkpoint.keep ({spec.checkpoint.keep})"
    elsewhere = f"lower spec.checkpoint.keep or {JOB_FOLDER} (in a cluster: name another volume in spec.checkpoint.volume)"
    require_space(folder, copied + disk_bytes(facts.parameters, spec), what, elsewhere)


def prepare_data(spec: RLJobSpec, folders: Folders, model: ModelFacts, read: dict[str, list[Located]], key: str, say: Say) -> Prepared:
    """Tokenized prompts in `folders.data`, `prepared.json` last. `key`: what they depend on."""
    tokens = open_tokenizer(folders.model, spec.data.system)
    splits, longest = _fitting(spec, model, make_splits(spec, read, tokens), say)
    with filled_folder(folders.data) as partial:
        for name, records in splits.items():
            partial.joinpath(f"{name}.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records))
    prepared = Prepared(
        model_type=model.model_type,
        # Demonstrations end with the tokenizer's, which fine-tuned models often do not name in their generation configuration.
        eos_token_ids=tuple(dict.fromkeys((*model.eos_token_ids, tokens.tokenizer.eos_token_id))),
        vocab_size=model.vocab_size,
        context_length=model.context_length,
        max_length=spec.model.max_length or longest,
        parameters=model.parameters,
        train=len(splits["train"]),
        heldout=len(splits["heldout"]),
        warmstart=len(splits["warmstart"]),
        digest=_digest([*sorted(folders.model.glob("*.safetensors")), *(folders.data / f"{name}.jsonl" for name in sorted(splits))]),
    )
    write_atomically(folders.data / _MARKER, key)
    write_atomically(folders.data / "prepared.json", prepared.model_dump_json(indent=2) + "\n")
    what = "prompts" if spec.generates else "pairs"
    say(
        f"data: {prepared.train} {what}, {prepared.heldout} held out, {prepared.warmstart} demonstrations, "
        f"at most {prepared.max_length} tokens"
    )
    return prepared


def read_splits(spec: RLJobSpec, folders: Folders, say: Say) -> dict[str, list[Located]]:
    """Records of the three files by name, checked as far as that needs no model. Nothing that is trained on stands in `heldout`."""

    def read(source: DataSource, field: str, distinct: bool = False) -> list[Located]:
        say(f"data: reading {field}")
        records = load(source, field, folders.source, folders.cache, distinct=distinct)
        return [judged(r, source, spec) if spec.generates else paired(r) for r in records]

    heldout = read(spec.evaluation.data, "spec.evaluation.data", distinct=True) if spec.evaluation else []
    read_train = read(spec.data.train, "spec.data.train")
    train = without_heldout(read_train, heldout)
    if len(train) < len(read_train):
        pairs = f"dropped {len(read_train) - len(train)} training pairs whose question is held out"
        say(f"data: {dropped(len(read_train), len(train)) if spec.generates else pairs}")
    if spec.generates and spec.algorithm.sampling.strategy == "curriculum":
        _check_curriculum(train)
    splits = {"train": train, "heldout": heldout, "warmstart": []}
    if spec.warm_start is not None:
        own, records, field = spec.warm_start.data, train, "spec.data.train"
        if own is not None:
            field = "spec.warmStart.data"
            say(f"data: reading {field}")
            records = without_heldout(map(only_shown, load(own, field, folders.source, folders.cache)), heldout)
        splits["warmstart"] = _demonstrations(records, field)
    return splits


def make_splits(spec: RLJobSpec, read: dict[str, list[Located]], tokens: PromptTokenizer) -> dict[str, list[PromptRecord]]:
    """The three files by name, as the master reads them."""
    make = prompt_records if spec.generates else pair_records
    own = spec.warm_start is not None and spec.warm_start.data is not None  # else it shows training prompts, by their names
    splits = {name: make(records, "train" if name == "warmstart" and not own else name, tokens) for name, records in read.items()}
    for name, records in splits.items():
        _refuse_duplicates(name, records)
    return splits


_MANY = 0.1
"""Share of the training prompts from which on it matters that they are missing."""


def dropped(before: int, after: int) -> str:
    """What to say of training prompts that are left out because their question is held out."""
    said = f"dropped {before - after} training prompts whose question is held out"
    if before - after <= _MANY * before:
        return said
    return (
        f"{said}, {(before - after) / before:.0%} of all: what is trained on is no longer spread as its source is, and common questions "
        "are missing; use a smaller spec.evaluation.data, or parameters with which a generator repeats itself less"
    )


def _demonstrations(records: Sequence[Located], field: str) -> list[Located]:
    shown = [r for r in records if r.record.demonstration is not None]
    if not shown:
        raise ConfigurationError(
            f"spec.warmStart needs records with a `demonstration`, and {field} ({records[0].where} and on) has none; "
            "add them, set reasoningGym.demonstration, or name another set in spec.warmStart.data"
        )
    return shown


def _check_curriculum(train: Sequence[Located]) -> None:
    """Without an order of difficulty, the curriculum would be the order of the file: its first prompts alone, for a long time."""
    difficulties = {located.record.difficulty for located in train}
    if len(train) > 1 and len(difficulties) == 1:
        raise ConfigurationError(
            f"spec.algorithm.sampling.strategy is curriculum, but all prompts of spec.data.train have the difficulty "
            f"{difficulties.pop():g}; give the records a `difficulty` (a generator's have none), or choose another strategy"
        )


def _refuse_duplicates(split: str, records: Sequence[PromptRecord]) -> None:
    """A record without an id is named by its place, which may be another's id."""
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise ConfigurationError(f"the {split} prompts hold the id {record.id!r} twice; give every record an id, or none")
        seen.add(record.id)


Splits = dict[str, list[PromptRecord]]


def _fitting(spec: RLJobSpec, model: ModelFacts, splits: Splits, say: Say) -> tuple[Splits, int]:
    """The records that fit into the context, and the longest sequence that they can make. Others are refused, or left out if so asked."""
    if spec.model.max_length is not None and spec.model.max_length > model.context_length:
        raise ConfigurationError(
            f"spec.model.maxLength is {spec.model.max_length}, but the model's context is {model.context_length}; lower it or leave it out"
        )
    context, name = (spec.model.max_length, "model.maxLength") if spec.model.max_length else (model.context_length, "the model's context")

    def length(record: PromptRecord) -> int:
        if not spec.generates:
            return check_pair_length(record, context, name)
        return check_length(record, context, spec.rollout.max_tokens, name)

    longest, found = 0, Splits()
    for split, records in splits.items():
        found[split] = []
        for record in records:
            try:
                longest = max(longest, length(record))
            except ConfigurationError:
                if spec.data.too_long == "refuse":
                    raise
            else:
                found[split].append(record)
        if len(found[split]) < len(records):
            say(f"data: dropped {len(records) - len(found[split])} of {len(records)} {split} records, which are too long")
        if records and not found[split]:
            lower = ", or lower rollout.maxTokens" if spec.generates else ""
            raise ConfigurationError(f"every {split} record is too long for {name} ({context}); shorten them{lower}")
    return found, longest


def _model_key(spec: RLJobSpec) -> str:
    """What the prepared model depends on."""
    drawn = spec.model.source.scratch or not spec.generates
    source = spec.model.source.model_dump(mode="json")
    return _key(source=source, seed=spec.seed if drawn else None, **({} if spec.generates else {"scorer": True}))


def _data_key(spec: RLJobSpec, folders: Folders) -> str:
    """What the prepared data depends on: the parts of the job, and the contents of the files that they name.

    Not their times: a ConfigMap's files are written anew for every pod, and what the other sources hold may have changed since.
    """
    sources = [spec.data.train, spec.evaluation and spec.evaluation.data, spec.warm_start and spec.warm_start.data]
    files = [folders.source / s.path for s in sources if s and s.path]
    return _key(
        model=_model_key(spec),
        max_length=spec.model.max_length,
        max_tokens=spec.rollout.max_tokens,
        system=spec.data.system,
        sources=[s.model_dump(mode="json") if s else None for s in sources],
        files=[_digest([f]) for f in files if f.is_file()],
        warm_start=spec.warm_start is not None,
        pairs=not spec.generates,
        verifier=spec.reward.verifier,
        options=spec.reward.options,
        # Not at its default: what was prepared before there was this field counts.
        **({"too_long": spec.data.too_long} if spec.data.too_long != "refuse" else {}),
    )


def _key(**parts: Any) -> str:
    return json.dumps({"format": _FORMAT} | parts, sort_keys=True, default=str)


def _marked(folder: Path, key: str) -> bool:
    marker = folder / _MARKER
    return marker.is_file() and marker.read_text() == key


def _digest(files: Sequence[Path]) -> str:
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 24):
                digest.update(block)
    return str(digest.hexdigest())


def _name(source: ModelSource) -> str:
    if source.hub is not None:
        return f"{source.hub.repo} at {constants.ENDPOINT}"
    if source.package is not None:
        return f"{source.package.file} in the package {source.package.name}"
    return shown(source.url) if source.url else source.path or "a new model"
