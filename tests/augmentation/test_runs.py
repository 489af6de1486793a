"""Training on augmented rows, through the command line."""

import json

import numpy as np
import pytest
from tests.augmentation.material import overrides, save

from whet.augmentation.base import CHUNK
from whet.cli.main import main
from whet.data.batching import Batching
from whet.engine.plan import Plan, most_epochs
from whet.engine.step import Stepper
from whet.types import Duration

KEYS = ["engine.duration=2ep", "engine.patience=null", "engine.precision=fp32", "engine.evaluate_every=1ep"]


@pytest.fixture
def run(workplace, quick):
    """Trains under a name; returns the run's folder."""

    def train(name, *keys):
        assert main(["train", *quick, *KEYS, *keys, f"name={name}"]) == 0
        return workplace / "outputs" / "runs" / name

    return train


def record(folder):
    return json.loads((folder / "run.json").read_text())


def losses(monkeypatch):
    """Losses of all updates from now on."""
    real, seen = Stepper.update, []

    def update(self, update):
        result = real(self, update)
        seen.append(result.loss)
        return result

    monkeypatch.setattr(Stepper, "update", update)
    return seen


def end(folder):
    found = record(folder)
    return found["hashes"]["final"], found["metrics"]


def test_eda_trains_on_more_and_other_rows(run, workplace):
    plain = run("plain")
    eda = run("eda", "augmentation=eda", *overrides(workplace))
    before, after = record(plain), record(eda)
    assert (before["planned"], after["planned"]) == (4, 6)
    assert before["data"]["rows"] == after["data"]["rows"]
    assert before["data"]["label_counts"] == after["data"]["label_counts"]
    assert after["data"]["augmentation"]["editions"] == 2
    assert before["data"]["augmentation"] == {}
    hashes = before["hashes"]["data"], after["hashes"]["data"]
    assert hashes[0]["train"] != hashes[1]["train"]
    assert all(hashes[0][split] == hashes[1][split] for split in ("validation", "test"))
    assert end(plain)[0] != end(eda)[0]


def test_resuming_ends_like_going_straight_on(run, workplace, quick, monkeypatch):
    keys = ["augmentation=eda", *overrides(workplace)]
    straight = run("straight", *keys)
    real, seen = Stepper.update, []

    def dies(self, update):
        seen.append(update.step)
        if len(seen) == 5:  # in the second epoch
            raise KeyboardInterrupt
        return real(self, update)

    monkeypatch.setattr(Stepper, "update", dies)
    assert main(["train", *quick, *KEYS, *keys, "name=cut"]) != 0
    monkeypatch.setattr(Stepper, "update", real)
    folder = workplace / "outputs" / "runs" / "cut"
    assert main(["train", f"resume={folder}"]) == 0
    assert end(folder) == end(straight)


def test_once_and_every_epoch_part_at_the_second_epoch(run, monkeypatch):
    seen = losses(monkeypatch)
    run("anew", "augmentation=aeda")
    once = run("once", "augmentation=aeda", "augmentation.editions=once")
    first, second = seen[:6], seen[6:]
    assert len(second) == 6
    assert first[:3] == second[:3]
    assert not set(first[3:]) & set(second[3:])
    assert record(once)["data"]["augmentation"]["editions"] == 1


def test_the_trunk_cache_holds_all_editions_and_changes_no_number(run):
    keys = ["augmentation=aeda", "peft=linear_probe"]
    cached, computed = run("cached", *keys), run("computed", *keys, "engine.trunk_cache=off")
    assert record(cached)["frozen"]["cache"] == "on"
    assert end(cached) == end(computed)


def test_a_finished_run_filters_what_a_model_rewrote(run, workplace, capsys):
    judge = run("judge")
    folder = save(workplace / "causal", "CausalLM", 3)
    keys = ["augmentation=regenerate", f"augmentation.weights.path={folder}", "augmentation.editions=once"]
    free = record(run("free", *keys))["data"]["augmentation"]["changed"]
    kept = record(run("kept", *keys, f"augmentation.filter_run={judge}"))["data"]["augmentation"]["changed"]
    assert 0 < kept < free
    assert free > 0.9
    (workplace / "own.csv").write_text("review,stars\n" + "".join(f"text {n},{n % 3}\n" for n in range(60)))
    assert main(["train", "task=mine", "model=tiny", *keys, f"augmentation.filter_run={judge}"]) == 2
    assert "augmentation.filter_run" in capsys.readouterr().err


