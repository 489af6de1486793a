"""`whet report`: real runs and a real sweep as pages, looked at with a real browser."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from tests.review.browser import Browser, chromium

from whet.cli.main import main
from whet.engine import warm
from whet.engine.run import read_record
from whet.evaluation.predictions import Predictions
from whet.tracking.jsonl import read_metrics

GOOD, BAD = "good <i>one</i>", "bad & sad"
EVIL = "<script>window.evil = 1</script>"
TASK = """# My reviews
_target_: whet.task.single_label.SingleLabel
name: mine
data:
  _target_: whet.data.files.Files
  path: {path}
text: review
label: stars
"""
QUICK = [
    "task=mine",
    "model=tiny",
    "tracking=local",
    "engine.threads=1",
    "engine.duration=2ep",
    "engine.patience=null",
]


def write_data(folder: Path) -> Path:
    """90 reviews whose texts and labels look like markup; one in nine is labelled wrongly."""
    lines = ["review,stars"]
    for number in range(90):
        kind = number % 2
        label = (GOOD, BAD)[kind if number % 9 else 1 - kind]
        lines.append(f"{EVIL} a {('fine', 'dull')[kind]} film {number},{label}")
    path = folder / "own.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory, cache):
    """A folder with four runs, and a sweep with pruned and failed trials; the current one in these tests."""
    folder = tmp_path_factory.mktemp("reports")
    before, known = Path.cwd(), os.environ.get("WHET_CACHE")
    os.chdir(folder)
    os.environ["WHET_CACHE"] = str(cache)
    (folder / "conf" / "task").mkdir(parents=True)
    (folder / "conf" / "task" / "mine.yaml").write_text(TASK.format(path=write_data(folder)))
    assert main(["train", "-m", *QUICK, "peft=none,bitfit", "seed=1,2", "optimizer.lr=1e-2"]) == 0
    more = ["hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=3",
            "sweep.start=false", "sweep.test=false", "sweep.objective=[validation/loss]", "hydra.sweeper.study_name=mine"]  # fmt: skip
    space = ["optimizer.lr=choice(1e-2,2e-2,1e-9)", "model.dropout=choice(0.0,0.2)"]
    assert main(["train", "-m", "sweep=optuna", *QUICK, *space, *more]) == 0
    warm.forget()
    study = optuna.load_study(study_name="mine", storage=f"sqlite:///{folder}/outputs/sweeps/mine/study.db")
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"reason": f"ValueError: {EVIL}"}))
    yield folder
    os.chdir(before)
    os.environ.pop("WHET_CACHE")
    if known is not None:
        os.environ["WHET_CACHE"] = known


@pytest.fixture(scope="module")
def multirun(place):
    (found,) = (place / "outputs" / "multirun").iterdir()
    return found


@pytest.fixture(scope="module")
def pages(place, multirun):
    """A report of each kind."""
    assert (
        main(["report", f"{multirun}/0000"])
        == main(["report", str(multirun)])
        == main(["report", "mine"])
        == 0
    )
    return {
        "run": multirun / "0000" / "report.html",
        "comparison": multirun / "report.html",
        "sweep": place / "outputs" / "sweeps" / "mine" / "report.html",
    }


def figures(path: Path) -> dict:
    """What is drawn, by caption."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(
        r"<figcaption>(.*?)</figcaption>.*?<script type=.application/json.>(.*?)</script>", text, re.S
    )
    return {caption: json.loads(data) for caption, data in found}


def drawn(figure: dict) -> dict:
    return {trace.get("name"): trace for trace in figure["data"]}


# ---------------------------------------------------------------- what the pages say


