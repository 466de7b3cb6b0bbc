"""From a Hugging Face `config.json` to Megatron-core: configuration, model, DDP, optimizer.

GPTModel, not HybridModel, which 0.19 announces as its successor: HybridStack builds its final norm from Transformer Engine without asking
its layer spec (models/hybrid/hybrid_block.py, `self.final_norm = TENorm(...)`) and exists only with it, so that one class for laptops and
clusters is GPTModel. Both take the same layer submodules; the change, once upstream asks the spec, is `_model` and the layer names in
hf_map.py. The layers are the local spec (no Transformer Engine, no Apex) with this project's core attention.

`use_distributed_optimizer` is off: every data-parallel rank keeps the whole optimizer state. It would shard it, and needs its own
checkpoint and offload paths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rljob.api import ConfigurationError
from rljob.api.algorithm import OptimizerSpec, TrainerSpec
from rljob.api.families import Architecture, Experts
from rljob.api.parallel import trainer_misfits
from rljob.trainer.device import Device, Precision
from rljob.trainer.hf_map import Piece, padded_vocabulary, pieces
from rljob.trainer.optimizer import Optimizer
from rljob.trainer.place import Place, chunk_prefix, chunks


@dataclass(frozen=True)
class Chunk:
    """Consecutive layers of this rank."""

    policy: Any
    """Policy, bare: its parameters are in the training precision."""
    ddp: Any
    """Megatron's DistributedDataParallel around it: what a training step calls."""


@dataclass(frozen=True)
class Replica:
    """This rank's part of the model and everything that trains it."""

    architecture: Architecture
    precision: Precision
    device: Device
    chunks: tuple[Chunk, ...]
    """In the order of layers; one, unless stages are interleaved (`trainer.virtualPipelineParallel`)."""
    optimizer: Optimizer
    pieces: tuple[Piece, ...]
    """What this rank holds, by Hugging Face name."""
    place: Place
    data_size: int
    data_group: Any
    pipeline_group: Any
    """The ranks that hold one copy's stages; in order of stage."""

    def masters(self) -> dict[str, Tensor]:
        """fp32 weights by Megatron name: what the optimizer changes. In fp32 they are the parameters themselves."""
        return {name: getattr(p, "main_param", p) for name, p in self.parameters()}

    def parameters(self) -> Iterator[tuple[str, Any]]:
        """In the training precision, by Megatron name (`place.chunk_prefix`)."""
        for number, chunk in enumerate(self.chunks):
            yield from chunk.policy.named_parameters(prefix=chunk_prefix(number, len(self.chunks)).rstrip("."))

    @property
    def together(self) -> int:
        """Micro-batches of a step come in multiples of so many: Megatron's interleaved schedule takes no fewer than stages, and no rest of
        fewer (schedules.py, `final_microbatch_group_size`)."""
        return self.pipeline_group.size() if len(self.chunks) > 1 else 1

    @torch.no_grad()
    def follow_masters(self) -> None:
        """Make the parameters what the masters say, after these have been written to."""
        for _, p in self.parameters():
            if hasattr(p, "main_param"):
                p.data.copy_(p.main_param.data)


def check(spec: TrainerSpec, architecture: Architecture, ranks: int) -> None:
    """Raises ConfigurationError for what so many ranks cannot do."""
    if lines := trainer_misfits(architecture.divisible, spec, ranks):
        raise ConfigurationError("; also ".join(lines))


def build(architecture: Architecture, spec: TrainerSpec, precision: Precision, device: Device, names: tuple[str, ...] = ()) -> Replica:
    """Build the model with unset weights. torch.distributed is initialised and `device.prepare()` was called.

    `names` as in `Ranks`.
    """
    check(spec, architecture, torch.distributed.get_world_size())
    from megatron.core import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=spec.tensor_parallel,
            pipeline_model_parallel_size=spec.pipeline_parallel,
            virtual_pipeline_model_parallel_size=_interleaved(spec),
            context_parallel_size=spec.context_parallel,
            expert_model_parallel_size=spec.expert_parallel,
            expert_tensor_parallel_size=1,
        )
    place = _place(architecture, spec, names)
    config = transformer_config(architecture, spec, precision)
    parts = tuple(_chunk(architecture, config, place, number, device) for number in range(len(place.chunks)))
    with device.megatron():
        optimizer = _optimizer(spec.optimizer, precision, config, parts)
    return Replica(
        architecture=architecture,
        precision=precision,
        device=device,
        chunks=parts,
        optimizer=optimizer,
        pieces=tuple(pieces(architecture, place)),
        place=place,
        data_size=parallel_state.get_data_parallel_world_size(),
        data_group=parallel_state.get_data_parallel_group(),
        pipeline_group=parallel_state.get_pipeline_model_parallel_group(),
    )


def _interleaved(spec: TrainerSpec) -> int | None:
    """Megatron's virtual pipeline size: None for the schedule without."""
    return spec.virtual_pipeline_parallel if spec.virtual_pipeline_parallel > 1 else None


def _place(a: Architecture, spec: TrainerSpec, names: tuple[str, ...]) -> Place:
    """This rank's place, from Megatron's groups."""
    from megatron.core import parallel_state

    stage, stages = parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_world_size()
    return Place(
        chunks(a.layers, stage, stages, spec.virtual_pipeline_parallel),
        first=stage == 0,
        last=stage == stages - 1,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        context_size=parallel_state.get_context_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        expert_rank=parallel_state.get_expert_model_parallel_rank(),
        expert_size=parallel_state.get_expert_model_parallel_world_size(),
        copy=_copy(parallel_state.get_data_parallel_group(with_context_parallel=True), names),
        expert_copy=_copy(parallel_state.get_expert_data_parallel_group(), names),
    )


