from __future__ import annotations

import base64
import csv
from pathlib import Path
from typing import Any

import pytest

from mmattn.eval.compare import by_category
from mmattn.eval.mmbench import ASK, MmBench, load_mmbench, read_choice
from tests.eval.outcomes import picture, records_of, values_of

OPTIONS = {"A": "cat", "B": "dog", "C": "a big house", "D": "category"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("A", "A"), ("b", "B"), ("B.", "B"), ("(C)", "C"), ("D: category", "D"), ("The answer is B.", "B"),
     ("Answer: C", "C"), ("Option D", "D"), ("A. cat", "A"), ("dog", "B"), ("It is a dog.", "B"), ("A dog", "B"),
     ("a cat", "A"), ("cat or dog", "unparsable"), ("category", "D"), ("", "unparsable"), ("E", "unparsable"),
     ("Apple", "unparsable"), ("A big house", "C"), ("None", "unparsable"), ("**B**", "B")],
)  # fmt: skip
def test_the_letter(answer: str, letter: str) -> None:
    assert read_choice(answer, OPTIONS) == letter


def row(index: int, answer: str, image: str, **changes: Any) -> dict[str, Any]:
    options = {"A": "cat", "B": "dog", "C": "", "D": ""}
    return {"index": index, "question": "What is it?", "hint": "nan", **options, "answer": answer,
            "category": "animals", "image": image, **changes}  # fmt: skip


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def held(tmp_path: Path) -> str:
    return base64.b64encode(picture(tmp_path / "p.png").read_bytes()).decode()


def test_a_circular_run(tmp_path: Path, held: str) -> None:
    turned = {"A": "dog", "B": "cat"}
    rows = [row(1, "A", held), row(1_000_001, "B", "1", **turned, C="nan", D="None", hint="none")]
    rows.append(row(2, "B", held, hint="Look.\nHard."))
    images = tmp_path / "images"
    bench = MmBench(load_mmbench(table(tmp_path / "m.tsv", rows), images), images)
    assert bench.item(0).prompt == f"What is it?\nA. cat\nB. dog\n{ASK}"
    assert bench.item(1).prompt == f"What is it?\nA. dog\nB. cat\n{ASK}"
    assert bench.item(2).prompt.startswith("Look.\nHard.\nWhat")
    assert [bench.item(index).path.is_file() for index in range(3)] == [True] * 3
    assert bench.item(1).path == images / "1.jpg"
    assert bench.item(2).where == "m.tsv line 4"
    assert values_of(bench, ["A", "A", "B"]) == pytest.approx({"accuracy": 2 / 3, "circular accuracy": 1 / 2})
    assert values_of(bench, ["A", "B", "B"])["circular accuracy"] == 1.0
    assert by_category(bench, records_of(bench, ["A", "B", "B"]))["animals"]["m"]["circular accuracy"] == 1.0
    assert {record.image for record in bench.join(records_of(bench, ["A"] * 3))} == {"1", "2"}
    text = bench.answers(records_of(bench, ["A", "A", "B"]))["answers.tsv"]
    again = list(csv.DictReader(text.splitlines(keepends=True), delimiter="\t"))
    assert [(line["index"], line["prediction"]) for line in again] == [("1", "A"), ("1000001", "A"), ("2", "B")]
    assert "image" not in again[0]


def test_what_cannot_be_used_is_told(tmp_path: Path, held: str) -> None:
    rows = [row(1, "A", held), row(1, "A", held), row(2, "C", held), row(3, "A", "!" * 70), row(4, "A", "")]
    path = table(tmp_path / "m.tsv", rows)
    with path.open("a") as handle:
        handle.write("5\tonly three\tcolumns\n")
    assert load_mmbench(path, tmp_path / "images").problems == (
        "line 3: repeats index 1 of line 2",
        "line 4: answer 'C' is none of the options A, B",
        "line 5: 'image' is no base64",
        "line 6: no usable 'image'",
        "line 7: 3 columns where the head has 10",
    )