def test_a_run_is_what_its_record_says(pages, multirun):
    record, text = read_record(multirun / "0000"), pages["run"].read_text(encoding="utf-8")
    found = figures(pages["run"])
    logged = [
        line["validation/loss"]
        for line in read_metrics(multirun / "0000" / "metrics.jsonl")
        if "validation/loss" in line
    ]
    assert drawn(found["Loss in training and on validation"])["validation/loss"]["y"] == logged
    for name, value in record["metrics"].items():
        assert f'data-value="{value!r}"' in text, name
    assert f"step {record['best']['step']}" in text
    for split in ("test", "validation"):
        predictions = Predictions.load(multirun / "0000" / "predictions" / f"{split}.npz")
        decided = predictions.logits.argmax(axis=1)
        counts = [[int(((predictions.labels == t) & (decided == p)).sum()) for p in (0, 1)] for t in (0, 1)]
        panel = text.partition(f'<section id="{split}-split">')[2].partition("</section>")[0]
        data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', panel, re.S)[1])
        assert data["data"][0]["text"] == [[f"{count:,}" for count in row] for row in counts]
        written = [each["text"] for each in data["layout"]["annotations"]]
        assert written == [f"{count:,}" for row in counts for count in row]
        assert data["data"][0]["x"] == ["bad &amp; sad", "good &lt;i&gt;one&lt;/i&gt;"], "Plotly obeys markup"
    assert re.search(r"<code>whet train task=mine .* peft=none seed=1 optimizer.lr=0.01</code>", text)
    assert "torch" in text and record["hashes"]["final"]["model.safetensors"] in text


def test_costliest_errors_come_first_with_their_texts(pages, multirun):
    text = pages["run"].read_text(encoding="utf-8")
    predictions = Predictions.load(multirun / "0000" / "predictions" / "test.npz")
    chances = np.exp(predictions.logits) / np.exp(predictions.logits).sum(axis=1, keepdims=True)
    own = -np.log(chances[np.arange(len(chances)), predictions.labels])
    wrong = sorted(own[chances.argmax(axis=1) != predictions.labels], reverse=True)
    places = {name: row for row, name in enumerate(predictions.ids)}
    panel = (
        text.partition('<section id="test-split">')[2]
        .partition("</section>")[0]
        .partition("Costliest errors")[2]
    )
    rows = re.findall(r"<tr>(<td.*?)</tr>", panel, re.S)
    assert wrong and len(rows) == min(20, len(wrong))
    for shown, loss in zip(rows, wrong, strict=False):
        cells = re.findall(r"<td[^>]*>(.*?)</td>", shown, re.S)
        assert own[places[cells[-1]]] == pytest.approx(loss, rel=1e-5)  # equal losses come in any order
        assert cells[0].startswith("&lt;script&gt;window.evil = 1&lt;/script&gt; a ")
        assert float(re.findall(r'data-value="([^"]*)"', shown)[1]) == pytest.approx(loss, rel=1e-5)


def test_a_sweep_is_what_its_study_says(pages, place):
    text, found = pages["sweep"].read_text(encoding="utf-8"), figures(pages["sweep"])
    study = optuna.load_study(study_name="mine", storage=f"sqlite:///{place}/outputs/sweeps/mine/study.db")
    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    cut = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert len(done) + len(cut) == 6 and cut
    history = drawn(found["Values of the trials (lower is better)"])
    assert history["complete"]["y"] == [trial.value for trial in done]
    assert history["pruned (last value told)"]["x"] == [trial.number for trial in cut]
    half_way = drawn(found["Values told half-way, and where pruning cut"])
    assert half_way["pruned here"]["y"] == [
        trial.intermediate_values[max(trial.intermediate_values)] for trial in cut
    ]
    made, planned = (sum(t.user_attrs[key] for t in done + cut) for key in ("steps", "planned"))
    assert f"saved {planned - made:,} of {planned:,} optimizer updates" in text
    assert "ValueError: &lt;script&gt;window.evil" in text
    best = study.best_trial
    command = re.search(r"<code>(whet train .*?)</code>", text)[1]
    assert f"optimizer.lr={best.params['optimizer.lr']}" in command and "-m" not in command.split()
    assert "whet train -m" in text, "the command that goes on with it"
    assert set(found) >= {
        "From parameters to value",
        "Who worked on which trial, and when",
        "Values over optimizer.lr",
    }


def test_a_comparison_pairs_seeds(pages, multirun):
    values = {
        number: read_record(multirun / f"000{number}")["metrics"]["test/accuracy"] for number in range(4)
    }
    steps = [values[2] - values[0], values[3] - values[1]]
    found = figures(pages["comparison"])["Difference in test/accuracy to: peft none"]
    assert found["data"][0]["y"] == ["peft bitfit"]
    assert found["data"][0]["x"] == pytest.approx([np.mean(steps)])
    assert found["data"][0]["customdata"] == [2]
    curves = figures(pages["comparison"])["Loss in training"]["data"]
    assert [trace["name"] for trace in curves] == ["peft none"] * 2 + ["peft bitfit"] * 2


