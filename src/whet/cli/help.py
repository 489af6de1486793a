"""`whet COMMAND --help`: groups, choices, settings and examples, read from the configs themselves."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from whet.config import conf_dir, sweeps_dir

EXAMPLES = {
    "train": """
  whet train                                                 the default experiment
  whet train peft=lora optimizer.lr=3e-4 engine.duration=2ep other choices, other values
  whet train task=imdb task.max_length=256                   another task
  whet train experiment=imdb_bert                            a preset
  whet train augmentation=eda augmentation.copies=2          changed copies of the training rows
  whet train model=local model.weights.path=DIR              a model directory of yours
  whet train debug=fast                                      a few steps: does everything run?
  whet train -m peft=none,lora seed=1,2,3                    a grid of six runs
  whet train -m seed=1,2,3 hydra/launcher=joblib             …side by side (pip install 'whet[joblib]')
  whet train -m sweep=lr_warmup hydra.sweeper.n_trials=20    Optuna searches, weak trials end early
  whet train -m sweep=optuna 'optimizer.lr=tag(log,interval(1e-5,1e-3))' any ranges; again: it goes on
  whet train resume=outputs/runs/RUN                         go on with an interrupted run
  whet train optimizer=sgd --cfg job                         show the composed config, run nothing""",
    "pretrain": """
  whet pretrain task=rotten_tomatoes                         hide tokens of the task's texts, guess them
  whet pretrain task=imdb texts=more.txt engine.duration=10ep further texts, longer
  whet train model=local model.weights.path=outputs/pretraining/RUN/model
  whet pretrain resume=outputs/pretraining/RUN               go on with an interrupted one""",
    "evaluate": """
  whet evaluate run=outputs/runs/RUN                         the test split again
  whet evaluate run=outputs/runs/RUN split=validation        another split
  whet evaluate run=outputs/runs/RUN input=new.csv           a labelled file with the task's columns
  whet evaluate run=outputs/runs/A,outputs/runs/B            an ensemble: the mean of their probabilities""",
    "predict": """
  echo "a fine film" | whet predict run=outputs/runs/RUN     plain lines in, JSON lines out
  whet predict run=outputs/runs/RUN input=in.csv output=out.jsonl text=review
  jq -c '{text: .body}' mails.json | whet predict run=RUN    JSON lines from another program""",
    "merge": """
  whet merge run=outputs/runs/RUN output=merged              LoRA and its kin go into the weights
  whet predict run=merged input=in.csv                       as quick as without a method
  whet train model=local model.weights.path=merged           or train it again""",
    "data": """
  whet data task=rotten_tomatoes                             counts, balance, lengths, audit, samples
  whet data task=imdb task.max_length=256 samples=3          with another length
  whet data task=spam augmentation=eda                       rows before and after, and the cost of a text
  whet data task=mine output=mine.json                       a task of yours (conf/task/mine.yaml)""",
    "doctor": """
  whet doctor                                                look at everything
  whet doctor json=true                                      for scripts""",
}


def command_help(command: str, arguments: list[str] | None = None) -> str:
    """The help text of one command, or of the groups and choices that `arguments` names."""
    title, defaults, settings = _read(command)
    named = [item.lstrip("+").split("=")[0] for item in arguments or [] if not item.startswith("-")]
    if any(name in defaults for name in named):
        return "\n\n".join(
            explain_choice(command, item.lstrip("+")) for item in arguments or [] if not item.startswith("-")
        )
    lines = [title, "", f"usage: whet {command} [group=choice …] [key=value …] [options]"]
    groups = {group: choice for group, choice in defaults.items() if "/" not in group}
    if groups:
        lines += ["", "groups (default first):", *_groups(groups)]
    lines += ["", "settings:", *settings]
    lines += ["", "examples:", EXAMPLES[command].strip("\n"), "", *_OPTIONS]
    return "\n".join(lines)


_OPTIONS = [
    "options:",
    "  --cfg job          print the composed config and stop; every key in it can be overridden",
    "  -m, --multirun     one run for every combination of comma separated values",
    "  GROUP=CHOICE --help  what a choice's settings mean, for example optimizer=sgd --help",
    "  --info defaults    where each part of the config comes from",
    "  --hydra-help       Hydra's own options",
    "",
    "conf/ and sweeps/ folders in the current directory add to (and override) the packaged ones.",
]


def _read(command: str) -> tuple[str, dict[str, str], list[str]]:
    """Title, default choice of each group, and the plain settings with their comments."""
    from omegaconf import OmegaConf

    path = conf_dir() / f"{command}.yaml"
    config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    defaults: dict[str, str] = {}
    for item in config["defaults"]:
        if isinstance(item, dict):
            defaults.update({str(k): str(v) for k, v in item.items() if not str(k).startswith("override ")})
    text = path.read_text(encoding="utf-8").splitlines()
    names = [name for name in config if name not in ("defaults", "hydra")]
    return text[0].removeprefix("# "), defaults, [_setting(name, text) for name in names]


def explain_choice(command: str, argument: str) -> str:
    """What a choice is and what its settings mean: `optimizer=sgd`, or `optimizer` for the default choice."""
    from whet.config import SPACE, TARGET, compose, resolve

    group, _, name = argument.partition("=")
    config = compose(command, [f"{group}={name}"] if name else []).get(group)
    if not isinstance(config, dict) or TARGET not in config:
        return f"{argument}: a preset; show it with whet {command} {argument} --cfg job"
    target = resolve(config[TARGET])
    documented = docs(target)
    lines = [
        argument,
        textwrap.indent(textwrap.dedent((target.__doc__ or "").split("Args:")[0]).strip(), "  "),
        "",
    ]
    for key, value in config.items():
        if key not in (TARGET, SPACE):
            lines += _explained(f"{group}.{key}", value, documented.get(key, ""))
    return "\n".join(lines)


def _explained(key: str, value: Any, text: str) -> list[str]:
    shown = (
        "…"
        if isinstance(value, dict) and value
        else "null"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
    return [
        f"  {key}={shown}",
        *textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      "),
    ]


def docs(target: Any) -> dict[str, str]:
    """Parameter → explanation, from a function's `Args:` or from the strings beneath a class's fields."""
    import inspect

    if inspect.isclass(target):
        return {
            key: text for base in reversed(target.__mro__[:-1]) for key, text in _field_docs(base).items()
        }
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(target) or "").partition("Args:\n")[2].splitlines():
        if not line.startswith("    "):
            break
        if not line.startswith("     "):
            name, _, line = line.strip().partition(": ")
        found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def _field_docs(cls: type) -> dict[str, str]:
    import ast
    import inspect

    try:
        body: Any = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError):
        return {}
    found = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and text:
            found[field.target.id] = " ".join(str(after.value.value).split())
    return found


def _setting(name: str, lines: list[str]) -> str:
    line = next(line for line in lines if line.startswith(f"{name}:"))
    value, _, comment = line.partition("#")
    return f"  {value.strip():<20} {comment.strip()}".rstrip()


def _groups(defaults: dict[str, str]) -> list[str]:
    lines = []
    for group, default in defaults.items():
        lines.append(f"  {group}")
        for name, title in choices(group, default):
            lines += textwrap.wrap(
                f"{name:<24} {title}", 108, initial_indent="    ", subsequent_indent=" " * 29
            )
    return lines


def choices(group: str, default: str) -> list[tuple[str, str]]:
    """(name, first comment line) of a group's choices, the default first; the user's own included."""
    found: dict[str, str] = {}
    own = Path.cwd() / ("sweeps" if group == "sweep" else f"conf/{group}")
    for folder in (sweeps_dir() if group == "sweep" else conf_dir() / group, own):
        for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else []:
            found[path.stem] = _title(path)
    names = sorted(found, key=lambda name: (name != default, name))
    return [(name, found[name]) for name in names]


def _title(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line.removeprefix("# ")
    return ""
