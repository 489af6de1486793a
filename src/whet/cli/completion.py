"""`whet completion bash`: tab completion of commands, groups, choices and keys."""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

from whet.cli.app import normal
from whet.cli.words import completions
from whet.config import conf_dir
from whet.errors import ConfigError, nearest

BASH = """_whet_completion()
{
    local IFS=$'\\n'
    local line="${COMP_LINE:0:COMP_POINT}"
    local word="${line##*[[:space:]]}"
    COMPREPLY=($(compgen -W "$(whet completion query "$line" 2>/dev/null)" -- "$word"))
    # readline breaks words at = and : and has already typed what stands before
    local prefix="${word%"${word##*[=:]}"}"
    if [[ "$COMP_WORDBREAKS" == *=* && -n "$prefix" ]]; then
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
}
complete -o nospace -o default -F _whet_completion whet
"""
SHELLS = ("bash",)


def main(arguments: list[str]) -> int:
    """Print the script, or answer one query of it."""
    if arguments and arguments[0] == "query":
        print("\n".join(query(arguments[1] if len(arguments) > 1 else "")))
        return 0
    if arguments and arguments[0] in ("-h", "--help"):
        print('usage: eval "$(whet completion bash)"   (put it into ~/.bashrc)')
        return 0
    shell = arguments[0] if arguments else "bash"
    if shell not in SHELLS:
        raise ConfigError("completion", f"unknown shell; {nearest(shell, SHELLS)}", shell)
    print(BASH, end="")
    return 0


def query(line: str) -> list[str]:
    """Completions of the last word of a command line that starts with `whet`."""
    from whet.cli.main import COMMANDS

    words = line.split()
    complete_word = not line.endswith(" ")
    if len(words) < 2 or (len(words) == 2 and complete_word):
        start = words[1] if len(words) == 2 else ""
        return [f"{name} " for name in (*COMMANDS, "--help", "--version") if name.startswith(start)]
    command, rest = words[1], " ".join([normal(word) for word in words[2:]])
    if command not in COMMANDS or command == "completion":
        return []
    last = words[-1] if complete_word else ""
    if last.startswith("-"):
        return [f"{flag} " for flag in _FLAGS if flag.startswith(last)]
    if not (conf_dir() / f"{command}.yaml").is_file():
        module = importlib.import_module(f"whet.cli.{command}")
        if own := getattr(module, "complete", None):  # of a command that has words of its own
            return list(own(words[2 : len(words) - complete_word], last))
        return completions(module.COMMAND, last)
    return _overrides(command, rest + ("" if complete_word else " "))


_FLAGS = ("--help", "--cfg", "--multirun", "--info", "--resolve", "--hydra-help")


def _overrides(command: str, line: str) -> list[str]:
    """What Hydra offers for a line of overrides."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    GlobalHydra.instance().clear()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        initialize_config_dir(str(conf_dir()), version_base="1.3"),
    ):
        loader: Any = GlobalHydra.instance().config_loader()
        try:
            found = DefaultCompletionPlugin(loader)._query(command, line)
        except HydraException:  # an earlier word is wrong: nothing to offer
            return []
    return [
        item if item.endswith(("=", ".", "/")) else f"{item} "
        for item in found
        if not item.startswith("_") and "._" not in item
    ]
