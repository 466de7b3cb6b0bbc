"""How much memory, disk and time a job will take, before anything starts. Rough on purpose, from few measured constants.

The constants were measured with SmolLM2-135M on two AMD EPYC cores (bf16 and fp32) and, for `nvidia`, on one H100 (bf16). Other machines
differ; the figures are for choosing sizes, not for promises.
"""

from dataclasses import dataclass

from rljob.api import RLJob
from rljob.plan.shape import ModelShape

MiB, GiB = 1 << 20, 1 << 30

PROMPT_TOKENS = 96
"""Length that a prompt is taken to have, if the context is long enough."""
ANSWER_SHARE = 0.5
"""Share of `rollout.maxTokens` that an answer is taken to use."""

_PYTHON = 250 * MiB
_TORCH = 900 * MiB
_ENGINE = 1050 * MiB
_ZYGOTE = 540 * MiB
_TRAIN_FLOPS = {("cpu", "fp32"): 69e9, ("cpu", "bf16"): 141e9, ("nvidia", "fp32"): 30e12, ("nvidia", "bf16"): 300e12}
_GENERATE_FLOPS = {"cpu": 32e9, "nvidia": 20e12}
_LARGEST_RATE = {"cpu": 3000.0, "nvidia": 30000.0}
"""Tokens per second of one engine that small models come to, whatever their size: the scheduler's share."""
_SWITCH_SECONDS = {"cpu": 4.0, "nvidia": 2.0}


@dataclass(frozen=True)
class Machine:
    """What time depends on besides the job."""

    cores: int
    bf16: bool
    """The hardware has bf16 arithmetic."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of one process, by what it is used for, in bytes."""

    parts: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """All parts."""
        return sum(size for _, size in self.parts)


@dataclass(frozen=True)
class Estimate:
    """Sizes of a job. Bytes and seconds."""

    shape: ModelShape | None
    memory: dict[str, Memory]
    """Per process: `master`, `prepare`, `checkpoint-engine`, `megatron` (the whole sidecar), `vllm`, `reward`; `sandbox` if it runs."""
    arena: int
    """Weights in shared memory, per worker or rollout pod."""
    disk: int
    answer_tokens: int
    """Generated per iteration."""
    trained_tokens: int
    """Through the trainer per iteration, prompts counted once per group."""
    seconds: dict[str, float]
    """Per phase of an iteration; empty if the model's shape is unknown."""
    notes: tuple[str, ...]


def prompt_tokens(job: RLJob, shape: ModelShape | None) -> int:
    """Length that a prompt is taken to have: what the context leaves, at most `PROMPT_TOKENS`."""
    context = (shape.context if shape else 0) or PROMPT_TOKENS + job.spec.rollout.max_tokens
    return max(1, min(PROMPT_TOKENS, context - job.spec.rollout.max_tokens))


def sequence_length(job: RLJob, shape: ModelShape) -> int:
    """Longest sequence, as far as it is known before the prompts are."""
    return job.spec.model.max_length or prompt_tokens(job, shape) + job.spec.rollout.max_tokens


def engine_bytes(job: RLJob) -> int:
    """Bytes of one weight in the engine and in the arena."""
    dtype = job.spec.rollout.engine.dtype
    if dtype == "auto":
        return 4 if job.spec.accelerator.type == "cpu" else 2
    return 4 if dtype == "float32" else 2


def parse_size(text: str) -> int:
    """`512Mi` or `2Gi` in bytes."""
    return int(text[:-2]) * (MiB if text.endswith("Mi") else GiB)


