"""Options of every verifier: one source for `rljob validate`, for the check of a record's options, and for the reward service.

Their names are written as in records (`min_words`), because the same options stand in a job and in its data (docs/reward.md).
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

TermName = Literal[
    "exact", "numeric", "math", "choice", "regex", "instruction", "reasoning-gym", "code", "length", "repetition", "import", "http",
    "judge", "reward-model",
]  # fmt: skip
"""What `weighted` combines: everything but itself."""
VerifierName = Literal[TermName, "weighted"]
Language = Literal["python", "c", "cpp", "bash", "javascript", "java", "go", "rust"]
"""What a sandbox may have; which of them are there, it says itself (`GET /v1/languages`)."""
Place = Literal["whole", "boxed", "auto"]
"""`whole`: all of the answer. `boxed`: what stands in the last `\\boxed{…}`. `auto`: the latter if there is one, else the former."""


class Options(BaseModel):
    """Options of one verifier. Closed: a misspelt option is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ExactOptions(Options):
    """The answer equals the reference, or one of a list."""

    ignore_case: bool = False
    """`Yes` equals `yes`."""


class NumericOptions(Options):
    """The answer's number equals the reference's."""

    place: Place = "auto"
    """Where in the answer to look: `boxed`, `whole`, or `auto` (boxed if there is a box)."""
    pick: Literal["only", "last"] = "last"
    """`only`: nothing but the number may stand there. `last`: the last number of several."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """Largest absolute difference that still counts."""
    relative_tolerance: Annotated[float, Field(ge=0)] = 0.0
    """Largest difference as a share of the reference."""


class MathOptions(Options):
    """The answer and the reference are the same mathematics."""

    place: Place = "auto"
    """Where in the answer to look: `boxed`, `whole`, or `auto` (boxed if there is a box)."""


class ChoiceOptions(Options):
    """The answer names the right one of several choices."""

    choices: Annotated[str, Field(pattern=r"^[A-Z]{2,26}$")] = "ABCDEFGHIJ"
    """Letters of the choices, in their order."""
    several: bool = False
    """More than one choice can be right; exactly the right ones must be named, in a `\\boxed{…}`."""


class RegexOptions(Options):
    """A regular expression (Python's) matches the answer."""

    pattern: str | None = None
    """The expression. Default: the record's reference."""
    match: Literal["search", "full"] = "search"
    """`search`: anywhere in the place. `full`: the whole place."""
    place: Place = "whole"
    """Where in the answer to look: `boxed`, `whole`, or `auto` (boxed if there is a box)."""
    ignore_case: bool = False
    """Capital and small letters are the same."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            compiled(pattern)
        return pattern


def compiled(pattern: str, ignore_case: bool = False) -> re.Pattern[str]:
    """The expression, ready to use.

    Raises:
        ValueError: it is none; says where.
    """
    try:
        return re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r:.60} is no regular expression: {error}; escape special characters with \\") from None


class InstructionOptions(Options):
    """Everything that is set holds of the answer. An answer that did not end by itself is always wrong."""

    mention: list[str] = Field(default_factory=list)
    """Words of which at least one must occur (forms of the topic); case does not count, a longer word with this beginning does."""
    min_words: Annotated[int, Field(ge=1)] = 1
    """Fewest words."""
    max_words: Annotated[int, Field(ge=1)] | None = None
    """Most words."""
    sentences: Annotated[int, Field(ge=1)] | None = None
    """Exact number of sentences; the last one must end with a full stop, question or exclamation mark."""
    no_commas: bool = False
    """No comma anywhere."""
    avoid: list[str] = Field(default_factory=list)
    """Words that must not occur."""
    begin: str | None = None
    """The answer begins with this text."""
    end: str | None = None
    """The answer ends with this text."""
    lowercase: bool = False
    """No capital letter."""
    uppercase: bool = False
    """No small letter."""

    @model_validator(mode="after")
    def _possible(self) -> "InstructionOptions":
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(f"max_words ({self.max_words}) is less than min_words ({self.min_words}); no answer could be right")
        return self


class ReasoningGymOptions(Options):
    """The generator's own scorer finds the answer good enough."""

    place: Place = "auto"
    """Where in the answer to look: `boxed`, `whole`, or `auto` (boxed if there is a box)."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Score from which an answer is right. Scorers give small scores for a good form alone, so less than 1 pays for wrong answers."""


class CodeOptions(Options):
    """The program in the answer's last fenced block passes the reference's tests in the sandbox."""

    language: Language = "python"
    """Language of the program, unless the reference names one."""
    partial: bool = False
    """The reward is the share of tests passed. Else it is 1 if all pass and 0 if not, and the first failure ends the judgement."""
    cpu_seconds: Annotated[float, Field(gt=0, le=120)] = 2.0
    """Processor time of one test."""
    wall_seconds: Annotated[float, Field(gt=0, le=300)] = 6.0
    """Time of one test."""
    total_seconds: Annotated[float, Field(gt=0, le=200)] = 40.0
    """Time of all tests together, checker programs included; the test that runs then is ended, and those that follow are not passed."""
    memory_mb: Annotated[int, Field(ge=16)] = 256
    """Memory of one test, MiB; at most `spec.sandbox.memoryPerRun`."""


class LengthOptions(Options):
    """A graded term: 1 up to one length, 0 from another, a straight line between. Right exactly where it is 1."""

    unit: Literal["words", "characters"] = "words"
    """What is counted."""
    full_at: Annotated[int, Field(ge=0)] = 200
    """Length up to which (from which, if `zero_at` is less) the reward is 1."""
    zero_at: Annotated[int, Field(ge=0)] = 1000
    """Length from which (up to which, if `full_at` is more) the reward is 0."""

    @model_validator(mode="after")
    def _apart(self) -> "LengthOptions":
        if self.full_at == self.zero_at:
            raise ValueError(f"full_at and zero_at are both {self.full_at}; set them apart, full_at below zero_at to pay for short answers")
        return self


class RepetitionOptions(Options):
    """A graded term: 1 if no run of words occurs twice, 0 from a share of repeated runs on. Right exactly where it is 1."""

    ngram: Annotated[int, Field(ge=1, le=64)] = 4
    """Words of a run."""
    zero_at: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of runs that were there before, from which the reward is 0."""


class ImportOptions(Options):
    """A function of the user's own. Only the job can name it, a data record cannot."""

    path: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    """`package.module:function`, importable where the reward service runs."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the function by name."""


class HttpOptions(Options):
    """A service of the user's own. Only the job can name it, a data record cannot."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/@]+(/\S*)?$")] | None = None
    """Where to POST, such as `http://judge.team-a:8000/score`."""
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 30.0
    """Time limit of one call."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 4
    """Calls for one answer before the judgement counts as failed."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed on as they are."""


class JudgeOptions(Options):
    """A language model behind an OpenAI-compatible endpoint reasons about the answer and says what it is worth. Only the job can name the
    endpoint, the model and the key, a data record cannot."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s?#]*)?$")] | None = None
    """Base address, such as `http://judge.team-a:8000/v1`; `/chat/completions` is added."""
    model: str | None = None
    """Name of the model there."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable of the reward service that holds the API key."""
    key_file: str | None = None
    """File that holds the API key, where the reward service runs. It is read for each call, so the key can be exchanged."""
    template: str | None = None
    """What the judge is asked, with `{answer}` and, as needed, `{question}` and `{reference}`. The form of the verdict is added."""
    scale: Annotated[int, Field(ge=1, le=100)] = 1
    """A verdict is a whole number from 0 to this; the reward is its share of this. 1: wrong or right."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Reward from which an answer is right."""
    reasoning: bool = True
    """The judge writes its reasons before its verdict. Set it to false for models that think by themselves."""
    output: Literal["json_schema", "json_object", "text"] = "json_schema"
    """How the endpoint is told the form of a verdict (`response_format`); `text`: only by the prompt, for those that know neither."""
    samples: Annotated[int, Field(ge=1, le=15)] = 1
    """Verdicts on one answer; their median counts. An odd number."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Sampling temperature of the judge."""
    max_tokens: Annotated[int, Field(ge=16)] = 2048
    """Longest reply of the judge."""
    longest_answer: Annotated[int, Field(ge=1)] = 100_000
    """Characters; a longer answer is wrong unseen, as is one that does not fit the judge's context."""
    timeout_seconds: Annotated[float, Field(gt=0, le=280)] = 60.0
    """Time limit of one call."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 4
    """Calls for one verdict while the endpoint is busy, broken or silent, before the judgement counts as failed."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further calls when a reply holds no verdict, before the judgement counts as failed. The last one asks for the verdict alone."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """More fields of the request, such as `reasoning_effort`; null leaves one out."""

    @field_validator("samples")
    @classmethod
    def _have_a_median(cls, samples: int) -> int:
        if samples % 2 == 0:
            raise ValueError(f"{samples} verdicts have no middle one; set an odd number, such as {samples + 1}")
        return samples

    @field_validator("key_variable")
    @classmethod
    def _is_kept_from_workers(cls, name: str | None) -> str | None:
        if name is not None and name.startswith("RLJOB_"):
            raise ValueError(f"{name}: variables that begin with RLJOB_ are seen by every process of a run; choose another name")
        return name

    @field_validator("template")
    @classmethod
    def _shows_the_answer(cls, template: str | None) -> str | None:
        if template is not None and "{answer}" not in template:
            raise ValueError("does not hold {answer}; the judge would not see what it judges")
        return template

    @field_validator("extra")
    @classmethod
    def _leaves_the_form(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if fixed := sorted(extra.keys() & {"model", "messages", "n", "stream", "response_format"}):
            raise ValueError(f"cannot set {', '.join(fixed)}; they follow from the other options")
        return extra

    @model_validator(mode="after")
    def _consistent(self) -> "JudgeOptions":
        if self.key_variable is not None and self.key_file is not None:
            raise ValueError("key_variable and key_file are both set; the key has one source, leave one out")
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"samples is {self.samples}, but at temperature 0 all verdicts are the same; set temperature, such as 0.6")
        return self


_OF_PLACE = {"endpoint": ("model", "key_variable", "key_file", "attempts"), "folder": ("device", "batch_tokens")}
"""Options of a reward model that are read only where it is at an endpoint, in a folder."""


class RewardModelOptions(Options):
    """A reward model, a transformer with a value head, scores the answer. Only the job can name the model and the key, no data record."""

    folder: str | None = None
    """Folder of the model where the reward service runs. A relative one starts from the folder of the job file, in a cluster from
    `spec.files`."""
    endpoint: str | None = Field(None, pattern=r"^https?://[^\s/@?#]+(/[^\s?#]*)?$")
    """Instead: base address of a vLLM server that serves it, such as `http://scores.team-a:8000`; `/classify` is added."""
    model: str | None = None
    """Name of the model at the endpoint."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable of the reward service that holds the endpoint's API key."""
    key_file: str | None = None
    """File that holds the API key, where the reward service runs."""
    system: str | None = None
    """System message before the question: the `spec.data.system` that the model was trained with."""
    mapping: Literal["sigmoid", "raw", "threshold"] = "sigmoid"
    """How a score becomes a reward, with z = (score - center) / scale. `sigmoid`: 1 / (1 + exp(-z)). `raw`: z, cut to 0 and 1.
    `threshold`: 1 if z is at least 0, else 0."""
    center: float = 0.0
    """Score that counts as 0. Scores of a model trained on pairs have no natural zero; the mean over some answers is a good one."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Difference of scores that counts as 1."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Reward from which an answer is right."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What a folder's model runs on; `auto`: a GPU if the reward service sees one. fp32 on CPU, bfloat16 on a GPU."""
    batch_tokens: Annotated[int, Field(ge=1)] = 8192
    """Tokens, padding included, that go through a folder's model at once (or one longer answer)."""
    longest_answer: Annotated[int, Field(ge=1)] = 100_000
    """Characters; a longer answer is wrong unseen, as is one that does not fit the model's context."""
    timeout_seconds: Annotated[float, Field(gt=0, le=280)] = 60.0
    """Time limit of one batch, or of one call."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 4
    """Calls for one score while the endpoint is busy, broken or silent, before the judgement counts as failed."""

    @model_validator(mode="after")
    def _one_place(self) -> "RewardModelOptions":
        if self.folder is not None and self.endpoint is not None:
            raise ValueError("folder and endpoint are both set; the model is in one place, leave one out")
        if self.key_variable is not None and self.key_file is not None:
            raise ValueError("key_variable and key_file are both set; the key has one source, leave one out")
        return self

    @property
    def place(self) -> str:
        """The option that says where the model is."""
        return "folder" if self.folder is not None else "endpoint"

    @property
    def unread(self) -> list[str]:
        """Options that are set and that nobody reads of a model in this place."""
        if self.folder is None and self.endpoint is None:
            return []
        return [
            name
            for place, names in _OF_PLACE.items()
            for name in names
            if place != self.place and name in self.model_fields_set and getattr(self, name) is not None
        ]


class Term(Options):
    """One part of a weighted reward."""

    verifier: TermName
    """Who judges."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that verifier."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the reward, relative to the other terms' weights."""
    decides: bool | None = None
    """Whether the answer can only be right if this term finds it so. Default: yes, but for `length` and `repetition`."""
    only_if_right: bool = False
    """Counts only if every term that decides finds the answer right, so that a wrong answer earns nothing by its form."""

    @field_validator("options")
    @classmethod
    def _fit(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return fitting(info.data.get("verifier"), options)

    @property
    def is_deciding(self) -> bool:
        """`decides`, or its default."""
        return self.decides if self.decides is not None else self.verifier not in ("length", "repetition")


class WeightedOptions(Options):
    """A weighted mean of other verifiers' rewards. Right if every term that decides finds the answer right."""

    terms: list[Term] = Field(default_factory=list)
    """What is combined."""

    @model_validator(mode="after")
    def _decided(self) -> "WeightedOptions":
        if self.terms and not any(term.is_deciding for term in self.terms):
            raise ValueError("no term decides whether an answer is right; set `decides: true` for one, or add a verifier")
        return self


OPTIONS: Mapping[str, type[Options]] = {
    "exact": ExactOptions,
    "numeric": NumericOptions,
    "math": MathOptions,
    "choice": ChoiceOptions,
    "regex": RegexOptions,
    "instruction": InstructionOptions,
    "reasoning-gym": ReasoningGymOptions,
    "code": CodeOptions,
    "length": LengthOptions,
    "repetition": RepetitionOptions,
    "weighted": WeightedOptions,
    "import": ImportOptions,
    "http": HttpOptions,
    "judge": JudgeOptions,
    "reward-model": RewardModelOptions,
}
"""Verifier to its options."""


def fitting(verifier: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options as they are, if the verifier can use them. Part of a model's validation: problems keep their place below the field.

    Raises:
        ValidationError: it cannot; all problems at once.
    """
    model = OPTIONS.get(verifier or "")
    if model is None:
        return options
    try:
        model.model_validate(options)
    except ValidationError as error:
        details = [
            InitErrorDetails(type=_kind(e, verifier or "", model), loc=e["loc"], input=e["input"], ctx=e.get("ctx", {}))
            for e in error.errors(include_url=False)
        ]
        raise ValidationError.from_exception_data(model.__name__, details) from None
    return options


def _kind(error: Any, verifier: str, model: type[Options]) -> str | PydanticCustomError:
    kind: str = error["type"]
    if kind == "extra_forbidden":
        fields, owner = (model.model_fields, verifier) if len(error["loc"]) == 1 else (Term.model_fields, "a term")
        near = difflib.get_close_matches(str(error["loc"][-1]).lower().replace("-", "_"), fields, 1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(fields)}"
        return PydanticCustomError("value_error", "{error}", {"error": ValueError(f"is no option of {owner}; {hint}")})
    return PydanticCustomError("value_error", "{error}", error["ctx"]) if kind == "value_error" else kind


def named(verifier: str | None, options: Mapping[str, Any]) -> Iterator[str]:
    """Import paths and addresses that options name: what decides whose code judges, who is called, and with whose key."""
    for name, of in _parts(verifier, options):
        target = {"import": "path", "http": "url"}.get(name or "")
        if target and isinstance(of.get(target), str):
            yield f"{name} {of[target]}"
        if name in ("judge", "reward-model"):
            # One text for all of them: else a record could send the key of one judge to another.
            fields = ("folder", "endpoint", "model", "key_variable", "key_file")
            yield f"{name} with {', '.join(f'{field} {of[field]!r}' for field in fields if of.get(field) is not None)}"


def uses(verifier: str | None, options: Mapping[str, Any]) -> frozenset[str]:
    """The verifier and, if it combines others, those."""
    terms = options.get("terms") if verifier == "weighted" else None
    return frozenset([verifier or "", *(term.get("verifier", "") for term in terms or ())])


def judges(verifier: str | None, options: Mapping[str, Any]) -> Iterator[JudgeOptions]:
    """The language models that judge, among them those that others combine."""
    return (JudgeOptions.model_validate(of) for name, of in _parts(verifier, options) if name == "judge")


def programs(verifier: str | None, options: Mapping[str, Any]) -> Iterator[CodeOptions]:
    """How programs are judged, by this verifier and by those that it combines."""
    return (CodeOptions.model_validate(of) for name, of in _parts(verifier, options) if name == "code")


def reward_models(verifier: str | None, options: Mapping[str, Any]) -> Iterator[RewardModelOptions]:
    """The reward models that score, among them those that others combine."""
    return (RewardModelOptions.model_validate(of) for name, of in _parts(verifier, options) if name == "reward-model")


def _parts(verifier: str | None, options: Mapping[str, Any]) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    """The verifier with its options, or those that it combines with theirs."""
    if verifier != "weighted":
        yield verifier, options
        return
    for term in options.get("terms") or ():
        yield from _parts(term.get("verifier"), term.get("options") or {})
