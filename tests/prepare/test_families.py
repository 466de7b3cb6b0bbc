"""What config.json says of a model is computed by the trainer, transformers and vLLM alike, or refused."""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig

from rljob.api import ConfigurationError, RLJob
from rljob.api.families import families, read
from rljob.api.families.family import EVERYWHERE
from rljob.plan import read_shape

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}
SIZES = {"vocab_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 32, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072}
LIKE_LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_key_value_heads": 8}
QWEN = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 28, "rope_theta": 1000000.0}
EXPERTS = {"decoder_sparse_step": 1, "mlp_only_layers": [], "output_router_logits": False, "router_aux_loss_coef": 0.001}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama": LIKE_LLAMA
    | {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "mlp_bias": False, "pretraining_tp": 1, "rope_interleaved": False},
    "qwen2": LIKE_LLAMA | QWEN | {"use_mrope": False, "quantization_config": None},
    "qwen3": LIKE_LLAMA | QWEN | {"head_dim": 128, "layer_types": ["full_attention", "full_attention"], "rope_scaling": None},
    "qwen2_moe": LIKE_LLAMA
    | QWEN
    | EXPERTS
    | {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 128},
    "qwen3_moe": LIKE_LLAMA
    | QWEN
    | EXPERTS
    | {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "norm_topk_prob": True, "head_dim": 64},
    "mixtral": LIKE_LLAMA | {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None, "router_jitter_noise": 0.0},
}
"""What the files of published models hold, at smaller sizes."""
WRITTEN_BY_TOOLS = {
    "_name_or_path": "somebody/something", "attention_bias": False, "attention_dropout": 0.0, "auto_map": {}, "bos_token_id": 1,
    "eos_token_id": [2, 3], "hidden_act": "silu", "initializer_range": 0.02, "pad_token_id": 0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "unsloth_fixed": True, "use_cache": True,
}  # fmt: skip


def published(family: str, **changes: object) -> dict[str, Any]:
    return {"model_type": family} | SIZES | WRITTEN_BY_TOOLS | PUBLISHED[family] | changes


@pytest.mark.parametrize("family", families())
def test_files_as_they_are_published_are_read(family: str) -> None:
    architectures = [f"{AutoConfig.for_model(family).__class__.__name__.removesuffix('Config')}ForCausalLM"]
    for config in (published(family), published(family, architectures=architectures)):
        made = read(config, "config.json")
        assert (made.head_size, made.kv_heads) == (64 if family == "qwen3_moe" else 128, 8)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"sliding_window": 4096}, "sliding_window is 4096, .* only None for llama models; .* longer than the window, change it"),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types has 'sliding_attention', the trainer supports only 'full_att"),
        ("llama", {"logit_scale": 0.5}, "logit_scale is 0.5"),
        ("llama", {"is_causal": False}, "is_causal is False"),
        ("llama", {"bias": True}, "bias is True"),
        ("llama", {"num_key_value_heads": 12}, r"num_attention_heads is 32, no multiple of num_key_value_heads \(12\)"),
        ("llama", {"num_attention_heads": 24}, r"hidden_size is 4096, no multiple of num_attention_heads \(24\)"),
        ("llama", {"head_dim": 127}, "the head size is 127, rotary positions need an even one"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', true or false is needed"),
        ("llama", {"rms_norm_eps": "1e-5"}, r"a field is of another kind \(rms_norm_eps is '1e-5', a positive number is"),
        ("llama", {"architectures": ["LlamaBidirectionalModel"]}, "architectures has 'LlamaBidirectionalModel', which is another model to"),
        ("llama", {"per_layer_config": {"0": {"head_dim": 64}}}, "per_layer_config is "),
        ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 262144}}, "dual_chunk_attention_config is .*; choose .* than the window"),
        ("qwen2", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config is .*; quantized weights cannot be trained, use"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen2", {"qk_norm": True}, "qk_norm is True"),
        ("qwen2", {"head_dim": 64}, r"head_dim is 64, the engine takes hidden_size / num_attention_heads \(4096 / 32\) in qwen2"),
        ("qwen2_moe", {"head_dim": 64}, "head_dim is 64, the engine takes"),
        ("qwen3_moe", {"norm_topk_prob": "false"}, "norm_topk_prob is 'false', true or false is needed"),
        ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, more than the 8 experts of a layer"),
        ("qwen3_moe", {"num_local_experts": 16}, "num_experts and num_local_experts are 8 and 16, which have to be the same"),
        ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok is 1 with weights that add up to 1"),
        ("mixtral", {"sliding_window": 4096}, "sliding_window is 4096"),
    ],
)  # fmt: skip
def test_what_would_be_another_model_to_the_trainer_than_to_the_engine_is_refused_by_name(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^config.json: {message}"):
        read(published(family, **changes), "config.json")


@pytest.mark.parametrize("family", families())
def test_every_field_that_must_be_something_is_refused_by_name_if_it_is_not(family: str) -> None:
    for field, only in {**EVERYWHERE, **families()[family].must_be}.items():
        other = not only if isinstance(only, bool) else {"x": 1}
        with pytest.raises(ConfigurationError, match=rf"^config.json: {field} is "):
            read(published(family, **{field: other}), "config.json")


def test_a_plan_refuses_quantized_weights_that_it_can_see(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published("qwen3", quantization_config={"quant_method": "fp8"})))
    spec = {"model": {"source": {"path": "."}}, "data": {"train": {"path": "train.jsonl"}}}
    job = RLJob.model_validate({"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"}, "spec": spec})
    with pytest.raises(ConfigurationError, match="quantized weights cannot be trained"):
        read_shape(job, tmp_path)


