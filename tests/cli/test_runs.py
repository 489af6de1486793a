"""`whet runs` on folders written by hand."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest
from tests.review.written import config_of, write_run, write_sweep

from whet.cli.completion import query
from whet.cli.main import main


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two runs of `none`, two of `lora`, one that failed, in `outputs/runs`; the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WHET_OUTPUT", raising=False)
    figures = {("none", 1): 0.5, ("none", 2): 0.6, ("lora", 1): 0.7, ("lora", 2): 0.9}
    for (peft, seed), figure in figures.items():
        name = f"{peft}-{seed}"
        config = config_of(peft, 5e-5 if peft == "none" else 3e-4, seed)
        write_run(tmp_path / "outputs" / "runs" / name, figure, test=figure - 0.1, config=config)
    write_run(
        tmp_path / "outputs" / "runs" / "broken",
        status="failed",
        reason="no rows",
        config=config_of("lora", 3e-4, 3),
    )
    return tmp_path


def rows(capsys, *arguments):
    """What `whet runs … format=csv` printed."""
    assert main(["runs", *arguments, "format=csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_the_table(place, capsys):
    assert main(["runs"]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "name", "status", "task", "model", "peft", "seed", "validation/accuracy", "test/accuracy", "time", "age",
    ]  # fmt: skip
    found = {line.split()[0]: line.split() for line in lines}
    assert found["none-1"][1:9] == ["finished", "mine", "tiny", "none", "1", "0.5000", "0.4000", "0:01:40"]
    assert found["broken"][1] == "failed"
    assert len(found) == 5


def test_columns_conditions_order_limit(place, capsys):
    found = rows(
        capsys,
        "columns=[name,optimizer.lr,validation]",
        "where=[peft=lora,status!=failed]",
        "sort=-validation",
    )
    assert found == [
        {"name": "lora-2", "optimizer.lr": "0.0003", "validation": "0.9"},
        {"name": "lora-1", "optimizer.lr": "0.0003", "validation": "0.7"},
    ]
    assert [row["name"] for row in rows(capsys, "sort=[peft,-seed]", "limit=4")] == [
        "broken",
        "lora-2",
        "lora-1",
        "none-2",
    ]
    assert [row["name"] for row in rows(capsys, "where=optimizer.lr<1e-4", "sort=seed")] == [
        "none-1",
        "none-2",
    ]
    assert [
        row["name"] for row in rows(capsys, "outputs/runs/none-2", "outputs/runs/lora-1", "sort=name")
    ] == ["lora-1", "none-2"]


def test_groups(place, capsys):
    found = rows(capsys, "group=[peft,optimizer.lr]", "sort=-validation/accuracy")
    assert [
        (row["peft"], row["optimizer.lr"], row["runs"], row["validation/accuracy.n"]) for row in found
    ] == [
        ("lora", "0.0003", "3", "2"),
        ("none", "5e-05", "2", "2"),
    ]
    assert float(found[0]["validation/accuracy"]) == pytest.approx(0.8)
    assert float(found[0]["validation/accuracy.std"]) == pytest.approx(0.2 / 2**0.5)
    assert main(["runs", "group=peft", "where=status=finished"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:5] == ["lora", "2", "0.8000", "±", "0.1414"]
    assert main(["runs", "group=model", "format=markdown"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("| model | runs | validation/accuracy |")
    assert "differ in more than the seed (optimizer.lr, peft._target_)" in captured.err


def test_output_is_whole_and_its_suffix_counts(place, capsys):
    assert main(["runs", "output=deep/all.json"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "written to deep/all.json" in captured.err
    assert {row["name"] for row in json.loads((place / "deep" / "all.json").read_text())} == {
        "none-1", "none-2", "lora-1", "lora-2", "broken",
    }  # fmt: skip
    assert [path.name for path in (place / "deep").iterdir()] == ["all.json"]
    assert main(["runs", "output=deep/all.csv", "format=markdown"]) == 0
    assert (place / "deep" / "all.csv").read_text().startswith("| name |")


def test_sweeps_are_rows_of_their_own_kind(place, capsys):
    write_sweep(place / "outputs" / "sweeps" / "lost")
    assert main(["runs"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("name  ") == 2, "two tables"
    assert "warning: " in captured.err and "study.db is gone" in captured.err
    assert [row["name"] for row in rows(capsys, "kind=sweeps")] == ["lost"]
    assert {row["kind"] for row in rows(capsys)} == {"run", "sweep"}
    assert main(["runs", "kind=runs"]) == 0
    captured = capsys.readouterr()
    assert "lost" not in captured.out + captured.err


def test_damaged_folders_are_one_warning(place, capsys):
    for name in ("none-1", "lora-1"):
        (place / "outputs" / "runs" / name / "run.json").write_text("{")
    assert len(rows(capsys)) == 3
    main(["runs", "kind=runs"])
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith("warning: left out") and "none-1" in err[0] and "lora-1" in err[0]


def test_show(place, capsys):
    assert main(["runs", "show", "bro"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["status"][1:3] == ["failed,", "begun"] and lines["status"][-2:] == ["no", "rows"]
    assert lines["repeat"] == ["repeat", "it", "whet", "train", "seed=3"]
    assert main(["runs", "show", "outputs/runs/lora-1", "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == {"validation": {"accuracy": 0.7}, "test": {"accuracy": 0.6}}
    assert found["differences"]["peft"] == {"value": "lora", "default": "none"}
    assert found["differences"]["optimizer.lr"] == {"value": 3e-4, "default": 5e-5}
    assert "optimizer.betas" in found["differences"], "it isn't in the written config"
    assert found["files"]["overrides.txt"] == len("seed=1\n")


def test_the_command_can_be_pasted(place, capsys):
    folder = place / "outputs" / "runs" / "lora-1"
    (folder / "overrides.txt").write_text("task.data.where={source: a b}\nresume=auto\npeft=lora\n")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "processes": 2}))
    assert main(["runs", "show", "lora-1", "format=json"]) == 0
    command = json.loads(capsys.readouterr().out)["command"]
    assert command == "torchrun --nproc-per-node=2 -m whet train 'task.data.where={source: a b}' peft=lora"


def test_diff(place, capsys):
    assert main(["runs", "diff", "none-1", "lora-1", "lora-2", "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == ["none-1", "lora-1", "lora-2"]
    assert found["config"]["optimizer.lr"] == [5e-5, 3e-4, 3e-4]
    assert found["changes"]["validation/accuracy"] == pytest.approx([0.2, 0.4])
    assert main(["runs", "diff", "none-1", "lora-1"]) == 0
    assert "optimizer.lr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["columns=[name,optimizer.lrr]"],
            "columns=optimizer.lrr: no run has it; did you mean optimizer.lr",
        ),
        (["where=accuracy>0.5"], "did you mean"),
        (
            ["sort=-validation/acuracy"],
            "sort=validation/acuracy: no run has it; did you mean validation/accuracy",
        ),
        (["group=[pefd]"], "did you mean peft?"),
        (["group=peft", "columns=status"], "columns=status: can't be averaged"),
        (["group=peft", "kind=sweeps"], "leave out kind=sweeps"),
        (["lora-1"], "lora-1: no such folder; whet runs show lora-1 looks for"),
        (["show"], "one run is shown"),
        (["show", "lora"], "lora: 2 runs begin so: lora-1, lora-2"),
        (["show", "lora-1", "sort=name"], "sort=name: unknown key"),
        (["diff", "lora-1"], "two runs or more"),
        (["diff", "lora-1", "nine"], "nine: no run or sweep of this name"),
        (["formt=csv"], "did you mean format?"),
        (["limit=0"], "limit=0"),
    ],
)
def test_wrong_input_is_one_line(arguments, told, place, capsys):
    assert main(["runs", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("whet: ") and told in line


def test_nothing_to_show_is_said(place, capsys):
    assert main(["runs", "where=age<1s"]) == 0
    assert "none of 5 matches" in capsys.readouterr().err
    assert main(["runs", "where=age<1s", "group=peft"]) == 0
    captured = capsys.readouterr()
    assert "none of 5 matches" in captured.err and captured.out == ""
    assert rows(capsys, "where=age<1s", "group=peft") == []
    (place / "empty").mkdir()
    assert main(["runs", "empty"]) == 0
    assert "no runs or sweeps at or below" in capsys.readouterr().err


def test_help_and_completion(place, capsys):
    assert main(["runs", "show", "--help"]) == 0
    out = capsys.readouterr().out
    for text in (
        "usage: whet runs",
        "whet runs diff A B",
        "columns=null",
        "optimizer.lr>1e-4",
        "~=",
        "killed",
    ):
        assert text in out
    assert query("whet runs ")[:2] == ["show ", "diff "]
    assert query("whet runs di") == ["diff "]
    assert query("whet runs format=m") == ["format=markdown "]
    assert query("whet runs show no") == ["none-1 ", "none-2 "]
    assert query("whet runs diff none-1 lora-1 ")[-1] == "format="
    assert query("whet runs show format=") == ["format=table ", "format=json "]


def test_a_listing_loads_nothing_heavy(place):
    code = (
        "import sys; from whet.cli.main import main; main(['runs', 'group=peft']); main(['runs', 'show', 'lora-1'])\n"
        "heavy = 'torch,transformers,peft,wandb,datasets,sklearn,matplotlib,tensorboard,optuna,pandas,scipy'\n"
        "sys.exit(','.join(n for n in heavy.split(',') if n in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lora") > 1
