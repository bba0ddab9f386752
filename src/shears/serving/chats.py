"""What a chat request asks of its answer: the tokens to read, the grammar to follow, the calls to take out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shears.errors import InputError
from shears.runtime.generation.engine import Engine
from shears.runtime.generation.grammar import Grammar
from shears.runtime.generation.tool_calls import CallFormat, CallReader, CallRules, call_format
from shears.serving.bodies import ChatRequest, RequestError, Tool, ToolChoice

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}  # as OpenAI's API says


@dataclass(frozen=True)
class Chat:
    """A conversation to answer; without a form of calls, the answer is all text."""

    tokens: list[int]
    grammar: Grammar | None = None
    form: CallFormat | None = None
    names: Sequence[str] = ()

    def reader(self) -> CallReader | None:
        """Return a reader of one answer."""
        return None if self.form is None else CallReader(self.form, self.names)


def read_chat(engine: Engine, body: ChatRequest) -> Chat:
    """Return what a request asks for; RequestError naming the key that cannot be used.

    The grammar is compiled here, so that an unsupported schema is refused before anything is generated.
    """
    tools = body.callable_tools()
    schema = body.schema_of_text()
    turns = [message.turn() for message in body.messages]
    shown = [tool.model_dump(exclude_none=True) for tool in body.tools or [] if tools]
    form = None
    if tools or any(message.is_of_tools for message in body.messages):
        form = _named("tools" if tools else "messages", call_format, engine.tokenizer)
    tokens = _named("messages", engine.encode_chat, turns, shown)
    if not tools:
        grammar = None if schema is None else _named("response_format", engine.grammars.of_schema, schema)
        return Chat(tokens, grammar)
    assert form is not None
    is_named = isinstance(body.tool_choice, ToolChoice)
    functions = {tool.function.name: _arguments(tool) for tool in tools}
    rules = CallRules(
        functions,
        required=is_named or body.tool_choice == "required",
        several=body.parallel_tool_calls is not False and not is_named,
        answer=schema,
    )
    lark = _named("tools", rules.write, form, engine.tokenizer, engine.grammars)
    return Chat(tokens, _named("tools", engine.grammars.of_rules, lark), form, list(functions))


def _named(key: str, work: Any, *arguments: Any) -> Any:
    """Return the result of the work; RequestError that names the key for wrong input."""
    try:
        return work(*arguments)
    except InputError as error:
        raise RequestError(400, str(error), param=key) from None


def _arguments(tool: Tool) -> Mapping[str, Any]:
    """Return the schema of a tool's arguments, which are an object."""
    schema = NO_ARGUMENTS if tool.function.parameters is None else tool.function.parameters
    if schema.get("type", "object") != "object":
        message = f"the parameters of {tool.function.name} must be of the type 'object', got {schema['type']!r:.40}"
        raise RequestError(400, message, param="tools")
    return {**schema, "type": "object"}