def _copy(group: Any, names: tuple[str, ...]) -> int:
    """How many ranks of the group stand before this one on its node."""
    before = torch.distributed.get_process_group_ranks(group)[: group.rank()]
    return sum(not names or names[rank] == names[torch.distributed.get_rank()] for rank in before)


def transformer_config(a: Architecture, spec: TrainerSpec, precision: Precision) -> Any:
    """Megatron's TransformerConfig. No fusion needs CUDA extensions; no dropout; weights are loaded, so none are drawn."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1} if spec.recompute else {}
    return TransformerConfig(
        num_layers=a.layers,
        hidden_size=a.hidden,
        ffn_hidden_size=a.ffn,
        num_attention_heads=a.heads,
        num_query_groups=a.kv_heads,
        kv_channels=a.head_size,
        add_qkv_bias=a.qkv_bias,
        qk_layernorm=a.qk_norm,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        normalization="RMSNorm",
        layernorm_epsilon=a.epsilon,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=spec.tensor_parallel,
        pipeline_model_parallel_size=spec.pipeline_parallel,
        virtual_pipeline_model_parallel_size=_interleaved(spec),
        context_parallel_size=spec.context_parallel,
        variable_seq_lengths=spec.pipeline_parallel > 1,
        # Of two interleaved stages each is the other's next and previous one. Messages of both directions in one batch, and the shapes that
        # go ahead of them, would be taken for each other's; one direction after the other they are not.
        overlap_p2p_comm=spec.virtual_pipeline_parallel > 1,
        batch_p2p_comm=spec.virtual_pipeline_parallel == 1,
        moe_token_dispatcher_type="alltoall",  # the default is refused together with the line above, also without experts
        init_model_with_meta_device=True,  # stages that share an embedding need not agree on it: it is loaded
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision == "bf16",
        use_cpu_initialization=True,
        perform_initialization=False,
        transformer_impl="local",
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        **recompute,
        **_experts(a.experts, spec),
    )


def _experts(e: Experts | None, spec: TrainerSpec) -> dict[str, Any]:
    """Fields of TransformerConfig for a mixture of experts; none for a dense model.

    No auxiliary load-balancing loss: the objective is the paper's, whose gradient it would change, and transformers trains without it too
    unless it is asked for router logits. The router computes in the precision of training, as vLLM's does, so that both choose the same
    experts. Tokens are sent by all-to-all, which is the dispatcher for rows of different length on different ranks, and none is dropped.
    """
    if e is None:
        return {}
    return {
        "num_moe_experts": e.count,
        "moe_router_topk": e.active,
        "moe_ffn_hidden_size": e.ffn,
        # Megatron's softmax is over the chosen experts after the choice, or over all before it; the first is the second, normalised.
        "moe_router_pre_softmax": not e.normalised,
        "moe_router_load_balancing_type": "none",
        "moe_shared_expert_intermediate_size": e.shared_ffn or None,
        "moe_shared_expert_gate": e.shared_ffn > 0,
        "expert_model_parallel_size": spec.expert_parallel,
        "expert_tensor_parallel_size": 1,
    }


def _chunk(a: Architecture, config: Any, place: Place, number: int, device: Device) -> Chunk:
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer.module import Float16Module

    policy = _model(a, config, place, number)
    if device.device.type != "cpu":
        policy.to(device.device)
    ddp = DistributedDataParallel(
        config=config,
        ddp_config=DistributedDataParallelConfig(use_distributed_optimizer=False, overlap_grad_reduce=False, grad_reduce_in_fp32=True),
        module=Float16Module(config, policy) if config.bf16 else policy,
    )
    return Chunk(policy, ddp)


def _model(a: Architecture, config: Any, place: Place, number: int) -> Any:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from rljob.trainer.attention import PackedAttention
    from rljob.trainer.mixture import Mixture
    from rljob.trainer.policy import Policy
    from rljob.trainer.value_head import ValueModel

    layer = get_gpt_layer_local_spec(num_experts=config.num_moe_experts, qk_layernorm=a.qk_norm, normalization="RMSNorm")
    layer.submodules.self_attention.submodules.core_attention = PackedAttention
    if a.experts is not None:
        layer.submodules.mlp = partial(Mixture, **layer.submodules.mlp.keywords)
    last = place.last and number == len(place.chunks) - 1
    policy = (ValueModel if a.scored else Policy)(
        config=config,
        transformer_layer_spec=layer,
        vocab_size=padded_vocabulary(a, config.tensor_model_parallel_size),
        max_sequence_length=0,  # positions are explicit: nothing is sized by it
        pre_process=place.first and number == 0,
        post_process=last,
        vp_stage=number if len(place.chunks) > 1 else None,
        position_embedding_type="none",
        share_embeddings_and_output_weights=a.tied,
    )
    if isinstance(policy, ValueModel) and last:
        policy.add_score(config)
    policy.architecture = a
    policy.frequencies = torch.tensor(a.rope.frequencies(a.head_size), dtype=torch.float32)
    return policy


def _optimizer(spec: OptimizerSpec, precision: Precision, config: Any, chunks: Sequence[Chunk]) -> Optimizer:
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            adam_beta1=spec.beta1,
            adam_beta2=spec.beta2,
            adam_eps=spec.epsilon,
            clip_grad=spec.clip_grad or float("inf"),  # the norm is wanted for the report even if nothing is clipped
            bf16=precision == "bf16",
            params_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            use_distributed_optimizer=False,
        ),
        [chunk.ddp for chunk in chunks],
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    return Optimizer(optimizer, weight_decay=spec.weight_decay)
