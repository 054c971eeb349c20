from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmattn.errors import MmattnError
from mmattn.eval.amber import Amber, exactly, load_amber, load_association
from mmattn.eval.compare import by_category
from mmattn.eval.nouns import Association
from mmattn.eval.scorers import scorer
from tests.eval.outcomes import records_of, values_of

RELATION = {"dog": ["puppy"], "tree": ["oak", "pine"], "car": ["taxi"], "cat": [], "grass": []}
QUERIES = [
    {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
    {"id": 2, "image": "AMBER_2.jpg", "query": "Describe this image."},
    {"id": 3, "image": "AMBER_1.jpg", "query": "Is there a dog in this image?"},
    {"id": 4, "image": "AMBER_1.jpg", "query": "Is there a cat in this image?"},
    {"id": 5, "image": "AMBER_2.jpg", "query": "Is the car red in this image?"},
]
NOTES = [
    {"id": 1, "type": "generative", "truth": ["dog", "tree"], "hallu": ["car", "cat"]},
    {"id": 2, "type": "generative", "truth": ["car"], "hallu": ["dog"]},
    {"id": 3, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 4, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 5, "type": "discriminative-attribute-state", "truth": "no"},
]


def folder(root: Path, queries: list[Any] = QUERIES, notes: list[Any] = NOTES) -> Path:
    (root / "query").mkdir(exist_ok=True)
    (root / "query" / "query_all.json").write_text(json.dumps(queries))
    (root / "annotations.json").write_text(json.dumps(notes))
    (root / "relation.json").write_text(json.dumps(RELATION))
    (root / "safe_words.txt").write_text("grass\n")
    return root


def amber(root: Path, **options: Any) -> Amber:
    data = folder(root)
    return Amber(load_amber(data), data, load_association(data), **options)


ANSWERS = ["Puppies and a puppy sit on grass by a taxi and a sofa.", "A car.", "Yes", "No", "No, it is blue"]


def test_by_hand(tmp_path: Path) -> None:
    # 1: puppy, puppy, grass, taxi; taxi is wrong, tempting "car" named; dog covered, tree not. 2: car, all fits.
    # questions, "no" positive: yes right, no right, the last is no exact answer: lost
    precision, recall = 1.0, 1 / 2
    f1 = 2 * precision * recall / (precision + recall)
    assert values_of(amber(tmp_path), ANSWERS) == pytest.approx(
        {
            "CHAIR": 1 / 5,
            "Cover": 2 / 3,
            "Hal": 1 / 2,
            "Cog": 1 / 3,
            "accuracy": 2 / 3,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "AMBER score": (100 - 20 + 100 * f1) / 2,
        }
    )
    records = records_of(amber(tmp_path), ANSWERS)
    extras = amber(tmp_path).extras(records)
    kinds = by_category(amber(tmp_path), records)
    assert set(kinds) == {"generative", "existence", "attribute-state"}
    assert kinds["existence"]["m"]["accuracy"] == 1.0
    assert kinds["attribute-state"]["m"]["accuracy"] == 0.5
    assert kinds["generative"]["m"]["Hal"] == 0.5
    assert extras["notes"][0].startswith("1 answers are not exactly")


def test_another_rule_reads_whole_sentences_and_writes_the_words(tmp_path: Path) -> None:
    bench = amber(tmp_path, rule=scorer("mitigv"))
    assert values_of(bench, ANSWERS)["recall"] == 1.0
    lines = json.loads(bench.answers(records_of(bench, ANSWERS))["answers.json"])
    assert lines[0] == {"id": 1, "response": ANSWERS[0]}
    assert [line["response"] for line in lines[2:]] == ["Yes", "No", "No"]
    exact = amber(tmp_path)
    assert json.loads(exact.answers(records_of(exact, ANSWERS))["answers.json"])[4]["response"] == "No, it is blue"


def test_no_is_positive(tmp_path: Path) -> None:
    got = values_of(amber(tmp_path), {"3": "No", "4": "No", "5": "Yes"})
    assert got == pytest.approx({"accuracy": 1 / 3, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2})
    got = values_of(amber(tmp_path), {"3": "No", "4": "No", "5": "No"})
    assert got == pytest.approx({"accuracy": 2 / 3, "precision": 2 / 3, "recall": 1.0, "f1": 4 / 5})


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("yes", "unparsable"),
        ("No.", "unparsable"),
        ("", "unparsable"),
        (" No", "unparsable"),
    ],
)
def test_the_exact_rule(answer: str, verdict: str) -> None:
    assert exactly(answer, "no") == verdict


