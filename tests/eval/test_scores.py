"""POPE's and CHAIR's numbers against small cases worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmattn.errors import MmattnError
from mmattn.eval import stats
from mmattn.eval.chair import Chair
from mmattn.eval.coco import Captions, Instances, load_captions, load_instances
from mmattn.eval.pope import Pope
from mmattn.eval.questions import Question, build
from mmattn.eval.scorers import Scorer
from mmattn.eval.types import Benchmark, Record
from tests.eval.fakes import World


def values(benchmark: Benchmark, answers: list[str]) -> dict[str, Any]:
    """Metrics of one answer per question, through the same path as a run."""
    records = []
    for index, answer in enumerate(answers):
        item = benchmark.item(index)
        score = benchmark.score(item, answer)
        records.append(Record(benchmark.name, "m", item.id, item.image, item.prompt, "done", counts=score.counts))
    return {name: one.value for name, one in stats.estimates(stats.Counts.of(records), benchmark.metrics).items()}


def asks(labels: str) -> list[Question]:
    return [
        Question(n, f"{n}.jpg", "Is there a dog in the image?", {"y": "yes", "n": "no"}[label])
        for n, label in enumerate(labels)
    ]


def test_pope_by_hand() -> None:
    pope = Pope("hand", asks("yyyynnnn"), Path())
    got = values(pope, ["Yes", "yes", "Yes.", "No", "No", "Yes", "Yes", "maybe"])
    # true yes 3, missed 1, true no 1, false yes 3
    assert got == pytest.approx(
        {"accuracy": 4 / 8, "precision": 3 / 6, "recall": 3 / 4, "f1": 0.6, "yes_ratio": 6 / 8, "false_yes_rate": 3 / 4}
    )


def test_pope_when_the_model_always_says_no() -> None:
    got = values(Pope("hand", asks("yn"), Path()), ["No", "No"])
    assert got["accuracy"] == 0.5
    assert got["precision"] is None, "no yes was said: undefined, not zero"
    assert got["f1"] is None
    assert got["recall"] == 0.0


def test_an_unparsable_answer_is_wrong_but_no_yes() -> None:
    strict = Scorer("strict", "1", "here", lambda answer, _: answer if answer in ("yes", "no") else "unparsable")  # type: ignore[arg-type, return-value]
    got = values(Pope("hand", asks("yyn"), Path(), rule=strict), ["yes", "?", "?"])
    assert got == pytest.approx(
        {"accuracy": 1 / 3, "precision": 1.0, "recall": 0.5, "f1": 2 / 3, "yes_ratio": 1 / 3, "false_yes_rate": 0.0}
    )


def test_pope_limit_counts_images_and_keeps_the_beginning(world: World) -> None:
    data = load_instances(world.instances)
    questions = build(data, "popular")
    whole, part = (Pope("popular", questions, world.images, instances=data, limit=limit) for limit in (None, 2))
    assert (len(whole), len(part)) == (72, 12)
    assert [part.item(i) for i in range(12)] == [whole.item(i) for i in range(12)]
    assert part.describe()["images"] == 2
    assert part.describe()["labels"] == {"yes": 6, "no": 6}
    assert part.describe()["questions_sha256"] != whole.describe()["questions_sha256"]
    assert part.item(0).meta["boxes"], "a question about a present object knows where it is"
    assert not part.item(1).meta["boxes"]


def chair_of(objects: dict[str, tuple[str, ...]], captions: dict[str, tuple[str, ...]] | None = None) -> Chair:
    names = tuple(sorted({name for row in objects.values() for name in row}))
    instances = Instances("hand.json", "0", tuple(objects), names, objects, {}, {})
    return Chair(instances, Captions("c.json", "0", captions) if captions else None, Path())


def test_chair_by_hand() -> None:
    chair = chair_of({"a.jpg": ("dog", "cat"), "b.jpg": ("dog", "bus")}, {"a.jpg": ("A puppy on a sofa.",)})
    said = {
        "a.jpg": "A dog and a dog on a couch near two cars.",  # 4 mentions, the cars are not there; 11 words
        "b.jpg": "A dog.",  # 1 mention, the bus is missing; 2 words
    }
    got = values(chair, [said[chair.item(index).image] for index in range(2)])
    # true kinds: a {dog, cat, couch}, b {dog, bus}; named: a {dog, couch, car}, b {dog}
    assert got == pytest.approx(
        {
            "chair_i": 1 / 5,
            "chair_s": 1 / 2,
            "recall": 3 / 5,
            "precision": 3 / 4,
            "f1": 2 * 0.6 * 0.75 / 1.35,
            "length": 6.5,
        }
    )


def test_chair_says_which_mentions_are_wrong() -> None:
    chair = chair_of({"a.jpg": ("dog",)})
    score = chair.score(chair.item(0), "Dogs and cats.")
    assert score.verdict == "hallucinated"
    assert score.details["objects"] == ["dog"]
    assert score.details["mentions"] == [
        {"word": "Dogs", "object": "dog", "at": [0, 4], "hallucinated": False},
        {"word": "cats", "object": "cat", "at": [9, 13], "hallucinated": True},
    ]


def test_chair_counts_by_object() -> None:
    chair = chair_of({"a.jpg": ("dog", "cat"), "b.jpg": ("dog",)})
    said = {"a.jpg": "A dog, a dog and a car.", "b.jpg": "A cat and cars."}
    records = []
    for index in range(2):
        item = chair.item(index)
        score = chair.score(item, said[item.image])
        shown = ("chair", "m", item.id, item.image, item.prompt, "done")
        records.append(Record(*shown, answer=said[item.image], details=score.details))
    extras = chair.extras(records)
    assert list(extras["objects"].items()) == [
        ("car", {"mentions": 2, "hallucinated": 2, "present": 0, "found": 0}),
        ("cat", {"mentions": 1, "hallucinated": 1, "present": 1, "found": 0}),
        ("dog", {"mentions": 2, "hallucinated": 0, "present": 2, "found": 1}),
    ]
    assert extras["notes"] == ["named most often where they are not: car 2 of 2, cat 1 of 1 mentions"]


def test_chair_answers_carry_the_image_numbers(world: World) -> None:
    chair = Chair(load_instances(world.instances), None, world.images, limit=1)
    item = chair.item(0)
    text = chair.answers([Record("chair", "m", item.id, item.image, "", "done", answer="A\ndog.")])["captions.jsonl"]
    assert json.loads(text) == {"image_id": 100 + int(item.image[:3]), "caption": "A\ndog."}
    assert text.count("\n") == 1


def test_chair_as_the_original_reads(world: World) -> None:
    data = load_instances(world.instances)
    original = Chair(data, None, world.images, original=True)
    assert original.describe()["scorer"]["strict_original"] is True
    assert original.describe()["instances"] == "instances.json"
    item = original.item(0)
    assert original.score(item, "A hot-dog.").counts["mentions"] == 0
    assert Chair(data, None, world.images).score(item, "A hot-dog.").counts["mentions"] == 1


def test_an_empty_caption_hallucinates_nothing_and_finds_nothing() -> None:
    got = values(chair_of({"a.jpg": ("dog",)}), [""])
    assert got["chair_s"] == 0.0
    assert got["chair_i"] is None
    assert got["recall"] == 0.0
    assert got["length"] == 0.0


def test_chair_truth_is_annotations_and_captions(world: World) -> None:
    instances, captions = load_instances(world.instances), load_captions(world.captions)
    with_captions = Chair(instances, captions, world.images)
    alone = Chair(instances, None, world.images)
    for index in range(len(with_captions)):
        item = with_captions.item(index)
        assert set(item.meta["objects"]) == {*world.objects[item.image], "bowl"}
        assert set(alone.item(index).meta["objects"]) == set(world.objects[alone.item(index).image])
    assert with_captions.describe()["questions_sha256"] != alone.describe()["questions_sha256"]
    assert with_captions.describe()["images_without_captions"] == 0
    assert alone.describe()["images_without_captions"] == 12


def test_chair_outside_the_eighty_categories() -> None:
    assert chair_of({"a.jpg": ("dog", "dragon")}).describe()["categories_outside"] == ["dragon"]
    with pytest.raises(MmattnError, match="none of the 80 COCO categories"):
        chair_of({"a.jpg": ("dragon",)})


def records_of(rows: dict[str, list[bool]]) -> list[Record]:
    pope = Pope("hand", asks("y"), Path())
    item = pope.item(0)
    return [
        Record("pope", "m", f"{image}{n}", image, "", "done", counts=pope.score(item, "Yes" if right else "No").counts)
        for image, answers in rows.items()
        for n, right in enumerate(answers)
    ]


METRICS = Pope("hand", asks("y"), Path()).metrics


def test_intervals_resample_images_not_questions() -> None:
    """Two images, each answered all right or all wrong: a resample is 0, 1/2 or 1, however many questions there are."""
    few = stats.estimates(stats.Counts.of(records_of({"a": [True] * 3, "b": [False] * 3})), METRICS)["accuracy"]
    many = stats.estimates(stats.Counts.of(records_of({"a": [True] * 90, "b": [False] * 90})), METRICS)["accuracy"]
    assert few == many == stats.Estimate(0.5, 0.0, 1.0)


def test_interval_against_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    rows = {f"{i:03d}": [bool(x) for x in rng.random(4) < 0.8] for i in range(60)}
    got = stats.estimates(stats.Counts.of(records_of(rows)), METRICS)["accuracy"]
    names = list(rows)
    means = [np.mean([x for name in rng.choice(names, len(names)) for x in rows[name]]) for _ in range(3000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert got.value == pytest.approx(np.mean([x for row in rows.values() for x in row]))
    assert got.low == pytest.approx(low, abs=0.012)
    assert got.high == pytest.approx(high, abs=0.012)


def test_differences_are_paired() -> None:
    """A method that is right on exactly one more answer of every image differs by the same in every resample."""
    rng = np.random.default_rng(2)
    base = {f"{i}": [bool(x) for x in rng.random(3) < 0.5] + [False] for i in range(30)}
    ours = {image: [*row[:-1], True] for image, row in base.items()}
    gap = stats.differences(stats.Counts.of(records_of(ours)), stats.Counts.of(records_of(base)), METRICS)["accuracy"]
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.25, 0.25, 0.25))


def test_differences_use_the_images_of_both() -> None:
    ours = stats.Counts.of(records_of({"a": [True], "b": [True]}))
    base = stats.Counts.of(records_of({"b": [False], "c": [True]}))
    assert stats.differences(ours, base, METRICS)["accuracy"] == stats.Estimate(1.0)
    assert stats.differences(ours, stats.Counts.of([]), METRICS) == {}


def test_one_image_has_no_interval() -> None:
    one = stats.estimates(stats.Counts.of(records_of({"a": [True, False]})), METRICS)["accuracy"]
    assert one == stats.Estimate(0.5)
    assert stats.estimates(stats.Counts.of([]), METRICS) == {}
