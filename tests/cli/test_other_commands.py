"""help, completion, data, doctor: what a user sees before the first training."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import whet
from whet.cli.completion import BASH, query
from whet.cli.main import COMMANDS, main
from whet.config import GROUPS, conf_dir


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"whet {whet.__version__}\n"


def test_help_names_every_command(capsys):
    assert main(["--help"]) == main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "completion"])
def test_help_of_a_command_shows_settings_and_examples(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: whet {command}" in shown
    assert f"\n  whet {command}" in shown or f"| whet {command}" in shown


def test_help_of_train_lists_every_choice_of_every_group(capsys):
    main(["train", "--help"])
    shown = capsys.readouterr().out
    for group in GROUPS:
        assert f"\n  {group}\n" in shown
        for path in (conf_dir() / group).glob("*.yaml"):
            assert f"    {path.stem} " in shown


def test_help_of_a_choice_explains_its_settings(capsys):
    assert main(["train", "optimizer=sgd", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "optimizer=sgd" in shown
    assert "momentum" in shown
    assert "share of the last update kept" in shown
    assert main(["train", "engine", "--help"]) == 0
    assert "Largest L2 norm of the gradient" in capsys.readouterr().out


def test_users_own_choices_are_listed(workplace, capsys):
    main(["train", "--help"])
    assert "mine                     My reviews" in capsys.readouterr().out


# ------------------------------------------------------------------ completion


@pytest.mark.parametrize(
    ("line", "some", "none"),
    [
        ("whet tr", ["train "], ["predict "]),
        ("whet train peft=l", ["peft=lora "], ["peft=none "]),
        ("whet train optimizer=sgd optimizer.m", ["optimizer.momentum="], ["optimizer.eps="]),
        ("whet train engine.b", ["engine.batching."], []),
        ("whet train +debug=f", ["debug=fast "], []),
        ("whet train --c", ["--cfg "], []),
        ("whet predict in", ["input="], []),
        ("whet nothing x", [], []),
        ("whet train model=nothing optimizer.l", [], []),
    ],
)
def test_completion(line, some, none):
    found = query(line)
    assert set(some) <= set(found)
    assert not set(none) & set(found)


def test_completion_in_a_real_bash(workplace):
    """Source the script, fill bash's completion variables, call the function, read COMPREPLY."""
    whet_command = f'whet() {{ {sys.executable} -m whet "$@"; }}\n'
    for line, expected in (
        ("whet train task=mi", "mine"),
        ("whet train sched", "scheduler="),
        ("whet eva", "evaluate"),
    ):
        words = line.split()
        script = (
            f"{whet_command}{BASH}\nCOMP_WORDBREAKS=$' \\t\\n=:'\nCOMP_LINE='{line}'\nCOMP_POINT={len(line)}\n"
            f"COMP_WORDS=({' '.join(words)})\nCOMP_CWORD={len(words) - 1}\n_whet_completion\n"
            "printf '%s|' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=True, cwd=workplace
        )
        assert expected in [item.strip() for item in done.stdout.split("|")], (line, done.stdout, done.stderr)


# ------------------------------------------------------------------ predict, evaluate


@pytest.fixture
def finished(workplace, quick, capsys):
    """A run of about a second, trained in fp32 on the CPU; its folder."""
    keys = ["engine.device=cpu", "engine.precision=fp32", "name=base"]
    assert main(["train", *quick, *keys]) == 0
    capsys.readouterr()
    return workplace / "outputs" / "runs" / "base"


def labelled(finished, *keys):
    """What `whet predict` says, one dict a row."""
    assert main(["predict", f"run={finished}", "device=cpu", "output=out.jsonl", *keys]) == 0
    return [json.loads(line) for line in (finished.parents[2] / "out.jsonl").read_text().splitlines()]


