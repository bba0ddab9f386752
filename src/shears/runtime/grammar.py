"""Grammars that answers must follow: a JSON schema, or rules in Lark's notation, by llguidance.

    grammar = engine.grammars.of_schema({"type": "array", "items": {"type": "integer"}})
    engine.generate("Primes below 20:", grammar=grammar, max_new_tokens=64)

V tokens of the vocabulary. Why llguidance and not xgrammar: docs/internals/log.md.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from threading import Lock
from typing import Any
from urllib.parse import unquote

import numpy as np
from transformers import PreTrainedTokenizerBase

from shears.errors import InputError, install_hint, option
from shears.runtime.continuation import Allowed

Schema = Mapping[str, Any]
# JSON on one line, as json.dumps writes it: free white space would let a model write it for ever
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
MOST_PARTS = 4_000  # keys and list entries of a schema; compiling takes 1 to 2 s, and is quadratic
MOST_LEVELS = 400  # of a schema and its references; llguidance recurses, and crashes from 2,000 on
# A step may take some 20 ms; a schema that needs more is refused, or ends its answer with an error.
LIMITS = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class Grammar:
    """A compiled grammar, and an answer's place in it; `begin` returns that of a new answer."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher  # llguidance's
        self._vocab_size = vocab_size

    def begin(self) -> "Grammar":
        """Return a copy for an answer of its own."""
        return Grammar(self._matcher.deep_copy(), self._vocab_size)

    @property
    def complete(self) -> bool:
        """Whether no token can follow but an end token."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Allowed:
        """Return which tokens may come next; InputError if the step is too complex."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        _check(self._matcher)
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        _check(self._matcher)

    def forced(self) -> list[int]:
        """Return the next tokens of the only text that may come, none if there are several."""
        return [int(token) for token in self._matcher.compute_ff_tokens()]


def _check(matcher: Any) -> None:
    if matcher.is_error():
        rule = "the schema is too complex for llguidance, which reports"
        raise InputError(f"{rule}: {_shown(matcher.get_error())}; simplify the schema")


class Grammars:
    """Compiles grammars for the tokens of one model; several threads may use it.

    Each method raises InputError if llguidance is missing, or if the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, end_tokens: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_tokens = sorted(end_tokens)
        self._lock = Lock()
        self._loaded: Any = None

    def of_schema(self, schema: Schema | str) -> Grammar:
        """Return the grammar of JSON that a schema allows; a schema may be given as text.

        No keyword is ignored: InputError for a schema that llguidance cannot hold answers to.
        """
        text = schema_text(schema)
        with option("the schema"):
            grammar = _library().LLMatcher.grammar_from_json_schema(text, overrides=STYLE)
        return self._compiled(grammar)

    def of_rules(self, lark: str) -> Grammar:
        """Return the grammar of rules in llguidance's Lark; `json_rule` writes a schema as one."""
        return self._compiled(_library().LLMatcher.grammar_from_lark(lark))

    def is_control(self, token: int) -> bool:
        """Return whether rules must name a token by its number, `<[5]>`: no string matches it."""
        return bool(self._vocabulary().is_special_token(token))

    def _compiled(self, grammar: str) -> Grammar:
        library = _library()
        limits = library.LLParserLimits(**LIMITS)
        matcher = library.LLMatcher(self._vocabulary(), grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # fails for a grammar without any text, such as {"$ref": "#"}
        if matcher.get_error().startswith("NoExtensionBias"):  # no token may begin an answer
            raise InputError("a schema must allow some JSON, got one that allows none; check its references")
        if matcher.is_error():
            rule = "a schema must be one that llguidance supports, which reports"
            raise InputError(f"{rule}: {_shown(matcher.get_error())}")
        return Grammar(matcher, self._vocab_size)

    def _vocabulary(self) -> Any:
        """Return llguidance's copy of the tokenizer, made once: seconds for 150,000 tokens."""
        _library()
        from llguidance.hf import from_tokenizer

        with self._lock, option("a grammar with this tokenizer"):
            if self._loaded is None:
                ends = self._end_tokens or None
                self._loaded = from_tokenizer(self._tokenizer, self._vocab_size, ends)  # type: ignore[arg-type]
            return self._loaded


def _library() -> Any:
    if find_spec("llguidance") is None:
        raise InputError(f"a grammar needs llguidance, which is missing; {install_hint('grammar')}")
    import llguidance

    return llguidance


def _shown(message: str) -> str:
    """Return a message of llguidance on one line, without the drawing of a wrong pattern."""
    drawing, found, rule = message.rpartition("error: ")
    line = f"{drawing.split(':')[0]}: {rule}" if found else re.split("<backtrace>|<non-verbose", message)[0]
    return " ".join(line.split())[:200]


def json_rule(schema: Schema) -> str:
    """Return the part of a rule that stands for JSON of a schema; InputError as `schema_text`."""
    return f"%json {json.dumps({**json.loads(schema_text(schema)), 'x-guidance': STYLE})}"


def schema_text(schema: Schema | str) -> str:
    """Return a schema as text; InputError unless it is an object whose compilation is bounded."""
    with option("the schema"):
        content = json.loads(schema) if isinstance(schema, str) else dict(schema)
        text = json.dumps(content)
    if not isinstance(content, dict):
        raise InputError(f"a schema must be a JSON object, got {text:.60}")
    if "x-guidance" in content:
        raise InputError("a schema must be JSON Schema, got the key 'x-guidance'; leave it out")
    parts = [each for layer in _layers(content) for each in layer]
    count = sum(map(len, parts))
    if count > MOST_PARTS:
        raise InputError(f"a schema must have at most {MOST_PARTS:,} keys and entries, got {count:,}; shorten it")
    references = [each["$ref"] for each in parts if isinstance(each, dict) and isinstance(each.get("$ref"), str)]
    names = dict.fromkeys(references)
    levels = len(names)
    if levels <= MOST_LEVELS:  # else they are not measured, for that takes time
        levels = sum(len([*_layers(each)]) for each in (content, *(_at(content, name) for name in names)))
    if levels > MOST_LEVELS:
        rule = f"a schema must have at most {MOST_LEVELS} levels, including those of its references"
        raise InputError(f"{rule}, got {levels}; flatten it")
    return text


def _layers(value: Any) -> Iterator[list[Any]]:
    """Yield the lists and mappings of a value, level by level, the outermost first."""
    layer = [value]
    while layer := [each for each in layer if isinstance(each, dict | list)]:
        yield layer
        layer = [child for each in layer for child in (each.values() if isinstance(each, dict) else each)]


def _at(schema: Any, pointer: str) -> Any:
    """Return what a JSON pointer (RFC 6901) names; None for nothing, which llguidance refuses."""
    if not pointer.startswith("#"):
        raise InputError(f"$ref must point into the schema itself, as '#/$defs/NAME', got {pointer!r:.80}")
    for part in pointer.removeprefix("#").split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        schema = schema.get(key) if isinstance(schema, dict) else None
    return schema
