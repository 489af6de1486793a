"""Rows to predict on: lines, JSON lines, tables; from a file or standard input."""

import io
import json

import pytest

from whet.data.rows import Row, chunks, read_rows
from whet.errors import DataError
from whet.paths import Paths


@pytest.fixture
def paths(tmp_path):
    return Paths(cache=str(tmp_path / "cache"))


@pytest.fixture
def piped(monkeypatch, paths):
    def read(content, columns=("text",), id_column=None, format="auto"):
        monkeypatch.setattr("sys.stdin", io.StringIO(content))
        return list(read_rows("-", list(columns), id_column, format, paths))

    return read


@pytest.fixture
def filed(tmp_path, paths):
    def read(name, content, columns=("text",), id_column=None, format="auto"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_rows(str(path), list(columns), id_column, format, paths))

    return read


PAIR = ("first", "second")
JSON = "".join(json.dumps(item) + "\n" for item in [{"text": "a\nb", "id": 7}, {"text": "c", "id": "x"}])


def test_plain_lines_stay_as_they_are(piped):
    found = piped('one\n\n  two, "three" \r\nno end')
    assert [row.texts for row in found] == [("one",), ("",), ('  two, "three" ',), ("no end",)]
    assert [row.number for row in found] == [0, 1, 2, 3]
    assert piped("") == []


def test_a_pair_by_tab(piped, filed):
    expected = [Row(0, ("a", "b c")), Row(1, ("", "d"))]
    assert piped("a\tb c\n\td\n", PAIR) == expected
    assert filed("pairs.txt", "a\tb c\n\td\n", PAIR) == expected
    for wrong in ("a\tb\nalone\n", "a\tb\na\tb\tc\n"):
        with pytest.raises(DataError, match="line 2 must hold 2 texts"):
            piped(wrong, PAIR)


def test_json_lines_are_recognised(piped, filed):
    expected = [Row(0, ("a\nb",), "7"), Row(1, ("c",), "x")]
    assert piped(JSON, id_column="id") == expected
    assert piped("\n".join(["  " + JSON.split("\n")[0], "", JSON.split("\n")[1]]), id_column="id") == expected
    assert piped("\n" + JSON, id_column="id", format="jsonl") == expected
    assert filed("a.jsonl", JSON.replace("7", '"7"'), id_column="id") == expected
    assert [row.id for row in piped(JSON)] == [None, None]


def test_json_pairs_numbers_and_nothing(piped):
    assert piped('{"first": 3, "second": null}\n', PAIR) == [Row(0, ("3", ""))]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"text": "a"}\n\n{"text": \n', "line 3 is not JSON"),
        ('{"text": "a"}\n[1]\n', "line 2 is not a JSON object"),
        ('{"text": "a"}\n{"txt": "b"}\n', "line 2 has no such column; did you mean txt"),
    ],
)
def test_malformed_json_names_its_line(piped, content, problem):
    with pytest.raises(DataError, match=problem):
        piped(content)


def test_csv_from_standard_input(piped):
    content = '\ufeffid,text,more\n1,"a, ""b""\nc",x\n\n2,,y\n'
    assert piped(content, id_column="id", format="csv") == [Row(0, ('a, "b"\nc',), "1"), Row(1, ("",), "2")]
    assert piped("text\tid\na,b\t1\n", format="tsv") == [Row(0, ("a,b",))]
    assert piped("text\n" + "x" * 200_000 + "\n", format="csv")[0].texts == ("x" * 200_000,)
    assert piped("text\n", format="csv") == []


def test_a_ragged_csv_names_its_line(piped):
    with pytest.raises(DataError, match="line 3 has 1 fields, not 2"):
        piped("text,id\na,1\nb\n", format="csv")
    with pytest.raises(DataError, match="line 2 has 3 fields, not 2"):
        piped("text,id\na,b,1\n", format="csv")


def test_missing_columns_name_the_nearest(piped, filed):
    for read in (
        lambda: piped("texts,b\n1,2\n", format="csv"),
        lambda: filed("a.csv", "texts,b\n1,2\n"),
        lambda: piped('{"texts": 1}\n'),
    ):
        with pytest.raises(DataError, match=r"text=text: .* no such column; did you mean texts.*text=COLUMN"):
            read()


def test_parquet_cannot_be_piped(piped):
    with pytest.raises(DataError, match="from a file"):
        piped("PAR1", format="parquet")


def test_tables_from_files(filed, tmp_path, paths):
    expected = [Row(0, ("a, b",), "007"), Row(1, ("",), "8")]
    assert filed("a.csv", 'id,text\n007,"a, b"\n8,\n', id_column="id") == expected
    assert filed("a.tsv", "id\ttext\n007\ta, b\n8\t\n", id_column="id") == expected
    assert filed("a.tab", "id\ttext\n007\ta, b\n8\t\n", id_column="id") == expected
    assert filed("odd.name", 'id,text\n007,"a, b"\n8,\n', id_column="id", format="csv") == expected
    import datasets

    datasets.Dataset.from_dict({"id": ["007", "8"], "text": ["a, b", None]}).to_parquet(
        tmp_path / "a.parquet"
    )
    assert list(read_rows(str(tmp_path / "a.parquet"), ["text"], "id", "auto", paths)) == expected


def test_a_file_without_a_known_suffix_holds_lines(filed):
    for name in ("notes", "notes.md", "notes.txt"):
        assert [row.texts for row in filed(name, "\ufeffone\n\n{two}\n")] == [("one",), ("",), ("{two}",)]


def test_the_format_wins_over_the_suffix(filed):
    assert [row.texts for row in filed("a.csv", "one, two\nthree\n", format="txt")] == [
        ("one, two",),
        ("three",),
    ]


def test_what_is_not_there_or_not_text(filed, tmp_path, paths):
    (tmp_path / "input.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=r"^input=.*: no such file in .*did you mean input.csv"):
        list(read_rows(str(tmp_path / "imput.csv"), ["text"], None, "auto", paths))
    with pytest.raises(DataError, match="input=.*is a folder"):
        list(read_rows(str(tmp_path), ["text"], None, "auto", paths))
    with pytest.raises(DataError, match="input=.*UTF-8"):
        filed("latin.txt", "né\n".encode("latin-1"))
    with pytest.raises(DataError, match="input=.*latin"):
        filed("latin.csv", "text\nné\n".encode("latin-1"))


def test_half_surrogates_become_question_marks(piped):
    assert piped('{"text": "a\\ud83db"}\n')[0].texts == ("a?b",)
    assert piped("a\udce9b\n")[0].texts == ("a?b",)
    assert piped('{"text": "\\ud83d\\ude00"}\n')[0].texts == ("😀",)


def test_rows_come_as_they_are_asked_for(monkeypatch, paths):
    def endless():
        number = 0
        while True:
            yield f"line {number}\n"
            number += 1

    monkeypatch.setattr("sys.stdin", endless())
    source = chunks(read_rows("-", ["text"], None, "auto", paths), 3)
    assert [[row.texts[0] for row in next(source)] for _ in range(2)] == [
        ["line 0", "line 1", "line 2"],
        ["line 3", "line 4", "line 5"],
    ]


def test_chunks_end_with_what_is_left():
    assert [len(chunk) for chunk in chunks((Row(i, ("",)) for i in range(7)), 3)] == [3, 3, 1]
    assert list(chunks([], 3)) == []
