"""How the policy learns: objective, sampling, warm start, evaluation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rljob.api.base import INT32, MEMORY, Natural, Part, Positive, Small
from rljob.api.sources import DataSource


class LengthPenalty(Part):
    """The length reward of Kimi k1.5 §2.3.3, added to the verifier's reward after a warm-up."""

    weight: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Factor of the length reward (which lies in [-0.5, 0.5]); 0 turns it off."""
    warmup_iterations: Natural = 0
    """Iterations without the length reward at the start."""


class Sampling(Part):
    """Which prompts come next (Kimi k1.5 §2.3.4)."""

    strategy: Literal["uniform", "curriculum", "prioritized"] = "uniform"
    """`uniform` walks the set once, then again; `curriculum` goes from easy to hard by `difficulty`; `prioritized` draws in
    proportion to 1 - success rate, after each prompt's first visit."""
    curriculum_iterations: Positive = 24
    """Iterations over which the curriculum opens up to the hardest prompts (the paper's transition is at 24)."""


class AlgorithmSpec(Part):
    """Online policy mirror descent (Kimi k1.5 §2.3.2, equation 3)."""

    objective: Literal["mirror-descent"] = "mirror-descent"
    """The RL objective."""
    tau: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared log-ratio regulariser. 0 keeps the plain policy gradient with the mean reward as baseline. Without effect while
    `stepsPerIteration` is 1: it pulls towards the policy that an iteration starts from, which the first step has not left yet."""
    prompts_per_iteration: Positive = 16
    """Prompts (groups) in one iteration."""
    samples_per_prompt: Annotated[int, Field(ge=2, le=INT32)] = 8
    """Answers sampled for each prompt; k of the paper."""
    steps_per_iteration: Positive = 1
    """Optimizer steps an iteration; its samples are split evenly among them."""
    reset_optimizer: bool = True
    """Start every iteration with a fresh optimizer, as the paper does."""
    length_penalty: LengthPenalty = LengthPenalty()
    """The length reward."""
    sampling: Sampling = Sampling()
    """Prompt sampling."""


class WarmStart(Part):
    """Supervised fine-tuning before RL, on the `demonstration` of each record."""

    data: DataSource | None = None
    """Records with a `demonstration`. Default: the training prompts."""
    steps: Positive = 32
    """Optimizer steps."""
    batch_size: Positive = 32
    """Demonstrations a step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Peak learning rate; rises linearly over the first `warmupSteps`."""
    warmup_steps: Natural = 4
    """Steps of linear warm-up."""


class RewardModelSpec(Part):
    """Training a reward model in place of a policy: a value head over the transformer, the Bradley-Terry loss on the pairs of answers
    (`chosen`, `rejected`) of each record. Nothing is generated; an iteration is `stepsPerIteration` optimizer steps."""

    steps_per_iteration: Positive = 16
    """Optimizer steps of one iteration, which makes one version."""
    batch_size: Positive = 32
    """Pairs a step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Peak learning rate; rises linearly over the first `warmupSteps` of the job. The optimizer goes on from iteration to iteration."""
    warmup_steps: Natural = 4
    """Steps of linear warm-up."""


class EvaluationSpec(Part):
    """Held-out accuracy: greedy answers to prompts that are never trained on; of a reward model, the share of pairs in the right order."""

    data: DataSource
    """The held-out prompts."""
    every: Positive = 4
    """Evaluate every so many iterations; the first and the last policy are always evaluated."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Sampling temperature of the evaluation; 0 is greedy."""


class OptimizerSpec(Part):
    """Adam, as in Megatron-core."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-6
    """Learning rate of RL. With a fresh optimizer each iteration the first step moves every weight by about this much."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    clip_grad: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""


class TrainerSpec(Part):
    """Megatron-core."""

    nodes: Small = 1
    """Worker pods that the trainer's ranks are spread over, each with its own engine. Data parallel size = nodes × accelerator.perNode /
    (tensor × pipeline × context parallel)."""
    tensor_parallel: Small = 1
    """Tensor parallel size."""
    pipeline_parallel: Small = 1
    """Pipeline parallel size: stages of equally many layers, run as 1F1B; more micro-batches a step than stages keep them busy."""
    virtual_pipeline_parallel: Small = 1
    """Virtual pipeline size: chunks of layers that each stage has, run as interleaved 1F1B. More chunks leave stages idle for less time and
    send more between them."""
    expert_parallel: Small = 1
    """Expert parallel size (mixture-of-experts models): the experts of a layer are spread over so many of the tensor × context × data
    parallel ranks that hold it."""
    context_parallel: Small = 1
    """Context parallel size (long sequences): ranks that share every row, each with a part of its tokens, and in attention with a part of
    its heads (as DeepSpeed-Ulysses)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training; master weights are always fp32. `auto`: bf16 where the hardware has it (on CPU: AVX512-BF16 or AMX)."""
    micro_batch_tokens: Annotated[int, Field(ge=64, le=INT32)] = 2048
    """Tokens a micro-batch holds at most (one longer group makes its own); bounds activation memory. Context parallel ranks share them."""
    recompute: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """The optimizer."""


