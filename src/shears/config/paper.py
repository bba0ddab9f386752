"""The twelve tasks of the Shears paper and how it evaluates them: beam 4, Alpaca prompt, 256 or 32 new tokens."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

PaperTask = Literal[
    "gsm8k", "aqua", "mawps", "svamp",
    "boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc-easy", "arc-challenge", "obqa",
]  # fmt: skip
AnswerForm = Literal["number", "letter", "label"]

_LABELS = ("boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc-easy", "arc-challenge", "obqa")
ANSWER_FORMS: Mapping[str, AnswerForm] = MappingProxyType(
    {"gsm8k": "number", "mawps": "number", "svamp": "number", "aqua": "letter", **dict.fromkeys(_LABELS, "label")}
)
NEW_TOKENS: Mapping[AnswerForm, int] = MappingProxyType({"number": 256, "letter": 256, "label": 32})
NUM_BEAMS = 4
TEMPLATE = "alpaca"


def with_paper_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of an evaluation with what the name of a paper's task says and the keys leave open."""
    form = ANSWER_FORMS.get(str(values.get("task")))
    if form is None:
        return dict(values)
    filled = {**values, "protocol": values.get("protocol") or "generate"}
    if filled["protocol"] != "generate":
        return filled
    return {"max_new_tokens": NEW_TOKENS[form], "num_beams": NUM_BEAMS, **filled}