def trainer_memory(job: RLJob, shape: ModelShape) -> Memory:
    """All ranks of the node that holds most: fp32 weights, gradients and Adam's two moments; activations of micro-batches."""
    ranks, per_stage = job.spec.accelerator.per_node, job.spec.world_size // job.spec.trainer.pipeline_parallel
    nodes = [[rank_memory(job, shape, (node * ranks + i) // per_stage) for i in range(ranks)] for node in range(job.spec.trainer.nodes)]
    most = max(nodes, key=lambda held: sum(sum(rank) for rank in held))
    state, activations = (sum(part) for part in zip(*most, strict=True))
    return Memory((("interpreter", ranks * _TORCH), ("weights and optimizer", state), ("activations", activations)))


def rank_memory(job: RLJob, shape: ModelShape, stage: int) -> tuple[int, int]:
    """(weights and optimizer, activations) of one rank of a pipeline stage, in bytes.

    The first and the last of several stages each hold an embedding, of which the last may be a copy. A stage keeps the activations of as
    many micro-batches as there are stages from it to the end (1F1B), so the first one keeps as much as if there were no pipeline. With
    interleaved chunks it keeps those of more passes through a chunk (schedules.py, `get_pp_rank_microbatches`, and the one in progress).
    Experts are spread over expert parallel ranks; tensor parallel ones split the rest, and each sends its share of the tokens to the
    experts.
    """
    t, stages = job.spec.trainer, job.spec.trainer.pipeline_parallel
    low, last = t.precision != "fp32", stage == stages - 1
    embedding = shape.vocabulary * shape.hidden if stages > 1 else 0
    weights = (shape.parameters - shape.in_experts - embedding) // stages + (embedding if stage == 0 or last else 0)
    experts = shape.in_experts // stages // t.expert_parallel
    tokens = max(t.micro_batch_tokens, sequence_length(job, shape)) // t.context_parallel
    # Every expert that a token goes through has its copy of it, and what its feed-forward part keeps.
    in_experts = 4 * shape.chosen * (4 * shape.hidden + 3 * shape.ffn)
    in_layer = 2 * shape.hidden if t.recompute else 68 * shape.hidden + in_experts
    chunks = t.virtual_pipeline_parallel
    waiting = stages - stage if chunks == 1 else 2 * (stages - stage) - 1 + (chunks - 1) * stages
    per_token = waiting * (shape.layers // (stages * chunks)) * in_layer
    activations = tokens * (per_token + (12 * shape.vocabulary if last else 0)) // t.tensor_parallel
    return (weights // t.tensor_parallel + experts) * (18 if low else 16), activations


def engine_memory(job: RLJob, shape: ModelShape) -> Memory:
    """The zygote and one vLLM server."""
    r, width = job.spec.rollout, engine_bytes(job)
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_size * width
    wanted = r.engine.kv_cache_memory
    cache = parse_size(wanted) if wanted else r.engine.max_sequences * sequence_length(job, shape) * per_token
    return Memory((("zygote", _ZYGOTE), ("engine", _ENGINE), ("weights", shape.parameters * width), ("KV cache", cache)))


def sandbox_memory(job: RLJob) -> Memory:
    """The service, and every slot with half of what one program may use: few use all of it, and fewer at the same time."""
    sandbox = job.spec.sandbox
    return Memory((("interpreter", 2 * _PYTHON), ("programs", sandbox.slots * parse_size(sandbox.memory_per_run) // 2)))


def _unknown(job: RLJob, shape: ModelShape | None, notes: tuple[str, ...], scorers: int) -> Estimate:
    memory = {
        "prepare": Memory((("interpreter", 2 * _TORCH),)),
        "master": Memory((("interpreter", 2 * _PYTHON),)),
        "checkpoint-engine": Memory((("interpreter", _PYTHON),)),
        "megatron": Memory((("interpreter", job.spec.accelerator.per_node * _TORCH),)),
        "vllm": Memory((("zygote", _ZYGOTE), ("engine", _ENGINE))),
        # One more for answers that take long.
        "reward": Memory((("interpreter", (2 + job.spec.reward.workers) * _PYTHON),)),
    }
    if job.spec.reward.model_folders:
        memory["reward"] = Memory((*memory["reward"].parts, ("reward model", _TORCH + 4 * scorers)))
    if job.spec.needs_sandbox:
        memory["sandbox"] = sandbox_memory(job)
    a, r = job.spec.algorithm, job.spec.rollout
    answers = int(a.prompts_per_iteration * a.samples_per_prompt * r.max_tokens * ANSWER_SHARE)
    trained = answers + a.prompts_per_iteration * prompt_tokens(job, shape)
    if (pairs := job.spec.reward_model) is not None:
        answers, each = 0, prompt_tokens(job, shape) + int(2 * ANSWER_SHARE * r.max_tokens)
        trained = pairs.steps_per_iteration * pairs.batch_size * each
    return Estimate(None, memory, 0, 0, answers, trained, {}, notes)


def held_out_prompts(job: RLJob, counted: int | None = None) -> int | None:
    """Size of the held-out set as far as the job says, or as its file was counted."""
    evaluation = job.spec.evaluation
    if evaluation is None:
        return 0
    data = evaluation.data
    size = data.reasoning_gym.size if data.reasoning_gym else counted
    return min((n for n in (data.limit, size) if n is not None), default=None)


def _seconds(job: RLJob, shape: ModelShape, machine: Machine, answers: int, trained: int, held_out: int) -> dict[str, float]:
    kind = job.spec.accelerator.type
    low = job.spec.trainer.precision == "bf16" or (job.spec.trainer.precision == "auto" and (machine.bf16 or kind == "nvidia"))
    units = machine.cores if kind == "cpu" else job.spec.world_size
    engines = job.spec.trainer.nodes + job.spec.rollout.replicas

    def generate(tokens: float) -> float:
        return max(2 * shape.active * tokens / (_GENERATE_FLOPS[kind] * units), tokens / (_LARGEST_RATE[kind] * engines))

    # One step is bounded below by its micro-batches' fixed cost, some 50 ms each.
    steps = job.spec.algorithm.steps_per_iteration
    micro_batches = max(steps, trained // job.spec.trainer.micro_batch_tokens)
    training = max(6 * shape.active * trained / (_TRAIN_FLOPS[kind, "bf16" if low else "fp32"] * units), 0.05 * micro_batches)
    # Stages wait at the beginning and the end of every step, for as long as one micro-batch takes each of the others.
    # Interleaved, that is a chunk's time.
    stages, chunks = job.spec.trainer.pipeline_parallel, job.spec.trainer.virtual_pipeline_parallel
    training *= 1 + (stages - 1) / chunks / max(1, micro_batches / steps / job.spec.data_parallel)
    if not job.spec.generates:
        return {"training": training}
    seconds = {"rollout": generate(answers), "training": training}
    seconds["switch"] = _SWITCH_SECONDS[kind] + shape.parameters * engine_bytes(job) / 2e9
    if job.spec.evaluation is not None and held_out:
        seconds["evaluation"] = generate(held_out * job.spec.rollout.max_tokens * ANSWER_SHARE) / job.spec.evaluation.every
    return seconds


def estimate(job: RLJob, shape: ModelShape | None, machine: Machine, held_out_records: int | None = None, scorers: int = 0) -> Estimate:
    """Estimate a job. Without a shape only what does not depend on the model is filled in, and `notes` says so.

    Args:
        held_out_records: records of the held-out file, if it could be read (`rljob.plan.records`).
        scorers: parameters of the reward models that the reward service holds, as far as they could be read.
    """
    if shape is None:
        return _unknown(
            job, None, ("the model is not on this machine yet: memory is a lower bound and there is no estimate of time",), scorers
        )
    base = _unknown(job, shape, (), scorers)
    weights = shape.parameters * engine_bytes(job)
    peers = job.spec.trainer.nodes + job.spec.rollout.replicas > 1
    optimizer = 0 if job.spec.algorithm.reset_optimizer and job.spec.generates else 12 * shape.parameters
    memory = base.memory | {
        "prepare": Memory((("interpreter", _TORCH), ("weights", 8 * shape.parameters))),
        "megatron": trainer_memory(job, shape),
        "vllm": engine_memory(job, shape),
    }
    if not job.spec.generates:
        del memory["vllm"], memory["reward"]
    notes = [f"answers are taken to use {ANSWER_SHARE:.0%} of rollout.maxTokens, prompts {prompt_tokens(job, shape)} tokens"]
    if (stages := job.spec.trainer.pipeline_parallel) > 1:
        largest = max(sum(rank_memory(job, shape, stage)) for stage in range(stages)) + _TORCH
        notes.append(f"a trainer rank needs at most {largest / MiB:,.0f} MiB of the memory of megatron; pipeline stages differ")
    checkpoint = 4 * shape.parameters + optimizer
    for_good = job.spec.iterations // job.spec.checkpoint.keep_every if job.spec.checkpoint.keep_every else 0
    if for_good:
        notes.append(f"checkpoint.keepEvery keeps {for_good} checkpoints for good: {for_good * checkpoint / MiB:,.0f} MiB of the disk")
    held_out = held_out_prompts(job, held_out_records)
    if held_out is None:
        notes.append("the size of the held-out set is not known before the file is read: evaluation is left out of the time")
    return Estimate(
        shape=shape,
        memory=memory,
        # A second copy exists while peers still read the old version.
        arena=(2 if peers else 1) * weights,
        # The starting model, the kept checkpoints and one in the making, the final model: all fp32, whatever the engine has.
        disk=4 * shape.parameters + (job.spec.checkpoint.keep + 1 + for_good) * checkpoint + 4 * shape.parameters,
        answer_tokens=base.answer_tokens,
        trained_tokens=base.trained_tokens,
        seconds=_seconds(job, shape, machine, base.answer_tokens, base.trained_tokens, held_out or 0),
        notes=tuple(notes),
    )
