"""Parse the words of one call and collect its mistakes: typer alone stops at the first."""

import difflib
from collections.abc import Callable
from functools import partial
from itertools import starmap
from typing import Any

import typer

from shears.errors import InputError

# the base class of usage errors, found by name: newer versions of typer do not export it
BASES = {kind.__name__: kind for kind in typer.BadParameter.__mro__}
USAGE_ERROR: type[Exception] = BASES["UsageError"]


def parse(command: Any, ctx: Any, args: list[str]) -> list[str]:
    """Set the parameters of a call; return the words left.

    Raises InputError with all mistakes: unknown options, missing words, wrong values. If there are
    any, the values of the configuration are checked too; otherwise the verb checks them.
    """
    parser = command.make_parser(ctx)
    unknown: list[str] = []
    try:
        options, extra, order = _without_unknown(parser, list(args), unknown)
    except USAGE_ERROR as error:  # without its value, the words behind an option are ambiguous
        last = with_help(message_of(error), ctx.command_path)
        raise InputError(*map(_unknown, unknown), last) from None
    messages: list[str] = []
    # as click does: first the parameters that end a call, such as --help
    for parameter in sorted(command.get_params(ctx), key=lambda each: (not each.is_eager, each not in order)):
        _collect(messages, partial(parameter.handle_parse_result, ctx, options, []))
    if extra and not unknown:  # a word behind an unknown option may be its value
        messages.append(f"Got unexpected extra argument{'s' * (len(extra) > 1)} ({' '.join(extra)})")
    if not messages and not unknown:
        ctx.args = extra
        return extra
    messages = _missing_together(messages)
    if check := getattr(command.callback, "check", None):
        _collect(messages, partial(check, ctx.params))
    meant = {name: _nearest(command, name) for name in unknown}
    given = [f"given ({near})" for near in meant.values()]
    others = [message for message in messages if not any(each in message for each in given)]
    messages = [*starmap(_unknown, meant.items()), *others]
    raise InputError(*messages[:-1], with_help(messages[-1], ctx.command_path))


def with_help(message: str, path: str) -> str:
    """Return a message followed by the command that prints the help of `path`."""
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See {path} --help"


def _without_unknown(parser: Any, args: list[str], unknown: list[str]) -> tuple[dict[str, Any], list[str], list[Any]]:
    """Return values, words left and the order of parameters; add to `unknown` options."""
    while True:
        try:
            options, extra, order = parser.parse_args(args=list(args))
        except USAGE_ERROR as error:
            name = getattr(error, "option_name", None)
            place = next((index for index, word in enumerate(args) if word.split("=")[0] == name), None)
            if place is None or type(error).__name__ != "NoSuchOption":
                raise
            unknown.append(args.pop(place).split("=")[0])
        else:
            return options, extra, order


def _nearest(command: Any, name: str) -> str | None:
    """Return the option of a command that is most like an unknown one, if any is."""
    shown = (parameter for parameter in command.params if not getattr(parameter, "hidden", False))
    known = [option for parameter in shown for option in parameter.opts if option.startswith("-")]
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def _unknown(name: str, nearest: str | None = None) -> str:
    return f"No such option: {name}" + (f" (did you mean {nearest}?)" if nearest else "")


def _collect(messages: list[str], action: Callable[[], object]) -> None:
    try:
        action()
    except InputError as error:
        messages.extend(error.messages)
    except USAGE_ERROR as error:
        messages.append(message_of(error))


def message_of(error: Any) -> str:
    """Return the message of a usage error, without a full stop."""
    return str(error.format_message()).rstrip(".").replace("Input should be", "must be")


def _missing_together(messages: list[str]) -> list[str]:
    """Return the messages, with one line for missing arguments and one for missing options."""
    joined = []
    for kind in ("argument", "option"):
        start = f"Missing {kind} "
        names = [message.removeprefix(start) for message in messages if message.startswith(start)]
        joined += [f"Missing {kind}{'s' * (len(names) > 1)} {', '.join(names)}"] if names else []
    return [*(message for message in messages if not message.startswith("Missing ")), *joined]
