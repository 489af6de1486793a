"""`whet soup`: average the weights of finished runs into one model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from whet.cli.app import listen
from whet.cli.words import call, help_text, wants_help
from whet.config import compose, part
from whet.errors import ConfigError, RunError
from whet.paths import Paths

EXAMPLES = """
    whet soup outputs/runs/A outputs/runs/B outputs/runs/C     greedy: no run that makes validation worse
    whet soup outputs/sweeps/STUDY way=uniform                 all finished trials of a sweep
    whet soup outputs/multirun/DATE output=soup                a multirun; then: whet predict run=soup
"""


def main(arguments: list[str]) -> int:
    """Make one soup."""
    if wants_help(arguments):
        print(help_text(COMMAND, "usage: whet soup RUN… [key=value …]", EXAMPLES))
        return 0
    listen()
    print(call(COMMAND, arguments))
    return 0


def soup(
    *,
    words: list[str],
    way: Literal["greedy", "uniform"] = "greedy",
    output: str | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
) -> str:
    """Average the weights of finished runs of one architecture into one model (Wortsman et al., 2022).

    RUN is a run folder, or a folder of runs (a sweep, a multirun), of which the finished ones are taken. What
    they share is needed: base weights, method, labels, validation and test rows. Of a method that trains few
    tensors only those are averaged (of LoRA its two factors, not their product).

    Args:
        way: greedy adds runs from the best on and keeps those that don't make the primary metric on
            validation worse; uniform takes all.
        output: folder to make, which serves as a run folder (predict, evaluate); null makes
            outputs/soups/DATE-TIME.
        device: where to evaluate: auto, cpu, cuda, mps.
        precision: number format; null takes that of the best run's training.
    """
    from whet.engine.run import stamp
    from whet.engine.soup import make_soup

    paths: Paths = part(compose("data")["paths"], Paths, "paths")
    target = Path(output).expanduser() if output else paths.outputs() / "soups" / stamp()
    if target.exists():
        raise ConfigError("output", "is there already: name a new folder", output)
    made = make_soup(_runs(words), target, way, paths, device, precision)
    return f"{made.told()}\n\nmodel, predictions and report  {target}"


def _runs(words: list[str]) -> list[Path]:
    """The runs that words name: folders of runs, or folders that hold finished ones."""
    from whet.review.records import find_runs

    found: list[Path] = []
    for word in words:
        place = Path(word).expanduser()
        own = (place / "run.json").is_file()
        below = [] if own else [run.folder for run in find_runs([place]) if run.status == "finished"]
        runs = [place.absolute()] if own else [folder for folder in below if (folder / "model").is_dir()]
        if not runs:
            raise RunError(f"{word}: no run folder, and no finished run below it")
        found += runs
    return found


COMMAND = soup
