"""One logit: closed forms of the loss and its derivative."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whet.data.files import Files
from whet.data.split import Split
from whet.errors import ConfigError
from whet.paths import Paths
from whet.task.binary import Binary

NAMES = ("no", "yes")


def task(**settings):
    return Binary(name="t", data=Files(path="unused.csv"), **settings)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@given(
    z=st.floats(-15, 15, width=32),
    y=st.integers(0, 1),
    w=st.floats(0.1, 20),
    smoothing=st.floats(0, 0.9),
)
def test_loss_and_derivative_in_closed_form(z, y, w, smoothing):
    criterion = task(positive_weight=w, label_smoothing=smoothing).criterion(np.array([0, 1]), NAMES)
    logit = torch.tensor([[z]], dtype=torch.float32, requires_grad=True)
    loss = criterion.losses(logit, torch.tensor([y])).sum()
    t, p = y * (1 - smoothing) + smoothing / 2, sigmoid(np.float64(z))
    expected = -w * t * np.log(p) - (1 - t) * np.log(1 - p)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    loss.backward()
    derivative = (1 - t) * p - w * t * (1 - p)
    assert logit.grad.item() == pytest.approx(derivative, rel=1e-4, abs=1e-5)


def test_without_settings_the_derivative_is_p_minus_y():
    z = torch.linspace(-4, 4, 9).unsqueeze(1).requires_grad_()
    y = torch.arange(9) % 2
    task().criterion(y.numpy(), NAMES).losses(z, y).sum().backward()
    torch.testing.assert_close(z.grad[:, 0], torch.sigmoid(z[:, 0]) - y)


def test_far_logits_stay_finite():
    losses = (
        task()
        .criterion(np.array([0, 1]), NAMES)
        .losses(torch.tensor([[500.0], [-500.0]]), torch.tensor([0, 1]))
    )
    assert losses.tolist() == [500, 500]


def test_every_row_weighs_one_but_those_without_label():
    criterion = task(positive_weight=3.0).criterion(np.array([0, 1]), NAMES)
    labels = np.array([1, 0, -1])
    assert criterion.weights(labels).tolist() == [1, 1, 0]
    losses = criterion.losses(torch.tensor([[1.0], [1.0], [1.0]]), torch.from_numpy(labels))
    assert losses[2] == 0 and losses[0] > 0


def test_threshold():
    made = task(threshold=0.7)
    p = made.probabilities(np.log(np.array([[0.69 / 0.31], [0.71 / 0.29]], dtype=np.float32)))
    np.testing.assert_allclose(p, [0.69, 0.71], rtol=1e-6)
    assert made.decide(p).tolist() == [0, 1]
    assert task(threshold=0.5).decide(np.array([0.5, 0.49999])).tolist() == [1, 0]
    assert [item["label"] for item in made.describe(p, NAMES)] == ["no", "yes"]
    assert made.describe(p, NAMES)[0]["probabilities"] == {"no": 0.31, "yes": 0.69}


def test_exactly_two_labels():
    head = task().head(NAMES)
    assert (head.outputs, head.names) == (1, NAMES)
    for labels in (["a"], ["a", "b", "c"]):
        with pytest.raises(ConfigError, match="single_label.SingleLabel"):
            task(labels=labels)
        with pytest.raises(ConfigError, match="single_label.SingleLabel"):
            task().head(labels)


def test_the_second_label_is_positive(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{['ham', 'spam'][i % 2]}\n" for i in range(16)))
    made = Binary(name="t", data=Files(path=str(path)), split=Split(validation=0.25, test=0.25))
    corpus = made.load(Paths(cache=str(tmp_path / "cache")))
    assert corpus.label_names == ("ham", "spam")
    for examples in corpus.splits.values():
        assert examples.labels.tolist() == [int(texts[0][1:]) % 2 for texts in examples.texts]
    flipped = Binary(name="t", data=Files(path=str(path)), split=made.split, labels=["spam", "ham"])
    train = flipped.load(Paths(cache=str(tmp_path / "cache"))).splits["train"]
    assert train.labels.tolist() == (1 - corpus.splits["train"].labels).tolist()
