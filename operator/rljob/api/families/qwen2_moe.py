"""Qwen1.5-MoE and Qwen2-MoE: routed experts, and one that every token goes through."""

from rljob.api.families.architecture import Experts
from rljob.api.families.family import Config, Family, FeedForward, Mixture


def _experts(config: Config) -> Experts:
    return Experts(
        count=config["num_experts"],
        active=config["num_experts_per_tok"],
        ffn=config["moe_intermediate_size"],
        normalised=config.get("norm_topk_prob", False),
        shared_ffn=config["shared_expert_intermediate_size"],
    )


FAMILY = Family(
    model_type="qwen2_moe",
    feed_forward=Mixture(
        router="mlp.gate",
        experts="mlp.experts.{}.",
        expert=FeedForward("gate_proj", "up_proj", "down_proj"),
        shared=FeedForward("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"),
        shared_gate="mlp.shared_expert_gate",
    ),
    qkv_bias=True,
    fixed_head_size=True,
    must_be={"qkv_bias": True, "use_sliding_window": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    experts=_experts,
)
