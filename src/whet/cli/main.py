"""`whet COMMAND …`: find the command, run it, turn its errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from whet import __version__
from whet.errors import RunError, WhetError, nearest, one_line
from whet.ranks import here

COMMANDS = {
    "train": "fine-tune a model on a task, test it, report",
    "pretrain": "go on pretraining a model on a task's texts",
    "evaluate": "test a finished run, or an ensemble, on a split or a file",
    "predict": "label texts with a finished run",
    "dashboard": "open the pages of Optuna and TensorBoard on what has run",
    "sync": "upload runs to W&B that were recorded offline",
    "merge": "fold a run's PEFT method into an ordinary model",
    "soup": "average the weights of finished runs into one model",
    "data": "show what a task's data holds",
    "runs": "list, filter, group and compare runs and sweeps; show one",
    "report": "show a run, several runs or a sweep in one HTML file",
    "doctor": "check versions, devices, hub, W&B and disk",
    "completion": "print the tab completion script of your shell",
}

USAGE = """whet {version}: fine-tune language models from one composed config.

usage: whet COMMAND [key=value …] [group=choice …] [options]

commands:
{commands}

first steps:
  whet doctor                                 is everything there?
  whet train                                  MiniLM on movie reviews, minutes on two cores
  whet train peft=lora optimizer.lr=3e-4      override anything
  whet train -m peft=none,lora seed=1,2,3     a grid of runs
  whet train -m sweep=lr_warmup               a search; the same again goes on
  whet runs sort=-test                        what came out, best first
  whet report outputs/sweeps/NAME             a sweep, a run or several as one HTML page
  whet dashboard                              sweeps and runs in your browser
  whet COMMAND --help                         its groups, choices and examples

Tab completion: eval "$(whet completion bash)"
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        print(f"whet {__version__}")
        return 0
    return _guarded(arguments)


def usage() -> str:
    """The text of `whet --help`."""
    commands = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    return USAGE.format(version=__version__, commands=commands)


def _guarded(arguments: list[str]) -> int:
    from whet.cli.app import TRACE
    from whet.cli.translate import explain, is_expected
    from whet.engine.distributed import joined
    from whet.engine.ending import Elsewhere

    if sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)  # a crash of native code says where it happened
    tracing = not TRACE.isdisjoint(item.lstrip("+") for item in arguments)
    try:
        with joined() as world, _speaking(world.first):
            return _dispatch(arguments[0], arguments[1:])
    except Elsewhere as error:  # that process has told it
        return error.exit_code
    except KeyboardInterrupt:
        print("whet: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if tracing or not is_expected(error):
            raise
        known = explain(error, arguments[1:], arguments[0])
        print(f"whet: {one_line(known)}", file=sys.stderr)
        return known.exit_code


@contextlib.contextmanager
def _speaking(first: bool) -> Iterator[None]:
    """Of several processes only the first one prints, logs and warns."""
    if first:
        yield
        return
    warnings.simplefilter("ignore")
    logging.disable()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield


def _dispatch(command: str, arguments: list[str]) -> int:
    if command not in COMMANDS:
        error = WhetError(f"{command}: unknown command; {nearest(command, COMMANDS)}")
        error.exit_code = 2
        raise error
    if here().size > 1 and (command != "train" or not {"-m", "--multirun"}.isdisjoint(arguments)):
        raise RunError(
            f"torchrun is for one run of whet train, not for whet {' '.join([command, *arguments])}"
        )
    warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
    module = importlib.import_module(f"whet.cli.{command}")
    return int(module.main(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
