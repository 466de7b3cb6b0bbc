"""A GGUF file becomes a Hugging Face folder: weights dequantized to fp32, configuration, tokenizer, chat template.

transformers can read GGUF too, but needs a second copy of the model to save it again, 30 s for 135M parameters, and forgets the
tokenizer's digit splitting. The weights written here are bit-equal to its (tests/prepare/test_gguf_model.py).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from rljob.api import ConfigurationError
from rljob.prepare.files import require_space

FAMILIES = ("llama", "qwen2")

_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")

# How llama.cpp splits text before merging, by `tokenizer.ggml.pre` (its src/llama-vocab.cpp).
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_CONTROL_TOKEN = 3
_USER_TOKEN = 4


@dataclass(frozen=True)
class GGUFModel:
    """Typed view of one file.

    Raises (from every member):
        ConfigurationError: not a GGUF file, or one of a kind that cannot be trained.
    """

    path: Path

    @cached_property
    def reader(self) -> Any:
        try:
            return GGUFReader(self.path)
        except (ValueError, IndexError) as error:
            raise ConfigurationError(f"{self.path} is not a readable GGUF file ({error}); download it again") from error

    def field(self, name: str, default: Any = None) -> Any:
        """Metadata by key; `{arch}` stands for the architecture."""
        found = self.reader.get_field(self._key(name))
        return default if found is None else found.contents()

    def _key(self, name: str) -> str:
        return name.replace("{arch}", self.family) if "{arch}" in name else name

    def required(self, name: str) -> Any:
        value = self.field(name)
        if value is None:
            raise ConfigurationError(
                f"{self.path} has no metadata key {self._key(name)}; convert the model again or use its Hugging Face folder"
            )
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """A size that is the same in all layers."""
        value = self.required(name) if default is None else self.field(name, default)
        if type(value) is not int or value < 1:
            raise ConfigurationError(f"{self.path}: {self._key(name)} is {value!r}, one positive whole number is needed; use another model")
        return value

    @cached_property
    def family(self) -> str:
        family = self.field("general.architecture")
        if family not in FAMILIES:
            raise ConfigurationError(f"{self.path} holds a model of family {family!r}; supported are {', '.join(FAMILIES)}")
        return str(family)

    @property
    def tied(self) -> bool:
        return "output.weight" not in {t.name for t in self.reader.tensors}

    @property
    def parameters(self) -> int:
        return sum(int(t.n_elements) for t in self.reader.tensors)


def convert(path: Path, out: Path) -> None:
    """Write the Hugging Face folder of a GGUF file.

    Raises:
        ConfigurationError: see GGUFModel; also an unknown tensor or tokenizer, or a full disk.
    """
    model = GGUFModel(path)
    config = configuration(model)
    require_space(out, model.parameters * 4, f"converting {path.name}")
    tokenizer(model).save(str(out / "tokenizer.json"))
    _write_json(out / "tokenizer_config.json", tokenizer_configuration(model))
    template = model.field("tokenizer.chat_template")
    if template:
        (out / "chat_template.jinja").write_text(template)
    _write_json(out / "config.json", config)
    special = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(k) is not None}
    if (end_of_turn := model.field("tokenizer.ggml.eot_token_id")) not in (None, special["eos_token_id"]):
        special["eos_token_id"] = [special["eos_token_id"], end_of_turn]
    _write_json(out / "generation_config.json", special)
    save_file(weights(model), out / "model.safetensors", metadata={"format": "pt"})


def configuration(model: GGUFModel) -> dict[str, Any]:
    """`config.json`, in the keys of transformers 5."""
    if model.field("split.count", 1) > 1:
        raise ConfigurationError(
            f"{model.path} is one of {model.field('split.count')} parts of a model; join them with `llama-gguf-split --merge`"
        )
    hidden, heads = model.size("{arch}.embedding_length"), model.size("{arch}.attention.head_count")
    head_size = model.size("{arch}.attention.key_length", hidden // heads)
    rotated = model.size("{arch}.rope.dimension_count", head_size)
    if rotated != head_size:
        raise ConfigurationError(
            f"{model.path} rotates {rotated} of {head_size} dimensions of every head, the trainer all of them; use another model"
        )
    if _scales_positions(model):
        raise ConfigurationError(
            f"{model.path} uses RoPE scaling, which is not carried over from GGUF; use the model's Hugging Face folder"
        )
    config = {
        "architectures": ["LlamaForCausalLM" if model.family == "llama" else "Qwen2ForCausalLM"],
        "model_type": model.family,
        "dtype": "float32",
        "vocab_size": len(model.required("tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": model.size("{arch}.feed_forward_length"),
        "num_hidden_layers": model.size("{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": model.size("{arch}.attention.head_count_kv", heads),
        "hidden_act": "silu",
        "max_position_embeddings": model.size("{arch}.context_length"),
        "rms_norm_eps": _shortest(model.required("{arch}.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_type": "default", "rope_theta": model.field("{arch}.rope.freq_base", 10000.0)},
        "tie_word_embeddings": model.tied,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": model.field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": model.required("tokenizer.ggml.eos_token_id"),
        "pad_token_id": model.field("tokenizer.ggml.padding_token_id"),
    }
    if model.family == "llama":
        config |= {"head_dim": head_size, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
    return config


def _scales_positions(model: GGUFModel) -> bool:
    """As llama.cpp reads it: a factor alone means linear scaling, and older files have it as `rope.scale_linear`."""
    kind = model.field("{arch}.rope.scaling.type")
    factor = model.field("{arch}.rope.scaling.factor", model.field("{arch}.rope.scale_linear", 1.0))
    scaled = factor not in (0.0, 1.0) if kind is None else kind != "none"
    return scaled or any(t.name == "rope_freqs.weight" for t in model.reader.tensors)


def weights(model: GGUFModel) -> dict[str, npt.NDArray[np.float32]]:
    """All tensors in fp32 by their Hugging Face names."""
    heads = model.required("{arch}.attention.head_count")
    groups = model.field("{arch}.attention.head_count_kv", heads)
    out = {}
    for tensor in model.reader.tensors:
        name = hf_name(tensor.name)
        if name is None:
            raise ConfigurationError(f"{model.path} holds the tensor {tensor.name}, which a {model.family} model does not have")
        try:
            array = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            raise ConfigurationError(
                f"{model.path}: the tensor {tensor.name} is of type {tensor.tensor_type.name}, which cannot be read; use another file"
            ) from error
        if model.family == "llama" and ".attn_q." in tensor.name:
            array = unpermute(array, heads)
        elif model.family == "llama" and ".attn_k." in tensor.name:
            array = unpermute(array, groups)
        out[name] = array
    return out


def hf_name(name: str) -> str | None:
    """Hugging Face name of a GGUF tensor, None if there is none."""
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    found = _BLOCK.fullmatch(name)
    if found is None or found[2] not in _BLOCK_NAMES:
        return None
    return f"model.layers.{found[1]}.{_BLOCK_NAMES[found[2]]}.{found[3]}"


def unpermute(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's reordering of the query and key rows (its convert_hf_to_gguf.py, LlamaModel.permute): pairs back to halves."""
    half = rows.shape[0] // heads // 2
    return np.ascontiguousarray(rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape))


