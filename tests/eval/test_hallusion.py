from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmattn.eval import further
from mmattn.eval.hallusion import HallusionBench, load_hallusion
from mmattn.eval.scorers import scorer
from tests.eval.outcomes import records_of, values_of


def entry(figure: int, question: int, gold: str, seen: str = "1", **changes: Any) -> dict[str, Any]:
    return {
        "category": "VD",
        "subcategory": "illusion",
        "visual_input": seen,
        "set_id": "0",
        "figure_id": str(figure),
        "sample_note": "circle",
        "question_id": str(question),
        "question": f"Is circle {question} the same?",
        "gt_answer_details": "yes",
        "gt_answer": gold,
        "filename": f"./VD/illusion/0_{figure}.png",  # the readme has its folder, hallusion_bench, in front
        **changes,
    }


@pytest.fixture
def bench(tmp_path: Path) -> HallusionBench:
    """Two figures with two questions each, the second figure edited; a second set; a question without a picture."""
    entries = [entry(0, 0, "1"), entry(0, 1, "0"), entry(1, 0, "0", "2"), entry(1, 1, "1", "2")]
    entries.append(entry(0, 0, "1", set_id="1", filename="./hallusion_bench/VD/illusion/1_0.png"))
    entries.append(entry(0, 0, "1", "0", category="VS", filename=None))
    path = tmp_path / "HallusionBench.json"
    path.write_text(json.dumps(entries))
    return HallusionBench(load_hallusion(path), tmp_path)


def test_the_file(bench: HallusionBench, tmp_path: Path) -> None:
    assert len(bench) == 5
    assert bench.describe()["without_picture"] == 1
    assert bench.item(0).path == tmp_path / "VD/illusion/0_0.png"
    assert bench.item(4).where == "HallusionBench.json entry 5"


def test_accuracies_by_hand(bench: HallusionBench) -> None:
    answers = ["Yes.", "No, not the same.", "No", "I cannot tell", "Yes"]
    # figures: 0 whole, 1 not, set 1's whole; questions over figures: 0 whole, 1 not, set 1's whole
    assert values_of(bench, answers) == pytest.approx(
        {"aAcc": 4 / 5, "qAcc": 2 / 3, "fAcc": 2 / 3, "easy aAcc": 1.0, "hard aAcc": 1 / 2}
    )
    assert bench.extras(records_of(bench, answers))["notes"] == ["1 answers are neither yes nor no and count as wrong"]


def test_easy_and_hard_are_questions_over_their_figures(tmp_path: Path) -> None:
    # one question about two figures as they were found, and two edited ones; another about one of each
    entries = [entry(0, 0, "1"), entry(1, 0, "1"), entry(2, 0, "0", "2"), entry(3, 0, "0", "2")]
    entries += [entry(0, 1, "1"), entry(2, 1, "1", "2")]
    path = tmp_path / "HallusionBench.json"
    path.write_text(json.dumps(entries))
    asked = HallusionBench(load_hallusion(path), tmp_path)
    found = values_of(asked, ["yes", "no", "no", "no", "yes", "no"])
    assert found["aAcc"] == pytest.approx(4 / 6)
    assert found["easy aAcc"] == pytest.approx(1 / 2), "the first question is wrong about one original figure"
    assert found["hard aAcc"] == pytest.approx(1 / 2), "and right about both edited ones"
    assert found["qAcc"] == 0.0


def test_incomplete_groups_do_not_count(bench: HallusionBench) -> None:
    some = {bench.item(index).id: "yes" for index in (0, 2, 4)}
    got = values_of(bench, some)
    assert got["fAcc"] == 1.0, "set 1's figure alone is whole"
    assert got["qAcc"] == pytest.approx(1 / 2), "question 0 over both figures is wrong, set 1's is right"


def test_sets_are_drawn_whole(bench: HallusionBench) -> None:
    units = {record.image for record in further.join(bench, records_of(bench, ["yes"] * 5))}
    assert units == {"VD_illusion_0", "VD_illusion_1"}


def test_another_rule(bench: HallusionBench) -> None:
    official = HallusionBench(bench._listed, Path(), rule=scorer("official"))
    assert official.describe()["scorer"]["name"] == "official"
    assert values_of(official, ["maybe"] * 5)["aAcc"] == pytest.approx(3 / 5)
    assert values_of(bench, ["maybe"] * 5)["aAcc"] == 0


def test_answers_keep_the_entries(bench: HallusionBench) -> None:
    (first, *_) = json.loads(bench.answers(records_of(bench, ["Yes.", "", "", "", ""]))["answers.json"])
    assert first == {**entry(0, 0, "1"), "model_prediction": "Yes."}


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps([entry(0, 0, "1"), entry(0, 0, "1"), entry(0, 1, "2"), entry(1, 0, "1", filename=None)]))
    assert load_hallusion(path).problems == (
        "entry 2: repeats question VD_illusion_0_0_0 of entry 1",
        "entry 3: gt_answer '2' is neither 0 nor 1",
        "entry 4: no usable 'filename'",
    )