def test_a_trial_is_a_run(place, pages):
    assert main(["report", f"{place}/outputs/sweeps/mine/0000", "texts=false"]) == 0
    text = (place / "outputs" / "sweeps" / "mine" / "0000" / "report.html").read_text(encoding="utf-8")
    assert "mine/0000" in text
    assert "they were left out (texts=false)" in text
    assert "window.evil" not in text
    assert "<td>model.dropout</td>" in text or "model.dropout" in text


def test_data_that_changed_is_not_shown(place, multirun, tmp_path):
    path = place / "own.csv"
    kept = path.read_bytes()
    try:
        path.write_text(kept.decode().replace("film", "movie"), encoding="utf-8")
        assert main(["report", f"{multirun}/0001", f"output={tmp_path}/changed.html"]) == 0
        path.unlink()
        assert main(["report", f"{multirun}/0001", f"output={tmp_path}/gone.html"]) == 0
    finally:
        path.write_bytes(kept)
    for name, why in (
        ("changed", "rows aren't those of the run"),
        ("gone", "the data can't be read any more"),
    ):
        text = (tmp_path / f"{name}.html").read_text(encoding="utf-8").replace("&#x27;", "'")
        assert "Texts aren't shown: " in text and why in text
        assert "Costliest errors" in text and "film" not in text


# ---------------------------------------------------------------- the command


def test_where_it_is_written_and_its_title(place, multirun, tmp_path, capsys):
    one, other = f"{multirun}/0000", f"{multirun}/0003"
    assert main(["report", one, other]) == 0
    (path,) = (place / "outputs" / "reports").iterdir()
    assert str(path) in capsys.readouterr().out
    assert "2 runs compared" in path.read_text(encoding="utf-8")
    assert main(["report", one, f"output={tmp_path}/x.html", 'title="Before & after"']) == 0
    assert "<title>Before &amp; after</title>" in (tmp_path / "x.html").read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.html"]


def test_damaged_runs_are_named_and_left_out(multirun, tmp_path, capsys):
    for number in range(3):
        shutil.copytree(
            multirun / f"000{number}",
            tmp_path / f"r{number}",
            ignore=shutil.ignore_patterns("model", "checkpoints"),
        )
    (tmp_path / "r1" / "run.json").write_text('{"name": ')
    assert main(["report", str(tmp_path)]) == 0
    assert "2 runs compared" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "r1: it can't be read" in capsys.readouterr().err
    assert main(["report", f"{tmp_path}/r1"]) == 2
    assert "r1: it can't be read" in capsys.readouterr().err
    assert not (tmp_path / "r1" / "report.html").exists()


