from __future__ import annotations

from pathlib import Path

import pytest

from mmattn.errors import MmattnError
from mmattn.eval.mme import Mme, load_mme, read
from tests.eval.outcomes import picture, records_of, values_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tasks in the three published layouts."""
    for name in ("a", "b"):
        picture(tmp_path / "existence" / "images" / f"{name}.jpg")
        text = tmp_path / "existence" / "questions_answers_YN" / f"{name}.txt"
        text.parent.mkdir(exist_ok=True)
        text.write_text(f"Is {name} there? Please answer yes or no.\tYes\nIs {name} gone?\tNo\n")
    picture(tmp_path / "OCR" / "x.png")
    (tmp_path / "OCR" / "x.txt").write_text("Is it ABC?\tYes\nIs it ABD?\tNo")
    (tmp_path / "OCR" / "ReadMe.txt").write_text("Where the pictures are from.\n")
    picture(tmp_path / "code_reasoning" / "c.png")
    (tmp_path / "code_reasoning.txt").write_text("c.png\tPrints 1?\tYes\nc.png\tPrints 2?\tNo\tyes\n")
    return tmp_path


def test_the_layouts(folder: Path) -> None:
    mme = Mme(load_mme(folder), folder)
    assert [mme.item(index).image for index in range(len(mme))] == [
        *["existence/images/a.jpg"] * 2,
        *["existence/images/b.jpg"] * 2,
        *["OCR/x.png"] * 2,
        *["code_reasoning/c.png"] * 2,
    ]
    first = mme.item(0)
    assert first.prompt == "Is a there? Please answer yes or no."
    assert first.path.is_file()
    assert first.where == f"{folder.name} existence/questions_answers_YN/a.txt line 1"
    assert mme.describe()["rejected"]["count"] == 0


def test_scores_by_hand(folder: Path) -> None:
    mme = Mme(load_mme(folder), folder)
    answers = ["Yes", "No.", "Yes, it is", "yes", "I think no", "no", "YES", "There is no 2"]
    # existence: 3 of 4 right, a whole; OCR: "i th" is other: 1 of 2; code: yes right, "ther" is other
    assert values_of(mme, answers) == pytest.approx(
        {
            "perception score": 125 + 50,
            "cognition score": 50,
            "existence score": 75 + 50,
            "OCR score": 50,
            "code_reasoning score": 50,
        }
    )
    extras = mme.extras(records_of(mme, answers))
    assert extras["tasks"]["existence"] == {"acc": 0.75, "acc_plus": 0.5}
    assert "count" in extras["notes"][0]


def test_the_written_answers_give_the_same_score_by_the_public_procedure(folder: Path, tmp_path: Path) -> None:
    mme = Mme(load_mme(folder), folder)
    answers = ["Yes", "No", "No", "no\tindeed\n.", "\n\n yes", "\r no", "maybe", "no"]
    files = mme.answers(records_of(mme, answers))
    assert set(files) == {"existence.txt", "OCR.txt", "code_reasoning.txt"}
    values = values_of(mme, answers)
    for name, text in files.items():
        lines = [line.split("\t") for line in text.splitlines()]
        right, whole = 0, 0
        for start in range(0, len(lines), 2):
            (image, _, gold, said), (other, _, gold2, said2) = lines[start : start + 2]
            assert image == other
            hits = [g.lower() == ("yes" if "yes" in s.lower()[:4] else "no" if "no" in s.lower()[:4] else "other")
                    for g, s in ((gold, said), (gold2, said2))]  # fmt: skip
            right += sum(hits)
            whole += all(hits)
        expected = 100 * (right / len(lines) + whole / (len(lines) // 2))
        assert values[f"{name.removesuffix('.txt')} score"] == pytest.approx(expected)


def test_a_picture_counts_only_if_both_questions_are_answered(folder: Path) -> None:
    mme = Mme(load_mme(folder), folder)
    records = records_of(mme, {mme.item(0).id: "yes"})
    assert [record.counts for record in mme.join(records)] == [{"existence asked": 1.0, "existence right": 1.0}]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("Yes", "yes"), ("no.", "no"), ("NO", "no"), (" yes", "yes"), ("  yes", "other"), ("not", "no"), ("", "other"),
     ("know", "no"), ("The answer is yes", "other"), ("Yesno", "yes"), ("eyes", "yes"), ("maybe", "other")],
)  # fmt: skip
def test_the_public_rule(answer: str, verdict: str) -> None:
    assert read(answer) == verdict


def test_what_cannot_be_used_is_told(folder: Path) -> None:
    (folder / "OCR" / "y.txt").write_text("Is it DEF?\tYes\n")
    (folder / "OCR" / "z.txt").write_text("Is it\tGHI?\tYes\nIs it GHJ?\tperhaps\n")
    (folder / "code_reasoning.txt").write_text("c.png\tPrints 1?\tYes\nc.png\tPrints 1?\tYes\nc.png\tPrints 2?\tNo\n")
    listed = load_mme(folder)
    assert listed.problems == (
        "OCR/z.txt line 1: 3 columns parted by tabs",
        "OCR/z.txt line 2: answer 'perhaps' is neither yes nor no",
        "code_reasoning.txt line 2: repeats the question 'Prints 1?' about code_reasoning/c.png of "
        "code_reasoning.txt line 1",
        "OCR/y.txt line 1: 1 usable questions about OCR/y.jpg, not 2",
    )
    assert len(listed.entries) == 8


def test_no_folder_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(MmattnError, match="does not exist"):
        load_mme(tmp_path / "none")
    with pytest.raises(MmattnError, match="is empty"):
        load_mme(tmp_path)