@pytest.mark.parametrize(
    "positions",
    [
        {},
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4},
        {"rope_scaling": LLAMA3, "rope_theta": 5e5},
        {"rope_scaling": LLAMA3 | {"type": "llama3"}, "rope_parameters": {"rope_type": "default", "rope_theta": 1e3}, "rope_theta": 5e5},
        {"rope_scaling": {"type": "default"}, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
        {"rope_scaling": {}, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
        {"rope_scaling": {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}},
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 8192},
    ],
    ids=repr,
)
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_rotary_positions_are_those_that_transformers_reads(family: str, positions: dict[str, Any]) -> None:
    file = {key: value for key, value in published(family).items() if not key.startswith("rope")} | positions
    made = read(file, "config.json")
    config = AutoConfig.for_model(**json.loads(json.dumps(file)))
    theirs = getattr(transformers.models, family)
    rotary = getattr(getattr(theirs, f"modeling_{family}"), f"{family.title()}RotaryEmbedding")(config)
    ours = torch.tensor(made.rope.frequencies(made.head_size), dtype=torch.float32)
    assert rotary.attention_scaling == 1.0
    assert torch.allclose(ours, rotary.inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rotary positions of type 'yarn' are not .*; choose default or llama3"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "positions of type 'yarn'"),
        ({"rope_scaling": LLAMA3 | {"type": "linear"}}, "rotary positions of type 'linear' and 'llama3'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rotary_pct": 0.5}, "rotary_pct is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"mrope_section": [16, 24, 24]}}, r"rope_parameters.mrope_section is \[16, 24, 24\]"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters.full_attention is "),
        ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 4096}, "original_max_position_embeddings is 4096, in rope_scaling"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"rope_scaling": LLAMA3 | {"factor": "8"}}, "factor is '8', a positive number is needed"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, r"high_freq_factor is 1.0, more than low_freq_factor \(1.0\) is needed"),
        ({"rope_theta": 0}, "rope_theta is 0, a positive number is needed"),
    ],
)  # fmt: skip
def test_rotary_positions_that_are_not_computed_are_refused(positions: dict[str, Any], message: str) -> None:
    file = {key: value for key, value in published("llama").items() if not key.startswith("rope")} | positions
    with pytest.raises(ConfigurationError, match=message):
        read(file, "config.json")


COMPUTED = {
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "rms_norm_eps", "rope_parameters", "max_position_embeddings", "layer_types", "tie_word_embeddings", "num_experts", "num_local_experts",
    "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size", "norm_topk_prob",
}  # fmt: skip
OF_NO_EFFECT = {
    "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "pretraining_tp",  # of new weights, of generation
    "attention_dropout", "output_router_logits", "router_aux_loss_coef",  # of training with transformers
    "_attn_implementation", "get_text_config", "cache_config", "quant_config",  # chosen where the model is run
    "target_layer_count",  # of draft models, which the engine is never asked for
}  # fmt: skip
OF_WINDOWS = {"sliding_window", "max_window_layers"}
"""They mean nothing to families in which `use_sliding_window` says whether there is one."""


def source_of(package: str, file: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / file).read_text()


def engine_sources(family: str) -> Iterator[str]:
    """The family's file in vLLM, and those of other families that it builds on."""
    source = source_of("vllm", f"model_executor/models/{family}.py")
    yield source
    for other in sorted(families().keys() & set(re.findall(r"^from \.(\w+) import", source, re.MULTILINE))):
        yield from engine_sources(other)


@pytest.mark.parametrize("family", families())
def test_no_field_that_transformers_or_the_engine_reads_is_unknown(family: str) -> None:
    """A new version of either may read more: then it has to be computed here, or be among those that must have one value."""
    must_be = families()[family].must_be
    known = COMPUTED | OF_NO_EFFECT | EVERYWHERE.keys() | must_be.keys() | (OF_WINDOWS if "use_sliding_window" in must_be else set())
    config = AutoConfig.for_model(family)
    fields = {field.name for field in dataclasses.fields(config)} - {field.name for field in dataclasses.fields(PreTrainedConfig)}
    for source in (source_of("transformers", f"models/{family}/modeling_{family}.py"), *engine_sources(family)):
        in_source = re.findall(r'\bconfig\.(\w+)|[rs]attr\(\s*(?:self\.)?config,\s*"(\w+)"', source)
        assert len(in_source) > 10
        fields |= {one or other for one, other in in_source}
    assert fields - known == set()
    silent = {
        field: (value, only) for field, only in must_be.items() if ((value := getattr(config, field, only)) or only) and value != only
    }
    assert silent == {}, "a file that leaves it out means something else to transformers"
    assert {field: getattr(config, field, config.default_theta) for field in families()[family].defaults} == families()[family].defaults
