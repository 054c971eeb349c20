"""The program that compares all methods: its paired test, its resuming, and that it tunes on tune only."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmattn
from benchmarks import methods_table as program
from benchmarks._methods_grids import GRIDS
from benchmarks._methods_report import markdown, swapped
from mmattn.decoding import resolve
from mmattn.decoding.registry import METHODS
from mmattn.eval import stats
from tests.tiny import tiny_llava


def _counts(values: list[tuple[float, float]]) -> stats.Counts:
    return stats.Counts(tuple(f"{index}.png" for index in range(len(values))), ("part", "whole"), np.array(values))


def _rate(totals: Any) -> dict[str, Any]:
    return {"rate": totals["part"] / totals["whole"]}


def test_p_is_the_share_of_swaps_that_differ_as_much() -> None:
    ours = [(3, 4), (2, 2), (0, 3), (4, 5), (1, 1), (2, 6)]
    base = [(1, 4), (1, 2), (1, 4), (1, 5), (1, 1), (1, 5)]

    def gap(signs: tuple[int, ...]) -> float:
        first = [(a if sign else b) for sign, a, b in zip(signs, ours, base, strict=True)]
        second = [(b if sign else a) for sign, a, b in zip(signs, ours, base, strict=True)]
        rates = [sum(one[0] for one in side) / sum(one[1] for one in side) for side in (first, second)]
        return abs(rates[0] - rates[1])

    seen = gap((1,) * 6)
    exact = np.mean([gap(signs) >= seen - 1e-12 for signs in itertools.product((0, 1), repeat=6)])
    assert 0.05 < exact < 0.9
    assert swapped(_counts(ours), _counts(base), _rate)["rate"] == pytest.approx(exact, abs=0.04)
    assert swapped(_counts(ours), _counts(ours), _rate) == {"rate": 1.0}
    many = [(9, 9)] * 40
    assert swapped(_counts(many), _counts([(0, 9)] * 40), _rate)["rate"] < 0.01


def test_every_grid_can_be_read_and_begins_with_what_is_published() -> None:
    assert set(GRIDS) <= set(METHODS)
    for name, texts in GRIDS.items():
        assert {resolve(text).name for text in texts} == {name}
        assert len({resolve(text).label for text in texts}) == len(texts) >= 3


def test_tuned_and_compared_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    splits, asked = [], []
    original, evaluate, load = program.scenes.dataset, program.evaluate, mmattn.load
    monkeypatch.setattr(program.scenes, "dataset", lambda split: splits.append(split) or original(split))
    monkeypatch.setattr(program, "evaluate", lambda *a, **k: asked.append(a[2]) or evaluate(*a, **k))
    monkeypatch.setattr(mmattn, "load", lambda *a, **k: load(*a, **{**k, "device": "cpu"}))
    monkeypatch.setattr(program, "GRIDS", {"boost": ["boost", "boost(strength=1.3)"]})
    words = ["--out", str(tmp_path), "--limit", "1", "--methods", "boost", "--time-batch", "0"]
    program.main([*words, "--tune"])
    assert splits == ["tune"]
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert set(settings["methods"]["boost"]["tried"]) == {"boost", "boost(strength=1.3)"}
    settings["methods"]["boost"]["label"] = "boost(strength=1.3)"
    (tmp_path / "settings.json").write_text(json.dumps(settings))

    program.main([*words, "--seconds", "0"])
    assert "Out of time" in capsys.readouterr().err
    program.main(words)
    assert set(splits[1:]) == {"val"}
    report = json.loads((tmp_path / "methods.json").read_text())
    assert {label: row["kind"] for label, row in report["rows"].items()} == {
        "greedy": "default", "boost": "default", "boost(strength=1.3)": "tuned",
    }  # fmt: skip
    row = report["rows"]["boost"]
    assert set(row["metrics"]) == {"pope-random", "pope-popular", "pope-adversarial", "chair"}
    gap = row["metrics"]["chair"]["length"]["value"] - report["rows"]["greedy"]["metrics"]["chair"]["length"]["value"]
    assert row["differences"]["chair"]["length"]["value"] == pytest.approx(gap)
    page = (tmp_path / "methods.md").read_text()
    assert page == markdown(report)
    assert page.count("`boost(strength=1.3)` (tuned)") == 2
    lines = (tmp_path / "val" / "boost" / "samples.jsonl").read_text()
    with monkeypatch.context() as short:  # a run that is stopped after greedy loses nothing
        short.setattr(program.Budget, "allows", lambda budget: budget.longest == 0)
        program.main(words)
    assert json.loads((tmp_path / "methods.json").read_text())["rows"] == report["rows"]
    program.main(words)
    assert (tmp_path / "val" / "boost" / "samples.jsonl").read_text() == lines
    assert json.loads((tmp_path / "methods.json").read_text())["rows"] == report["rows"]


def test_a_method_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_model: Any, _benchmarks: Any, methods: list[str], *_: Any, **__: Any) -> Any:
        if methods == ["boost"]:
            raise RuntimeError("no kernel for this\nmore")
        return {"metrics": {}, "timing": {"total": 0}}

    monkeypatch.setattr(program, "evaluate", fail)
    monkeypatch.setattr(program, "judged", lambda *_: {"metrics": {}, "differences": {}, "p": {}, "seconds": 0})
    monkeypatch.setattr(program, "benchmarks_of", lambda *_: [])
    monkeypatch.setattr(program, "markdown", lambda report: "")
    args = program.arguments(["--out", str(tmp_path), "--methods", "boost,vcd", "--time-batch", "0"])
    model: Any = mmattn.wrap(*tiny_llava())
    program.compare(model, model, args, program.Budget(float("inf"), 0.0))
    rows = json.loads((tmp_path / "methods.json").read_text())["rows"]
    assert [rows[label].get("failed") for label in ("greedy", "boost", "vcd")] == [None, "no kernel for this", None]


def test_time_is_that_of_a_further_token(vlm: mmattn.VLM, pictures: list[Any], monkeypatch: Any) -> None:
    """A clock that every decoder call moves on by a second, twice for the prefill."""
    now = [0.0]
    monkeypatch.setattr(program.time, "perf_counter", lambda: now[0])

    def on_call(_module: Any, _given: Any, named: dict[str, Any], _out: Any) -> None:
        now[0] += 2 if named["inputs_embeds"].shape[1] > 1 else 1

    hook = vlm.adapter.decoder.register_forward_hook(on_call, with_kwargs=True)
    try:
        assert program.timed(vlm, "greedy", 2, pictures[:1]) == {"batch": 2, "first_ms": 2000, "token_ms": 1000}
    finally:
        hook.remove()
