"""What a model folder holds, by name and shape: enough to find a missing file or a foreign weight without reading any weights."""

from collections.abc import Iterator

from rljob.api.families import Architecture, Experts, FeedForward, Mixture, families

Tensor = tuple[str, tuple[int, ...]]
"""Name and shape."""


def tensors(a: Architecture) -> Iterator[Tensor]:
    """Every tensor of a model, by its Hugging Face name. The trainer's name map (rljob.trainer.hf_map) reads these and no others."""
    yield "model.embed_tokens.weight", (a.vocabulary, a.hidden)
    for i in range(a.layers):
        yield from ((f"model.layers.{i}.{name}", shape) for name, shape in _layer(a))
    yield "model.norm.weight", (a.hidden,)
    if a.scored:
        yield "score.weight", (1, a.hidden)
    if not a.tied:
        yield "lm_head.weight", (a.vocabulary, a.hidden)


def unread(name: str, a: Architecture) -> bool:
    """Whether a folder may hold this tensor though nothing reads it: tables of the rotation, an output layer that is the embedding."""
    return ".rotary_emb." in name or (a.tied and name == "lm_head.weight")


def _layer(a: Architecture) -> Iterator[Tensor]:
    queries, keys = a.heads * a.head_size, a.kv_heads * a.head_size
    yield "input_layernorm.weight", (a.hidden,)
    yield "post_attention_layernorm.weight", (a.hidden,)
    for letter, rows in (("q", queries), ("k", keys), ("v", keys)):
        yield f"self_attn.{letter}_proj.weight", (rows, a.hidden)
        if a.qkv_bias:
            yield f"self_attn.{letter}_proj.bias", (rows,)
    yield "self_attn.o_proj.weight", (a.hidden, queries)
    for letter in "qk" if a.qk_norm else "":
        yield f"self_attn.{letter}_norm.weight", (a.head_size,)
    names = families()[a.family].feed_forward
    if isinstance(names, FeedForward):
        yield from _feed_forward(names, "", a.hidden, a.ffn)
    elif a.experts is not None:
        yield from _mixture(names, a.experts, a.hidden)


def _mixture(names: Mixture, experts: Experts, hidden: int) -> Iterator[Tensor]:
    yield f"{names.router}.weight", (experts.count, hidden)
    for number in range(experts.count):
        yield from _feed_forward(names.expert, names.experts.format(number), hidden, experts.ffn)
    if names.shared is not None:
        yield from _feed_forward(names.shared, "", hidden, experts.shared_ffn)
    if names.shared_gate is not None:
        yield f"{names.shared_gate}.weight", (1, hidden)


def _feed_forward(names: FeedForward, before: str, hidden: int, ffn: int) -> Iterator[Tensor]:
    yield f"{before}{names.gate}.weight", (ffn, hidden)
    yield f"{before}{names.up}.weight", (ffn, hidden)
    yield f"{before}{names.down}.weight", (hidden, ffn)
