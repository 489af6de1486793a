"""Augmentations of batches: chosen on the command line they wrap the objective, and every setting matters."""

import json

import pytest

from whet.cli.main import main

RUN = ["engine.duration=2st", "engine.patience=null", "debug.rows=16"]


def weights(workplace, quick, *more):
    name = f"r{len(list(workplace.glob('outputs/runs/*')))}"
    assert main(["train", *quick, *RUN, *more, f"name={name}"]) == 0
    record = json.loads((workplace / "outputs/runs" / name / "run.json").read_text())
    return record["hashes"]["final"]["model.safetensors"]


@pytest.mark.parametrize(
    ("choice", "settings"),
    [
        ("mixup", ["augmentation.alpha=5.0", "augmentation.layer=1", "objective=rdrop"]),
        ("cutoff", ["augmentation.part=token", "augmentation.rate=0.6", "augmentation.alpha=3",
                    "augmentation.beta=0", "objective=fgm"]),
    ],
)  # fmt: skip
def test_every_setting_changes_the_weights(choice, settings, workplace, quick):
    plain, own = weights(workplace, quick), weights(workplace, quick, f"augmentation={choice}")
    found = [weights(workplace, quick, f"augmentation={choice}", each) for each in settings]
    assert len({plain, own, *found}) == 2 + len(settings)


def test_what_does_not_go_together_is_refused(workplace, quick, capsys):
    assert main(["train", *quick, "augmentation=mixup", "objective=supcon"]) == 2
    assert "mixup leaves none" in capsys.readouterr().err
