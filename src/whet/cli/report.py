"""`whet report`: runs or a sweep as one HTML file."""

from __future__ import annotations

from pathlib import Path

from whet.cli.app import listen
from whet.cli.words import call, help_text, wants_help
from whet.errors import ConfigError, RunError

USAGE = "usage: whet report PLACE… [key=value …]"
PLACES = "PLACE: the folder of a run, a sweep or a multirun, or its name below outputs/"
EXAMPLES = """
    whet report outputs/runs/RUN                 one run: curves, confusion, calibration, worst errors, config
    whet report outputs/sweeps/NAME open=true    a sweep: history, importance, slices, pruning, best config
    whet report RUN1 RUN2 RUN3                   side by side: names below outputs/ are enough
    whet report outputs/multirun/NAME            all runs of a multirun: groups paired by seed
    whet report RUN output=run.html title="Before the fix" texts=false
"""


def main(arguments: list[str]) -> int:
    """Write one report."""
    if wants_help(arguments):
        print(help_text(COMMAND, f"{USAGE}\n{PLACES}", EXAMPLES))
        return 0
    listen()
    call(COMMAND, arguments)
    return 0


def report(
    *,
    words: list[str],
    output: str | None = None,
    title: str | None = None,
    open: bool = False,
    texts: bool = True,
) -> None:
    """Write one HTML file that shows a run, several runs side by side, or a sweep; it needs no network.

    PLACE is the folder of a run, a sweep or a multirun, or its name below outputs/.

    Args:
        output: the file; by default report.html in the folder, of several places outputs/reports/TIME.html.
        title: of the page; by default the name of what it shows.
        open: show it in the browser.
        texts: read the run's data again to show the texts of its costliest errors; false leaves them out.

    Raises:
        RunError: no such run or sweep, or nothing to show.
        ConfigError: the output can't be a file there.
    """
    if not words:
        raise RunError(f"whet report needs at least one run or sweep; {USAGE}")
    from whet.review.report import find, write_report

    folders = [find(word) for word in words]
    path = write_report(folders, None if output is None else _file(output), title, texts)
    print(f"report  {path}  ({path.stat().st_size / 2**20:.1f} MB, needs nothing else)")
    if open:
        _show(path)


def _file(output: str) -> Path:
    path = Path(output).expanduser().absolute()
    if path.is_dir():
        raise ConfigError("output", f"is a folder; give a file, for example {path / 'report.html'}", output)
    if not path.parent.is_dir():
        raise ConfigError("output", f"no such folder: {path.parent}", output)
    return path


def _show(path: Path) -> None:
    import webbrowser

    if not webbrowser.open(path.as_uri()):
        raise RunError(f"no browser could be started; open {path} by hand")


COMMAND = report