def test_data_shows_rows_before_and_after(workplace, quick, capsys):
    keys = ["task=mine", "model=tiny", "samples=3", "output=told.json"]
    assert main(["data", *keys, "augmentation=aeda", "augmentation.copies=2"]) == 0
    shown = capsys.readouterr().out
    told = json.loads((workplace / "told.json").read_text())["augmentation"]
    assert "ms a text" in shown
    assert len(told["rows"]) == 6
    assert told["changed"] == 1.0
    train = {row["id"]: row for row in told["rows"]}
    assert all(name.endswith(("#1", "#2")) for name in train)
    assert all(f"  {name}\n" in shown for name in train)
    assert all(set(row["after"][0]) - set(row["before"][0]) <= set(".;?:!,") for row in told["rows"])
    assert main(["data", *keys]) == 0
    assert "ms a text" not in capsys.readouterr().out


def test_bad_settings_are_one_line(workplace, capsys):
    for keys, message in (
        (["augmentation=aeda", "augmentation.rate=0"], "augmentation.rate=0: must be greater than 0"),
        (["augmentation=char_noise", "augmentation.kinds=[swop]"], "must be 'keyboard', 'ocr', 'swap'"),
        (
            ["augmentation=regenerate", "augmentation.weights.path=nowhere"],
            "augmentation.weights.path=nowhere",
        ),
        (["augmentation=ead"], "eda"),
    ):
        assert main(["train", "task=mine", "model=tiny", *keys]) == 2
        assert message in capsys.readouterr().err
    assert not (workplace / "outputs").exists()


# ---------------------------------------------------------------- the plan


LENGTHS = np.random.default_rng(0).integers(3, 40, 90)


@pytest.mark.parametrize("duration", ["1ep", "2.5ep", "1st", "7st", "40st"])
@pytest.mark.parametrize("limit", [None, 3, 11])
@pytest.mark.parametrize("tokens", [None, 90])
def test_epochs_are_never_more_than_foreseen(duration, limit, tokens):
    batching, length = Batching(size=4, tokens=tokens, pool=2), Duration.parse(duration)
    plan = Plan.of(LENGTHS, batching, 2, 0, length, limit)
    most = most_epochs(len(LENGTHS), batching, 2, length, limit)
    assert len(plan.counts) <= most
    if tokens is None:
        assert len(plan.counts) == most


def test_an_epoch_sees_the_rows_of_its_edition():
    editions = tuple(np.concatenate([np.arange(30), np.arange(start, start + 20)]) for start in (30, 50, 70))
    plan = Plan.of(LENGTHS, Batching(size=6), 1, 3, Duration.parse("3ep"), None, editions)
    steps = list(plan)
    for epoch, count in enumerate(plan.counts):
        rows = [row for _ in range(count) for batch in steps.pop(0).micro_batches for row in batch]
        assert sorted(rows) == editions[epoch].tolist()
    late = [update.micro_batches[0].tolist() for update in plan.after(20)]
    assert late == [update.micro_batches[0].tolist() for update in list(plan)[20:]]
    assert 0 <= plan.padding() < 0.5


def test_one_edition_of_all_rows_is_the_plan_without_editions():
    plain = Plan.of(LENGTHS, Batching(size=6), 2, 3, Duration.parse("2ep"), None)
    same = Plan.of(LENGTHS, Batching(size=6), 2, 3, Duration.parse("2ep"), None, (np.arange(90),) * 2)
    assert str(list(plain)) == str(list(same))


def test_chunks_do_not_show(tmp_path):
    from tests.augmentation.material import around, examples

    from whet.augmentation.aeda import Aeda

    train = examples([f"row number {n} of many" for n in range(CHUNK + 5)])
    made = Aeda().training(train, around(tmp_path), 1, lambda rows: 1)
    assert len(made.examples.texts) == 2 * (CHUNK + 5)
    assert [text.split()[-3:] for (text,) in made.examples.texts[:1]] == [["0", "of", "many"]]
