"""Qwen3-MoE."""

from rljob.api.families.architecture import Experts
from rljob.api.families.family import Config, Family, FeedForward, Mixture


def _experts(config: Config) -> Experts:
    return Experts(
        count=config["num_experts"] if "num_experts" in config else config["num_local_experts"],  # transformers 5 writes either
        active=config["num_experts_per_tok"],
        ffn=config["moe_intermediate_size"],
        normalised=config.get("norm_topk_prob", False),
    )


FAMILY = Family(
    model_type="qwen3_moe",
    feed_forward=Mixture(router="mlp.gate", experts="mlp.experts.{}.", expert=FeedForward("gate_proj", "up_proj", "down_proj")),
    qk_norm=True,
    must_be={"attention_bias": False, "use_sliding_window": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    experts=_experts,
)
