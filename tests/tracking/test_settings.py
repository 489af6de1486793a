"""conf/tracking composes, builds, and takes overrides of one sink's settings."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from whet.config import build, complete, conf_dir, to_plain
from whet.errors import ConfigError
from whet.tracking.base import Tracking


def tracking(choice, *overrides):
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        composed = to_plain(compose(overrides=[f"+tracking={choice}", *overrides]))
    node = complete(composed["tracking"])
    return build(node, Tracking, "tracking")()


@pytest.mark.parametrize(
    ("choice", "sinks"),
    [
        ("none", []),
        ("local", ["jsonl", "tensorboard", "console"]),
        ("default", ["jsonl", "tensorboard", "console", "wandb"]),
    ],
)
def test_choices(choice, sinks):
    built = tracking(choice)
    assert list(built.sinks) == sinks and built.log_every == 10


def test_one_sink_can_be_addressed():
    built = tracking(
        "default", "++tracking.sinks.wandb.project=mine", "++tracking.sinks.console.progress=off"
    )
    assert built.sinks["wandb"].project == "mine" and built.sinks["console"].progress == "off"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("++tracking.sinks.wandb.mode=onlin", "tracking.sinks.wandb.mode"),
        ("++tracking.sinks.wandb.patience=0", "tracking.sinks.wandb.patience"),
        ("++tracking.sinks.wandb.queue_size=0", "tracking.sinks.wandb.queue_size"),
        ("++tracking.sinks.console.every_seconds=-1", "tracking.sinks.console.every_seconds"),
        ("++tracking.sinks.console.progres=bar", "tracking.sinks.console.progres"),
    ],
)
def test_wrong_settings_name_their_key(override, key):
    with pytest.raises(ConfigError) as caught:
        tracking("default", override)
    assert caught.value.key == key