class Repetition(Part):
    """Repetition detection (Kimi k1.5 §2.6.2): an answer that loops is ended early and marked."""

    enabled: bool = True
    """Turn the detector on."""
    window: Annotated[int, Field(ge=2, le=INT32)] = 16
    """Length in tokens of the sequence whose repetition is looked for (shorter periods are found too)."""
    times: Annotated[int, Field(ge=2, le=INT32)] = 4
    """How often it must stand in a row."""
    penalty: Annotated[float, Field(ge=0)] = 0.0
    """Subtracted from the reward of an answer that was ended for repeating itself."""


class EngineSpec(Part):
    """vLLM's own settings."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of generation. `auto`: float32 on CPU (log-probs then agree with an fp32 trainer to 1e-5), bfloat16 on GPUs."""
    max_sequences: Positive = 128
    """Sequences that one engine runs at a time."""
    kv_cache_memory: Annotated[str, Field(pattern=MEMORY)] | None = None
    """Memory for the KV cache, such as `512Mi`. Default: what maxSequences × maxLength needs on CPU, what is free on a GPU."""
    enforce_eager: bool | None = None
    """No CUDA graphs. Default: true on CPU, and in worker pods with `switch.policy: restart`; false else."""
    extra_args: dict[str, str] = Field(default_factory=dict)
    """Further vLLM options, name without dashes to value; for what this schema does not name."""


class WeightsSpec(Part):
    """How a version of the weights comes to rollout pods."""

    transport: Literal["http", "mooncake"] = "http"
    """`http`: range reads over several TCP connections; needs nothing. `mooncake`: Mooncake's transfer engine, for networks with RDMA.
    Over TCP, `http` is the faster one."""
    protocol: Literal["tcp", "rdma"] = "tcp"
    """What Mooncake runs on."""

    @model_validator(mode="after")
    def _rdma_by_mooncake(self) -> "WeightsSpec":
        if self.protocol == "rdma" and self.transport != "mooncake":
            raise ValueError("protocol is rdma, which only transport mooncake has; set transport to mooncake or protocol to tcp")
        return self


class RolloutSpec(Part):
    """Generation."""

    replicas: Annotated[int, Field(ge=0, le=1024)] = 0
    """Rollout-only pods beside the worker pods; may change at any time (`kubectl scale`)."""
    tensor_parallel: Small = 1
    """Tensor parallel size of one engine, of which a pod has one."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Sampling temperature of training answers."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 samples from the policy itself, which the objective assumes."""
    max_tokens: Positive = 512
    """Longest answer in tokens."""
    token_budget: Positive | None = None
    """Tokens that one answer may grow by in one iteration (partial rollouts, §2.6.2): what is unfinished goes to the replay buffer
    and on in the next iteration. Counted for each version of the weights: of an answer that was begun ahead (maxStaleness) the version
    before may write as much, and the new one as much again. Default: maxTokens, so nothing is cut."""
    max_staleness: Natural = 0
    """A segment written by a policy more than so many versions old is left out of the loss (the answer still counts). 0, as in Kimi k1.5:
    what earlier iterations wrote of an answer is not trained on. From 1 on, rollout replicas also generate while the trainer trains: they
    begin the next iteration's answers with the version that is being replaced. What they write is trained on as if the version that is
    trained had written it: there are no importance weights and no clipping. `prioritized` sampling then chooses those prompts before it
    knows the results of the iteration that is trained on."""
    repetition: Repetition = Repetition()
    """Repetition detection."""
    weights: WeightsSpec = WeightsSpec()
    """Weight transfer to rollout pods."""
    engine: EngineSpec = EngineSpec()
    """vLLM's own settings."""

    @model_validator(mode="after")
    def _budget(self) -> "RolloutSpec":
        if self.token_budget is not None and self.token_budget > self.max_tokens:
            raise ValueError(
                f"tokenBudget ({self.token_budget}) is more than maxTokens ({self.max_tokens}); leave tokenBudget out or lower it"
            )
        return self