def test_batch_of_predict_is_the_most_rows_of_a_forward_pass(finished, workplace, monkeypatch):
    from whet.data.batch import Collator

    (workplace / "in.txt").write_text("".join(f"film {number}\n" for number in range(7)))
    sizes, collate = [], Collator.__call__

    def noted(self, rows, device):
        sizes.append(len(rows))
        return collate(self, rows, device)

    monkeypatch.setattr(Collator, "__call__", noted)
    found = []
    for batch, expected in ((3, [3, 3, 1]), (7, [7]), (128, [7])):
        sizes.clear()
        found.append([row["label"] for row in labelled(finished, "input=in.txt", f"batch={batch}")])
        assert sizes == expected
    assert found[0] == found[1] == found[2]


def test_format_of_predict_decides_how_a_file_is_read(finished, workplace):
    (workplace / "in.dat").write_text("stars,review\n5,good film\n1,bad film\n")

    def texts(name):
        return [row["text"] for row in labelled(finished, "input=in.dat", f"format={name}")]

    lines = ["stars,review", "5,good film", "1,bad film"]
    assert texts("auto") == texts("txt") == lines, "without a known suffix: plain lines"
    assert texts("csv") == ["good film", "bad film"]
    (workplace / "in.dat").write_text("review\tstars\ngood, really\t5\n")
    assert texts("tsv") == ["good, really"]
    (workplace / "in.dat").write_text('{"review": "fine"}\n')
    assert texts("jsonl") == ["fine"]


def test_precision_of_evaluate_and_predict_is_that_of_the_logits(finished, workplace):
    """bf16 keeps 8 bits of a logit: what it says lies on a coarser grid than fp32's."""
    import numpy as np
    import torch

    from whet.evaluation.predictions import Predictions

    def evaluated(*keys):
        assert main(["evaluate", f"run={finished}", "device=cpu", *keys]) == 0
        newest = max((finished / "evaluations").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return Predictions.load(newest / "test.npz").logits

    def on_the_grid(logits):
        rounded = torch.from_numpy(logits).bfloat16().float().numpy()
        return np.array_equal(rounded, logits)

    trained = Predictions.load(finished / "predictions" / "test.npz").logits
    assert np.array_equal(evaluated(), trained), "null: that of the training"
    assert np.array_equal(evaluated("precision=fp32"), trained)
    coarse = evaluated("precision=bf16")
    assert on_the_grid(coarse) and not on_the_grid(trained)
    np.testing.assert_allclose(coarse, trained, atol=0.05)
    (workplace / "in.txt").write_text("good film\nbad film\n")
    fine, rough = (labelled(finished, "input=in.txt", f"precision={name}") for name in ("fp32", "bf16"))
    assert fine == labelled(finished, "input=in.txt")
    assert [row["probabilities"] for row in fine] != [row["probabilities"] for row in rough]


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "input=own.csv", "output=out.jsonl"]])
def test_device_of_evaluate_and_predict_is_where_the_model_goes(finished, command, monkeypatch, capsys):
    from torch import nn

    places, move = [], nn.Module.to

    def noted(self, place, *rest, **more):
        places.append(str(place))
        return move(self, place, *rest, **more)

    monkeypatch.setattr(nn.Module, "to", noted)
    assert main([*command, f"run={finished}", "device=cpu"]) == 0
    assert places[-1] == "cpu"
    assert main([*command, f"run={finished}", "device=cuda:99"]) == 2
    assert "device=cuda:99: not usable here" in capsys.readouterr().err


# ------------------------------------------------------------------ data, doctor


def test_data_shows_what_the_data_holds(workplace, capsys):
    assert main(["data", "task=mine", "model=tiny", "samples=4", "output=mine.json"]) == 0
    shown = capsys.readouterr().out
    told = json.loads((workplace / "mine.json").read_text())
    rows = {name: split["rows"] for name, split in told["splits"].items()}
    assert rows == {"train": 48, "validation": 6, "test": 6}
    assert len(told["samples"]) == 4
    balance = {item["label"]: item["count"] for item in told["splits"]["train"]["balance"]}
    assert balance == {"1": 24, "5": 24}
    assert "48" in shown
    assert "padding" in shown


