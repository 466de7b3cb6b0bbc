"""What a reward model's folder says of itself, and how an answer is put before it: the same in training and in use.

A conversation that ends with the answer goes through the model's own chat template; the score stands at its last token. Whoever applies the
template to such a conversation (transformers, vLLM's `/pooling` and `/classify`) therefore asks what the model was trained on.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Chat = Sequence[Mapping[str, str]]
"""Messages with `role` and `content`."""


def prompt_text(tokenizer: Any, chat: Chat) -> str:
    """The conversation up to where the answer begins."""
    return str(tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True))


def reply_text(tokenizer: Any, chat: Chat, answer: str) -> str:
    """What follows `prompt_text`: the answer, and whatever the template puts behind it.

    Special tokens that the answer spells out are broken up, so that none can end the turn early or speak for somebody else.

    Raises:
        ValueError: the template writes the beginning of a conversation differently once it has an answer.
    """
    begin = prompt_text(tokenizer, chat)
    reply = {"role": "assistant", "content": broken_up(answer, special_tokens(tokenizer))}
    whole = str(tokenizer.apply_chat_template([*chat, reply], tokenize=False))
    if not whole.startswith(begin):
        raise ValueError("the chat template does not continue its own generation prompt; a reward model needs one that does")
    return whole[len(begin) :]


def special_tokens(tokenizer: Any) -> set[str]:
    """Everything that is a special token when a text spells it out: the named ones, and those that only chat templates use."""
    return {*tokenizer.all_special_tokens, *(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)}


def broken_up(text: str, special: Iterable[str]) -> str:
    """The text with a space behind the first character of every special token that it spells out."""
    for token in special:
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
