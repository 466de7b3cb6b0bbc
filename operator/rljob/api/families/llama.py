"""Llama 2 and 3, SmolLM2."""

from rljob.api.families.family import Family

FAMILY = Family(
    model_type="llama",
    must_be={
        "attention_bias": False,
        "mlp_bias": False,
        "bias": False,
        "qkv_bias": False,
        "sliding_window": None,
        "logit_scale": 1.0,
    },
)
