"""How much memory, disk and time a job will take, before anything starts. Rough on purpose, from few measured constants.

The constants were measured with SmolLM2-135M on two AMD EPYC cores (bf16 and fp32) and, for `nvidia`, on one H100 (bf16); those of time
on CPU are fitted to what README has of the main example as a whole. Other machines differ; the figures are for choosing sizes, not for
promises.
"""

import math
from dataclasses import dataclass

from rljob.api import RLJob
from rljob.api.sources import ModelSource
from rljob.plan.records import count_prompts
from rljob.plan.shape import ModelShape

MiB, GiB = 1 << 20, 1 << 30

PROMPT_TOKENS = 96
"""Length that a prompt is taken to have where it cannot be looked at, if the context is long enough."""
PAIR_TOKENS = 3 * PROMPT_TOKENS
"""The same of a prompt with two answers, where a reward model is trained."""
ANSWER_SHARE = 0.5
"""Share of `rollout.maxTokens` that an answer is taken to use."""

_PYTHON = 250 * MiB
_TORCH = 900 * MiB
_ENGINE = 1050 * MiB
_ZYGOTE = 540 * MiB
_CUDA = 2560 * MiB
"""What CUDA and NCCL take of a device besides tensors, at most (one H100, one rank)."""
_RECORD, _TEXT = 2048, 3
"""Bytes of a prompt in the master, and of each byte of its record: its text, and its tokens of 4 bytes."""
_TOKEN, _TEXT_OF_TOKEN, _BATCH_TOKEN = 8, 5, 9
"""Bytes of an answer's token in the master's database: number and log-probability until it is trained on; its text, which stays for two
versions more; in the batch for the trainer, which SQLite writes to its log first."""
_HELD_TOKEN, _PASSED_TOKEN, _RANK_TOKEN = 52, 20, 44
"""Bytes of an answer's token in the master while it assembles the batch, in a node agent that passes the batch on, and in every rank of the
trainer (all three measured, 4 to 34 million tokens)."""
_WHOLE, _DIVIDED, _FFN = {2: 21, 4: 29}, {2: 8, 4: 10}, {2: 10, 4: 20}
"""Bytes that the backward pass keeps of a token in every layer, by the bytes of a number: for each of its `hidden` numbers, whole on every
tensor parallel rank (norms, residuals) and divided among them; for each of the feed-forward part, divided. Measured on CPU with one rank
and two, without attention's squares."""
_LOGITS = 512 * MiB
"""Most that the logits of a micro-batch take (`rljob.trainer.logprobs` cuts them in pieces)."""
_LOGITS_COPIES = {"cpu": 1, "nvidia": 5}
"""So many times their size are they in memory: a GPU does the softmax of a whole piece at once, in fp32."""
_DISK = 1e9
"""Bytes per second that a checkpoint is taken to be written with; no storage of GPU machines was measured."""
_TRAIN_FLOPS = {("cpu", "fp32"): 69e9, ("cpu", "bf16"): 180e9, ("nvidia", "fp32"): 30e12, ("nvidia", "bf16"): 300e12}
_GENERATE_FLOPS = {"cpu": 80e9, "nvidia": 20e12}
_LARGEST_RATE = {"cpu": 3000.0, "nvidia": 30000.0}
"""Tokens per second of one engine that small models come to, whatever their size: the scheduler's share."""
_SWITCH_SECONDS = {"cpu": 3.0, "nvidia": 2.0}


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
    offloaded: int = 0
    """Where trainer and engine take turns on CPU: what the trainer keeps in files in the cache meanwhile, those of all worker pods."""


def prompt_tokens(job: RLJob, shape: ModelShape | None, length: int | None = None) -> int:
    """Length that a prompt is taken to have (of a pair: with both answers): the given one, else a constant; not more than fits."""
    if job.spec.generates:
        length, answer = length or PROMPT_TOKENS, job.spec.rollout.max_tokens
    else:
        length, answer = length or PAIR_TOKENS, 0
    most = job.spec.model.max_length or (shape.context if shape else 0)
    return max(1, min(length, most - answer)) if most else length


