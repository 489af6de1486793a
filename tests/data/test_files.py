"""The user's own files: nothing is guessed, nothing is lost, an edit is seen."""

import json
import os

import pytest

from whet.data.disk import Disk
from whet.data.files import Files, read_table
from whet.errors import DataError
from whet.paths import Paths


@pytest.fixture
def paths(tmp_path):
    return Paths(cache=str(tmp_path / "cache"))


def written(folder, name, content, encoding="utf-8"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return str(path)


def rows(paths, **settings):
    return list(Files(**settings).read(paths)["all"])


def test_csv_values_survive_as_they_stand(tmp_path, paths):
    text = 'id,text,label\n007,NA,1\n008,"a ""quoted""\nline, with comma",0\n009,null,\n010,,1.0\n'
    found = rows(paths, path=written(tmp_path, "a.csv", text))
    assert [row["id"] for row in found] == ["007", "008", "009", "010"]
    assert [row["text"] for row in found] == ["NA", 'a "quoted"\nline, with comma', "null", ""]
    assert [row["label"] for row in found] == ["1", "0", "", "1.0"]


def test_byte_order_mark_and_latin1(tmp_path, paths):
    assert rows(paths, path=written(tmp_path, "bom.csv", "\ufefftext\né\n")) == [{"text": "é"}]
    latin = written(tmp_path, "latin.csv", "text\né\n", "latin-1")
    assert rows(paths, path=latin, encoding="latin-1") == [{"text": "é"}]
    with pytest.raises(DataError, match="try latin-1") as caught:
        rows(paths, path=latin)
    assert caught.value.key == "encoding"
    with pytest.raises(DataError, match="no such text encoding"):
        rows(paths, path=latin, encoding="latin-99")


def test_tsv_quotes_are_a_choice(tmp_path, paths):
    path = written(tmp_path, "a.tsv", 'text\tlabel\n"said he\t1\nend"\t0\n')
    assert [row["text"] for row in rows(paths, path=path, quotes=False)] == ['"said he', 'end"']
    assert [row["text"] for row in rows(paths, path=path)] == ["said he\t1\nend"]


def test_delimiter_columns_and_skipped_rows(tmp_path, paths):
    path = written(tmp_path, "a.csv", "junk;x\na;1\nb;2\n")
    found = rows(paths, path=path, delimiter=";", columns=["text", "label"], skip_rows=[0])
    assert found == [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]


def test_ragged_rows_are_refused_unless_accepted(tmp_path, paths):
    path = written(tmp_path, "a.csv", "text,label\na\nb,1,extra\n")
    with pytest.raises(DataError, match="line 2 has 1 fields, not 2"):
        rows(paths, path=path)
    assert rows(paths, path=path, ragged=True) == [{"text": "a", "label": None}, {"text": "b", "label": "1"}]


def test_nameless_and_doubled_columns(tmp_path, paths):
    assert rows(paths, path=written(tmp_path, "a.csv", "text,\na,b\n")) == [{"text": "a", "column_2": "b"}]
    with pytest.raises(DataError, match="names a column twice: text"):
        rows(paths, path=written(tmp_path, "b.csv", "text,text\na,b\n"))


def test_an_edited_file_is_read_again(tmp_path, paths):
    path = written(tmp_path, "a.csv", "text\nold\n")
    before = os.stat(path)
    assert rows(paths, path=path) == [{"text": "old"}]
    written(tmp_path, "a.csv", "text\nnew\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert rows(paths, path=path) == [{"text": "new"}], "even with the old time stamp and size"


def test_an_edited_json_file_is_read_again(tmp_path, paths):
    path = written(tmp_path, "a.jsonl", '{"text": "old"}\n')
    assert rows(paths, path=path) == [{"text": "old"}]
    written(tmp_path, "a.jsonl", '{"text": "new"}\n')
    assert rows(paths, path=path) == [{"text": "new"}]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_keeps_types(name, tmp_path, paths):
    given = [
        {"id": 1, "text": "x\u2028y", "label": None, "day": "2020-01-01"},
        {"id": 2, "text": "NA", "label": 3, "day": "2021-01-01"},
    ]
    text = json.dumps(given) if name == "a.json" else "\n".join(map(json.dumps, given))
    assert rows(paths, path=written(tmp_path, name, text)) == given


def test_parquet(tmp_path, paths):
    import datasets

    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"text": ["a", ""], "label": [1, 0]}).to_parquet(path)
    assert rows(paths, path=str(path)) == [{"text": "a", "label": 1}, {"text": "", "label": 0}]