@pytest.mark.parametrize(
    ("text", "truth", "tempting", "words", "wrong", "covered", "tempted"),
    [
        # a safe word is counted, and does nothing else
        ("A light by a road.", ["road", "light"], [], "light road", "", "road", ""),
        ("A light.", ["road"], ["light"], "light", "", "", ""),
        # what fits the picture tempts nobody, although it is listed among the tempting
        ("A street.", ["road"], ["street"], "street", "", "road", ""),
        ("A street.", ["tree"], ["road", "street"], "street", "street", "", "road"),
        # one object a word: one that it may stand for comes before the word itself, the first before others
        ("Ground.", ["ground", "grass", "road"], [], "ground", "", "grass", ""),
        ("Ground.", ["ground", "tree"], [], "ground", "", "ground", ""),
        ("A tree and a tree.", ["tree", "tree"], [], "tree tree", "", "tree", ""),
        # the lists lead from the object to the word, not back
        ("A road.", ["street"], [], "road", "road", "", ""),
        ("Two TVs, a tv and a television.", ["television"], [], "TV TV television", "", "television", ""),
        ("The road's trees", ["tree"], ["road"], "road tree", "road", "tree", "road"),
        ("A spaceship.", ["tree"], ["road"], "", "", "", ""),
    ],
)
def test_what_a_description_names(
    text: str, truth: list[str], tempting: list[str], words: str, wrong: str, covered: str, tempted: str
) -> None:
    relation = {"road": ["street", "ground"], "grass": ["ground"], "ground": [], "tree": [], "television": ["TV"]}
    relation |= {"street": [], "light": []}
    found = Association(relation, ["light", ""]).read(text, truth, tempting)
    assert (found.words, found.wrong) == (tuple(words.split()), tuple(wrong.split()))
    assert (found.covered, found.tempted) == (tuple(covered.split()), tuple(tempted.split()))


def test_the_published_types(tmp_path: Path) -> None:
    kinds = {
        "discriminative-hallucination": "existence",
        "discriminative-attribute-state": "attribute-state",
        "discriminative-attribute-number": "attribute-number",
        "discriminative-attribute-action": "attribute-action",
        "discriminative-relation": "relation",
        "relation": "relation",  # the file has both
    }
    notes = [{"id": number, "type": kind, "truth": "no"} for number, kind in enumerate(kinds, 1)]
    queries = [{"id": one["id"], "image": "AMBER_1.jpg", "query": f"Is {one['id']} there?"} for one in notes]
    listed = load_amber(folder(tmp_path, queries, notes))
    assert [entry.meta["category"] for entry in listed.entries] == list(kinds.values())


def test_one_query_file(tmp_path: Path) -> None:
    data = folder(tmp_path)
    path = data / "query" / "query_generative.json"
    path.write_text(json.dumps(QUERIES[:2]))
    bench = Amber(load_amber(data, path), data, load_association(data))
    assert len(bench) == 2
    assert set(values_of(bench, ANSWERS[:2])) == {"CHAIR", "Cover", "Hal", "Cog"}


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    notes = [*NOTES[:3], {"id": 4, "type": "discriminative-hallucination", "truth": "perhaps"}, {"id": 5}]
    data = folder(tmp_path, [*QUERIES, QUERIES[0]], notes)
    assert load_amber(data).problems == (
        "annotations.json entry 4: truth 'perhaps' is neither yes nor no",
        "annotations.json entry 5: no usable 'type'",
        "entry 4: id 4 is not among the annotations",
        "entry 5: id 5 is not among the annotations",
        "entry 6: repeats id 1 of entry 1",
    )
    (data / "relation.json").write_text("[1]")
    with pytest.raises(MmattnError, match=r"relation\.json is not valid"):
        load_association(data)
    (data / "safe_words.txt").unlink()
    with pytest.raises(MmattnError, match=r"safe_words\.txt does not exist"):
        load_association(data)
