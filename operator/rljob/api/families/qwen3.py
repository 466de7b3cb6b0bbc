"""Qwen3, dense."""

from rljob.api.families.family import Family

FAMILY = Family(
    model_type="qwen3",
    qk_norm=True,
    must_be={"attention_bias": False, "use_sliding_window": False},
    defaults={"head_dim": 128},
)
