"""Token ids are the tokenizer's own; the cache is never stale, never torn, and never tokenises twice."""

import json
import multiprocessing
import shutil

import numpy as np
import pytest

import whet.data.tokens as module
from whet.data.tokens import Tokens, encode, texts_hash, tokenize, tokenizer_hash
from whet.errors import ConfigError
from whet.model.tiny import byte_tokenizer

TEXTS = [("a",), ("hello there",), ("",), ("ünï ✓ 日本",), ("x" * 100,), ("exactly nine",)]
PAIRS = [("a", "b"), ("short", "much longer than the other one"), ("", "b"), ("y" * 60, "z" * 60), ("q", "")]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def plain(tokenizer, parts, limit):
    """The tokenizer called the usual way, one row at a time (lists: a bare "" as second text counts as none)."""
    columns = [[part] for part in parts]
    cut = tokenizer(*columns, truncation=True, max_length=limit, return_token_type_ids=True)
    return cut["input_ids"][0], cut["token_type_ids"][0], len(tokenizer(*columns)["input_ids"][0]) > limit


def rows_of(tokens):
    spans = list(zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True))
    return [(tokens.ids[a:b].tolist(), tokens.types[a:b].tolist()) for a, b in spans]


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["single", "pair"])
@pytest.mark.parametrize("limit", [4, 14, 200])
def test_ids_types_and_truncation_are_the_tokenizers(tokenizer, texts, limit):
    tokens = encode(texts, tokenizer, limit)
    expected = [plain(tokenizer, parts, limit) for parts in texts]
    assert rows_of(tokens) == [(ids, types) for ids, types, _ in expected]
    assert tokens.truncated.tolist() == [cut for _, _, cut in expected]
    assert tokens.lengths.tolist() == [len(ids) for ids, _, _ in expected]
    assert max(tokens.lengths) <= limit and len(tokens) == len(texts)
    assert (tokens.ids.dtype, tokens.types.dtype, tokens.offsets.dtype) == (np.int32, np.int8, np.int64)


def test_the_second_text_has_the_second_type(tokenizer):
    tokens = encode([("ab", "cd")], tokenizer, 20)
    assert tokens.types.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_of_a_pair_the_longer_is_cut(tokenizer):
    ids = encode([("ab", "c" * 50)], tokenizer, 20).ids.tolist()
    assert ids[:4] == tokenizer("ab")["input_ids"] and len(ids) == 20


def test_many_chunks(tokenizer, monkeypatch):
    whole = encode(TEXTS, tokenizer, 20)
    monkeypatch.setattr(module, "_CHUNK", 2)
    same(encode(TEXTS, tokenizer, 20), whole)