def sequence_length(job: RLJob, shape: ModelShape) -> int:
    """Longest sequence, as far as it is known before the prompts are."""
    length = job.spec.model.max_length or prompt_tokens(job, shape) + job.spec.rollout.max_tokens
    return min(length, shape.context or length)


def engine_bytes(job: RLJob) -> int:
    """Bytes of one weight in the engine and in the arena."""
    return 4 if job.spec.engine_dtype == "float32" else 2


def _mib(size: int) -> str:
    return f"{size / MiB:,.0f} MiB"


def parse_size(text: str) -> int:
    """`512Mi` or `2Gi` in bytes."""
    return int(text[:-2]) * (MiB if text.endswith("Mi") else GiB)


def trainer_memory(job: RLJob, shape: ModelShape, trained: int) -> Memory:
    """Main memory of all ranks of the node that holds most: fp32 weights, gradients and Adam's two moments; activations of micro-batches;
    in each rank the whole batch of `trained` tokens.

    Of ranks with devices only what they leave there while the engine has them: fp32 weights, and the moments if they are kept.
    """
    ranks, per_stage = job.spec.accelerator.per_node, job.spec.world_size // job.spec.trainer.pipeline_parallel
    nodes = [[rank_memory(job, shape, (node * ranks + i) // per_stage) for i in range(ranks)] for node in range(job.spec.trainer.nodes)]
    most = max(nodes, key=lambda held: sum(sum(rank) for rank in held))
    state, activations = (sum(part) for part in zip(*most, strict=True))
    base = (("interpreter", ranks * _TORCH), ("batch", ranks * _RANK_TOKEN * trained))
    if job.spec.accelerator.type != "cpu":
        return Memory((*base, ("offloaded weights and optimizer", _kept_bytes(job) * state // _state_bytes(job))))
    return Memory((*base, ("weights and optimizer", state), ("activations", activations)))


def _offloaded(job: RLJob, shape: ModelShape) -> int:
    """Of every rank its fp32 weights, and its two moments if they are kept."""
    if job.spec.accelerator.type != "cpu" or not job.spec.generates:
        return 0
    per_stage = job.spec.world_size // job.spec.trainer.pipeline_parallel
    held = per_stage * sum(rank_memory(job, shape, stage)[0] for stage in range(job.spec.trainer.pipeline_parallel))
    return _kept_bytes(job) * (held // _state_bytes(job))


def _kept_bytes(job: RLJob) -> int:
    """Bytes of a parameter from one iteration to the next: its fp32 weight, and two moments if they are not begun anew."""
    return 4 if job.spec.algorithm.reset_optimizer and job.spec.generates else 12


def _state_bytes(job: RLJob) -> int:
    """Bytes of a parameter in training: fp32 weight, gradient and two moments, and where arithmetic may be bf16 a copy of the weight."""
    return 16 if job.spec.trainer.precision == "fp32" else 18


def device_note(job: RLJob, shape: ModelShape) -> str:
    """What one device has to hold, for people."""
    state, activations = max((rank_memory(job, shape, stage) for stage in range(job.spec.trainer.pipeline_parallel)), key=sum)
    said = f"a trainer rank of at most {_mib(state + activations)} (weights and optimizer {_mib(state)}, activations {_mib(activations)})"
    if job.spec.generates:
        processes = job.spec.rollout.tensor_parallel
        weights, cache = shape.parameters * engine_bytes(job) // processes, cache_bytes(job, shape) // processes
        said += f", and in turn an engine with weights of {_mib(weights)} and a KV cache that can use {_mib(cache)}"
    return f"a device has to hold {said}; besides up to {_mib(_CUDA)} of CUDA and NCCL"


def rank_memory(job: RLJob, shape: ModelShape, stage: int) -> tuple[int, int]:
    """(weights and optimizer, activations) of one rank of a pipeline stage, in bytes.

    The first and the last of several stages each hold an embedding, of which the last may be a copy. A stage keeps the activations of as
    many micro-batches as there are stages from it to the end (1F1B), so the first one keeps as much as if there were no pipeline. With
    interleaved chunks it keeps those of more passes through a chunk (schedules.py, `get_pp_rank_microbatches`, and the one in progress).
    Experts are spread over expert parallel ranks; tensor parallel ones split the rest, and each sends its share of the tokens to the
    experts. Recomputed, a layer keeps its input alone, whole on every rank, and one layer at a time has everything.
    """
    t, stages = job.spec.trainer, job.spec.trainer.pipeline_parallel
    last = stage == stages - 1
    embedding = shape.vocabulary * shape.hidden if stages > 1 else 0
    weights = (shape.parameters - shape.in_experts - embedding) // stages + (embedding if stage == 0 or last else 0)
    experts = shape.in_experts // stages // t.expert_parallel
    longest = sequence_length(job, shape)
    row = max(t.micro_batch_tokens, longest)
    tokens = row // t.context_parallel
    # Every expert that a token goes through has its copy of it, and what its feed-forward part keeps.
    in_experts = 4 * shape.chosen * (4 * shape.hidden + 3 * shape.ffn)
    number = 2 if t.precision == "bf16" or (t.precision == "auto" and job.spec.accelerator.type != "cpu") else 4
    dense = shape.shared_ffn if shape.experts else shape.ffn
    in_layer = _WHOLE[number] * shape.hidden + (_DIVIDED[number] * shape.hidden + _FFN[number] * dense + in_experts) // t.tensor_parallel
    chunks = t.virtual_pipeline_parallel
    waiting = stages - stage if chunks == 1 else 2 * (stages - stage) - 1 + (chunks - 1) * stages
    layers = shape.layers // (stages * chunks)
    logits = _LOGITS_COPIES[job.spec.accelerator.type] * min(number * shape.vocabulary * tokens // t.tensor_parallel, _LOGITS)
    kept = waiting * layers * number * shape.hidden + in_layer if t.recompute else waiting * layers * in_layer
    activations = tokens * kept + (logits if last else 0)
    if job.spec.accelerator.type == "cpu":
        # Which tokens see which, whole on every rank: a byte for each pair, and as numbers again in every layer whose activations are kept.
        # A GPU's kernels need none.
        activations += row * longest * (waiting + number * (1 if t.recompute else waiting * layers))
    return (weights // t.tensor_parallel + experts) * _state_bytes(job), activations


def cache_bytes(job: RLJob, shape: ModelShape) -> int:
    """KV cache of an engine: as asked for of each of its processes, or room for every sequence at its full length."""
    r = job.spec.rollout
    if r.engine.kv_cache_memory is not None:
        return r.tensor_parallel * parse_size(r.engine.kv_cache_memory)
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_size * engine_bytes(job)
    return r.engine.max_sequences * sequence_length(job, shape) * per_token


def engine_memory(job: RLJob, shape: ModelShape) -> Memory:
    """Main memory of the zygote and one vLLM server; with devices each of these has a process, and weights and cache are there."""
    if job.spec.accelerator.type != "cpu":
        return Memory((("zygote", _ZYGOTE), ("engine", job.spec.rollout.tensor_parallel * _ENGINE)))
    weights = shape.parameters * engine_bytes(job)
    return Memory((("zygote", _ZYGOTE), ("engine", _ENGINE), ("weights", weights), ("KV cache", cache_bytes(job, shape))))


def sandbox_memory(job: RLJob) -> Memory:
    """The service, and every slot with half of what one program may use: few use all of it, and fewer at the same time."""
    sandbox = job.spec.sandbox
    return Memory((("interpreter", 2 * _PYTHON), ("programs", sandbox.slots * parse_size(sandbox.memory_per_run) // 2)))


def _is_made(source: ModelSource) -> bool:
    """Whether `prepare` makes the weights of a model whose shape is known: at random, or from a GGUF file."""
    name = source.path or (source.package.file if source.package else "")
    return source.scratch is not None or name.endswith(".gguf")


def _unknown(job: RLJob, length: int, notes: tuple[str, ...], scorers: int, prompts: int) -> Estimate:
    a, r = job.spec.algorithm, job.spec.rollout
    answers = int(a.prompts_per_iteration * a.samples_per_prompt * r.max_tokens * ANSWER_SHARE)
    trained = answers + a.prompts_per_iteration * length
    if (pairs := job.spec.reward_model) is not None:
        answers, trained = 0, pairs.steps_per_iteration * pairs.batch_size * length
    memory = {
        "prepare": Memory((("interpreter", 2 * _TORCH), ("prompts", 2 * prompts))),
        "master": Memory((("interpreter", 2 * _PYTHON), ("prompts", prompts), ("answers", _HELD_TOKEN * trained))),
        "checkpoint-engine": Memory((("interpreter", _PYTHON), ("batch", _PASSED_TOKEN * trained))),
        "megatron": Memory((("interpreter", job.spec.accelerator.per_node * _TORCH),)),
        "vllm": Memory((("zygote", _ZYGOTE), ("engine", _ENGINE))),
        # One more for answers that take long.
        "reward": Memory((("interpreter", (2 + job.spec.reward.workers) * _PYTHON),)),
    }
    if job.spec.reward.model_folders:
        memory["reward"] = Memory((*memory["reward"].parts, ("reward model", _TORCH + 4 * scorers)))
    if job.spec.needs_sandbox:
        memory["sandbox"] = sandbox_memory(job)
    if pairs is not None:
        del memory["vllm"], memory["reward"]
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
    generating = machine.cores if kind == "cpu" else engines * job.spec.rollout.tensor_parallel

    def generate(tokens: float) -> float:
        return max(2 * shape.active * tokens / (_GENERATE_FLOPS[kind] * generating), tokens / (_LARGEST_RATE[kind] * engines))

    # One step is bounded below by its micro-batches' fixed cost, some 50 ms each.
    steps = (job.spec.reward_model or job.spec.algorithm).steps_per_iteration
    micro_batches = max(steps, trained // job.spec.trainer.micro_batch_tokens)
    training = max(6 * shape.active * trained / (_TRAIN_FLOPS[kind, "bf16" if low else "fp32"] * units), 0.05 * micro_batches)
    # Stages wait at the beginning and the end of every step, for as long as one micro-batch takes each of the others.
    # Interleaved, that is a chunk's time.
    stages, chunks = job.spec.trainer.pipeline_parallel, job.spec.trainer.virtual_pipeline_parallel
    training *= 1 + (stages - 1) / chunks / max(1, micro_batches / steps / job.spec.data_parallel)
    # Of models that a CPU trains it takes less than the training step varies.
    checkpoint = {} if kind == "cpu" else {"checkpoint": _kept_bytes(job) * shape.parameters / _DISK}
    if not job.spec.generates:
        return {"training": training} | checkpoint
    seconds = {"rollout": generate(answers), "training": training} | checkpoint
    seconds["switch"] = _SWITCH_SECONDS[kind] + shape.parameters * engine_bytes(job) / 2e9
    if job.spec.evaluation is not None and held_out:
        seconds["evaluation"] = generate(held_out * job.spec.rollout.max_tokens * ANSWER_SHARE) / job.spec.evaluation.every
    return seconds


def database_bytes(job: RLJob, trained: int) -> int:
    """What the master keeps of answers. With a token budget, or where rollout pods generate ahead, those of several iterations are open."""
    a, r = job.spec.algorithm, job.spec.rollout
    if not job.spec.generates:
        return 2 * _BATCH_TOKEN * trained
    opened = math.ceil(r.max_tokens / (r.token_budget or r.max_tokens)) + (r.max_staleness > 0)
    per_token = opened * _TOKEN + (opened + 2) * _TEXT_OF_TOKEN + 2 * _BATCH_TOKEN
    return a.prompts_per_iteration * a.samples_per_prompt * r.max_tokens * per_token


def estimate(
    job: RLJob,
    shape: ModelShape | None,
    machine: Machine,
    held_out_records: int | None = None,
    scorers: int = 0,
    prompts: tuple[int, int] | None = None,
    length: int | None = None,
) -> Estimate:
    """Estimate a job. Without a shape only what does not depend on the model is filled in, and `notes` says so.

    Args:
        held_out_records: records of the held-out file, if it could be read (`rljob.plan.records`).
        scorers: parameters of the reward models that the reward service holds, as far as they could be read.
        prompts: records and bytes of the prompts, as far as they could be read (`count_prompts`); None: those that a generator makes.
        length: tokens of a prompt, or of a pair, if some could be looked at (`prompt_length`).
    """
    records, size = count_prompts(job) if prompts is None else prompts
    held = _RECORD * records + _TEXT * size
    uncounted = (
        () if records else (f"the prompts are not counted yet: each takes {_RECORD} bytes and {_TEXT} times its record more of master",)
    )
    each = prompt_tokens(job, shape, length)
    if shape is None:
        note = "the model is not on this machine yet: memory is a lower bound and there is no estimate of time"
        return _unknown(job, each, (note, *uncounted), scorers, held)
    base = _unknown(job, each, (), scorers, held)
    weights = shape.parameters * engine_bytes(job)
    peers = job.spec.trainer.nodes + job.spec.rollout.replicas > 1
    # Folders are copied file by file.
    converted = 8 * shape.parameters if _is_made(job.spec.model.source) else 0
    memory = base.memory | {
        "prepare": Memory((("interpreter", _TORCH), ("weights", converted), ("prompts", 2 * held))),
        "megatron": trainer_memory(job, shape, base.trained_tokens),
    }
    taken = f"a pair is taken to have {each} tokens"
    if job.spec.generates:
        memory["vllm"] = engine_memory(job, shape)
        taken = f"answers are taken to use {ANSWER_SHARE:.0%} of rollout.maxTokens, prompts {each} tokens"
    notes = [taken, *uncounted]
    if job.spec.accelerator.type != "cpu":
        notes.append(device_note(job, shape))
    elif (stages := job.spec.trainer.pipeline_parallel) > 1:
        largest = max(sum(rank_memory(job, shape, stage)) for stage in range(stages)) + _TORCH
        notes.append(f"a trainer rank needs at most {_mib(largest)} of the memory of megatron; pipeline stages differ")
    checkpoint = _kept_bytes(job) * shape.parameters
    for_good = job.spec.iterations // job.spec.checkpoint.keep_every if job.spec.checkpoint.keep_every else 0
    if for_good:
        notes.append(f"checkpoint.keepEvery keeps {for_good} checkpoints for good: {_mib(for_good * checkpoint)} of the disk")
    held_out = held_out_prompts(job, held_out_records)
    if held_out is None:
        notes.append("the size of the held-out set is not known before the file is read: evaluation is left out of the time")
    return Estimate(
        shape=shape,
        memory=memory,
        # A second copy exists while peers still read the old version.
        arena=(2 if peers else 1) * weights,
        # The starting model, the kept checkpoints and one in the making, the final model: all fp32, whatever the engine has.
        # Beside them what the master has not trained on yet.
        disk=8 * shape.parameters + (job.spec.checkpoint.keep + 1 + for_good) * checkpoint + database_bytes(job, base.trained_tokens),
        answer_tokens=base.answer_tokens,
        trained_tokens=base.trained_tokens,
        seconds=_seconds(job, shape, machine, base.answer_tokens, base.trained_tokens, held_out or 0),
        notes=tuple(notes),
        offloaded=_offloaded(job, shape),
    )
