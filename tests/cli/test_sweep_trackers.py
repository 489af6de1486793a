"""What W&B and TensorBoard show of a sweep: one real search with a pruned and a failing trial."""

from __future__ import annotations

import json
import shutil

import pytest
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tests.tracking.test_wandb import items, of_kind, records

from whet.cli.main import main
from whet.engine import warm
from whet.engine.run import read_record
from whet.tracking.progress import be_quiet

RATES = "optimizer.lr=choice(1e-2,2e-2,1e-9,1e30)"
"""Two that learn, one that doesn't and is pruned, one whose loss isn't finite."""
STATES = {0.01: "finished", 0.02: "finished", 1e-9: "pruned", 1e30: "failed"}


@pytest.fixture(autouse=True)
def _forget():
    yield
    warm.forget()
    be_quiet(False)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Filled by the first test that wants it."""
    return tmp_path_factory.mktemp("swept") / "search"


@pytest.fixture
def place(swept, workplace, quick):
    """The sweep's folder."""
    if not swept.is_dir():
        more = ["tracking=default", "tracking.sinks.wandb.mode=offline", "tracking.sinks.wandb.patience=120.0", "engine.duration=4ep",
                "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=2",
                "hydra.sweeper.study_name=search", "sweep.objective=[validation/loss]", "sweep.start=false",
                "engine.patience=null", "hydra.sweep.dir=outputs/sweeps/folder"]  # fmt: skip
        mine = [item for item in quick if not item.startswith(("tracking", "engine.duration"))]
        assert main(["train", "-m", "sweep=optuna", *mine, RATES, *more]) == 1, "a trial failed"
        shutil.copytree(workplace / "outputs" / "sweeps" / "folder", swept)
    return swept


def trials(place):
    return {read_record(run)["trial"]["params"]["optimizer.lr"]: run for run in sorted(place.glob("0*"))}


def test_wandb_has_one_run_a_trial(place):
    seen = {}
    for rate, run in trials(place).items():
        found = records(run)[1]
        (told,) = of_kind(found, "run")
        record, number = read_record(run), int(run.name)
        config = items(told.config.update)
        summary = {}
        for update in of_kind(found, "summary"):
            summary |= items(update.update)
        assert (told.run_group, told.job_type, told.display_name) == (
            "search",
            "trial",
            f"search/{number:04d}",
        )
        assert config["optimizer.lr"] == config["trial.params.optimizer.lr"] == rate
        assert (config["trial.number"], config["trial.study"]) == (number, "search")
        assert summary["status"] == record["status"]
        assert [record.exit_code for record in of_kind(found, "exit")] == [int(record["status"] == "failed")]
        if record["status"] == "finished":
            assert summary["validation/loss"] == pytest.approx(record["metrics"]["validation/loss"])
        else:
            assert summary["reason"] and summary["reason"] in record["reason"]
        seen[told.run_id] = record["status"]
    assert sorted(seen.values()) == sorted(STATES.values())
    assert len(seen) == len(STATES) == len(list(place.glob("*/wandb/offline-run-*/*.wandb")))


def test_tensorboard_compares_trials(place):
    """Its own reader finds the searched parameter first, and a state and figures of every trial."""
    provider = MultiplexerDataProvider(
        EventMultiplexer().AddRunsFromDirectory(str(place)).Reload(), str(place)
    )
    backend = backend_context.Context(TBContext(data_provider=provider))
    every = [api_pb2.Status.Value(name) for name in ("STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_UNKNOWN")]
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=10, allowed_statuses=every)
    asked = context.RequestContext()
    groups = list_session_groups.Handler(asked, backend, "", request).run().session_groups
    states = {"finished": "STATUS_SUCCESS", "failed": "STATUS_FAILURE", "pruned": "STATUS_UNKNOWN"}
    shown = {}
    for group in groups:
        (session,) = group.sessions
        rate = group.hparams["optimizer.lr"].number_value
        figures = {value.name.tag: value.value for value in group.metric_values}
        shown[rate] = api_pb2.Status.Name(session.status)
        record = read_record(place / session.name.split("/")[0])
        assert group.hparams["trial.number"].number_value == record["trial"]["number"]
        if record["status"] == "finished":
            final = record["metrics"]["validation/loss"]
            assert figures["final/validation/loss"] == pytest.approx(final, rel=1e-5)
        if record["status"] == "pruned":
            assert "validation/loss" in figures and "final/validation/loss" not in figures
    assert shown == {rate: states[state] for rate, state in STATES.items()}
    hparams = backend.hparams_metadata(asked, "")
    table = backend.experiment_from_metadata(asked, "", True, hparams, [])
    differing = [info.name for info in table.hparam_infos if info.differs]
    assert "optimizer.lr" in differing and "seed" not in differing
    assert {"final/validation/loss", "train/loss"} <= {info.name.tag for info in table.metric_infos}


def test_a_trial_that_never_began_says_why(workplace, quick):
    """It fails while its model is made: there is no run for a tracker, but a record, with the trial's facts."""
    mine = [item for item in quick if not item.startswith("tracking")]
    heads = "model.weights.options.num_attention_heads=choice(3)"
    more = ["tracking=local", "hydra/sweeper/sampler=grid", "sweep.start=false", "sweep.test=false"]
    assert main(["train", "-m", "sweep=optuna", *mine, f"+{heads}", *more]) == 1
    (place,) = (workplace / "outputs" / "sweeps").iterdir()
    record = read_record(place / "0000")
    assert (record["status"], record["trial"]["number"]) == ("failed", 0)
    assert record["trial"]["params"] == {"+model.weights.options.num_attention_heads": 3}
    assert "heads" in record["reason"]
    assert json.loads((place / "sweep.json").read_text())["status"] == "finished"