def same(one, other):
    for name in ("ids", "types", "offsets", "truncated"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


def test_an_empty_text_without_special_tokens_is_one_padding_token(tokenizer):
    bare = byte_tokenizer()
    bare.backend_tokenizer.post_processor = None
    tokens = encode([("",), ("a",)], bare, 5)
    assert tokens.lengths.tolist() == [1, 1]
    assert tokens.ids[0] == bare.pad_token_id and tokens.types.tolist() == [0, 0]


def test_nothing_at_all(tokenizer, tmp_path):
    for tokens in (encode([], tokenizer, 5), tokenize([], tokenizer, 5, "s", tmp_path)):
        assert len(tokens) == 0 and tokens.lengths.tolist() == []


@pytest.mark.parametrize(("texts", "limit"), [(TEXTS, 2), (TEXTS, 1), (PAIRS, 3)])
def test_a_length_without_room_is_refused(tokenizer, texts, limit, tmp_path):
    with pytest.raises(
        ConfigError, match=rf"task.max_length={limit}: no room .* {limit if limit > 1 else 2} special"
    ):
        tokenize(texts, tokenizer, limit, "s", tmp_path)


# ---------------------------------------------------------------- the cache


class Counting:
    """Counts how many texts the tokenizer sees."""

    def __init__(self, monkeypatch):
        self.texts = 0
        real = module._encode_chunk

        def counted(chunk, tokenizer, max_length):
            self.texts += len(chunk)
            return real(chunk, tokenizer, max_length)

        monkeypatch.setattr(module, "_encode_chunk", counted)

    def during(self, work):
        before = self.texts
        found = work()
        return self.texts - before, found


def test_a_hit_is_equal_and_tokenises_nothing(tokenizer, tmp_path, monkeypatch):
    count = Counting(monkeypatch)
    first, made = count.during(lambda: tokenize(TEXTS, tokenizer, 20, "s", tmp_path))
    again, found = count.during(lambda: tokenize(list(TEXTS), byte_tokenizer(), 20, "s", tmp_path))
    assert (first, again) == (len(TEXTS), 0)
    same(found, made)
    same(found, encode(TEXTS, tokenizer, 20))
    assert isinstance(found.ids.base, np.memmap)


CHANGES = {
    "a text": {"texts": [("b",), *TEXTS[1:]]},
    "the order": {"texts": TEXTS[::-1]},
    "a row less": {"texts": TEXTS[:-1]},
    "max_length": {"limit": 21},
    "the tokenizer's files": {"source": "other"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_it_is_another_entry(tokenizer, tmp_path, monkeypatch, change):
    settings = {"texts": TEXTS, "limit": 20, "source": "s"}
    tokenize(TEXTS, tokenizer, 20, "s", tmp_path)
    settings |= CHANGES[change]
    count = Counting(monkeypatch)
    seen, found = count.during(
        lambda: tokenize(settings["texts"], tokenizer, settings["limit"], settings["source"], tmp_path)
    )
    assert seen == len(settings["texts"])
    same(found, encode(settings["texts"], tokenizer, settings["limit"]))


def test_an_entry_copied_to_another_name_is_not_taken(tokenizer, tmp_path):
    tokenize(TEXTS, tokenizer, 20, "s", tmp_path)
    other = TEXTS[::-1]
    expected = tokenize(other, tokenizer, 20, "s", tmp_path)
    entries = {
        json.loads(path.read_text())["key"]["texts"]: path.parent for path in tmp_path.glob("*/*/key.json")
    }
    right, wrong = entries[texts_hash(other)], entries[texts_hash(TEXTS)]
    shutil.rmtree(right)
    shutil.copytree(wrong, right)
    same(tokenize(other, tokenizer, 20, "s", tmp_path), encode(other, tokenizer, 20))
    assert len(expected) == len(TEXTS)


def entry(room):
    (path,) = room.glob("*/*/key.json")
    return path.parent


DAMAGE = {
    "a flipped byte": lambda folder: flip(folder / "ids.npy"),
    "a flipped label": lambda folder: flip(folder / "truncated.npy"),
    "cut short": lambda folder: (folder / "offsets.npy").write_bytes(
        (folder / "offsets.npy").read_bytes()[:-4]
    ),
    "emptied": lambda folder: (folder / "types.npy").write_bytes(b""),
    "a file gone": lambda folder: (folder / "types.npy").unlink(),
    "no key": lambda folder: (folder / "key.json").unlink(),
    "half a key": lambda folder: (folder / "key.json").write_text('{"key": {"for'),
    "binary key": lambda folder: (folder / "key.json").write_bytes(b"\xff\xfe\x00"),
    "another JSON": lambda folder: (folder / "key.json").write_text("[1]"),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_rebuilt(tokenizer, tmp_path, monkeypatch, damage):
    made = tokenize(TEXTS, tokenizer, 20, "s", tmp_path)
    expected = Tokens(*(np.array(getattr(made, name)) for name in ("ids", "types", "offsets", "truncated")))
    DAMAGE[damage](entry(tmp_path))
    count = Counting(monkeypatch)
    seen, found = count.during(lambda: tokenize(TEXTS, tokenizer, 20, "s", tmp_path))
    assert seen == len(TEXTS)
    same(found, expected)
    assert count.during(lambda: tokenize(TEXTS, tokenizer, 20, "s", tmp_path))[0] == 0
    assert len(list(entry(tmp_path).parent.iterdir())) == 1  # nothing left lying about


def test_a_cache_that_cannot_be_written_is_done_without(tokenizer, tmp_path, caplog):
    room = tmp_path / "file"
    room.write_text("in the way")
    with caplog.at_level("WARNING"):
        same(tokenize(TEXTS, tokenizer, 20, "s", room), encode(TEXTS, tokenizer, 20))
    assert "paths.cache" in caplog.text


def _race(room, barrier, results, damage):
    made = byte_tokenizer()
    many = [(f"text number {i}",) for i in range(300)]
    for round_ in range(6):
        barrier.wait(60)
        tokens = tokenize(many, made, 16, f"source {round_}", room)
        results.put((round_, tokens.ids.sum().item(), len(tokens)))
        barrier.wait(60)
        if damage:  # both wreck the same entry, then both want it
            for path in room.glob("*/*/ids.npy"):
                path.write_bytes(b"wrecked")
            barrier.wait(60)
            tokens = tokenize(many, made, 16, f"source {round_}", room)
            results.put((round_, tokens.ids.sum().item(), len(tokens)))


@pytest.mark.parametrize("damage", [False, True])
def test_two_processes_at_once(tokenizer, tmp_path, damage):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_race, args=(tmp_path, barrier, results, damage)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in range(24 if damage else 12)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    expected = encode([(f"text number {i}",) for i in range(300)], tokenizer, 16)
    assert {item[1:] for item in found} == {(int(expected.ids.sum()), 300)}
    assert len(list(tmp_path.glob("*/*"))) == 6


# ---------------------------------------------------------------- hashes


def test_texts_hash_knows_boundaries():
    hashes = {
        texts_hash(texts)
        for texts in (
            [("ab",)],
            [("a", "b")],
            [("a",), ("b",)],
            [("a",), ("b",), ("",)],
            [("", "ab")],
            [("ab", "")],
            [],
            [("[1]a",)],
            [("\ud800",)],
        )
    }
    assert len(hashes) == 9


def test_tokenizer_hash_follows_its_files_alone(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    seen = [tokenizer_hash(tmp_path)]
    (tmp_path / "model.safetensors").write_text("weights")
    (tmp_path / "config.json").write_text("{}")
    assert tokenizer_hash(tmp_path) == seen[0]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": True}))
    seen.append(tokenizer_hash(tmp_path))
    for name in ("vocab.txt", "merges.txt", "spiece.model", "special_tokens_map.json", "tokenization_own.py"):
        (tmp_path / name).write_text("content")
        seen.append(tokenizer_hash(tmp_path))
    (tmp_path / "vocab.txt").write_text("contend")
    seen.append(tokenizer_hash(tmp_path))
    (tmp_path / "vocab.txt").rename(tmp_path / "vocab2.txt")
    seen.append(tokenizer_hash(tmp_path))
    assert len(set(seen)) == len(seen)
