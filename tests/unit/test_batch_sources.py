"""What jobs read, and the rows that become of it."""

import csv
import functools
import io
import json
import os
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from mlx_vlgen.batch import pdf, sources
from mlx_vlgen.batch.rows import Asked, Row, rows_of
from mlx_vlgen.errors import MediaError, VlgenError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip("\ufeff"))
NAMES = st.text(string.ascii_uppercase, min_size=1, max_size=8)
TABLES = st.lists(NAMES, min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, TEXT)), min_size=1, max_size=4)
)


def rows(*inputs: Path | str, **asked: Any) -> list[Row]:
    found = Asked(**asked)
    return [row for item in sources.read(list(map(str, inputs))) for row in rows_of(item, found)]


def one(fields: dict[str, Any], table: bool = False, **asked: Any) -> Row:
    (row,) = rows_of(sources.Item(fields, "here", table=table), Asked(**asked))
    return row


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, a PDF file of three pages, and what is none."""
    for name in ("b.png", "a.JPG", "sub/c.webp", "sub/deep/d.png", ".hidden.png", ".git/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    pages = [Image.new("RGB", (200, 100 * i), "blue") for i in (1, 2, 3)]
    pages[0].save(tmp_path / "doc.pdf", save_all=True, append_images=pages[1:], resolution=72)
    return tmp_path


# Files


def test_a_folder_is_read_in_order_without_what_is_hidden(folder: Path) -> None:
    found = rows(folder)
    names = ["a.JPG", "b.png", "doc.pdf#1", "doc.pdf#2", "doc.pdf#3", "sub/c.webp", "sub/deep/d.png"]
    assert [row.name for row in found] == [str(folder / name) for name in names]
    assert [row.stem for row in found] == ["a", "b", "doc-1", "doc-2", "doc-3", "sub/c", "sub/deep/d"]
    assert {row.prompt for row in found} == {"Describe this image."}
    assert sources.count([str(folder)]) == 5
    (folder / "sub" / "up").symlink_to(folder)  # which leads back
    (folder / "sub" / "again").symlink_to(folder / "sub" / "deep")
    assert [row.stem for row in rows(folder)][6:] == ["sub/again/d", "sub/deep/d"]


def test_a_folder_that_cannot_be_read_is_a_failed_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert rows(folder)[-1].error == f"{folder / 'sub'}: cannot be read (Permission denied)"


def test_patterns_files_and_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row.stem for row in rows(folder / "**" / "*.png")] == ["b", "sub/deep/d"]
    assert [row.name for row in rows(folder / "b.png", str(folder / "doc.pdf") + "#2-")] == [
        str(folder / name) for name in ("b.png", "doc.pdf#2", "doc.pdf#3")
    ]
    (folder / "list.txt").write_text("sub/c.webp\n\nhttps://example.org/x/y.png?z=1\nclip.mp4\n../elsewhere.png")
    listed = rows(folder / "list.txt")
    assert [row.stem for row in listed] == ["sub/c", "y", "clip", "elsewhere"]
    assert listed[0].images == (str(folder / "sub" / "c.webp"),) and listed[0].name == "sub/c.webp"
    assert listed[2].videos == ("clip.mp4",) and listed[2].prompt == "Describe this video."
    monkeypatch.setattr("sys.stdin", io.StringIO("a.png\nb.png\n"))
    assert [row.name for row in rows("-")] == ["a.png", "b.png"]


def test_inputs_of_no_known_kind_are_refused(folder: Path) -> None:
    (folder / "rows.json").write_text("[]")
    for name, why in (("gone", "no such file"), ("rows.json", "expected a folder"), ("gone.png", "no such file")):
        with pytest.raises(VlgenError, match=why):
            sources.check([str(folder / name)])


def test_pages_of_pdf_files(folder: Path) -> None:
    path = str(folder / "doc.pdf")
    assert pdf.page_numbers(path, "1,3-") == [1, 3]
    for wanted in ("4", "0", "3-2", "2-9", ",", "1--2"):
        with pytest.raises(MediaError, match="has 3 pages"):
            pdf.page_numbers(path, wanted)
    page = Image.open(io.BytesIO(pdf.Page(path, 2).read()))
    assert page.size == (round(200 * pdf.DPI / 72 + 0.49), round(200 * pdf.DPI / 72 + 0.49))
    first, second = (
        row.images[0] for row in rows_of(sources.Item({"image": path + "#2"}, "here"), Asked(["What?", "Where?"]))
    )
    assert first is not second  # two threads may read them at once
    assert first.content_key == second.content_key == pdf.Page(path, 2).content_key != pdf.Page(path, 1).content_key
    assert pdf.Page("none.pdf", 1).content_key is None
    (folder / "bad.pdf").write_bytes(b"%PDF-1.7 torn")
    assert "not a PDF file" in (one({"image": str(folder / "bad.pdf")}).error or "")
    pages = one({"images": ["b.png", path + "#1-2"], "prompt": "Same?"})
    assert [getattr(image, "name", image) for image in pages.images] == ["b.png", path + "#1", path + "#2"]
    named = list(rows_of(sources.Item({"custom_id": "x", "image": path + "#2-3"}, "here"), Asked()))
    assert [row.custom_id for row in named] == ["x#2", "x#3"]


# Tables


def written(kind: str, table: list[dict[str, str]], folder: str) -> Path:
    path = Path(folder, f"rows.{kind}")
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=len(row) % 2 == 0) for row in table), encoding="utf-8")
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(table), path)
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), dialect="excel-tab" if kind == "tsv" else "excel")
            writer.writeheader()
            writer.writerows(table)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@given(table=TABLES)
def test_tables_are_read_as_they_were_written(kind: str, table: list[dict[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        column = next(iter(table[0]))  # whichever it is
        expected = [{"image" if kind != "jsonl" and key == column else key: row[key] for key in row} for row in table]
        path = str(written(kind, table, folder))
        assert [item.fields for item in sources.read([path], image_column=column)] == expected


def test_a_bad_line_is_a_failed_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(
        b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": \n[1]\n\n{"prompt": "\xff"}\n' + b"[" * 100_000 + b'\n{"prompt": "z"}'
    )
    found = rows(tmp_path / "rows.jsonl")
    assert [row.prompt for row in found if not row.error] == ["a", "z"]
    assert [row.where.rpartition(" ")[2] for row in found if row.error] == ["2", "3", "5", "6"]
    (tmp_path / "rows.csv").write_text('prompt,seed\na,1\nb\n"two\nlines",2\nc,1.5\n')
    found = rows(tmp_path / "rows.csv")
    assert [row.keywords for row in found if not row.error] == [{"seed": 1}, {"seed": 2}]
    assert "1 fields where the header has 2" in (found[1].error or "") and "line 3" in (found[1].error or "")
    assert "seed='1.5': expected a whole number" in (found[3].error or "")
    for text, why in (
        (b"a,a\n1,2", "two columns"),
        (b"prompt\n\xff", "not text in UTF-8"),
        (b"file,size\na,1", "no column image, images, .*; it has file, size. --image-column"),
    ):
        (tmp_path / "bad.csv").write_bytes(text)
        with pytest.raises(VlgenError, match=why):
            rows(tmp_path / "bad.csv")


def test_pictures_in_a_parquet_file(folder: Path) -> None:
    data = (folder / "b.png").read_bytes()
    table = [{"photo": {"bytes": data, "path": None}}, {"photo": {"bytes": None, "path": "b.png"}}]
    parquet.write_table(pyarrow.Table.from_pylist(table), folder / "rows.parquet")
    items = sources.read([str(folder / "rows.parquet")], image_column="photo")
    inside, beside = (row for item in items for row in rows_of(item, Asked()))
    assert inside.images == (data,) and inside.name.startswith("sha256:")
    assert beside.images == (str(folder / "b.png"),) and (beside.name, beside.stem) == ("b.png", "b")


# Rows


def test_prompts_are_templates_of_the_columns() -> None:
    item = sources.Item({"image": "shoes/x.png", "product": "shoe", "price": 10**30}, "here")
    found = list(rows_of(item, Asked(["A {product} of {folder}?", '{"a": 1} for {price}'], system="Be brief.")))
    assert [row.prompt for row in found] == ["A shoe of shoes?", '{"a": 1} for 1' + "0" * 30]
    assert found[0].messages[0] == {"role": "system", "content": "Be brief."}
    assert "has no such column; it has" in (one({"image": "a.png"}, prompts=["{colour}?"]).error or "")
    assert one({"image": "a.png", "prompt": "{literal}"}, prompts=["{prompt}!"]).prompt == "{literal}"


DEEP: dict[str, Any] = functools.reduce(lambda inner, _: {"not": inner}, range(3000), {})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"image": "a.png", "tempratur": 1}, "unknown keyword 'tempratur'; did you mean 'temperature'"),
        ({"image": "a.png", "max_tokens": "9"}, "max_tokens='9': expected a whole number"),
        ({"image": "a.png", "draft_model": "b"}, "draft_model is of the whole job"),
        ({"image": "a.png", "top_logprobs": 2}, "top_logprobs: a job does not have it"),
        ({"image": "a.png", "images": ["b.png"]}, "image and images"),
        ({"image": 3}, "image: expected a path, a URL or a data: URI; this is int"),
        ({"custom_id": 1.5, "prompt": "a"}, "custom_id=1.5"),
        ({"custom_id": "a"}, "nothing to ask about"),
        ({"prompt": "a", "messages": []}, "leave one of them out"),
        ({"messages": "a"}, "not JSON|Expecting"),
        ({"messages": [{"content": "a"}]}, "a message is a mapping"),
        (
            {"prompt": "a", "json_schema": DEEP},
            "ecursion",
        ),
        ({"image": "a\0.png", "messages": 3}, "a prompt is a string, a message or a list"),
    ],
)
def test_what_is_wrong_with_a_row_is_its_error(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        assert (error := one(fields).error) is None, error


def test_columns_of_tables_may_be_anyones() -> None:
    asked = Asked(["{product}?"])
    item = sources.Item({"image": "a.png", "product": "shoe", "price": "3", "stop": '["a", "b"]', "top_p": "0.5",
                         "include_eos": "true", "resize_shape": "3 4"}, "here", table=True)  # fmt: skip
    (row,) = rows_of(item, asked)
    assert row.error is None and asked.unread == {"price"}
    assert row.keywords == {"stop": ["a", "b"], "top_p": 0.5, "include_eos": True, "resize_shape": [3, 4]}


def test_messages_with_media(folder: Path) -> None:
    parts = [
        {"type": "image", "image": "b.png"},
        {"type": "image", "image": "doc.pdf#3"},
        {"type": "text", "text": "?"},
    ]
    item = sources.Item({"messages": [{"role": "user", "content": parts}]}, "here", base=str(folder))
    (row,) = rows_of(item, Asked(system="Be brief."))
    assert [message["role"] for message in row.messages] == ["system", "user"]
    assert row.messages[1]["content"][0]["image"] == str(folder / "b.png")
    assert row.files == (str(folder / "b.png"), str(folder / "doc.pdf"))


# OpenAI's lines


def line(body: dict[str, Any], changed: dict[str, Any] | None = None) -> Row:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
        {"type": "text", "text": "What?"},
    ]}]  # fmt: skip
    body = {"model": "gpt-4o-mini", "messages": messages, **body}
    return one({"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body} | (changed or {}))


def test_openais_lines() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "number"}, "strict": True}}
    row = line({"max_completion_tokens": 9, "temperature": 0.5, "logit_bias": {"5": -1}, "stop": "x", "n": 1,
                "stream": False, "user": "me", "response_format": schema, "top_k": 3, "seed": None})  # fmt: skip
    assert row.error is None and row.openai and row.custom_id == "r1" and row.name == "https://example.org/a.png"
    assert row.keywords == {"max_tokens": 9, "temperature": 0.5, "logit_bias": {5: -1}, "stop": "x",
                            "json_schema": {"type": "number"}, "top_k": 3}  # fmt: skip
    assert row.messages[0] == {"role": "system", "content": "Be brief."}
    assert row.messages[1]["content"][0] == {"type": "image", "image": "https://example.org/a.png"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (lambda: line({"n": 2}), "n=2: a job does not have it"),
        (lambda: line({"temprature": 1}), "unknown keyword 'temprature'"),
        (lambda: line({}, {"url": "/v1/embeddings"}), "POST /v1/embeddings: only POST /v1/chat/completions"),
        (lambda: line({"messages": None}), "it has no messages"),
        (lambda: line({}, {"body": []}), "body: expected an object"),
        (lambda: line({"response_format": {"type": "json_schema"}}), "response_format: expected"),
    ],
)
def test_what_is_wrong_with_a_line_is_its_error(row: Callable[[], Row], why: str) -> None:
    assert why in (row().error or "")