def test_a_run_that_failed_early_has_a_page(multirun, tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps({"name": "x", "status": "failed", "reason": f"token=abc123 {EVIL}"})
    )
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "token=***" in text and "abc123" not in text
    assert "No figures were logged" in text and "ended before it had a config" in text
    shutil.copy(multirun / "0000" / "config.yaml", tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text(
        (tmp_path / "config.yaml").read_text().replace("SingleLabel", "Gone")
    )
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "can&#x27;t be judged" in text and "whet.task.single_label.Gone" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "needs at least one run or sweep"),
        (["min"], "min: no such run, sweep or folder; did you mean mine?"),
        (["conf"], "neither a run nor a sweep"),
        (["mine", "output=nowhere/x.html"], "output=nowhere/x.html: no such folder"),
        (["mine", "output=conf"], "output=conf: is a folder"),
        (["mine", "titel=x"], "did you mean title?"),
    ],
)
def test_wrong_input_is_one_line(arguments, told, place, capsys):
    assert main(["report", *arguments]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and told in err[0]


def test_it_opens_the_browser_and_loads_no_torch(multirun, tmp_path):
    seen, program = tmp_path / "seen", tmp_path / "browser"
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > {seen}\n')
    program.chmod(0o755)
    code = (
        "import sys; from whet.cli.main import main; "
        f"code = main(['report', '{multirun}/0002', 'open=true', 'texts=false']); "
        "sys.exit(code or ('torch' in sys.modules and 'torch'))"
    )
    environment = {**os.environ, "BROWSER": f"{program} %s"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    assert seen.read_text() == (multirun / "0002" / "report.html").as_uri()


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium() is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


def light(picture: Path) -> tuple[float, float]:
    """Mean and spread of a picture's lightness, 0 to 255."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("L"), dtype=float)
    return float(pixels.mean()), float(pixels.std())


EXPECTED = {
    "run": [
        "Course of training",
        "Costliest errors",
        "Which classes are taken for which",
        EVIL,
        GOOD,
        "Run it again",
    ],
    "sweep": ["Sweep mine", "Pruning ended", "Best config", "Where good values lie", f"ValueError: {EVIL}"],
    "comparison": ["4 runs compared", "peft bitfit", "Means over seeds", "Learning curves"],
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_on_a_desk(kind, pages, browser, tmp_path):
    browser.screen(1280, 900)
    browser.visit(pages[kind].as_uri())
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith(("file:", "data:"))] == []
    text = browser.run("document.body.innerText")
    assert [words for words in EXPECTED[kind] if words not in text] == []
    assert browser.run("typeof window.evil") == "undefined"
    plots = browser.run(
        "[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('.main-svg .xy, .main-svg path').length)"
    )
    assert len(plots) >= 4 and min(plots) > 0, "every figure is drawn"
    assert browser.run("document.documentElement.scrollWidth") <= 1280
    mean, spread = light(browser.picture(tmp_path / "desk.png", 900))
    assert mean > 200 and spread > 15


@pytest.mark.parametrize("kind", EXPECTED)
def test_on_a_phone_in_the_dark(kind, pages, browser, tmp_path):
    browser.screen(390, 844, mobile=True, dark=True)
    browser.visit(pages[kind].as_uri())
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") <= 390
    widths = browser.run(
        "[...document.querySelectorAll('figure')].map(each => each.getBoundingClientRect().right)"
    )
    assert max(widths) <= 390
    mean, spread = light(browser.picture(tmp_path / "phone.png", 900))
    assert mean < 70 and spread > 15


def test_tables_sort_and_commands_are_copied(pages, browser):
    browser.screen(1280, 900)
    browser.visit(pages["sweep"].as_uri())
    column = "[...document.querySelectorAll('#all-trials tbody tr')].map(row => row.cells[2].dataset.value ?? null)"
    head = "document.querySelectorAll('#all-trials th')[2]"
    browser.run(f"{head}.click()")
    up = browser.run(column)
    values = [float(value) for value in up if value is not None]
    assert values == sorted(values) and len(set(values)) > 1
    assert up[len(values) :] == [None] * (len(up) - len(values)), "without a value: last"
    browser.run(f"{head}.click()")
    down = browser.run(column)
    assert [float(value) for value in down[: len(values)]] == values[::-1]
    assert down[len(values) :] == up[len(values) :]
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "descending"
    shown = browser.run("document.querySelector('.command code').textContent")
    button = "document.querySelector('.copy')"
    assert shown.startswith("whet train ")
    browser.run("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    browser.run(f"{button}.click()")
    assert browser.run("window.getSelection().toString()") == shown, "without a clipboard it is selected"
    assert browser.run(f"{button}.textContent") in ("Copied", "Selected")
    stub = "{value: {writeText: async text => { window.copied = text }}}"
    browser.run(f"Object.defineProperty(navigator, 'clipboard', {stub})")
    browser.run(f"{button}.click()")
    assert browser.run("window.copied") == shown
    assert browser.run(f"{button}.textContent") == "Copied"


def test_on_paper(pages, browser):
    browser.screen(1280, 900, dark=True)
    browser.visit(pages["run"].as_uri())
    before = browser.run("document.querySelector('.plot .xtick text').style.fill")
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    browser.run("new Promise(done => setTimeout(done, 300))")
    widest = browser.run(
        "Math.max(...[...document.querySelectorAll('.main-svg')].map(svg => svg.getBoundingClientRect().width))"
    )
    assert widest <= 180 / 25.4 * 96
    assert (
        browser.run("document.querySelector('.plot .xtick text').style.fill") == "rgb(28, 37, 48)" != before
    )
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert browser.run("document.querySelector('.plot .xtick text').style.fill") == before
