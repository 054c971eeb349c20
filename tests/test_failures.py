"""How methods fail when they are turned up: what docs/methods.md says of it, seen on the bundled model."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import mmattn
from mmattn import scenes
from mmattn.eval import Chair, Pope, build, load_captions, load_instances

PICTURES = 4


@pytest.fixture(scope="module")
def bundled() -> mmattn.VLM:
    return mmattn.load("scenes-llava", device="cpu")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Captions and adversarial questions about a few pictures."""
    world = scenes.dataset("tune", root=tmp_path_factory.mktemp("tune"), count=PICTURES)
    instances = load_instances(world.instances)
    chair = Chair(instances, load_captions(world.captions), world.images, limit=PICTURES, max_new_tokens=70)
    questions = build(instances, "adversarial", 0)
    return chair, Pope("adversarial", questions, world.images, instances=instances, limit=PICTURES)


@functools.cache
def measured(vlm: mmattn.VLM, benchmark: Any, method: str) -> dict[str, float]:
    """The benchmark's metrics of one method, and the part of answers that were cut off."""
    items = [benchmark.item(index) for index in range(len(benchmark))]
    answers = vlm.generate(
        [item.path for item in items], [item.prompt for item in items], method=method, batch_size=24,
        max_new_tokens=benchmark.max_new_tokens,
    )  # fmt: skip
    counts = [benchmark.score(item, one.text).counts for item, one in zip(items, answers, strict=True)]
    names = {name for one in counts for name in one}
    totals = {name: np.array(sum(one.get(name, 0) for one in counts)) for name in names}
    cut = sum(one.finish_reason == "length" for one in answers) / len(answers)
    return {**{name: float(value) for name, value in benchmark.metrics(totals).items()}, "cut": cut}


@pytest.fixture(scope="module")
def greedy(bundled: mmattn.VLM, asked: tuple[Any, Any]) -> tuple[dict[str, float], dict[str, float]]:
    captions, questions = (measured(bundled, one, "greedy") for one in asked)
    assert captions["recall"] > 0.9
    assert questions["accuracy"] > 0.9
    return captions, questions


@pytest.mark.parametrize("method", ["boost(strength=1000)", "vhr(alpha=4)", "pasta"])
def test_collapse(bundled: mmattn.VLM, asked: Any, greedy: Any, method: str) -> None:
    """Captions lose most of what is there; CHAIR alone would call some of them clean."""
    found = measured(bundled, asked[0], method)
    assert found["recall"] < 0.75 * greedy[0]["recall"]


def test_the_cut_of_implausible_tokens_prevents_it(bundled: mmattn.VLM, asked: Any, greedy: Any) -> None:
    assert measured(bundled, asked[0], "vcd(alpha=20, beta=0)")["recall"] < 0.5
    assert measured(bundled, asked[0], "vcd(alpha=20)")["recall"] > 0.9


def test_m3ids_weight_grows_without_bound(bundled: mmattn.VLM, asked: Any, greedy: Any) -> None:
    assert measured(bundled, asked[0], "m3id(rate=1, alpha=1)")["recall"] < 0.9
    assert measured(bundled, asked[0], "m3id(rate=1, alpha=1, beta=0.1)")["recall"] > 0.95


def test_silence_looks_clean_to_chair(bundled: mmattn.VLM, asked: Any, greedy: Any) -> None:
    found = measured(bundled, asked[0], "boost(strength=1000)")
    assert found["chair_s"] <= greedy[0]["chair_s"]
    assert found["length"] < 0.3 * greedy[0]["length"]


def test_endless_answers(bundled: mmattn.VLM, asked: Any, greedy: Any) -> None:
    assert greedy[0]["cut"] == 0
    assert measured(bundled, asked[0], "instaboost(strength=1000)")["cut"] > 0.5


def test_longer_answers_that_invent_more(bundled: mmattn.VLM, asked: Any, greedy: Any) -> None:
    """A dimmed picture hides what an object is known by."""
    found = measured(bundled, asked[0], "api")
    assert found["length"] > greedy[0]["length"]
    assert found["chair_i"] > greedy[0]["chair_i"]


def test_away_from_the_picture_it_invents(bundled: mmattn.VLM, asked: Any, greedy: Any) -> None:
    assert measured(bundled, asked[0], "boost(strength=0.01)")["chair_i"] > 0.5


def test_no_to_everything_and_yes_to_what_is_absent(bundled: mmattn.VLM, asked: Any, greedy: Any) -> None:
    assert measured(bundled, asked[1], "instaboost(strength=1000)")["yes_ratio"] < 0.2
    assert measured(bundled, asked[1], "iava(alpha=50, beta=0)")["false_yes_rate"] > greedy[1]["false_yes_rate"] + 0.1
