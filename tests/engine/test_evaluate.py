"""Evaluation gives rows back in their order, and the figures that one would work out by hand."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch

from whet.data.batch import Collator, Examples
from whet.data.batching import Batching
from whet.data.files import Files
from whet.data.tokens import encode
from whet.engine.evaluate import Evaluator, logits_of
from whet.engine.precision import Amp
from whet.model.encoder import Encoder
from whet.model.tiny import TinyWeights
from whet.paths import Paths
from whet.task.regression import Regression
from whet.task.single_label import SingleLabel

torch.set_num_threads(1)
FP32 = Amp(torch.device("cpu"), "fp32")
NAMES = ("a", "b", "c")
RNG = np.random.default_rng(2)
TEXTS = [("".join(RNG.choice(list("abcdefgh "), n)),) for n in RNG.integers(1, 60, 57)]
LABELS = RNG.integers(0, 3, 57)


def task(**settings):
    return SingleLabel(name="t", data=Files(path="unused.csv"), **settings)


@pytest.fixture(scope="module")
def loaded(cache):
    torch.manual_seed(0)
    return Encoder(name="tiny", weights=TinyWeights()).load(task().head(NAMES), Paths(cache=str(cache)))


def evaluator(loaded, made=None, labels=LABELS, batching=None, amp=FP32, names=NAMES):
    made = made or task()
    tokens = encode(TEXTS, loaded.tokenizer, 64)
    collator = Collator.of(tokens, labels, loaded.tokenizer, batching or Batching(size=4, tokens=120))
    ids = np.array([f"id-{i}" for i in range(len(TEXTS))])
    return Evaluator(
        made, names, made.criterion(labels, names), collator, Examples("test", ids, TEXTS, labels), amp
    )


def one_by_one(loaded):
    loaded.model.eval()
    with torch.no_grad():
        rows = [loaded.model(**loaded.tokenizer(text, return_tensors="pt")).logits[0] for (text,) in TEXTS]
    return torch.stack(rows).numpy()


@pytest.mark.parametrize(
    "batching", [Batching(size=4, tokens=120), Batching(size=100, tokens=None), Batching(size=3, pad_to=64)]
)
def test_logits_are_those_of_one_text_at_a_time(loaded, batching):
    loaded.model.train()  # evaluation must switch dropout off by itself
    found = evaluator(loaded, batching=batching).predict(loaded.model)
    np.testing.assert_allclose(found.logits, one_by_one(loaded), atol=1e-5)
    assert found.ids.tolist() == [f"id-{i}" for i in range(57)]
    assert found.labels.tolist() == LABELS.tolist()
    assert (found.split, found.label_names, found.logits.dtype) == ("test", NAMES, np.float32)


def test_evaluation_leaves_no_trace(loaded):
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    state = torch.get_rng_state()
    one = evaluator(loaded).predict(loaded.model).logits
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(one, evaluator(loaded).predict(loaded.model).logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())
    assert all(p.grad is None for p in loaded.model.parameters())


def test_metrics_are_sklearns(loaded):
    names = ["accuracy", "f1_macro", "f1_weighted", "mcc", "balanced_accuracy", "log_loss"]
    judge = evaluator(loaded, task(metrics=names))
    predictions = judge.predict(loaded.model)
    found = judge.metrics(predictions)
    logits = one_by_one(loaded).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    decided = logits.argmax(1)
    assert found == {
        "accuracy": pytest.approx(sklearn.metrics.accuracy_score(LABELS, decided)),
        "f1_macro": pytest.approx(sklearn.metrics.f1_score(LABELS, decided, average="macro")),
        "f1_weighted": pytest.approx(sklearn.metrics.f1_score(LABELS, decided, average="weighted")),
        "mcc": pytest.approx(sklearn.metrics.matthews_corrcoef(LABELS, decided)),
        "balanced_accuracy": pytest.approx(sklearn.metrics.balanced_accuracy_score(LABELS, decided)),
        "log_loss": pytest.approx(sklearn.metrics.log_loss(LABELS, p), abs=1e-5),
        "loss": pytest.approx(-np.log(p[np.arange(57), LABELS]).mean(), abs=1e-5),
    }


def test_the_loss_is_that_of_training(loaded):
    """Weighted by class, smoothed, divided by the sum of weights: torch's own mean."""
    judge = evaluator(loaded, task(class_weights={"b": 5.0}, label_smoothing=0.1))
    found = judge.metrics(judge.predict(loaded.model))["loss"]
    logits, weights = torch.from_numpy(one_by_one(loaded)), torch.tensor([1.0, 5.0, 1.0])
    expected = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(LABELS), weights, label_smoothing=0.1
    )
    assert found == pytest.approx(expected.item(), abs=1e-5)


def test_rows_without_a_label_are_left_out(loaded):
    labels = np.where(np.arange(57) % 3 == 0, -1, LABELS)
    judge = evaluator(loaded, labels=labels)
    found = judge.metrics(judge.predict(loaded.model))
    logits, there = torch.from_numpy(one_by_one(loaded)), labels >= 0
    assert found["accuracy"] == pytest.approx((logits.argmax(1).numpy() == labels)[there].mean())
    expected = torch.nn.functional.cross_entropy(logits[there], torch.from_numpy(labels[there]))
    assert found["loss"] == pytest.approx(expected.item(), abs=1e-5)
    nobody = evaluator(loaded, labels=np.full(57, -1))
    assert all(math.isnan(value) for value in nobody.metrics(nobody.predict(loaded.model)).values())


def test_regression(loaded, cache):
    made = Regression(name="t", data=Files(path="unused.csv"))
    torch.manual_seed(1)
    own = Encoder(name="tiny", weights=TinyWeights()).load(made.head(()), Paths(cache=str(cache)))
    labels = RNG.normal(size=57).astype(np.float32)
    judge = evaluator(own, made, labels, names=())
    found = judge.metrics(judge.predict(own.model))
    values = one_by_one(own)[:, 0]
    assert found["loss"] == pytest.approx(((values - labels) ** 2).mean(), abs=1e-5)
    assert found["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(labels, values), abs=1e-5)


def test_bf16_is_near(loaded):
    exact = evaluator(loaded).predict(loaded.model).logits
    rough = evaluator(loaded, amp=Amp(torch.device("cpu"), "bf16")).predict(loaded.model).logits
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.05


def test_no_rows_no_logits(loaded):
    tokens = encode([], loaded.tokenizer, 8)
    collator = Collator.of(tokens, np.array([]), loaded.tokenizer, Batching())
    assert logits_of(loaded.model, collator, FP32).shape == (0, 0)
