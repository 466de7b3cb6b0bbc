"""Mixtral."""

from rljob.api.families.architecture import Experts
from rljob.api.families.family import Config, Family, FeedForward, Mixture


def _experts(config: Config) -> Experts:
    return Experts(
        count=config["num_local_experts"],
        active=config["num_experts_per_tok"],
        ffn=config["intermediate_size"],
        normalised=True,
    )


FAMILY = Family(
    model_type="mixtral",
    feed_forward=Mixture(router="block_sparse_moe.gate", experts="block_sparse_moe.experts.{}.", expert=FeedForward("w1", "w3", "w2")),
    must_be={"sliding_window": None, "router_jitter_noise": 0.0},
    defaults={"rope_theta": 1e6},
    experts=_experts,
)
