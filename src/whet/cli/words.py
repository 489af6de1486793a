"""Commands that need no composed config: words and `key=value` settings, checked against a signature."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, get_args

from whet.cli.app import TRACE
from whet.config import build, signature
from whet.errors import ConfigError, one_line

WORDS = "words"
"""The parameter that takes the words without `=`."""


def call(function: Callable[..., Any], arguments: Sequence[str]) -> Any:
    """Call `function` with what the command line says.

    Args:
        function: all its parameters are keyword-only; `words` (a list of strings) takes the words without
            `=`, if it has one.
        arguments: `key=value` items have Hydra's grammar of values: `live=true`, `n=3`. A list of strings
            takes any: `columns=[a,b]`, `where=[lr>1e-4,"name~=a,b"]`, or one without brackets.

    Raises:
        ConfigError: an unknown or repeated key, a value of the wrong kind, or a word where none belongs.
    """
    found: dict[str, Any] = {}
    arguments = [item for item in arguments if item.lstrip("+") not in TRACE]  # whet.cli.main has seen it
    words = [item for item in arguments if "=" not in item]
    parameters = signature(function)
    for item in arguments:
        key, equals, _ = item.partition("=")
        if not equals:
            continue
        if key == WORDS or key in found:
            raise ConfigError(key, "can't be given like this" if key == WORDS else "is given twice", item)
        listed = key in parameters and _lists_strings(parameters[key].annotation)
        found[key] = _strings(key, item) if listed else _value(key, item)
    if WORDS in parameters:
        found[WORDS] = words
    elif words:
        raise ConfigError(words[0], "a setting is written key=value")
    return build(found, function)()


def _value(key: str, item: str) -> Any:
    """The value of `key=value`, by Hydra's grammar; what that can't read is a plain string."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        # only the value is Hydra's: its keys can't hold every sign that a setting's may
        parsed = OverridesParser.create().parse_override(f"x={item.partition('=')[2]}")
    except HydraException as error:
        raise ConfigError(key, f"can't be read ({one_line(error)}); quote it", item) from None
    return parsed.value()


def _lists_strings(annotation: Any) -> bool:
    """Whether a parameter takes a list of strings."""
    return annotation == list[str] or list[str] in get_args(annotation)


def _strings(key: str, item: str) -> list[str] | None:
    """The strings of `key=[a,b]` or `key=a`, whatever signs they hold.

    Commas inside of quotes or brackets part nothing; quotes around a string go.
    """
    text = item.partition("=")[2].strip()
    if text == "null":
        return None
    if not text.startswith("["):
        return [_unquoted(text)]
    parts, depth, quote = [""], 0, ""
    for sign in text[1:-1]:
        if sign == "," and not depth and not quote:
            parts.append("")
            continue
        if sign in "'\"" and quote in ("", sign):
            quote = "" if quote else sign
        elif not quote:
            depth += (sign in "[({") - (sign in "])}")
        parts[-1] += sign
    if depth or quote or not text.endswith("]"):
        raise ConfigError(key, "can't be read: a bracket or a quote isn't closed", text)
    return [_unquoted(part.strip()) for part in parts] if text[1:-1].strip() else []


def _unquoted(text: str) -> str:
    whole = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if whole else text


def respond(function: Callable[..., Any], usage: str, examples: str, arguments: Sequence[str]) -> int:
    """Print a command's help, or call it; the exit code."""
    if wants_help(arguments):
        print(help_text(function, usage, examples))
    else:
        call(function, arguments)
    return 0


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for help."""
    return not {"-h", "--help"}.isdisjoint(arguments)


def help_text(function: Callable[..., Any], usage: str, examples: str) -> str:
    """Help of a command: the function's docstring, its settings with their defaults, examples."""
    title, _, rest = (inspect.getdoc(function) or "").partition("\n")
    notes = _notes(rest)
    lines = [f"{usage}\n", title, "", "settings:"]
    for name, parameter in signature(function).items():
        if name != WORDS:
            default = (
                "required" if parameter.default is inspect.Parameter.empty else _shown(parameter.default)
            )
            lines += textwrap.wrap(
                f"{name}={default}  {notes.get(name, '')}",
                100,
                initial_indent="  ",
                subsequent_indent="      ",
            )
    return "\n".join([*lines, "", "examples:", textwrap.indent(textwrap.dedent(examples).strip(), "  ")])


def completions(function: Callable[..., Any], word: str) -> list[str]:
    """What may come at the end of a command line: settings, or the choices of the one at hand."""
    key, equals, start = word.partition("=")
    parameters = {name: p for name, p in signature(function).items() if name != WORDS}
    if not equals:
        return [f"{name}=" for name in parameters if name.startswith(key)]
    annotation = parameters[key].annotation if key in parameters else None
    choices = ("true", "false") if annotation is bool else _choices(annotation)
    return [f"{key}={choice} " for choice in choices if choice.startswith(start)]


def _choices(annotation: Any) -> list[str]:
    """Strings that a parameter may be, at any depth of its annotation: `Literal["a"] | None`."""
    if isinstance(annotation, str):
        return [annotation]
    return [choice for inner in get_args(annotation) for choice in _choices(inner)]


def _shown(default: Any) -> str:
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _notes(doc: str) -> dict[str, str]:
    """What a docstring's `Args:` say, by name."""
    found: dict[str, str] = {}
    inside, name = False, ""
    for line in doc.splitlines():
        text = line.strip()
        if text == "Args:":
            inside = True
        elif inside and (not text or not line.startswith(" ")):
            inside = False
        elif inside and line.startswith("    ") and not line.startswith("     "):
            name, _, note = text.partition(": ")
            found[name] = note
        elif inside:
            found[name] = f"{found[name]} {text}"
    return found
