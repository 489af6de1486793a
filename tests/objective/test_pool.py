"""Unlabelled texts: which are drawn, when, and that they weigh what is said."""

import numpy as np
import pytest
import torch
from tests.objective.unlabelled import Bag, drawn, made, parts, texts, upper

from whet.data.batching import Batching
from whet.errors import ConfigError, DataError, RunError
from whet.objective.mean_teacher import MeanTeacher
from whet.objective.pool import Pool, log_probabilities, rising, without_gradient
from whet.objective.pseudo_label import PseudoLabel
from whet.ranks import Ranks
from whet.task.binary import Binary
from whet.task.multi_label import MultiLabel
from whet.task.regression import Regression


def rows_of(pool, forward, count=12):
    return np.concatenate(pool.draw(forward, count)).tolist()


def test_a_draw_follows_seed_step_process_and_micro_batch(tmp_path, monkeypatch):
    forward, _, setting = made(tmp_path, PseudoLabel())
    pool = Pool(setting.left, setting)
    first = rows_of(pool, forward)
    assert sorted(first) == sorted(drawn(setting, forward, 12).tolist()) and len(set(first)) == 12
    assert rows_of(Pool(setting.left, setting), forward) == first
    for key, value in (("step", 51), ("piece", 1)):
        setattr(forward, key, value)
        assert rows_of(pool, forward) != first
        setattr(forward, key, {"step": 50, "piece": 0}[key])
    monkeypatch.setattr("whet.objective.pool.here", lambda: Ranks(rank=1, size=2))
    assert sorted(rows_of(Pool(setting.left, setting), forward)) == sorted(
        drawn(setting, forward, 12, 1).tolist()
    )


def test_all_rows_are_drawn_some_time(tmp_path):
    forward, _, setting = made(tmp_path, PseudoLabel())
    pool, seen = Pool(setting.left, setting), set()
    for forward.step in range(60):
        seen |= set(rows_of(pool, forward))
    assert seen == set(range(40))
    assert sorted(rows_of(pool, forward, 99)) == list(range(40))


def test_pieces_stay_within_the_batching(tmp_path):
    forward, _, setting = made(tmp_path, PseudoLabel(), batching=Batching(size=5, tokens=24))
    pool = Pool(setting.left, setting)
    lengths = np.array([len(text) + 2 for (text,) in setting.left])
    for rows in pool.draw(forward, 30):
        assert len(rows) <= 5 and len(rows) * lengths[rows].max() <= 24
        assert pool.batch(rows).inputs["attention_mask"].sum(1).tolist() == lengths[rows].tolist()


def test_cut_by_memory_it_is_the_same_mean(tmp_path):
    """The unlabelled loss of one piece is that of many."""
    found = []
    for size in (64, 3):
        objective = PseudoLabel(threshold=0.0)
        forward, batch, _ = made(tmp_path, objective, batching=Batching(size=size, tokens=None))
        each = parts(objective, forward, batch)
        found.append((len(each), float(sum(each[1:]))))
    assert found[0][0] == 2 and found[1][0] == 9
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_micro_batches_weigh_by_their_labelled_rows(tmp_path):
    objective = PseudoLabel()
    forward, batch, setting = made(tmp_path, objective, labels=np.array([0, 1, -1, -1, 0, 1, 1, -1]))
    assert objective.share(forward, batch) == 5.0
    assert [factor for _, factor in objective.drawn(forward, batch)] == [5 / 24, 5 / 24]
    assert setting.train.labels.sum() == 0


def test_an_augmentation_gives_one_text_for_each(tmp_path):
    _, _, setting = made(tmp_path, PseudoLabel())
    pool, rng = Pool(setting.left, setting), np.random.default_rng(0)
    rows = np.array([3, 0, 7])
    ids = pool.changed(rows, upper, rng).inputs["input_ids"]
    wanted = [setting.tokenizer(setting.left[row][0].upper())["input_ids"] for row in rows]
    assert [[i for i in line if i] for line in ids.tolist()] == wanted
    with pytest.raises(ConfigError, match=r"objective.augmentation: must give one text for each.* 6 for 3"):
        pool.changed(rows, lambda some, labels, rng: ([*some, *some], labels), rng)


def test_where_texts_come_from(tmp_path):
    (tmp_path / "pool.txt").write_text("one\ntwo\n")
    (tmp_path / "pool.csv").write_text("text,label\nthree,secret\n")
    for name, wanted in (("pool.txt", [("one",), ("two",)]), ("pool.csv", [("three",)])):
        objective = PseudoLabel(pool=str(tmp_path / name))
        made(tmp_path, objective)
        assert objective._pool.texts == wanted
    for where, left, told in (
        ("rest", [], "set task.shots, or name a file"),
        (str(tmp_path / "none.txt"), [], "none.txt"),
        (str(tmp_path / "empty.txt"), [], "holds no texts"),
    ):
        (tmp_path / "empty.txt").write_text("")
        with pytest.raises(DataError, match=told) as caught:
            made(tmp_path, PseudoLabel(pool=where), left=left)
        assert caught.value.key == "objective.pool"


def test_another_pool_is_no_resume(tmp_path):
    one, same, other = PseudoLabel(), PseudoLabel(), PseudoLabel()
    made(tmp_path, one)
    made(tmp_path, same)
    made(tmp_path, other, left=texts(40, 2))
    same.load_tensors(one.tensors())
    with pytest.raises(RunError, match="aren't those of the run any more"):
        other.load_tensors(one.tensors())


def test_tasks_without_classes(tmp_path):
    for kind in (Regression, MultiLabel):
        with pytest.raises(ConfigError, match="PseudoLabel needs one class of several"):
            made(tmp_path, PseudoLabel(), kind=kind)
        made(tmp_path, MeanTeacher(), kind=kind)
    made(tmp_path, PseudoLabel(), kind=Binary)


def test_parts_of_parameters_are_refused(tmp_path):
    """Under fsdp all processes must pass through the model equally often."""
    model = Bag()
    model.head.weight.full_tensor = lambda: model.head.weight
    with pytest.raises(ConfigError, match="engine.parallel=fsdp: not together with unlabelled texts"):
        made(tmp_path, PseudoLabel(), model=model)


def test_log_probabilities():
    z = torch.tensor([[-3.0], [0.5]])
    p = torch.sigmoid(z)
    torch.testing.assert_close(log_probabilities(z, "binary").exp(), torch.cat([1 - p, p], 1))
    torch.testing.assert_close(
        log_probabilities(torch.eye(3), "single_label").exp(), torch.eye(3).softmax(-1)
    )


def test_rising():
    assert [rising(x, 0.2, 0.6) for x in (0, 0.2, 0.3, 0.6, 1)] == pytest.approx([0, 0, 0.25, 1, 1])
    assert [rising(x, 0.0, 0.0) for x in (0.0, 0.5)] == [1, 1]


def test_a_pass_without_gradient_leaves_later_ones_theirs():
    """Autocast keeps copies of weights; one made without a graph would cut the next pass off."""
    model, ids = Bag(), torch.arange(5, 11)[None]
    mask = torch.ones_like(ids)
    with torch.autocast("cpu", torch.bfloat16):
        with without_gradient():
            before = model(ids, mask).logits
        after = model(ids, mask).logits
    assert not before.requires_grad and after.requires_grad
    after.sum().backward()
    assert model.head.weight.grad.abs().sum() > 0
    assert torch.is_autocast_cache_enabled()