def test_plain_text_and_nested_values(tmp_path, paths):
    assert rows(paths, path=written(tmp_path, "a.txt", "one\r\n\ntwo\n")) == [
        {"text": "one"},
        {"text": "two"},
    ]
    path = written(tmp_path, "a.jsonl", '{"turns": [{"say": "hi"}], "ok": "1"}\n')
    assert rows(paths, path=path, pick={"text": "turns.0.say", "label": "ok"}) == [
        {"text": "hi", "label": "1"}
    ]
    with pytest.raises(DataError, match="no 1 in some row"):
        rows(paths, path=path, pick={"text": "turns.1.say"})


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", ""), ("b.csv", "text\n"), ("a.jsonl", ""), ("b.jsonl", "{bad"), ("a.parquet", "x")],
)
def test_empty_and_broken_files_are_one_line(name, text, tmp_path, paths):
    with pytest.raises(DataError) as caught:
        rows(paths, path=written(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_unknown_format(tmp_path, paths):
    path = written(tmp_path, "a.data", "text\nx\n")
    with pytest.raises(DataError, match=r"can't tell the format of a\.data"):
        rows(paths, path=path)
    assert rows(paths, path=path, format="csv") == [{"text": "x"}]


def test_missing_file_names_its_neighbours(tmp_path, paths):
    written(tmp_path, "reviews.csv", "text\nx\n")
    with pytest.raises(DataError, match=r"did you mean reviews\.csv") as caught:
        rows(paths, path=str(tmp_path / "review.csv"))
    assert caught.value.key == "path"


def test_a_folder_of_splits(tmp_path, paths):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.csv", "dev.csv", "test.csv"):
        written(folder, name, f"text\n{name}\n")
    written(folder, "README.md", "x")
    found = Files(path=str(folder)).read(paths)
    assert {split: table["text"][:] for split, table in found.items()} == {
        "train": ["train.csv"],
        "validation": ["dev.csv"],
        "test": ["test.csv"],
    }
    written(folder, "val.csv", "text\nx\n")
    with pytest.raises(DataError, match="two files for validation"):
        Files(path=str(folder)).read(paths)


def test_a_folder_without_splits_and_a_file_for_each(tmp_path, paths):
    path = written(tmp_path, "rows.csv", "text\nx\n")
    with pytest.raises(DataError, match=r"holds rows\.csv"):
        Files(path=str(tmp_path)).read(paths)
    assert list(Files(train=path, validation=path).read(paths)) == ["train", "validation"]
    for wrong in ({}, {"path": path, "train": path}):
        with pytest.raises(DataError, match="either path, or train"):
            Files(**wrong).read(paths)


def test_reading_leaves_the_library_as_it_was(tmp_path):
    import datasets

    level = datasets.logging.get_verbosity()
    read_table(tmp_path / written(tmp_path, "a.csv", "text\nx\n"), cache=tmp_path / "c")
    assert datasets.logging.get_verbosity() == level
    assert not datasets.are_progress_bars_disabled()


def test_disk(tmp_path, paths):
    import datasets

    table = datasets.Dataset.from_dict({"text": ["a"]})
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "extra": table}).save_to_disk(tmp_path / "many")
    assert list(Disk(path=str(tmp_path / "one")).read(paths)) == ["all"]
    assert list(Disk(path=str(tmp_path / "many")).read(paths)) == ["train"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="save_to_disk"):
        Disk(path=str(tmp_path / "none")).read(paths)
    with pytest.raises(DataError, match="did you mean"):
        Disk(path=str(tmp_path / "on")).read(paths)
