from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmattn.errors import MmattnError
from mmattn.eval.coco import Instances, load_instances
from mmattn.eval.objects import vocabulary
from mmattn.eval.pope import Pope
from mmattn.eval.questions import STRATEGIES, Question, ask, build, draw_images, dumps, load_questions, read
from mmattn.eval.rows import rejected
from tests.eval.fakes import World

NAMES = [f"{letter}{number}" for letter in "abcdefgh" for number in range(3)]


def instances_of(objects: dict[str, tuple[str, ...]], categories: tuple[str, ...] = ()) -> Instances:
    known = categories or tuple(sorted({name for names in objects.values() for name in names}))
    return Instances("fake.json", "0", tuple(objects), known, objects, {}, {})


worlds = st.lists(
    st.lists(st.sampled_from(NAMES), min_size=0, max_size=6, unique=True).map(tuple), min_size=1, max_size=12
).map(lambda rows: {f"{index}.jpg": row for index, row in enumerate([*rows, ("a0", "b0", "c0")])})


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=40, deadline=None)
@given(objects=worlds, seed=st.integers(0, 5))
def test_every_list_keeps_the_rules(strategy: str, objects: dict[str, tuple[str, ...]], seed: int) -> None:
    data = instances_of(objects, tuple(NAMES))
    questions = build(data, strategy, seed)
    fit = [image for image, names in objects.items() if len(names) >= 3]
    assert len(questions) == 6 * len(fit)
    assert [question.question_id for question in questions] == list(range(1, len(questions) + 1))
    assert [question.label for question in questions] == ["yes", "no"] * (3 * len(fit))
    assert set(Counter(question.image for question in questions).values()) == {6}
    assert len({(question.image, question.text) for question in questions}) == len(questions), "repeats"
    for question in questions:
        assert (question.object in objects[question.image]) == (question.label == "yes")
    for image in fit:
        asked = [q.object for q in questions if q.image == image and q.label == "yes"]
        assert asked == list(objects[image][:3])
    assert questions == build(data, strategy, seed)


def test_a_coco_file_gives_the_published_numbers(tmp_path: Path) -> None:
    """500 pictures, 3,000 questions, half of them yes, six a picture in turns; from a file as pycocotools reads it."""
    rng = random.Random(0)
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in range(560)]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    annotations: list[dict[str, Any]] = []
    for image in images:
        for category in rng.choices(range(len(NAMES)), k=2 if image["id"] in range(40) else rng.randint(6, 12)):  # type: ignore[operator]
            annotations.append({"id": len(annotations), "image_id": image["id"], "category_id": category})
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    data = load_instances(path)
    for strategy in STRATEGIES:
        questions = build(data, strategy, seed=1)
        assert len(questions) == 3000
        assert [question.label for question in questions] == ["yes", "no"] * 1500
        assert set(Counter(question.image for question in questions).values()) == {6}
        assert len({question.image for question in questions}) == 500
        assert dumps(questions) == dumps(build(load_instances(path), strategy, seed=1))


def rank(counts: Counter[str]) -> list[str]:
    return [name for name, _ in sorted(counts.items(), key=lambda pair: pair[1], reverse=True)]


@pytest.mark.parametrize("strategy", ["popular", "adversarial"])
@settings(max_examples=40, deadline=None)
@given(objects=worlds)
def test_absent_objects_follow_the_published_procedure(strategy: str, objects: dict[str, tuple[str, ...]]) -> None:
    """The procedure written out once more, step by step, from its description."""
    questions = build(instances_of(objects, tuple(NAMES)), strategy)
    present = {image: objects[image] for image in dict.fromkeys(question.image for question in questions)}
    frequency = Counter(name for names in present.values() for name in names)
    asked = iter(questions)
    for names in present.values():
        history: list[str] = []
        for positive in names[:3]:
            history.append(positive)
            if strategy == "popular":
                walk = rank(frequency)
            else:
                walk = rank(Counter(o for row in present.values() if positive in row for o in row if o != positive))
            expected = next((name for name in walk if name not in history and name not in names), None)
            assert next(asked).object == positive
            got = next(asked).object
            if expected is not None:
                assert got == expected
            history.append(got)


def test_the_images_are_the_same_for_every_strategy(world: World) -> None:
    data = load_instances(world.instances)
    orders = {tuple(dict.fromkeys(q.image for q in build(data, strategy, seed=3))) for strategy in STRATEGIES}
    assert len(orders) == 1
    assert build(data, "random", seed=3) != build(data, "random", seed=4)
    few = build(data, "random", seed=3, images=4)
    assert len(few) == 24
    assert draw_images(list("abc"), 0, 2) == draw_images(list("abc"), 0, 2)


def test_the_same_seed_gives_the_same_file(world: World) -> None:
    data = load_instances(world.instances)
    first = dumps(build(data, "random", seed=0))
    assert first == dumps(build(data, "random", seed=0))
    assert json.loads(first.splitlines()[0]).keys() == {"question_id", "image", "text", "label"}


