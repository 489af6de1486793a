"""Pairs against a double loop; the head against scikit-learn; whole runs."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from tests.engine.test_resume import end_of, folder_of, keys, kill_at, killed_run, train  # noqa: F401

from whet.cli.main import main
from whet.engine.load import open_run
from whet.objective.setfit import pair_loss, regression
from whet.paths import Paths

MINE = ["objective=setfit", "model.head=mean"]


def loops(vectors, labels, share):
    unit = [v / v.norm() for v in vectors]
    alike, apart = [], []
    for i in range(len(unit)):
        for j in range(i):
            if labels[i] >= 0 and labels[j] >= 0:
                cosine = float(unit[i] @ unit[j])
                (alike if labels[i] == labels[j] else apart).append(
                    (1 - cosine) ** 2 if labels[i] == labels[j] else cosine**2
                )
    return share * np.mean(alike or [0]) + (1 - share) * np.mean(apart or [0])


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("labels", [[0, 1, 1, 2, -1, 0, 1], [0, 0, 0, 0, 0, 0, 0], [0, -1, -1, 1, -1, 2, -1]])
def test_pairs_against_loops(labels, share):
    torch.manual_seed(0)
    vectors = torch.randn(7, 4)
    found = pair_loss(vectors, torch.tensor(labels), share)
    assert found.item() == pytest.approx(loops(vectors, labels, share), rel=1e-5)


def test_a_lonely_row_has_a_gradient_of_nothing():
    vectors = torch.randn(1, 4, requires_grad=True)
    pair_loss(vectors, torch.tensor([0]), 0.5).backward()
    assert vectors.grad is not None and not vectors.grad.any()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_the_layer_says_what_the_regression_says(classes, penalty):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % classes
    vectors = rng.normal(size=(60, 5)) + labels[:, None]
    weight, bias = regression(vectors, labels, penalty, classes + 1)
    assert (weight[classes] == 0).all() and bias[classes] < -1000, "no rows"
    found = torch.softmax(torch.from_numpy(vectors.astype(np.float32) @ weight.T + bias), 1)[:, :classes]
    fitted = LogisticRegression(C=penalty, max_iter=2000, tol=1e-6).fit(vectors, labels)
    np.testing.assert_allclose(found, fitted.predict_proba(vectors), atol=1e-5)


def test_the_saved_head_is_fitted_to_the_saved_states(workplace, quick):
    """Read back by hand: states of the training rows, scikit-learn's regression on them."""
    mine = [*quick, *MINE, "engine.duration=3ep", "optimizer.lr=3e-3", "objective.inverse_penalty=5.0"]
    assert main(["train", *mine, "engine.precision=fp32", "name=s"]) == 0
    folder = folder_of(workplace, "s")
    assert json.loads((folder / "run.json").read_text())["metrics"]["test/accuracy"] >= 0.5
    finished = open_run(folder, Paths())
    corpus = finished.trained.task.load(Paths())
    train_rows, vectors = corpus.splits["train"], []
    model, tokenizer = finished.trained.model, finished.trained.tokenizer
    for (text,) in train_rows.texts:
        given = tokenizer(text, return_tensors="pt", truncation=True, max_length=128)
        with torch.no_grad():
            vectors.append(model.bert(**given).last_hidden_state[0].mean(0).double().numpy())
    weight, bias = regression(np.stack(vectors), train_rows.labels, 5.0, 2)
    saved = load_file(folder / "model" / "model.safetensors")
    np.testing.assert_allclose(saved["classifier.weight"], weight, atol=2e-3)
    np.testing.assert_allclose(saved["classifier.bias"], bias, atol=2e-3)


def test_settings_change_the_run(workplace, quick):
    ends = []
    for number, more in enumerate([[], ["objective.share=0.2"], ["objective.inverse_penalty=0.01"]]):
        assert main(["train", *quick, *MINE, "engine.duration=2ep", f"name=n{number}", *more]) == 0
        ends.append(json.loads((folder_of(workplace, f"n{number}") / "run.json").read_text())["metrics"])
    assert len({end["test/loss"] for end in ends}) == 3


@pytest.mark.parametrize("method", ["none", "lora"])
def test_stopped_and_gone_on_ends_the_same(workplace, keys, kill_at, method):  # noqa: F811
    mine = [*keys, *MINE, f"peft={method}", "engine.duration=2ep"]
    assert train(*mine, "name=whole") == 0
    folder = killed_run(workplace, mine, "killed", kill_at, 7)
    assert train(f"resume={folder}") == 0
    assert end_of(folder) == end_of(folder_of(workplace, "whole"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["model.head=own"], "model.head=own: this objective works on the head mean: set model.head=mean"),
        (["averaging=ema"], "averaging: this objective fits the head"),
        (["engine.parallel=fsdp"], "engine.parallel=fsdp: this objective fits the head"),
    ],
)
def test_refused_before_anything_is_written(workplace, quick, capsys, given, told):
    assert main(["train", *quick, *MINE, *given]) == 2
    assert told in capsys.readouterr().err
    assert not (workplace / "outputs" / "runs").exists()
