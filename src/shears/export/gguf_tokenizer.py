"""A tokenizer as the metadata of a GGUF file, from which llama.cpp builds its own.

llama.cpp knows two kinds here: `gpt2`, BPE on bytes, whose rule of splitting text has a name; and
`llama`, BPE on characters with bytes for the unknown ones, which merges by the scores of its tokens.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from shears.errors import InputError

GPT2 = "of the ByteLevel pre-tokenizer"
DIGITS = "every digit alone"
_START = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: Mapping[tuple[str, ...], str] = {
    (GPT2,): "gpt-2",
    (DIGITS, GPT2): "smollm",
    (rf"{_START}\p{{N}}{_REST}",): "qwen2",
    (rf"{_START}\p{{N}}{{1,3}}{_REST}",): "llama-bpe",
}
"""llama.cpp's name of a rule (tokenizer.ggml.pre), by the expressions that split a text in turn."""
UNMERGED = -1e6  # score of a token that no merge makes; merges have -1, -2, ...


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, num_words: int) -> None:
    """Write a tokenizer, filled up to the model's `num_words` words; InputError where llama.cpp has none like it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {"model": {"type": type(tokenizer).__name__}} if backend is None else json.loads(backend.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise InputError(f"format gguf writes tokenizers of kind BPE, got {model['type']}; take format merged")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    words = _words(content, num_words)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        ranks = {merge.replace(" ", ""): -rank for rank, merge in reversed(list(enumerate(merges, start=1)))}
        writer.add_token_scores([float(ranks.get(word, UNMERGED)) for word, _ in words])
        writer.add_add_space_prefix(_prefixes(content))
    else:
        rules = tuple(_rules(content["pre_tokenizer"]))
        if content["normalizer"] not in (None, {"type": "NFC"}) or rules not in SPLITS:
            raise InputError(
                f"format gguf writes tokenizers that split text like {', '.join(SPLITS.values())}, got another rule "
                f"({' '.join(rules)[:60]}); take format merged"
            )
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(SPLITS[rules])
        writer.add_token_merges(merges)
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([int(kind) for _, kind in words])
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id,
           "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}  # fmt: skip
    for name, number in ids.items():
        if isinstance(number, int):
            getattr(writer, f"add_{name}_token_id")(number)
    encoded = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(encoded[0] == ids["bos"])
    writer.add_add_eos_token(encoded[-1] == ids["eos"])


def _words(content: Mapping[str, Any], num_words: int) -> list[tuple[str, TokenType]]:
    """Return the text and the type of every token; InputError where the model has no row for one."""
    model = content["model"]
    has_bytes = bool(model.get("byte_fallback"))
    known: dict[int, tuple[str, TokenType]] = {}
    for token, number in model["vocab"].items():
        is_byte = has_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        known[number] = (token, TokenType.BYTE if is_byte else TokenType.NORMAL)
    if (unknown := model.get("unk_token")) in model["vocab"]:
        known[model["vocab"][unknown]] = (unknown, TokenType.UNKNOWN)
    for added in content["added_tokens"]:
        if added["content"] != unknown or not has_bytes:
            kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
            known[added["id"]] = (added["content"], kind)
    if (largest := max(known, default=0)) >= num_words:
        raise InputError(
            f"format gguf needs an embedding for every token, the tokenizer has the id {largest} and the model "
            f"{num_words} embeddings; resize the model's embeddings"
        )
    return [known.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(num_words)]


def _rules(step: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what splits a text, in order; a step that is not known by its type."""
    kind = None if step is None else step["type"]
    if step is None or kind == "Sequence":
        for each in step["pretokenizers"] if step is not None else ():
            yield from _rules(each)
    elif kind == "ByteLevel":
        yield from [GPT2] if step["use_regex"] else []
        yield from ["add_prefix_space"] if step["add_prefix_space"] else []
    elif kind == "Digits" and step["individual_digits"]:
        yield DIGITS
    else:
        is_plain = kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]
        yield str(step["pattern"].get("Regex")) if is_plain else str(kind)


def _prefixes(content: Mapping[str, Any]) -> bool:
    """Tell whether a space is put before a text: by the normalizer, or by the pre-tokenizer."""
    normalizer = content["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    pre = content["pre_tokenizer"] or {}
    return any(step.get("type") == "Prepend" for step in steps) or pre.get("prepend_scheme", "never") != "never"
