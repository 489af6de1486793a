"""What is stored comes back to the bit, and what is damaged doesn't."""

import json
import multiprocessing
import os

import numpy as np
import pytest
import torch

from whet.data.batch import Collator
from whet.data.batching import Batching
from whet.data.states import (
    GIB,
    STATES,
    Above,
    Form,
    FullError,
    Rounded,
    States,
    entries,
    find,
    find_or_make,
    make_way,
    pick,
    place_of,
    spans,
    tokens_hash,
)
from whet.data.tokens import Tokens

LENGTHS = [3, 1, 5, 2, 4]


def tokens(lengths=LENGTHS, first=7):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(first, first + offsets[-1], dtype=np.int32)
    return Tokens(ids, np.zeros(len(ids), dtype=np.int8), offsets, np.zeros(len(lengths), dtype=bool))


def truth(dtype=torch.float32, width=6):
    """[texts][length, width] random states."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, width, generator=generator).to(dtype) for length in LENGTHS]


def stored(room, keep="all", dtype=torch.float32, key=None, **settings):
    """The entry made of `truth`, and how many portions were asked for."""
    states, asked = truth(dtype), []
    form = Form.of(tokens(), keep, 6, str(dtype).removeprefix("torch."))

    def fill(sink):
        for rows in ([4, 2], [0, 1, 3]):
            asked.append(rows)
            batch, mask = padded([states[row] for row in rows], left=False)
            sink(np.array(rows), pick(batch, mask, keep))

    found = find_or_make(room, key or {"a": 1}, form, fill, settings.get("limit", GIB))
    return found, asked


def padded(states, left, width=7):
    batch = torch.full((len(states), width, 6), 99.0, dtype=states[0].dtype)
    mask = np.zeros((len(states), width), dtype=bool)
    for place, row in enumerate(states):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        batch[place, where], mask[place, where] = row, True
    return batch, mask


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("keep", ["all", "first", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_come_back_to_the_bit(dtype, keep, left, tmp_path):
    found, _ = stored(tmp_path, keep, dtype)
    rows = np.array([2, 0, 0, 1])
    expected, mask = padded([truth(dtype)[row] for row in rows], left)
    kept = np.zeros_like(mask)
    for place in range(len(rows)):
        where = np.flatnonzero(mask[place])
        kept[place, {"all": where, "first": where[:1], "last": where[-1:]}[keep]] = True
    expected[~torch.from_numpy(kept)] = 0
    back = found.padded(rows, mask)
    assert back.dtype is dtype and torch.equal(back, expected)


def test_spans_are_where_the_mask_is():
    mask = np.array([[0, 1, 1, 1], [0, 0, 0, 1]], dtype=bool)
    assert spans(mask, "all") == [(1, 4), (3, 4)]
    assert spans(mask, "first") == [(1, 2), (3, 4)]
    assert spans(mask, "last") == [(3, 4), (3, 4)]


def test_an_entry_is_made_once_and_takes_the_room_it_says(tmp_path):
    first, asked = stored(tmp_path)
    assert asked == [[4, 2], [0, 1, 3]]
    again, asked = stored(tmp_path)
    assert asked == [] and np.array_equal(first.values, again.values)
    assert (
        first.form.size
        == sum(LENGTHS) * 6 * 4
        == (place_of(tmp_path, {"a": 1}) / "states.bin").stat().st_size
    )
    assert Form.of(tokens(), "first", 6, "bfloat16").size == len(LENGTHS) * 6 * 2
    assert stored(tmp_path, key={"a": 2})[1] != [], "another key, another entry"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["states.bin", "manifest.json"])
@pytest.mark.parametrize(
    "harm",
    [flip, lambda path: os.truncate(path, path.stat().st_size - 1), lambda path: path.unlink()],
    ids=["flipped", "cut short", "gone"],
)
def test_a_damaged_entry_is_made_anew(harm, name, tmp_path):
    whole = np.array(stored(tmp_path)[0].values)
    harm(place_of(tmp_path, {"a": 1}) / name)
    found, asked = stored(tmp_path)
    assert asked and np.array_equal(found.values, whole)
    assert stored(tmp_path)[1] == []


def test_an_entry_under_another_key_is_not_taken(tmp_path):
    stored(tmp_path)
    manifest = place_of(tmp_path, {"a": 1}) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "key": {"a": 3}}))
    assert find(tmp_path, {"a": 1}, Form.of(tokens(), "all", 6, "float32")) is None


def test_nothing_is_left_of_a_failure(tmp_path):
    def fill(sink):
        sink(np.array([0]), np.ones((3, 6), dtype=np.float32))
        raise OSError("no space left on device")

    form = Form.of(tokens(), "all", 6, "float32")
    with pytest.raises(OSError, match="no space"):
        find_or_make(tmp_path, {"a": 1}, form, fill, GIB)
    assert find(tmp_path, {"a": 1}, form) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_what_a_killed_process_left_is_cleared(tmp_path):
    folder = place_of(tmp_path, {"a": 1})
    left = folder.with_name(f".{folder.name}.4711")
    left.mkdir(parents=True)
    (left / "states.bin").write_bytes(b"half")
    stored(tmp_path)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def work(room, log):
    states = truth()
    form = Form.of(tokens(), "all", 6, "float32")

    def fill(sink):
        with open(log, "a") as file:
            file.write("made\n")
        for row, values in enumerate(states):
            sink(np.array([row]), values.numpy())

    found = find_or_make(room, {"a": 1}, form, fill, GIB)
    assert np.array_equal(found.values, torch.cat(states).numpy())


def test_of_several_processes_one_makes_it(tmp_path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    workers = [context.Process(target=work, args=(tmp_path / "room", log)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert log.read_text() == "made\n"


def test_the_longest_unused_make_way(tmp_path):
    size = sum(LENGTHS) * 6 * 4
    for name in "abc":
        stored(tmp_path, key={"name": name})
    for age, name in enumerate("bca"):  # b was used last long ago
        os.utime(place_of(tmp_path, {"name": name}) / "manifest.json", (1000 + age, 1000 + age))
    stored(tmp_path, key={"name": "b"})  # found: used now
    stored(tmp_path, key={"name": "d"}, limit=3 * size)
    held = {folder.name for _, _, folder in entries(tmp_path)}
    assert held == {place_of(tmp_path, {"name": name}).name for name in "abd"}
    with pytest.raises(FullError, match=r"GiB are needed, engine\.trunk_cache_limit is"):
        make_way(tmp_path, size, size - 1)
    assert len(entries(tmp_path)) == 3, "what can't fit drives nothing out"


def test_the_hash_sees_every_part():
    same = tokens_hash(tokens())
    assert tokens_hash(tokens()) == same
    assert len({same, tokens_hash(tokens(first=8)), tokens_hash(tokens([3, 1, 5, 4, 2]))}) == 3
    typed = tokens()
    typed.types[3] = 1
    assert tokens_hash(typed) != same


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("multiple", [1, 8, 16])
@pytest.mark.parametrize(("longest", "most"), [(77, 512), (300, 512), (300, 303), (50, 50)])
def test_widths_lie_on_the_grid(multiple, longest, most):
    widest = max(longest, min(-(-longest // multiple) * multiple, most))
    grid = Rounded(multiple=multiple, widest=widest)
    widths = {length: grid.padded(length) for length in range(1, longest + 1)}
    assert all(length <= width <= most for length, width in widths.items())
    assert all(
        width == widest or (width % multiple == 0 and width - length < multiple)
        for length, width in widths.items()
    )
    assert all(width == widest for length, width in widths.items() if length > 256)
    assert Rounded(multiple=multiple, widest=widest, pad_to=longest).padded(1) in (widest, widths[longest])


def collator(left=False):
    return Collator(
        tokens=tokens(),
        labels=np.arange(5),
        pad_id=0,
        left=left,
        wants_types=True,
        pad_type=0,
        batching=Batching(),
    )


@pytest.mark.parametrize("left", [False, True])
def test_batches_carry_the_states_of_their_texts(left, tmp_path):
    states, device = stored(tmp_path)[0], torch.device("cpu")
    plain, rows = collator(left), np.array([3, 2])
    batch = Above.on(plain, states, plain.batching)(rows, device)
    carried = batch.inputs.pop(STATES)
    expected = plain(rows, device)
    assert batch.inputs.keys() == expected.inputs.keys()
    assert all(torch.equal(batch.inputs[name], expected.inputs[name]) for name in expected.inputs)
    mask = batch.inputs["attention_mask"].bool()
    assert torch.equal(carried[mask], torch.cat([truth()[3], truth()[2]]))
    assert (carried[~mask] == 0).all()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("keep", "place"), [("first", 0), ("last", -1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_of_the_kept_tokens_alone(dtype, keep, place, left, tmp_path):
    states, device = stored(tmp_path, keep, dtype)[0], torch.device("cpu")
    plain, rows = collator(left), np.array([3, 2, 0])
    batch = Above.on(plain, states, plain.batching, alone=True)(rows, device)
    carried = batch.inputs.pop(STATES)
    assert carried.dtype is dtype
    assert torch.equal(carried, torch.stack([truth(dtype)[row][place] for row in rows])[:, None])
    expected = plain(rows, device)
    mask = expected.inputs["attention_mask"].bool()
    assert batch.inputs.keys() == expected.inputs.keys()
    for name, found in batch.inputs.items():
        assert found.tolist() == [
            [row[kept][place]] for row, kept in zip(expected.inputs[name], mask, strict=True)
        ]
    assert torch.equal(batch.labels, expected.labels)
    assert batch.tokens == expected.tokens == sum(LENGTHS[row] for row in rows)
    small = Above.on(plain, states, plain.batching, least=10, alone=True)
    assert STATES not in small(np.array([0, 1, 3]), device).inputs, "3 x 3 tokens, padding included"
    assert STATES in small(np.array([2, 1]), device).inputs, "2 x 5"


def test_small_batches_and_those_without_a_store_carry_none(tmp_path):
    states, plain, device = stored(tmp_path)[0], collator(), torch.device("cpu")
    above = Above.on(plain, states, plain.batching, least=10)
    assert STATES not in above(np.array([0, 1, 3]), device).inputs  # 3 x 3
    assert STATES in above(np.array([2, 1]), device).inputs  # 2 x 5
    assert STATES not in Above.on(plain, None, plain.batching)(np.array([2, 1]), device).inputs
    assert isinstance(states, States)
