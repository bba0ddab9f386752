"""Chat templates that write calls of tools in the forms of known families, for the tiny tokenizer."""

from transformers import PreTrainedTokenizerBase

from tests.tiny import tiny_tokenizer

TURNS = (
    "{% if tools %}tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}<|end|>{% endif %}"
    "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}CALLS<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
OBJECT = '{"name": "{{ call.function.name }}", "KEY": {{ call.function.arguments | tojson }}}'
EACH = "{% for call in turn.tool_calls or [] %}ONE{% endfor %}"
ONLY = "{% if turn.tool_calls and turn.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"


def _template(calls: str, key: str = "arguments") -> str:
    return TURNS.replace("CALLS", calls).replace("KEY", key)


HERMES = _template(EACH.replace("ONE", f"{{{{ '\\n' if not loop.first }}}}<tool_call>\n{OBJECT}\n</tool_call>"))
LLAMA = _template(ONLY + EACH.replace("ONE", OBJECT), "parameters")
LIST = _template("{% if turn.tool_calls %}[CALLS] [" + EACH.replace("ONE", OBJECT) + "]{% endif %}")
XML = _template(EACH.replace("ONE", "<tool_call>\n<function={{ call.function.name }}>\n</function>\n</tool_call>"))
SILENT = _template("")


def tokenizer_with(template: str | None) -> PreTrainedTokenizerBase:
    """Return the tiny tokenizer with a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer
