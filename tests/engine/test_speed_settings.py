"""`engine.packing`, `engine.gradient_checkpointing` and `engine.compile` in whole runs."""

import json
import shutil

import numpy as np
import pytest

from whet.cli.main import main
from whet.engine.engine import Engine
from whet.errors import ConfigError
from whet.evaluation.predictions import Predictions

PADDED = ["engine.batching.pad_to=64", "engine.precision=fp32"]


FROZEN = "layers below are frozen, and may come from the trunk cache"


def run(workplace, quick, name, *settings):
    """(record, test logits, log) of a run."""
    assert main(["train", *quick, f"name={name}", *PADDED, *settings]) == 0
    folder = workplace / "outputs" / "runs" / name
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    logits = Predictions.load(folder / "predictions" / "test.npz").logits
    return record, logits, (folder / "train.log").read_text(encoding="utf-8")


def test_runs_with_and_without(workplace, quick, capsys):
    still = ["model.dropout=0", "model.head_dropout=0"]
    record, plain, log = run(workplace, quick, "plain", *still, "engine.packing=off")
    assert record["packing"] == {"packing": "off"}
    assert f"peak memory: {record['memory']['peak_mb']:,} MiB" in log
    record, packed, log = run(workplace, quick, "packed", *still)
    assert record["packing"] == {"packing": "on"} and "packing on: " in log
    np.testing.assert_allclose(packed, plain, rtol=1e-3, atol=1e-5)
    assert not np.array_equal(packed, plain), "other arithmetic"


def test_recomputation_changes_nothing(workplace, quick, capsys):
    """Dropout is on."""
    _, plain, _ = run(workplace, quick, "plain", "engine.packing=off")
    _, again, _ = run(workplace, quick, "again", "engine.packing=off", "engine.gradient_checkpointing=true")
    assert np.array_equal(plain, again)


def test_a_model_without_recomputation_leaves_no_run(workplace, quick, capsys):
    given = ["model.weights.architecture=albert", "engine.gradient_checkpointing=true"]
    assert main(["train", *quick, *given]) == 2
    told = "engine.gradient_checkpointing=True: transformers hasn't got it for albert"
    assert told in capsys.readouterr().err
    assert not (workplace / "outputs" / "runs").exists()


def test_compilation_without_a_compiler(workplace, quick, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "nocompiler")
    assert main(["train", *quick, "engine.compile=true"]) == 2
    assert "engine.compile=True: needs a C++ compiler, and there is no nocompiler" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"compile": True, "packing": "on"}, r"compile=True: not together with engine\.packing=on"),
        ({"compile": True, "gradient_checkpointing": True}, r"engine\.gradient_checkpointing=True"),
        ({"compile": "max-autotune", "parallel": "fsdp"}, r"compile=max-autotune: .* engine\.parallel=fsdp"),
        ({"packing": "on", "parallel": "fsdp"}, r"packing=on: not together with engine\.parallel=fsdp"),
    ],
)
def test_what_does_not_go_together(settings, told):
    with pytest.raises(ConfigError, match=told):
        Engine(**settings)


def test_packing_or_the_trunk_cache(workplace, quick, capsys):
    """Automatic packing gives way to the cache (used or not: both are to the bit alike), or what is asked for."""
    frozen = ["peft=top_layers", "peft.layers=1", "engine.frozen=eval"]
    record, _, _ = run(workplace, quick, "cached", *frozen)
    assert record["frozen"]["cache"] == "on"
    assert record["packing"] == {"packing": "off", "because": FROZEN}
    record, _, _ = run(workplace, quick, "packed", *frozen, "engine.packing=on")
    assert record["frozen"]["because"] == "engine.packing=on" and record["packing"] == {"packing": "on"}
    record, _, _ = run(workplace, quick, "again", *frozen, "engine.gradient_checkpointing=true")
    assert record["frozen"]["cache"] == "on"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_compiled_run(workplace, quick, capsys):
    """Its exported model says to the bit what the last evaluation said: `whet train` compares them."""
    small = ["+model.weights.options.num_hidden_layers=1", "model.dropout=0", "model.head_dropout=0"]
    _, plain, _ = run(workplace, quick, "plain", *small, "engine.packing=off")
    record, compiled, _ = run(workplace, quick, "compiled", *small, "engine.compile=true")
    assert record["packing"] == {"packing": "off", "because": "engine.compile=True"}
    np.testing.assert_allclose(compiled, plain, rtol=1e-3, atol=1e-4)
