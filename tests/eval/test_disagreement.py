"""What a run says of scorers that disagree, and answers that are chosen by scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmattn.errors import MmattnError
from mmattn.eval import YES_NO, ByScores, Pope, Question
from mmattn.eval.disagreement import ranking
from mmattn.eval.further import notes
from mmattn.eval.types import Record
from tests.eval.fakes import World
from tests.eval.runs import run

ANSWERS = {"Yes": "yes", "NO": "no", "There isn't.": "no", "Yes, it is not red.": "yes"}


def records(pope: Pope) -> list[Record]:
    found = []
    for index, answer in enumerate(ANSWERS):
        item = pope.item(index)
        score = pope.score(item, answer)
        shown = (pope.name, "greedy", item.id, item.image, item.prompt, "done")
        found.append(Record(*shown, answer=answer, verdict=score.verdict, counts=score.counts, details=score.details))
    return found


@pytest.fixture
def pope() -> Pope:
    labels = enumerate(ANSWERS.values(), 1)
    return Pope("hand", [Question(n, f"{n}.jpg", "Is there a dog in the image?", label) for n, label in labels], Path())


def test_disagreement_by_hand(pope: Pope) -> None:
    found = pope.extras(records(pope))["scorers"]
    # official y y y n, opera y n n n, vcd y n y y (labels yes no no yes), lmms-eval y n u u, mitigv y n u y
    assert {name: one["accuracy"] for name, one in found["scorers"].items()} == {
        "official": 1 / 4,
        "opera": 3 / 4,
        "vcd": 3 / 4,
        "lmms-eval": 2 / 4,
        "mitigv": 3 / 4,
    }
    assert {name: one["differs"] for name, one in found["scorers"].items()} == {
        "official": 0,
        "opera": 2,
        "vcd": 2,
        "lmms-eval": 3,
        "mitigv": 3,
    }
    assert found["scorers"]["lmms-eval"]["unparsable"] == 2
    assert (found["answers"], found["disagree"]) == (4, 3)
    assert found["examples"][0]["answer"] == "NO"
    assert found["examples"][0]["verdicts"]["official"] == "yes"
    (line,) = pope.extras(records(pope))["notes"]
    assert "disagree on 3 of 4 answers" in line
    assert "lmms-eval 50.0 (2 unparsable)" in line


def test_agreement_is_told_too(pope: Pope) -> None:
    one = records(pope)[:1]
    assert pope.extras(one)["notes"] == ["all 5 scorers agree on all 1 answers"]
    assert pope.extras(one)["scorers"]["disagree"] == 0
    assert pope.extras([])["notes"] == []


def test_what_is_said_of_all_methods_is_said_once() -> None:
    said = {"greedy": {"notes": ["tasks are missing", "all agree"]}, "vcd": {"notes": ["tasks are missing"]}}
    assert notes({"extras": {"mme": said}}) == ["mme: tasks are missing", "mme, greedy: all agree"]


def test_a_run_tells_it_and_writes_answers_for_other_scorers(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stale = out / "answers" / "pope-random-other" / "answers.jsonl"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    results = run(world, out)
    assert not stale.exists()
    said = results["extras"]["pope-random"]["greedy"]["scorers"]
    assert said["answers"] == 18
    assert said["scorers"]["official"]["accuracy"] == results["metrics"]["pope-random"]["greedy"]["accuracy"]["value"]
    lines = [json.loads(one) for one in (out / "answers/pope-random-greedy/answers.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == list(range(1, 19))
    assert all(line["text"] == line["answer"] and line["question"].startswith("Is there") for line in lines)


class Scores:
    """A model whose words begin with their own tokens."""

    name = "scores"

    def __init__(self, *rows: dict[int, float]) -> None:
        self.rows = rows
        self.tokens = {"Yes": 1, "yes": 2, "No": 3, "no": 4}
        self.given: dict[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        return {"model": self.name}

    def first_token(self, word: str) -> int:
        return self.tokens[word]

    def generate(self, images: Any, prompts: Any, **given: Any) -> list[Any]:
        self.given = given
        return [type("Said", (), {"scores": row, "token_ids": (9,), "finish_reason": "length"}) for row in self.rows]


def test_the_likelier_choice_is_the_answer() -> None:
    never = -math.inf
    rows = [
        {1: 2.0, 2: 0.0, 3: 1.0, 4: 0.0},
        {1: 1.0, 2: 1.0, 3: 1.5, 4: never},  # e + e beats exp(1.5)
        {1: 1.0, 2: 1.0, 3: 1.8, 4: never},
        {1: never, 2: never, 3: never, 4: -50.0},
        {1: never, 2: never, 3: never, 4: never},
    ]
    model = Scores(*rows)
    asked = ByScores(model, YES_NO)
    got = asked.generate([None] * 5, ["?"] * 5, method="greedy", max_new_tokens=8)
    assert [one.text for one in got] == ["Yes", "Yes", "No", "No", ""]
    assert model.given == {"method": "greedy", "max_new_tokens": 1, "scores": [1, 2, 3, 4]}
    assert asked.describe()["answers"]["tokens"] == {"Yes": [1, 2], "No": [3, 4]}
    assert asked.name == "scores"


def test_scores_are_kept() -> None:
    never = -math.inf
    got = ByScores(Scores({1: 0.0, 2: 0.0, 3: never, 4: never}), YES_NO).generate([None], ["?"])[0]
    assert got.scores == {"Yes": round(math.log(2), 4), "No": None}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([None, 0.0, 1.0, 2.5])), max_size=12))
def test_ranking_is_the_share_of_pairs_in_order(rows: list[tuple[bool, float | None]]) -> None:
    asked = [
        Record(
            "p",
            "m",
            str(n),
            "i",
            "?",
            "done",
            details={"label": "yes" if label else "no"},
            scores={"Yes": yes, "No": 1.0},
        )
        for n, (label, yes) in enumerate(rows)
    ]
    pairs = [(-math.inf if yes is None else yes, -math.inf if no is None else no)
             for one, yes in rows if one for other, no in rows if not other]  # fmt: skip
    expected = sum(1.0 if yes > no else 0.5 if yes == no else 0.0 for yes, no in pairs) / len(pairs) if pairs else None
    assert ranking(asked) == pytest.approx(expected)


def test_choices_that_begin_alike_are_refused() -> None:
    model = Scores()
    model.tokens["no"] = 1
    with pytest.raises(MmattnError, match="Yes and No begin alike"):
        ByScores(model, YES_NO)
