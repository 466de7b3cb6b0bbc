"""Records become tokenized prompts: chat template, lengths checked, held-out questions kept out of training."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rljob.api import ConfigurationError, RLJobSpec
from rljob.api.sources import DataSource
from rljob.api.verifiers import named, uses
from rljob.prepare.records import Located
from rljob.reward.registry import VERIFIERS, check, check_turns
from rljob.wire.data import PromptRecord
from rljob.wire.reward_model import Chat, prompt_text


@dataclass(frozen=True)
class PromptTokenizer:
    """The model's tokenizer and what is put before every question."""

    tokenizer: Any
    system: str | None

    def prompts(self, records: Sequence[Located]) -> list[tuple[int, ...]]:
        """Tokens up to where the answer begins."""
        texts = [self.rendered(r, prompt_text) for r in records]
        return [tuple(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    def answers(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Tokens of answers, the end of the turn included."""
        ends = (self.tokenizer.eos_token_id,)
        return [(*ids, *ends) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    def rendered(self, located: Located, render: Callable[[Any, Chat], str], remedy: str = "change its messages") -> str:
        """What `render` makes of a record's chat with the model's chat template.

        Raises:
            ConfigurationError: the template refuses the chat, as many refuse a system message.
        """
        chat = self.chat(located)
        try:
            return render(self.tokenizer, chat)
        except (TemplateError, TypeError) as error:
            if len(chat) > len(located.record.chat):
                remedy = f"leave out spec.data.system, or {remedy}"
            raise ConfigurationError(f"{located.where}: the model's chat template refuses this chat ({error}); {remedy}") from error

    @property
    def highest_token(self) -> int:
        return max(self.tokenizer.get_vocab().values())

    def chat(self, located: Located) -> list[dict[str, str]]:
        """The record's messages, the job's system message before them."""
        chat = [{"role": m.role, "content": m.content} for m in located.record.chat]
        if self.system is not None and chat[0]["role"] != "system":
            chat.insert(0, {"role": "system", "content": self.system})
        return chat


def open_tokenizer(folder: Path, system: str | None, name: Path | None = None) -> PromptTokenizer:
    """The tokenizer of a model folder.

    Args:
        name: what the folder was made of, for messages.

    Raises:
        ConfigurationError: there is none, it has no chat template, or it names no end-of-turn token.
    """
    from transformers import AutoTokenizer

    name = name or folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # nothing narrower is raised for a tokenizer.json that does not fit together
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigurationError(f"{name} has no usable tokenizer ({reason}); add tokenizer.json and tokenizer_config.json") from error
    if not tokenizer.chat_template:
        raise ConfigurationError(f"{name}: the tokenizer has no chat template; add chat_template.jinja or use an instruction-tuned model")
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(f"{name}: the tokenizer names no eos_token, so no answer could end; add it to tokenizer_config.json")
    return PromptTokenizer(tokenizer, system)


def write_tokenizer(tokens: PromptTokenizer, folder: Path, name: Path) -> None:
    """Put tokenizer.json, which the master reads, into a folder that has its tokenizer in another form, such as vocab.json and merges.txt.

    Raises:
        ConfigurationError: the tokenizer has no such form.
    """
    if (folder / "tokenizer.json").exists():
        return
    if not getattr(tokens.tokenizer, "is_fast", False):
        raise ConfigurationError(f"{name} has no tokenizer.json, and it cannot be made from its tokenizer; add it")
    tokens.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def without_heldout(train: Iterable[Located], heldout: Iterable[Located]) -> list[Located]:
    """The records whose question does not stand in the held-out set.

    Raises:
        ConfigurationError: none is left.
    """
    asked = {located.record.fingerprint for located in heldout}
    left = [located for located in train if located.record.fingerprint not in asked]
    if not left:
        raise ConfigurationError("spec.data.train: every question also stands in spec.evaluation.data; use another split or seed for one")
    return left


def prompt_records(records: Sequence[Located], split: str, tokens: PromptTokenizer) -> list[PromptRecord]:
    """What the master reads.

    Raises:
        ConfigurationError: the chat template refuses a chat.
    """
    demonstrated = [r for r in records if r.record.demonstration is not None]
    answers = tokens.answers([r.record.demonstration or "" for r in demonstrated])
    demonstrations = dict(zip((id(r) for r in demonstrated), answers, strict=True))
    made = []
    for number, (located, prompt) in enumerate(zip(records, tokens.prompts(records), strict=True)):
        record = located.record
        made.append(
            PromptRecord(
                id=record.id if record.id is not None else f"{split}-{number:06d}",
                question=record.question,
                tokens=prompt,
                verifier=record.verifier or "",
                options=record.options or {},
                reference=record.reference,
                family=record.family,
                difficulty=record.difficulty,
                demonstration=demonstrations.get(id(located)),
            )
        )
    return made


def only_shown(located: Located) -> Located:
    """The record as a demonstration, which nobody answers."""
    return replace(located, record=located.record.model_copy(update={"verifier": None, "options": None, "reference": None}))


def judged(located: Located, source: DataSource, spec: RLJobSpec) -> Located:
    """The record with who judges its answers, and how: its own choice, else the job's, else by the kind of source.

    Raises:
        ConfigurationError: there is no such verifier, or it cannot use these options or this reference, or needs what the job lacks.
    """
    record = located.record
    default = spec.reward.verifier or ("reasoning-gym" if source.reasoning_gym is not None else "exact")
    verifier = record.verifier or default
    options = (spec.reward.options if verifier == default else {}) | (record.options or {})
    if verifier not in VERIFIERS:
        near = get_close_matches(verifier, VERIFIERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(VERIFIERS)}"
        raise ConfigurationError(f"{located.where}: no verifier {verifier!r}; {hint}")
    try:
        check(verifier, options, record.reference, frozenset(named(spec.reward.verifier, spec.reward.options)))
        _check_programs(spec, verifier, options)
        check_turns(verifier, options, (message.role for message in record.chat))
    except ValueError as error:
        raise ConfigurationError(f"{located.where}: verifier {verifier}: {error}") from None
    return replace(located, record=record.model_copy(update={"verifier": verifier, "options": options}))


def check_prepared(spec: RLJobSpec, folder: Path) -> None:
    """Whether the job's sandbox, which may have changed since, gives the programs of prompts that are prepared what these say.

    Raises:
        ConfigurationError: it does not, and would refuse every answer; the message names the prompt and its line.
    """
    for file in sorted(folder.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if '"verifier":"code"' not in line:  # alone or in a combination, as we have written it
                    continue
                record = PromptRecord.model_validate_json(line)
                try:
                    _check_programs(spec, record.verifier, record.options)
                except ValueError as error:
                    raise ConfigurationError(f"prompt {record.id!r} (line {number} of the prepared {file.name}): {error}") from None


def _check_programs(spec: RLJobSpec, verifier: str, options: Mapping[str, Any]) -> None:
    if "code" in uses(verifier, options) and not spec.needs_sandbox:
        raise ValueError("programs run in the sandbox, which the job does not have; set spec.sandbox.enabled: true")
    spec.check_programs(verifier, options)


def check_length(record: PromptRecord, context: int, max_tokens: int, context_name: str) -> int:
    """Longest sequence that a record can make.

    Raises:
        ConfigurationError: it is more than `context`; the message names the record.
    """
    prompt, answer = len(record.tokens), len(record.demonstration or ())
    if prompt + max_tokens > context:
        raise ConfigurationError(
            f"prompt {record.id!r} has {prompt} tokens; with rollout.maxTokens ({max_tokens}) that is {prompt + max_tokens}, more than "
            f"{context_name} ({context}): shorten it, lower maxTokens, or set spec.data.tooLong: drop"
        )
    if prompt + answer > context:
        raise ConfigurationError(
            f"demonstration of {record.id!r} has {answer} tokens after a prompt of {prompt}, more than {context_name} ({context}): "
            "shorten it, or set spec.data.tooLong: drop"
        )
    return prompt + max(max_tokens, answer)