def test_data_settings_change_what_is_shown(workplace, capsys):
    def figures(*keys):
        assert main(["data", "task=mine", "model=tiny", "output=mine.json", *keys]) == 0
        return json.loads((workplace / "mine.json").read_text())

    cut = figures("task.max_length=16")
    assert cut["splits"]["train"]["truncated"]["rows"] == 48
    assert figures("seed=1")["samples"] != figures("seed=2")["samples"]
    padded = figures("engine.batching.pad_to=128")["padding"]["train"]
    assert padded > figures()["padding"]["train"] + 0.3


def test_data_shows_the_rows_that_debugging_leaves(workplace):
    for choice, rows in (
        ("fast", {"train": 48, "validation": 6, "test": 6}),
        ("overfit", dict.fromkeys(("train", "validation", "test"), 8)),
    ):
        assert main(["data", "task=mine", "model=tiny", "output=mine.json", f"debug={choice}"]) == 0
        told = json.loads((workplace / "mine.json").read_text())["splits"]
        assert {name: split["rows"] for name, split in told.items()} == rows
    assert main(["data", "task=mine", "model=tiny", "output=mine.json", "debug.rows=5"]) == 0
    assert json.loads((workplace / "mine.json").read_text())["splits"]["train"]["rows"] == 5


def test_data_counts_duplicates_leaks_and_contradictions(workplace, capsys):
    lines = [
        "text,label",
        "same,a",
        "same,a",
        "Same!,a",
        "other,a",
        "other,b",
        ",a",
        "blank,",
        *[f"t{i},b" for i in range(20)],
    ]
    (workplace / "odd.csv").write_text("\n".join(lines) + "\n")
    keys = [
        "task=mine",
        "task.data.path=odd.csv",
        "task.text=text",
        "task.label=label",
        "model=tiny",
        "output=odd.json",
    ]
    assert main(["data", *keys]) == 0
    told = json.loads((workplace / "odd.json").read_text())["findings"]
    counts = {kind: found["count"] for kind, found in told["all"].items() if isinstance(found, dict)}
    expected = {"duplicates": 1, "near_duplicates": 1, "contradictions": 2, "empty": 1, "missing_label": 1}
    assert {name: counts[name] for name in expected} == expected
    assert main(["data", *keys, "task.audit.duplicates=refuse"]) == 2
    assert "duplicates" in capsys.readouterr().err


def told_by_doctor(capsys, *keys):
    code = main(["doctor", "json=true", "timeout=1.0", *keys])
    return code, {item["what"]: item for item in json.loads(capsys.readouterr().out)}


def test_doctor_tells_versions_and_devices(workplace, capsys):
    from importlib import metadata

    code, told = told_by_doctor(capsys)
    assert code == 0
    assert told["torch"]["found"] == metadata.version("torch")
    assert told["whet"]["found"] == whet.__version__
    assert "autocast" in told["device"]["found"]


def test_doctor_knocks_at_the_hub(workplace, capsys, monkeypatch):
    import socket

    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert told_by_doctor(capsys)[1]["hub"]["state"] == "good"
    assert told_by_doctor(capsys)[1]["hub"]["state"] == "note"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in told_by_doctor(capsys)[1]["hub"]["found"]


def test_doctor_looks_for_a_wandb_login(workplace, capsys, monkeypatch):
    monkeypatch.setenv("NETRC", str(workplace / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert told_by_doctor(capsys)[1]["wandb login"]["state"] == "note"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert told_by_doctor(capsys)[1]["wandb login"]["state"] == "good"


def test_doctor_fails_where_the_disk_is_full(workplace, capsys, monkeypatch):
    monkeypatch.setattr("whet.cli.doctor.LEAST_FREE_GB", 1e9)
    assert main(["doctor", "timeout=1.0"]) == 1
    assert "BAD   cache" in capsys.readouterr().out
