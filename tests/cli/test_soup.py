"""Several finished runs as one: a soup of their weights, an ensemble of their predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from scipy.special import softmax
from tests.conftest import QUICK, TASK, WORDS

from whet.cli.main import main
from whet.engine import soup as soups
from whet.evaluation.predictions import Predictions


@pytest.fixture(scope="module")
def place(tmp_path_factory, cache):
    """Three runs of two seeds and two rates, and one with LoRA; the current directory."""
    folder = tmp_path_factory.mktemp("soup")
    rng = np.random.default_rng(3)
    rows = ["review,stars"]
    for number in range(60):
        words = rng.choice(WORDS["positive" if number % 2 else "negative"], 3)
        rows.append(f"a {' '.join(words)} film {number},{5 if number % 2 else 1}")
    (folder / "own.csv").write_text("\n".join(rows))
    (folder / "conf/task").mkdir(parents=True)
    (folder / "conf/task/mine.yaml").write_text(TASK.format(path=folder / "own.csv"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WHET_CACHE", str(cache))
        for name, more in (
            ("a", ["seed=1", "optimizer.lr=1e-2"]),
            ("b", ["seed=2", "optimizer.lr=5e-3"]),
            ("c", ["seed=3", "optimizer.lr=2e-3"]),
            ("l", ["seed=1", "peft=lora"]),
        ):
            assert main(["train", *QUICK, "task.primary=loss", f"name={name}", *more]) == 0
        yield folder


def run(name):
    return Path("outputs/runs") / name


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def loss_of(folder):
    return json.loads((folder / "run.json").read_text())["metrics"]["validation/loss"]


def said(folder, split="test"):
    return Predictions.load(folder / "predictions" / f"{split}.npz")


def test_uniform_is_the_mean(place, capsys):
    names = [str(run(name)) for name in "abc"]
    assert main(["soup", *names, "way=uniform", "output=mean"]) == 0
    each, found = [weights(run(name)) for name in "abc"], weights(Path("mean"))
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, np.mean([one[name].numpy() for one in each], axis=0), atol=1e-6)
    # it serves as a run: evaluated again, the same numbers
    assert main(["evaluate", "run=mean", "split=validation"]) == 0
    again = next(Path("mean/evaluations").glob("*/validation.npz"))
    np.testing.assert_array_equal(Predictions.load(again).logits, said(Path("mean"), "validation").logits)
    shutil.rmtree("mean/evaluations")
    assert main(["predict", "run=mean", "input=own.csv", "text=review", "output=out.jsonl"]) == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 60


def test_greedy_keeps_what_does_not_hurt(place, capsys):
    """Every subset in order, judged by hand."""
    assert main(["soup", *[str(run(name)) for name in "cab"], "output=greedy"]) == 0
    record = json.loads(Path("greedy/run.json").read_text())
    tried = [Path(one["run"]).name for one in record["soup"]["runs"]]
    assert tried == sorted("abc", key=lambda name: loss_of(run(name)))
    kept, best = [], np.inf
    for name in tried:
        shutil.rmtree("trial", ignore_errors=True)
        if kept:
            assert main(["soup", *[str(run(n)) for n in [*kept, name]], "way=uniform", "output=trial"]) == 0
        value = loss_of(Path("trial")) if kept else loss_of(run(name))
        if value <= best:
            kept, best = [*kept, name], value
    assert [Path(one["run"]).name for one in record["soup"]["runs"] if one["in"]] == kept
    assert loss_of(Path("greedy")) == pytest.approx(best, abs=1e-6)
    assert loss_of(Path("greedy")) <= min(loss_of(run(name)) for name in "abc")
    told = capsys.readouterr().out
    assert "best first" in told and "soup" in told


def test_the_small_part_of_a_method(place):
    """LoRA: only what trained is averaged, and with itself nothing changes."""
    shutil.copytree(run("l"), run("l2"), dirs_exist_ok=True)
    assert main(["soup", str(run("l")), str(run("l2")), "way=uniform", "output=small"]) == 0
    shutil.rmtree(run("l2"))
    one, other = (load_file(p / "model" / "trained.safetensors") for p in (run("l"), Path("small")))
    assert set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)
    assert not Path("small/model/model.safetensors").exists()
    np.testing.assert_array_equal(said(Path("small")).logits, said(run("l")).logits)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["outputs/runs/a"], "two finished runs at least, here are 1"),
        (["outputs/runs/a", "outputs/runs/a"], "here are 1"),
        (["outputs/runs/a", "outputs/runs/l"], "its method aren't the same"),
        (["outputs/runs/a", "nowhere"], "nowhere: no run folder"),
        (["outputs/runs", "output=conf"], "output=conf: is there already"),
        (["outputs/runs/a", "outputs/runs/b", "way=gredy"], "did you mean greedy"),
    ],
)
def test_what_makes_no_soup(place, arguments, told, capsys):
    before = {path.name for path in place.iterdir()}
    assert main(["soup", *arguments, *([] if "output=conf" in arguments else ["output=none"])]) == 2
    assert told in capsys.readouterr().err
    assert {path.name for path in place.iterdir()} == before


def test_other_rows_are_refused(place, capsys):
    odd = run("odd")
    shutil.copytree(run("b"), odd, dirs_exist_ok=True)
    record = json.loads((odd / "run.json").read_text())
    record["hashes"]["data"]["validation"] = "another"
    (odd / "run.json").write_text(json.dumps(record))
    assert main(["soup", str(run("a")), str(odd), "output=none"]) == 2
    shutil.rmtree(odd)
    assert "its validation rows aren't the same" in capsys.readouterr().err


def test_non_floats_are_the_first_ones():
    import torch

    pot = soups.Pot()
    pot.add({"w": torch.tensor([1.0]), "n": torch.tensor([3])})
    pot.add({"w": torch.tensor([2.0]), "n": torch.tensor([9])})
    assert pot.mean()["n"].tolist() == [3] and pot.mean()["w"].tolist() == [1.5]
    assert pot.mean({"w": torch.tensor([6.0]), "n": torch.tensor([1])})["w"].tolist() == [3.0]
    assert pot.mean()["w"].dtype == torch.float32 and pot.count == 2


# ------------------------------------------------------------------ ensembles


@pytest.mark.parametrize("form", ["run=outputs/runs/a,outputs/runs/b", "run=[outputs/runs/a,outputs/runs/b]"])
@pytest.mark.parametrize("average", ["probability", "logit"])
def test_an_ensemble_averages_predictions(place, form, average, capsys):
    assert main(["evaluate", form, f"average={average}"]) == 0
    folder = next(Path("outputs/ensembles").iterdir())
    found, each = Predictions.load(folder / "test.npz"), [said(run(name)).logits for name in "ab"]
    if average == "logit":
        np.testing.assert_allclose(found.logits, np.mean(each, axis=0), rtol=1e-5)
    wanted = np.mean([softmax(one, axis=1) for one in each], axis=0)
    assert np.allclose(softmax(found.logits, axis=1), wanted, atol=1e-6) == (average == "probability")
    facts = json.loads((folder / "ensemble.json").read_text())
    accuracy = float((found.logits.argmax(1) == found.labels).mean())
    assert facts["ensemble"]["accuracy"] == pytest.approx(accuracy)
    assert list(facts["members"]) == ["outputs/runs/a", "outputs/runs/b"]
    assert (folder / "test.md").is_file()
    assert "of each run alone" in capsys.readouterr().out
    shutil.rmtree("outputs/ensembles")