def test_articles() -> None:
    vowels = {"airplane", "apple", "elephant", "orange", "oven", "umbrella"}
    for name in vocabulary().categories:
        article = "an" if name in vowels else "a"
        assert ask(name) == f"Is there {article} {name} in the image?"
    assert ask("unicycle") == "Is there a unicycle in the image?"


def test_misspelt_published_questions_are_understood() -> None:
    assert Question(1, "a.jpg", "Is there an oven in the imange?", "yes").object == "oven"
    assert Question(1, "a.jpg", "Is there a hot dog in the image?", "yes").object == "hot dog"
    assert Question(1, "a.jpg", "What is this?", "yes").object == ""


def test_reading_is_the_inverse_of_writing(world: World, tmp_path: Path) -> None:
    questions = build(load_instances(world.instances), "adversarial")
    path = tmp_path / "q.json"
    path.write_text(dumps(questions) + "\n", encoding="utf-8")
    assert read(path) == questions


GOOD = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is empty"),
        (["{"], "line 1: not valid JSON"),
        (["[" * 100_000], "is not valid JSON"),
        ([{**GOOD, "text": "  "}], "line 1: no usable 'text'"),
        ([{**GOOD, "text": "Is \ud800?"}], "line 1: no usable 'text'"),
        ([{**GOOD, "image": "\udc80.jpg"}], "line 1: no usable 'image'"),
        (["[1]"], "entry 1: not a JSON object"),
        ([GOOD, {**GOOD, "question_id": "two"}], "line 2: no usable 'question_id'"),
        ([{**GOOD, "image": ""}], "line 1: no usable 'image'"),
        ([{key: GOOD[key] for key in ("question_id", "image", "label")}], "line 1: no usable 'text'"),
        ([{**GOOD, "label": "perhaps"}], "line 1: label 'perhaps' is neither yes nor no"),
        ([GOOD, {**GOOD, "question_id": 2}, GOOD], "line 3: repeats question_id 1 of line 1"),
    ],
)
def test_malformed_question_files(lines: list[Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    with pytest.raises(MmattnError, match=message) as caught:
        read(path)
    assert caught.value.remedy


def test_bad_lines_are_told_and_the_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    lines = [json.dumps(GOOD), "{", json.dumps({**GOOD, "question_id": 2}), "", json.dumps(GOOD)]
    path.write_text("\n".join(lines))
    listed = load_questions(path)
    assert [question.question_id for question in listed.entries] == [1, 2]
    assert listed.places == ("line 1", "line 3")
    assert [problem.split(" (")[0] for problem in listed.problems] == [
        "line 2: not valid JSON",
        "line 5: repeats question_id 1 of line 1",
    ]
    assert rejected(listed)["count"] == 2


def test_a_list_and_capital_labels_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text("\ufeff" + json.dumps([{**GOOD, "label": "No"}, {**GOOD, "question_id": 2, "extra": 1}]), "utf-8")
    assert [question.label for question in read(path)] == ["no", "yes"]


def test_the_other_published_lists_have_the_same_form(tmp_path: Path) -> None:
    """A-OKVQA's and GQA's are one JSON list with the authors, lines with VCD; the spelling is that of the files."""
    path = tmp_path / "gqa_pope_seem_popular.json"
    asked = [
        {"question_id": 1, "image": "23.jpg", "text": "Is there a shoes in the image?", "label": "yes"},
        {"question_id": 2, "image": "23.jpg", "text": "Is there an umbrella in the imange?", "label": "no"},
        {"question_id": 3, "image": "23.jpg", "text": "Is there an traffic light in the image?", "label": "no"},
    ]
    for text in (json.dumps(asked, indent=4), "".join(json.dumps(one) + "\n" for one in asked)):
        path.write_text(text)
        questions = read(path)
        assert [question.object for question in questions] == ["shoes", "umbrella", "traffic light"]
        assert [question.misspelt for question in questions] == [False, True, False]
        assert [question.has_wrong_article for question in questions] == [False, False, True]


def test_defects_of_published_questions_are_counted(tmp_path: Path) -> None:
    texts = [
        "Is there an imange in the image?",
        "Is there a oven in the imange?",
        "Is there an dog in the image?",
        "Why?",
    ]
    questions = [Question(n, "a.jpg", text, "no") for n, text in enumerate(texts)]
    described = Pope("x", questions, tmp_path).describe()
    assert described["misspelt"] == 2
    assert described["wrong_articles"] == 2


def test_question_file_that_is_missing_or_binary(tmp_path: Path) -> None:
    with pytest.raises(MmattnError, match="does not exist"):
        read(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MmattnError, match="not UTF-8"):
        read(tmp_path / "binary.json")


def test_lists_that_cannot_be_built() -> None:
    with pytest.raises(MmattnError, match="no image with 3 or more"):
        build(instances_of({"a.jpg": ("x", "y")}), "random")
    with pytest.raises(MmattnError, match="no absent object is left"):
        build(instances_of({"a.jpg": ("x", "y", "z")}), "random")
    with pytest.raises(MmattnError, match="Did you mean popular"):
        build(instances_of({"a.jpg": ("x", "y", "z")}), "popullar")