def tokenizer(model: GGUFModel) -> Any:
    """The byte-level BPE tokenizer that the file describes.

    Raises:
        ConfigurationError: a tokenizer of another kind.
    """
    kind = model.required("tokenizer.ggml.model")
    # Files from before `pre` do not say how their text is split, nor do those whose `pre` is `default`.
    split = model.required("tokenizer.ggml.pre") if kind == "gpt2" else "default"
    if kind != "gpt2" or split not in _SPLITS:
        known = ", ".join(sorted(_SPLITS))
        raise ConfigurationError(
            f"{model.path} has a tokenizer of kind {kind}/{split}; from GGUF only gpt2 with {known} is supported: "
            "use the Hugging Face folder"
        )
    tokens, kinds = model.required("tokenizer.ggml.tokens"), model.required("tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ", 1)) for m in model.required("tokenizer.ggml.merges")]
    vocabulary = {t: i for i, t in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        doubled = next(t for i, t in enumerate(tokens) if vocabulary[t] != i)
        raise ConfigurationError(f"{model.path} has the token {doubled!r} twice; download it again, or use the Hugging Face folder")
    try:
        bpe = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split == "llama-bpe")
    except Exception as error:  # nothing narrower is raised where a merge names no token
        raise ConfigurationError(f"{model.path} has no usable tokenizer ({error}); download it again") from error
    made = Tokenizer(bpe)
    made.normalizer = normalizers.NFC() if split == "qwen2" else None
    made.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[split]())
    made.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == _CONTROL_TOKEN]
    made.add_special_tokens(special)
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == _USER_TOKEN])
    return made


_SPLITS: Mapping[str, Any] = {
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": lambda: [
        pre_tokenizers.Split(Regex(_LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": lambda: [
        pre_tokenizers.Split(Regex(_QWEN2), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


def tokenizer_configuration(model: GGUFModel) -> dict[str, Any]:
    """`tokenizer_config.json`: which tokens are special."""
    tokens = model.required("tokenizer.ggml.tokens")
    ids = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
    found = {f"{name}_token": model.field(f"tokenizer.ggml.{key}") for name, key in ids.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.required("{arch}.context_length"),
        "clean_up_tokenization_spaces": False,
        **{name: tokens[i] for name, i in found.items() if i is not None},
    }


def _shortest(value: float) -> float:
    """GGUF stores float32; 9.999999747378752e-06 was written as 1e-5."""
    return float(str(np.float32(value)))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
