from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmattn.errors import MmattnError
from mmattn.eval.normalise import normalise
from mmattn.eval.textvqa import TextVqa, accuracy, load_textvqa
from tests.eval.outcomes import records_of, values_of

# Worked out by hand from the rules of EvalAI's scorer, as MMF has them.
NORMALISED = [
    ("Yes", "yes"),
    ("  The Dog ", "dog"),
    ("a cat and an owl", "cat and owl"),
    ("two", "2"),
    ("None", "0"),
    ("ten to one", "10 to 1"),
    ("eleven", "eleven"),
    ("St. Mary", "st mary"),
    ("3.5", "3.5"),
    ("no. 7", "no 7"),
    ("end.", "end"),
    ("1,000", "1000"),
    ("what?", "what"),
    ("coca-cola", "coca cola"),
    ("coca - cola", "coca cola"),
    ("x-ray - y-axis", "xray yaxis"),  # a blank beside one hyphen deletes them all
    ("dont", "don't"),
    ("don't", "don't"),
    ("couldnt've", "couldn't've"),
    ("Im", "im"),  # the list has it with a capital, and never meets one
    ("that's", "that 's"),
    ("mcdonald's", "mcdonald 's"),
    ("line\nbreak\ttab", "line break tab"),
    ('"quoted"', "quoted"),
    ("hello!", "hello"),
    ("50% off", "50% off"),
    ("#1", "#1"),
    ("10:30", "10:30"),
    ("@home", "home"),
    ("(5)", "5"),
    ("the", ""),
    ("", ""),
    ("y'alll", "y'alll"),
    ("yall'd've", "y'all'd've"),
    ("y'alld've", "y'all'd've"),
    ("ow's'at", "ow 's'at"),  # parted before the list is asked
    ("'ows'at", "'ow's'at"),
    ("somebody'd", "somebodyd"),
    ("somebodyd", "somebodyd"),
    ("wed", "wed"),  # "we'd" is not in the list
    ("." * 40 + "a", "." * 8 + "a"),
    ("1.5.", "1.5"),
]


@pytest.mark.parametrize(("answer", "form"), NORMALISED)
def test_normalised(answer: str, form: str) -> None:
    assert normalise(answer) == form


def leave_one_out(answer: str, people: list[str]) -> float:
    """The definition: for each of ten people, how many of the others agree."""
    shares = []
    for left_out in range(len(people)):
        others = people[:left_out] + people[left_out + 1 :]
        shares.append(min(1, others.count(answer) / 3))
    return sum(shares) / len(shares)


@given(st.lists(st.sampled_from(["red", "blue", "pink"]), min_size=10, max_size=10))
def test_accuracy_is_the_mean_over_people(people: list[str]) -> None:
    for answer in ("red", "blue", "green"):
        expected = leave_one_out(answer, people) if answer in people else 0
        assert accuracy(answer.title(), people) == pytest.approx(expected)


@pytest.mark.parametrize(("agree", "credit"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_known_shares(agree: int, credit: float) -> None:
    assert accuracy("a dog", ["dog"] * agree + ["cat"] * (10 - agree)) == pytest.approx(credit)


def entry(number: int, **changes: Any) -> dict[str, Any]:
    return {"question_id": number, "image_id": f"im{number}", "question": "what?", "answers": ["dog"] * 10, **changes}


def test_a_run(tmp_path: Path) -> None:
    path = tmp_path / "TextVQA_0.5.1_val.json"
    entries = [entry(1), entry(2, answers=["Two"] * 3 + ["three"] * 7), entry(3)]
    path.write_text(json.dumps({"dataset_name": "textvqa", "data": entries}))
    asked = TextVqa(load_textvqa(path), tmp_path)
    assert asked.item(0).prompt == "what?\nAnswer the question using a single word or phrase."
    assert asked.item(0).path == tmp_path / "im1.jpg"
    assert values_of(asked, ["The dog.", "2", "cat"]) == pytest.approx({"accuracy": (1 + 0.9 + 0) / 3})
    assert json.loads(asked.answers(records_of(asked, ["The dog.", "2", "cat"]))["answers.json"]) == [
        {"question_id": 1, "answer": "The dog."},
        {"question_id": 2, "answer": "2"},
        {"question_id": 3, "answer": "cat"},
    ]


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    bad = [
        entry(2, answers=["dog"] * 9),
        entry(3, answers="dog"),
        entry(1),
        {"question_id": 5},
        [],
        entry(6, image_id=None),
    ]
    path.write_text(json.dumps({"data": [entry(1), *bad]}))
    assert load_textvqa(path).problems == (
        "entry 2: 9 answers where 10 are needed",
        "entry 3: no usable list 'answers'",
        "entry 4: repeats question_id 1 of entry 1",
        "entry 5: no usable list 'answers'",
        "entry 6: not a JSON object",
        "entry 7: no usable 'image_id'",
    )
    path.write_text(json.dumps({"questions": []}))
    with pytest.raises(MmattnError, match="holds no list 'data'"):
        load_textvqa(path)
    path.write_text(json.dumps({"data": bad[:2]}))
    with pytest.raises(MmattnError, match="no usable entry; entry 1: 9 answers"):
        load_textvqa(path)
