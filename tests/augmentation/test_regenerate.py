"""Rewriting by a tiny causal model: what it is asked, what is taken, what a run's judgement keeps."""

import numpy as np
import pytest
from tests.augmentation.material import around, items, save

from whet.augmentation.base import Item
from whet.augmentation.generation import load
from whet.augmentation.regenerate import Regenerate, asked, filtered, label_text
from whet.errors import ConfigError, RunError
from whet.model.weights import LocalWeights

TEXTS = ["the film is good", "a bad story", "odd"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} actor{% endif %}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return LocalWeights(path=str(save(tmp_path_factory.mktemp("causal"), "CausalLM", 3)))


def made(weights, folder, texts=TEXTS, seed=1, **settings):
    change = Regenerate(weights=weights, **settings).open(around(folder))
    return [text for (text,) in change(items(texts, seed=seed))]


def test_the_copy_is_what_the_model_writes_after_the_prompt(weights, tmp_path):
    writer = load(weights, "CausalLM", around(tmp_path), "weights", left=True)
    prompts = [f"{text} is negative :" for text in TEXTS]
    expected = [text.partition("\n")[0].strip() for text in writer.write(prompts, [], 0.0, 1.0)]
    found = made(weights, tmp_path, prompt="{text} is {label} :", temperature=0.0)
    assert found == [new or old for new, old in zip(expected, TEXTS, strict=True)]
    assert all(found)


def test_seed_and_settings(weights, tmp_path):
    first = made(weights, tmp_path / "a")
    assert made(weights, tmp_path / "b", batch=1) == first
    for number, other in enumerate(
        ({"seed": 2}, {"temperature": 4.0}, {"top_p": 0.01}, {"prompt": "{text} odd"})
    ):
        assert made(weights, tmp_path / str(number), **other) != first


def test_a_chat_template_is_used(tmp_path):
    folder = save(tmp_path / "chat", "CausalLM", 3, TEMPLATE)
    writer = load(LocalWeights(path=str(folder)), "CausalLM", around(tmp_path), "weights")
    assert asked("say {text} ({label})", "good", "negative", writer) == "user: say good (negative) actor"


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (np.int64(1), "positive"),
        (np.int64(-1), "unknown"),
        (np.array([1, 0], dtype=np.float32), "negative"),
        (np.array([1, 1], dtype=np.float32), "negative, positive"),
        (np.array([0, 0], dtype=np.float32), "none"),
    ],
)
def test_labels_in_words(label, words):
    assert label_text(label, ("negative", "positive")) == words


def test_a_number_in_words():
    assert label_text(np.float32(2.5), ()) == "2.5"


@pytest.mark.parametrize("prompt", ["no field", "{text} {other}", "{text", "{label} only"])
def test_prompts_that_can_not_be_filled(weights, prompt):
    with pytest.raises(ConfigError, match="prompt="):
        Regenerate(weights=weights, prompt=prompt)


def test_a_copy_that_changed_its_label_stays_the_original():
    given = [Item((str(n),), label, (0, 0, n, 1)) for n, label in enumerate((0, 1, 1, 0))]
    change = filtered(lambda some: [("new",)] * len(some), lambda texts: np.array([0, 0, 1, 1]))
    assert change(given) == [("new",), ("1",), ("new",), ("3",)]
    assert change([]) == []


def test_a_filter_that_is_no_run(weights, tmp_path):
    with pytest.raises(RunError, match="nowhere"):
        Regenerate(weights=weights, filter_run=str(tmp_path / "nowhere")).open(around(tmp_path))
