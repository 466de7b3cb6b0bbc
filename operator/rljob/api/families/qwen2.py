"""Qwen2 and Qwen2.5."""

from rljob.api.families.family import Family

FAMILY = Family(model_type="qwen2", qkv_bias=True, must_be={"hidden_act": "silu", "use_sliding_window": False})
