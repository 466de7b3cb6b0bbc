"""Llama 2 and 3, SmolLM2."""

from rljob.api.families.family import Family

FAMILY = Family(model_type="llama", must_be={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False})
