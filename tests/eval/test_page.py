"""`report.html`: complete, and in need of nothing but a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmattn.errors import MmattnError
from mmattn.eval import cases, plot
from mmattn.eval.page import page
from mmattn.eval.store import read_records
from mmattn.eval.types import Item, Record
from tests.eval.fakes import FakeModel, World
from tests.eval.runs import METHODS, benchmarks
from tests.eval.test_cli import data, invoke


class Page(HTMLParser):
    """Tags that point elsewhere, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def drawn(world: World, undisturbed: Path, model: Any = None) -> tuple[list[cases.Case], str]:
    results = json.loads((undisturbed / "results.json").read_text())
    chosen = cases.choose(benchmarks(world), read_records(undisturbed / "samples.jsonl")[0], METHODS)
    pictures = [(case, cases.drawn(model or FakeModel(), case)) for case in chosen]
    return chosen, page(results, plot.tradeoff(results["metrics"]), pictures)


def test_the_page_needs_nothing_else(world: World, undisturbed: Path) -> None:
    chosen, text = drawn(world, undisturbed)
    found = Page(text)
    assert len(found.addresses) == 1 + 2 * len(chosen)
    assert all(re.match(r"data:image/(png|jpeg);base64,", one) for one in found.addresses)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert "http" not in text
    for one in found.addresses:
        with Image.open(io.BytesIO(base64.b64decode(one.split(",")[1]))) as picture:
            picture.load()
    results = json.loads((undisturbed / "results.json").read_text())
    for word in ("pope-random (3 images, 18 questions)", "CHAIR_i", "McNemar", "vision tower and prefill twice"):
        assert word in found.text
    assert f"{100 * results['metrics']['chair']['vcd']['recall']['value']:.1f} (" in found.text
    assert f"{results['differences']['mcnemar']['pope-random']['vcd']['p']:.3g}" in found.text
    for case in chosen:
        for word in (case.item.prompt, case.ours.answer, case.base.answer):
            assert word in found.text


def test_what_was_said_stays_text(world: World, undisturbed: Path) -> None:
    """A question or an answer may hold anything, a script included."""
    results = json.loads((undisturbed / "results.json").read_text())
    evil = "<script>alert(1)</script>"
    records = [Record("chair", name, evil, "000.png", evil, "done", answer=evil) for name in METHODS]
    item = Item(evil, "000.png", world.images / "000.png", evil)
    text = page(results, b"", [(cases.Case(item, *records, gain=1.0), {})])
    assert "script" not in Page(text).tags
    assert evil in Page(text).text


def test_wins_and_losses_are_what_they_say(world: World, undisturbed: Path) -> None:
    chosen, _ = drawn(world, undisturbed)
    assert chosen
    for case in chosen:
        assert (case.ours.benchmark, case.ours.id) == (case.base.benchmark, case.base.id)
        assert (case.base.method, case.ours.method) == METHODS
        if case.ours.benchmark == "chair":
            wrong = [sum(m["hallucinated"] for m in one.details["mentions"]) for one in (case.ours, case.base)]
            assert (wrong[0] < wrong[1]) == (case.gain > 0)
        else:
            assert case.ours.details["correct"] == (case.gain > 0) != case.base.details["correct"]
    for benchmark in ("pope-random", "pope-popular"):
        wins = [case for case in chosen if case.ours.benchmark == benchmark and case.gain > 0]
        assert len(wins) <= 3
        lines = read_records(undisturbed / "samples.jsonl")[0]
        right = {(r.method, r.id) for r in lines if r.benchmark == benchmark and r.details["correct"]}
        possible = {r.image for r in lines if ("vcd", r.id) in right and ("greedy", r.id) not in right and
                    r.benchmark == benchmark}  # fmt: skip
        assert len({case.item.image for case in wins}) == min(3, len(possible)), "of different pictures"


class Blind(FakeModel):
    def attend(self, *_: Any, **__: Any) -> Any:
        raise MmattnError("Cannot look", "Look away.")


def test_a_page_without_heat_maps_says_why(world: World, undisturbed: Path, tmp_path: Path) -> None:
    chosen, text = drawn(world, undisturbed, Blind())
    assert len(Page(text).addresses) == 1 + len(chosen)
    assert "No heat map: Cannot look" in text
    gone = cases.Case(Item("1", "x.png", tmp_path / "x.png", "?"), chosen[0].ours, chosen[0].base, 1.0)
    assert "does not exist" in cases.drawn(FakeModel(), gone)["problem"]


def test_a_caption_is_read_token_by_token_and_an_answer_at_its_beginning(world: World, undisturbed: Path) -> None:
    given: list[Any] = []

    class Watched(FakeModel):
        def attend(self, image: Any, prompt: str, answer: Any = None, *, method: Any = None) -> Any:
            given.append((answer, method))
            return super().attend(image, prompt, answer, method=method)

    chosen, _ = drawn(world, undisturbed, Watched())
    expected = [(case.ours.answer if case.ours.benchmark == "chair" else None, "vcd") for case in chosen]
    assert given == expected
    assert {answer is None for answer, _ in given} == {True, False}


def estimate(value: float | None) -> dict[str, Any]:
    return {"value": value, "low": value and value - 0.1, "high": value and value + 0.1}


def test_the_plot_shows_recall_against_what_is_invented(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    points: list[Any] = []
    lines: list[Any] = []
    monkeypatch.setattr(Axes, "errorbar", lambda _, x, y, **named: points.append((named["label"], x, y)))
    monkeypatch.setattr(Axes, "plot", lambda _, x, y, **named: lines.append((list(x), list(y))))
    monkeypatch.setattr(Axes, "legend", lambda *_, **__: None)
    methods = {
        "a": {"chair_i": estimate(0.2), "recall": estimate(0.5)},
        "b": {"chair_i": estimate(0.1), "recall": estimate(0.25)},
        "mute": {"chair_i": estimate(None), "recall": estimate(0.0)},
    }
    other = {"a": {"accuracy": estimate(0.5)}}
    picture = plot.tradeoff({"chair": methods, "mme": other}, curves=[["b", "mute", "a"]])
    assert points == [("a", 20, 50), ("b", 10, 25)]
    assert [np.allclose(one, (10, 20)) or np.allclose(one, (25, 50)) for one in lines[0]] == [True, True]
    assert picture.startswith(b"\x89PNG")
    assert plot.tradeoff({"mme": other}) == b""


def test_the_command_writes_the_page(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmattn.cli.running.load_model", lambda *_: FakeModel())
    result = invoke("pope", *data(world), "--out", tmp_path, "--method", "greedy,vcd,vcd(alpha=0.5)", "--limit", 3)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.html").read_text()
    assert "vcd(alpha=0.5)" in text
    assert len(text) < 3_000_000
