"""From a Hugging Face `config.json` to Megatron-core: configuration, model, DDP, optimizer.

GPTModel, not HybridModel, which 0.19 announces as its successor: HybridStack builds its final norm from Transformer Engine without asking
its layer spec (models/hybrid/hybrid_block.py, `self.final_norm = TENorm(...)`) and exists only with it, so that one class for laptops and
clusters is GPTModel. Both take the same layer submodules; the change, once upstream asks the spec, is `_model` and the layer names in
hf_map.py. The layers are the local spec (no Transformer Engine, no Apex) with this project's core attention.

`use_distributed_optimizer` is off: every data-parallel rank keeps the whole optimizer state. It would shard it, and needs its own
checkpoint and offload paths.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rljob.api import ConfigurationError
from rljob.api.algorithm import OptimizerSpec, TrainerSpec
from rljob.trainer.architecture import Architecture
from rljob.trainer.device import Device, Precision
from rljob.trainer.hf_map import Piece, padded_vocabulary, pieces
from rljob.trainer.optimizer import Optimizer


@dataclass(frozen=True)
class Replica:
    """This rank's part of the model and everything that trains it."""

    architecture: Architecture
    precision: Precision
    device: Device
    policy: Any
    """Policy, bare: its parameters are in the training precision."""
    ddp: Any
    """Megatron's DistributedDataParallel around it: what a training step calls."""
    optimizer: Optimizer
    pieces: tuple[Piece, ...]
    """What this rank holds, by Hugging Face name."""
    tensor_rank: int
    tensor_size: int
    data_rank: int
    data_size: int
    tensor_group: Any
    data_group: Any

    def masters(self) -> dict[str, Tensor]:
        """fp32 weights by Megatron name: what the optimizer changes. In fp32 they are the parameters themselves."""
        return {name: getattr(p, "main_param", p) for name, p in self.policy.named_parameters()}

    @torch.no_grad()
    def follow_masters(self) -> None:
        """Make the parameters what the masters say, after these have been written to."""
        for p in self.policy.parameters():
            if hasattr(p, "main_param"):
                p.data.copy_(p.main_param.data)


def check(spec: TrainerSpec, architecture: Architecture) -> None:
    """Raises ConfigurationError for what the trainer cannot do."""
    for name, size in (
        ("pipelineParallel", spec.pipeline_parallel),
        ("contextParallel", spec.context_parallel),
        ("expertParallel", spec.expert_parallel),
    ):
        if size != 1:
            raise ConfigurationError(f"spec.trainer.{name} is {size}; the trainer supports 1, use tensor and data parallelism")
    architecture.check_tensor_parallel(spec.tensor_parallel)


def build(architecture: Architecture, spec: TrainerSpec, precision: Precision, device: Device) -> Replica:
    """Build the model with unset weights. torch.distributed is initialised and `device.prepare()` was called."""
    check(spec, architecture)
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer.module import Float16Module

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=spec.tensor_parallel)
    config = transformer_config(architecture, spec, precision)
    policy = _model(architecture, config)
    if device.device.type != "cpu":
        policy.to(device.device)
    wrapped = Float16Module(config, policy) if precision == "bf16" else policy
    ddp = DistributedDataParallel(
        config=config,
        ddp_config=DistributedDataParallelConfig(use_distributed_optimizer=False, overlap_grad_reduce=False, grad_reduce_in_fp32=True),
        module=wrapped,
    )
    with device.megatron():
        optimizer = _optimizer(spec.optimizer, precision, config, ddp)
    tensor_group, data_group = parallel_state.get_tensor_model_parallel_group(), parallel_state.get_data_parallel_group()
    return Replica(
        architecture=architecture,
        precision=precision,
        device=device,
        policy=policy,
        ddp=ddp,
        optimizer=optimizer,
        pieces=tuple(pieces(architecture, tensor_group.rank(), tensor_group.size())),
        tensor_rank=tensor_group.rank(),
        tensor_size=tensor_group.size(),
        data_rank=data_group.rank(),
        data_size=data_group.size(),
        tensor_group=tensor_group,
        data_group=data_group,
    )


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
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        normalization="RMSNorm",
        layernorm_epsilon=a.epsilon,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=spec.tensor_parallel,
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
    )


def _model(a: Architecture, config: Any) -> Any:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from rljob.trainer.attention import PackedAttention
    from rljob.trainer.policy import Policy
    from rljob.trainer.value_head import ValueModel

    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.self_attention.submodules.core_attention = PackedAttention
    policy = (ValueModel if a.scored else Policy)(
        config=config,
        transformer_layer_spec=layer,
        vocab_size=padded_vocabulary(a, config.tensor_model_parallel_size),
        max_sequence_length=0,  # positions are explicit: nothing is sized by it
        position_embedding_type="none",
        share_embeddings_and_output_weights=a.tied,
    )
    if isinstance(policy, ValueModel):
        policy.add_score(config)
    policy.architecture = a
    policy.frequencies = torch.tensor(a.rope.frequencies(a.head_size), dtype=torch.float32)
    return policy


def _optimizer(spec: OptimizerSpec, precision: Precision, config: Any, ddp: Any) -> Optimizer:
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
        [ddp],
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    return Optimizer(optimizer, weight_decay=spec.weight_decay)
