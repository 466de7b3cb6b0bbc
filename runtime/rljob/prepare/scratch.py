"""A small Llama with random weights and a character tokenizer, made on the spot. Without torch, so that it takes milliseconds."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from rljob.api.sources import ScratchSource

SPECIAL = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
PAD, BOS, EOS = 0, 1, 2
CHARACTERS = ("\n", *(chr(i) for i in range(32, 127)))
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
INITIAL_DEVIATION = 0.02
VOCABULARY_MULTIPLE = 64


def create(source: ScratchSource, seed: int, out: Path) -> None:
    """Write the Hugging Face folder of a new model: the same source and seed give the same bytes."""
    vocabulary = vocabulary_size(source)
    made = tokenizer(source.extra_tokens)
    made.save(str(out / "tokenizer.json"))
    special = {"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS], "pad_token": SPECIAL[PAD]}
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": source.context_length,
            "clean_up_tokenization_spaces": False,
            **special,
        },
    )
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    _write_json(out / "config.json", configuration(source, vocabulary))
    _write_json(out / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD})
    save_file(weights(source, vocabulary, seed), out / "model.safetensors", metadata={"format": "pt"})


def vocabulary_size(source: ScratchSource) -> int:
    """Rows of the embedding: the tokens, rounded up so that tensor parallel sizes divide them."""
    tokens = len(SPECIAL) + len(CHARACTERS) + len(set(source.extra_tokens) - set(CHARACTERS))
    return -(-tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def tokenizer(extra_tokens: list[str]) -> Tokenizer:
    """One token per printable ASCII character or line feed, and one per extra string; nothing is ever merged."""
    extra = [t for t in dict.fromkeys(extra_tokens) if t not in CHARACTERS]
    vocabulary = {t: i for i, t in enumerate((*SPECIAL, *CHARACTERS, *extra))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL[PAD]))
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in extra])
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return made


def configuration(source: ScratchSource, vocabulary: int) -> dict[str, object]:
    """`config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": vocabulary,
        "hidden_size": source.hidden_size,
        "intermediate_size": source.ffn_size,
        "num_hidden_layers": source.layers,
        "num_attention_heads": source.heads,
        "num_key_value_heads": source.kv_heads,
        "head_dim": source.hidden_size // source.heads,
        "hidden_act": "silu",
        "max_position_embeddings": source.context_length,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": INITIAL_DEVIATION,
        "use_cache": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }


def weights(source: ScratchSource, vocabulary: int, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Normal(0, 0.02) matrices and norms of one, as transformers initialises a Llama."""
    draw = np.random.default_rng(seed)
    hidden, groups = source.hidden_size, source.hidden_size // source.heads * source.kv_heads

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return draw.normal(0.0, INITIAL_DEVIATION, (rows, columns)).astype(np.float32)

    out = {"model.embed_tokens.weight": matrix(vocabulary, hidden)}
    for layer in range(source.layers):
        block = {
            "self_attn.q_proj": matrix(hidden, hidden),
            "self_attn.k_proj": matrix(groups, hidden),
            "self_attn.v_proj": matrix(groups, hidden),
            "self_attn.o_proj": matrix(hidden, hidden),
            "mlp.gate_proj": matrix(source.ffn_size, hidden),
            "mlp.up_proj": matrix(source.ffn_size, hidden),
            "mlp.down_proj": matrix(hidden, source.ffn_size),
            "input_layernorm": np.ones(hidden, np.float32),
            "post_attention_layernorm": np.ones(hidden, np.float32),
        }
        out |= {f"model.layers.{layer}.{name}.weight": value for name, value in block.items()}
    return out | {"model.norm.weight": np.ones(hidden, np.float32), "lm_head.weight": matrix(vocabulary, hidden)}


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
