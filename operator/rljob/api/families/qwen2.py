"""Qwen2 and Qwen2.5."""

from rljob.api.families.family import Family

FAMILY = Family(model_type="qwen2", qkv_bias=True, fixed_head_size=True, must_be={"use_sliding_window": False, "qk_norm": False})
