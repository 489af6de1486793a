"""The signature is the schema: completion, checking, building, composing."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.config import (
    TARGET,
    Method,
    build,
    complete,
    compose,
    conf_dir,
    flatten,
    load,
    part,
    resolve,
    save,
    signature,
    sweeps_dir,
    to_config,
)
from whet.data.batching import Batching
from whet.engine.engine import Engine
from whet.engine.train import Parts
from whet.errors import ConfigError, nearest
from whet.secrets import MASK, mask, mask_text
from whet.types import Duration

CONF = conf_dir()
GROUP_FILES = sorted(path for path in CONF.rglob("*.yaml") if path.parent != CONF)
SWEEP_FILES = sorted(sweeps_dir().glob("*.yaml"))
COMMAND_FILES = sorted(CONF.glob("*.yaml"))


def test_the_count_of_configs():
    """A file that rglob no longer finds would make the tests below pass in vain."""
    assert len(GROUP_FILES) >= 40
    assert {path.stem for path in COMMAND_FILES} == {
        "train", "pretrain", "evaluate", "predict", "merge", "data", "doctor",
    }  # fmt: skip
    groups = {path.parent.name for path in GROUP_FILES}
    wanted = [
        "task",
        "model",
        "peft",
        "augmentation",
        "lexicon",
        "objective",
        "averaging",
        "optimizer",
        "scheduler",
        "engine",
        "tracking",
        "paths",
        "experiment",
        "debug",
    ]
    assert groups == set(wanted)


def test_readme_names_every_choice():
    readme = (CONF.parent / "README.md").read_text(encoding="utf-8")
    for path in GROUP_FILES:
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{path.parent.name}` |"))
        assert f"`{path.stem}`" in row, path


NEEDS = {
    "model/local": ["model.weights.path=."],
    "objective/distill": ["objective.teacher=."],
    "augmentation/back_translation": ["augmentation.forth.path=.", "augmentation.back.path=."],
    "lexicon/own": ["augmentation.chinese.path=."],
}
"""What a choice can't do without."""
PLACES = {"lexicon": ("lexicon@augmentation.chinese", ["augmentation=synonym"])}
"""Groups that fill a place inside another one: how they are chosen, and what has the place."""


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_choice_composes_and_binds(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group, around = PLACES.get(path.parent.name, (path.parent.name, []))
    needs = NEEDS.get(f"{path.parent.name}/{path.stem}", [])
    config = compose("train", [*around, f"{group}={path.stem}", *needs])
    build(config, Parts)


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_choice_says_what_it_is(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("# ") and not line.startswith("# @") for line in lines[:2])


@pytest.mark.parametrize("path", SWEEP_FILES, ids=lambda path: path.stem)
def test_every_sweep_composes_and_binds(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(compose("train", [f"sweep={path.stem}"]), Parts)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[1].startswith("# ")


def test_the_count_of_sweeps():
    names = {
        "none",
        "optuna",
        "lr_warmup",
        "lr_warmup_decay",
        "peft_method",
        "robustness",
        "accuracy_vs_cost",
    }
    assert {path.stem for path in SWEEP_FILES} == names


@pytest.mark.parametrize(
    ("command", "given_keys"),
    [
        ("evaluate", ["run=x"]),
        ("predict", ["run=x"]),
        ("merge", ["run=x", "output=y"]),
        ("data", []),
        ("doctor", []),
    ],
)
def test_every_command_binds(command, given_keys):
    import importlib

    module = importlib.import_module(f"whet.cli.{command}")
    entry = {"data": "describe_data", "doctor": "examine"}.get(command, command)
    build(compose(command, given_keys), getattr(module, entry))


def test_settings_of_commands_default_alike_in_yaml_and_signature():
    """Plain settings stand in the command's YAML and in its signature: they must agree."""
    from whet.cli.data import describe_data
    from whet.cli.evaluate import evaluate
    from whet.cli.merge import merge
    from whet.cli.predict import predict

    commands = {"evaluate": evaluate, "predict": predict, "merge": merge, "data": describe_data}
    for command, function in commands.items():
        config = compose(command, ["run=x"] if command != "data" else [])
        for name, parameter in inspect.signature(function).parameters.items():
            if name in config and parameter.default is not inspect.Parameter.empty:
                assert config[name] == parameter.default, (command, name)


def test_the_articles_recipe_exactly():
    """bert-base-uncased on IMDB, all padded to 256 tokens, fp32, batch 16, 3 epochs, Adam 2e-5, constant."""
    config = compose("train", ["experiment=imdb_bert"])
    assert config["model"]["weights"]["repo"] == "google-bert/bert-base-uncased"
    assert config["task"]["name"] == "imdb"
    assert config["task"]["max_length"] == config["engine"]["batching"]["pad_to"] == 256
    assert config["engine"]["batching"]["size"] == 16
    assert config["engine"]["batching"]["tokens"] is None
    assert config["engine"]["accumulate"] == 1
    assert config["engine"]["batching"]["pool"] == 1
    assert config["engine"]["precision"] == "fp32"
    assert config["engine"]["duration"] == "3ep"
    assert config["engine"]["clip"] is None
    assert config["engine"]["patience"] is None
    assert config["optimizer"][TARGET] == "whet.optimizer.adam.adam"
    assert config["optimizer"]["lr"] == 2e-5
    assert config["optimizer"]["weight_decay"] == 0.0
    assert config["optimizer"]["layer_decay"] == 1.0
    assert config["optimizer"]["head_lr"] is None
    assert config["optimizer"]["betas"] == [0.9, 0.999]
    assert config["optimizer"]["eps"] == 1e-8
    assert config["peft"][TARGET] == "whet.peft.none.none"
    assert config["objective"][TARGET] == "whet.objective.plain.plain"
    scheduler = part(config["scheduler"], Method, "scheduler")
    assert {scheduler(step, 1000, 100) for step in range(1000)} == {1.0}


# ------------------------------------------------------------------ completion


def test_defaults_come_from_the_signature_alone():
    """Every key of a completed node is the signature's; values not stated in YAML are its defaults."""
    config = compose("train")
    for name in ("optimizer", "scheduler", "engine", "task"):
        parameters = signature(resolve(config[name][TARGET]))
        assert set(config[name]) - {TARGET} == set(parameters)
    assert config["engine"]["clip"] == Engine().clip
    assert config["engine"]["batching"]["pool"] == Batching().pool


def test_complete_keeps_what_is_stated():
    node = complete({TARGET: "whet.optimizer.adamw.adamw", "lr": 0.5})
    assert node["lr"] == 0.5
    assert node["betas"] == [0.9, 0.999]


def test_complete_leaves_a_bad_target_for_build():
    assert complete({TARGET: "whet.optimizer.nothing.adamw", "lr": 1}) == {
        TARGET: "whet.optimizer.nothing.adamw",
        "lr": 1,
    }


def test_to_config_round_trips_components():
    node = to_config(Engine(duration=Duration(5, "st"), batching=Batching(size=7)))
    again = part(node, Engine, "engine")
    assert again == Engine(duration=Duration(5, "st"), batching=Batching(size=7))


@pytest.mark.parametrize(
    ("node", "key"),
    [
        (5, "engine"),
        ({"duration": "3ep"}, "engine"),
        ({TARGET: "whet.optimizer.sgd.sgd", "lr": 1.0}, f"engine.{TARGET}"),
        ({TARGET: "whet.engine.engine.Engine", "clip": "x"}, "engine.clip"),
        ({TARGET: "whet.engine.engine.Engine", "duration": "0ep"}, "engine.duration"),
    ],
)
def test_a_part_that_is_none_is_named(node, key):
    with pytest.raises(ConfigError) as caught:
        part(node, Engine, "engine")
    assert caught.value.key == key


# ------------------------------------------------------------------ checking

BAD = {
    "optimizer.lr=fast": ("optimizer.lr", "fast", "number"),
    "optimizer.lr=-1": ("optimizer.lr", "-1", "greater than 0"),
    "optimizer.betas=[0.9]": ("optimizer.betas", "0.9", ""),
    "optimizer.betas=[0.9,1.5]": ("optimizer.betas", "1.5", "less than 1"),
    "optimizer.implementation=fussed": ("optimizer.implementation", "fussed", "did you mean fused"),
    "+optimizer.lrr=1": ("optimizer.lrr", "1", "did you mean lr"),
    "++optimizer.lrr=1": ("optimizer.lrr", "1", "did you mean lr"),
    "scheduler.warmup=-1": ("scheduler.warmup", "-1", "500st"),
    "scheduler.warmup=500": ("scheduler.warmup", "500", "500st"),
    "engine.duration=3": ("engine.duration", "3", "3ep"),
    "engine.duration=0ep": ("engine.duration", "0ep", "3ep"),
    "engine.evaluate_every=0st": ("engine.evaluate_every", "0st", "more than 0"),
    "engine.checkpoint_every=0ep": ("engine.checkpoint_every", "0ep", "more than 0"),
    "engine.batching.size=2.5": ("engine.batching.size", "2.5", "integer"),
    "engine.batching.size=true": ("engine.batching.size", "True", "integer"),
    "engine.precision=bf17": ("engine.precision", "bf17", "did you mean bf16"),
    "seed=one": ("seed", "one", "integer"),
    "task.metrics=[acuracy]": ("task.metrics", "acuracy", "did you mean accuracy"),
    "task.primary=mcd": ("task.primary", "mcd", "did you mean mcc"),
    "task.labels=[one]": ("task.labels", "one", "two"),
    "task.labels=[a,a]": ("task.labels", "a", "differ"),
    "task.split.test=1.5": ("task.split.test", "1.5", "less than or equal to 1"),
    "task.data=5": ("task.data", "5", TARGET),
    "task.data._target_=whet.data.filez.Files": (
        "task.data._target_",
        "whet.data.filez.Files",
        "did you mean files",
    ),
    "task.data._target_=whet.model.tiny.TinyWeights": ("task.data._target_", "TinyWeights", "Source"),
    "optimizer._target_=whet.peft.lora.lora": ("optimizer._target_", "whet.peft.lora.lora", "whet.optimizer"),
    "optimizer._target_=os.system": ("optimizer._target_", "os.system", "not allowed"),
    "optimizer._target_=whet.config.build": ("optimizer._target_", "whet.config.build", "not allowed"),
    "model._target_=subprocess.Popen": ("model._target_", "subprocess.Popen", "not allowed"),
    "engine._target_=whet.engine.run.subprocess.run": (
        "engine._target_",
        "whet.engine.run.subprocess.run",
        "",
    ),
}


@pytest.mark.parametrize("override", BAD)
def test_bad_values_name_key_value_and_what_is_right(override):
    key, value, hint = BAD[override]
    with pytest.raises(ConfigError) as caught:
        build(compose("train", [override]), Parts)
    text = str(caught.value)
    assert text.startswith(f"{key}=")
    assert value in text
    assert hint in text
    assert "\n" not in text
    assert caught.value.exit_code == 2


def test_numbers_serve_as_names():
    parts = build(
        compose("train", ["task.labels=[1,2]", "name=7", "++task.label_names={0:1}"]), Parts
    ).keywords
    assert (parts["task"].labels, parts["name"], parts["task"].label_names["0"]) == (["1", "2"], "7", "1")


def test_missing_value_is_named():
    with pytest.raises(ConfigError, match=r"model\.weights\.path: must be given"):
        build(compose("train", ["model=local"]), Parts)


def test_extra_targets_only_by_environment(monkeypatch, tmp_path):
    (tmp_path / "my_objectives.py").write_text(
        "def mine(forward, batch, *, scale: float = 1.0):\n    return scale\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    override = ["objective._target_=my_objectives.mine", "+objective.scale=2.0"]
    with pytest.raises(ConfigError, match="not allowed"):
        build(compose("train", override), Parts)
    monkeypatch.setenv("WHET_TARGETS", "my_objectives")
    bound = build(compose("train", override), Parts).keywords["objective"]
    assert bound(None, None) == 2.0


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-12, max_value=1e12))
def test_any_positive_rate_is_taken_exactly(lr):
    bound = part({TARGET: "whet.optimizer.sgd.sgd", "lr": lr}, Method, "optimizer")
    assert bound.keywords["lr"] == lr


def test_nearest_names_choices():
    assert nearest("bert_bse", ["bert_base", "tiny"]) == "did you mean bert_base? (choices: bert_base, tiny)"
    assert nearest("zzz", []) == "choices: none"


# ------------------------------------------------------------------ overlay, inheritance, files


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_conf_folder_here_adds_and_overrides(tmp_path, monkeypatch):
    write(tmp_path / "conf/optimizer/mine.yaml", "# mine\n_target_: whet.optimizer.sgd.sgd\nlr: 0.5\n")
    write(
        tmp_path / "conf/scheduler/linear.yaml",
        "# mine\n_target_: whet.scheduler.linear.linear\nfinal: 0.25\n",
    )
    monkeypatch.chdir(tmp_path)
    config = compose("train", ["optimizer=mine", "optimizer.nesterov=true"])
    assert config["optimizer"]["lr"] == 0.5
    assert config["optimizer"]["nesterov"] is True
    assert config["scheduler"]["final"] == 0.25
    assert compose("train")["optimizer"]["lr"] != 0.5


def test_a_sibling_in_the_defaults_list_is_inherited_before_completion(tmp_path, monkeypatch):
    base = "# base\n_target_: whet.optimizer.adamw.adamw\nlr: 0.125\nweight_decay: 0.5\n"
    write(tmp_path / "conf/optimizer/base.yaml", base)
    child = "# child\ndefaults: [base, _self_]\n_target_: whet.optimizer.sgd.sgd\nweight_decay: 0.25\n"
    write(tmp_path / "conf/optimizer/child.yaml", child)
    write(tmp_path / "conf/optimizer/last.yaml", "# last\ndefaults: [_self_, base]\nlr: 0.0625\n")
    monkeypatch.chdir(tmp_path)
    config = compose("train", ["optimizer=child"])["optimizer"]
    assert (config["lr"], config["weight_decay"], config["momentum"]) == (0.125, 0.25, 0.9)
    assert "betas" not in config
    assert compose("train", ["optimizer=last"])["optimizer"]["lr"] == 0.125


def test_own_experiment_outside_the_repository(tmp_path, monkeypatch):
    text = "# @package _global_\n# mine\ndefaults:\n  - override /optimizer: sgd\n  - override /model: tiny\nseed: 9\n"
    write(tmp_path / "conf/experiment/mine.yaml", text)
    monkeypatch.chdir(tmp_path)
    config = compose("train", ["experiment=mine"])
    assert (config["seed"], config["model"]["name"]) == (9, "tiny")
    assert config["optimizer"][TARGET].endswith("sgd")


def test_save_and_load_round_trip(tmp_path):
    config = compose("train")
    save(config, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config


def test_flatten_covers_every_leaf():
    assert dict(flatten({"a": {"b": 1, "c": [1, 2]}, "d": {}})) == {"a.b": 1, "a.c": [1, 2], "d": {}}


# ------------------------------------------------------------------ secrets


def test_secrets_are_masked(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    hidden = {
        "api_key": "x",
        "hub": {"token": "y", "url": "postgresql://me:pw@host/db"},
        "note": "key 0123456789abcdef",
    }
    shown = mask(hidden)
    assert shown["api_key"] == shown["hub"]["token"] == MASK
    assert shown["hub"]["url"] == f"postgresql://me:{MASK}@host/db"
    assert "0123456789abcdef" not in str(shown)
    save(hidden, tmp_path / "c.yaml")
    assert "pw@" not in (tmp_path / "c.yaml").read_text()
    assert (
        mask_text("tracking.sinks.wandb.api_key=abc seed=1") == f"tracking.sinks.wandb.api_key={MASK} seed=1"
    )


def test_ordinary_values_stay():
    ordinary = {
        "tokens": 16384,
        "tokenizer": "bert",
        "batch_tokens": 5,
        "url": "https://host/path",
        "lr": 1e-3,
    }
    assert mask(ordinary) == ordinary
